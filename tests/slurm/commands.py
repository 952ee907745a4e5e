"""Sweeps that are handed to SLURM, and what was submitted."""

import json
from pathlib import Path
from typing import Any

from tests.commandline import Ended, launch


def slurm(tiny: list[str], *arguments: str, launcher: str = "slurm_detached") -> Ended:
    return launch("-m", *tiny, f"hydra/launcher={launcher}", "hydra.launcher.poll_s=0.1", *arguments)


def submissions(output: Path) -> dict[str, dict[str, Any]]:
    """The submissions below an output folder, by `<pair>/<method>-s<seed>`."""
    found = {}
    for path in sorted((output / "runs").glob("*/*/*/slurm.json")):
        found[f"{path.parts[-3]}/{path.parts[-2].rpartition('-')[0]}"] = json.loads(path.read_text())
    return found


def flags(script: str) -> dict[str, str]:
    """The options of sbatch that a script sets."""
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}
