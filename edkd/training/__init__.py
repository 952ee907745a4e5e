"""One training run on one machine: the step, the epoch, the optimiser, and the device they use."""
