"""What a run's directory holds: its journal, lock, checkpoints and code, and the packed form of its results."""
