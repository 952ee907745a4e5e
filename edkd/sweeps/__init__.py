"""Many runs: planning, launching, watching and repeating them; and one run by hand. Hydra is known here."""
