"""Configurations: their allowed values, how they become objects, and the identity of the run that they describe."""
