"""From a planned job to a finished run: gathering inputs, training, stopping and resuming, evaluating."""
