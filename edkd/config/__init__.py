"""Configurations: what they may say, how they become objects, and the identity of the run that they describe."""
