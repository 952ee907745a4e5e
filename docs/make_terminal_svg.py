"""Draw what a terminal shows after `make demo`: `python docs/make_terminal_svg.py` writes terminal.svg beside it."""

import io
import os
import subprocess
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 100
COMMANDS = (
    "python launch.py -m experiment=demo distiller=kd,edkd pair=vgg13-vgg8,wrn_40_2-wrn_16_2 seed=0,1 +dry_run=true",
    "edkd status --distiller vanilla,edkd",
    "edkd teachers list",
    "python launch.py -m experiment=demo distiller=vanilla,kd,dkd,edkd "
    "pair=vgg13-vgg8,resnet32x4-resnet8x4,wrn_40_2-wrn_16_2 | tail -n 9",
)


def main() -> None:
    """Write the picture beside this file."""
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    environment = {**os.environ, "COLUMNS": str(WIDTH), "FORCE_COLOR": "1"}
    for command in COMMANDS:
        shown = subprocess.run(command, shell=True, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        console.print(Text.assemble(("$ ", "green"), (command, "bold")))
        console.print(Text.from_ansi(shown.stdout.rstrip()), "", sep="\n")
    console.save_svg(str(Path(__file__).with_name("terminal.svg")), title="edkd")


if __name__ == "__main__":
    main()
