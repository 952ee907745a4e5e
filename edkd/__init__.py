"""edkd: a platform for knowledge-distillation experiments.

The package root imports nothing heavy, so that command-line help, sweep planning and Hydra's plugin scan stay fast.
"""

__version__ = "0.1.0"
