"""How fast this machine trains: our step against the plain loop that a careful reader would write from the papers.

`plain` is that loop, `workload` holds what every mode is given, `modes` runs each of them, `processes` runs some beside
this process; `costs` measures what surrounds the step, `floor` the best that a device could do, `table` shows it all.
"""
