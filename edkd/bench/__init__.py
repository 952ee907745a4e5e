"""How fast this machine trains: our step against the plain loop that a careful reader would write from the papers.

`plain` is that loop; `workload` prepares pair and method for every way to train, `modes` runs each of them, `costs`
measures what surrounds the step, `floor` what the device could do at best; `results` is the arithmetic, `table` what a
person reads, and `main` puts them in order. Nothing but the command line uses this package.
"""
