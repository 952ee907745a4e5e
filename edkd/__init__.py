"""edkd: a platform for knowledge-distillation experiments.

The package root imports nothing heavy, so that command-line help, sweep planning and Hydra's plugin scan stay fast.
"""

from pathlib import Path

__version__ = "0.1.0"

_inside = Path(__file__).parent / "conf"
CONF = _inside if _inside.is_dir() else Path(__file__).parents[1] / "conf"
"""Where the configuration groups are: beside the package in a checkout, inside it when installed as a wheel."""
