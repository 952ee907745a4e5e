"""Tests on a real SLURM, booted on this machine for them and stopped afterwards: `make test-slurm`."""
