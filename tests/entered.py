"""The project's own files that one command enters between `launch.py -m …` and its first training step.

    python tests/entered.py

A file counts once a function of it is called; what the import of a module computes does not count.
"""

import inspect
import runpy
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COMMAND = (
    "-m distiller=vanilla student=resnet8 dataset=digits dataset.image_size=8 dataset.train_per_class=8 "
    "dataset.test_per_class=4 schedule=short schedule.epochs=1 schedule.batch_size=16 engine.device=cpu "
    "engine.threads=1 tracking=journal"
)


def main() -> None:
    """Run the command in a temporary folder and print the files, in the order in which they are entered."""
    entered: dict[str, None] = {}
    stopped = False

    def seen(frame: FrameType, event: str, _: Any) -> None:
        nonlocal stopped
        path = Path(frame.f_code.co_filename)
        is_function = frame.f_code.co_flags & inspect.CO_OPTIMIZED  # neither a module nor the body of a class
        is_nameless = frame.f_code.co_name.startswith("<")  # a comprehension or a lambda: perhaps run by an import
        if stopped or event != "call" or not is_function or is_nameless or not path.is_relative_to(ROOT):
            return
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(("edkd/", "hydra_plugins/")) or name == "launch.py":
            entered[name] = None
            stopped = name == "edkd/training/step.py" and frame.f_code.co_name == "__call__"

    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["launch.py", *COMMAND.split(), f"output={folder}"]
        threading.setprofile(seen)
        sys.setprofile(seen)
        try:
            runpy.run_path(str(ROOT / "launch.py"), run_name="__main__")
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    print(*entered, f"{len(entered)} files", sep="\n")


if __name__ == "__main__":
    main()
