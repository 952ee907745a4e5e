"""How fast this machine trains: our step against the plain loop that a careful reader would write from the papers.

`plain` is that loop, `workload` holds the inputs of every mode, and `modes` runs the modes. `measure` reads clocks and
memory, `costs` measures what surrounds the steps, and `table` shows everything. `streaming` compares loader and step
for images from files, `processes` a run in several processes with one, and `contention` a run of many threads with
runs of one thread on cores that others use. `turns` alternates the measurements that are compared.
"""
