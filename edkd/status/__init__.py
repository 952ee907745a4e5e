"""What became of runs: the one verdict on each, choosing among them, and showing them."""
