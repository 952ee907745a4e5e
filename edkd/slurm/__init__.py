"""Runs on SLURM: submitting them, asking the queue about them, and what a job does when SLURM stops it."""
