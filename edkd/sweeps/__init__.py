"""Many runs: planning, launching, watching and repeating them; and one run by hand. This package uses Hydra."""
