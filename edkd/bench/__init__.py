"""How fast this machine trains: our step against the plain loop that a careful reader would write from the papers.

`plain` is that loop, `workload` holds what every mode is given, `modes` runs each of them; `measure` reads clocks and
memory, `costs` measures what surrounds the steps, `table` shows it all. `streaming` compares loader and step where
images come from files, `processes` a run in several processes with one,
`contention` threads with single ones on cores that others use; `turns` lets what is compared take turns.
"""
