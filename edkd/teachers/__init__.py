"""Trained teachers: the store of their files, and where their logits come from, the network or the cache."""
