"""The states of runs: deciding the one state of each, selecting runs, and showing them."""
