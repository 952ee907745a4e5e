"""Draw what a terminal shows of some commands: `python docs/make_terminal_svg.py COMMAND...` writes terminal.svg.

docs/terminal.svg was made after `python launch.py -m experiment=demo distiller=kd,dkd,edkd pair=vgg13`, seven runs on
digits, with the commands that it shows.
"""

import io
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 100


def main() -> None:
    """Write the picture beside this file."""
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    environment = {**os.environ, "COLUMNS": str(WIDTH), "FORCE_COLOR": "1"}
    for command in sys.argv[1:]:
        shown = subprocess.run(command, shell=True, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        console.print(Text.assemble(("$ ", "green"), (command, "bold")))
        console.print(Text.from_ansi(shown.stdout.rstrip()), "", sep="\n")
    console.save_svg(str(Path(__file__).with_name("terminal.svg")), title="edkd")


if __name__ == "__main__":
    main()
