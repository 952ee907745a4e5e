"""Runs on SLURM: submitting jobs, asking the queue about them, and the program that a job executes."""
