"""Run directories while their jobs wait and run: where they are, how far they are, and when to strike."""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edkd.rundir import journal, lock
from tests.integration.lab import Command
from tests.integration.processes import PATIENCE, wait_for


def find(output: Path) -> dict[str, Path]:
    """Run directories by name, as in `kd-s0`, `resnet20/vanilla-s0` or `resnet20-resnet8/kd-s0` off the usual pair."""
    found = {}
    for path in sorted(output.glob("runs/*/*/*/config.yaml")):
        run = path.parent
        name = run.name.rpartition("-")[0]
        found[name if run.parts[-2] == "resnet14-resnet8" else f"{run.parts[-2]}/{name}"] = run
    return found


def appear(command: Command, output: Path, count: int) -> dict[str, Path]:
    """Wait until so many runs were submitted."""

    def submitted() -> dict[str, Path]:
        assert command.process.poll() is None or command.process.returncode == 0, command.said()
        found = {name: run for name, run in find(output).items() if (run / "slurm.json").exists()}
        return found if len(found) == count else {}

    return wait_for(f"{count} submitted runs in {output}", submitted)


def job_of(run: Path) -> str:
    """The SLURM job that was submitted for a run."""
    return str(json.loads((run / "slurm.json").read_text())["job_id"])


def starts(run: Path) -> list[journal.Record]:
    """The start records of a run."""
    return [record for record in journal.read(run) if record["event"] == "start"]


def epochs_since_start(run: Path) -> int:
    """How many epochs the present attempt at a run has done."""
    events = [record["event"] for record in journal.read(run)]
    last = max((number for number, event in enumerate(events) if event == "start"), default=len(events))
    return events[last:].count("epoch")


def process_of(run: Path) -> int:
    """The process that holds a run's directory."""
    holder = lock.is_held(run)
    assert holder is not None, f"nobody holds {run}"
    return int(holder["pid"])


def disturb(plans: Mapping[str, tuple[Callable[[], bool], Callable[[], object]]]) -> None:
    """Do each thing as soon as its moment has come, none waiting for another: {name: (has it come?, what to do)}."""

    def strike(name: str, come: Callable[[], bool], act: Callable[[], object]) -> None:
        wait_for(f"the moment of {name}", come, patience=2 * PATIENCE)
        act()

    with ThreadPoolExecutor(len(plans)) as pool:
        struck = [pool.submit(strike, name, *plan) for name, plan in plans.items()]
    for each in struck:
        each.result()


def finished(run: Path) -> bool:
    """Whether a run is done."""
    return journal.state(run).status == "finished"


def running_at(run: Path, epochs: int, attempt: int = 1) -> Callable[[], bool]:
    """Whether this attempt at a run (the first, the second, ...) has done so many epochs."""
    return lambda: len(starts(run)) == attempt and epochs_since_start(run) >= epochs


def summary(said: str) -> dict[str, str]:
    """What the summary of a sweep says about each run that is not done, by the run's name without pair and hash."""
    lines = [line.strip().partition(" ") for line in said.splitlines() if line.startswith("  digits-")]
    return {name.rpartition("/")[2].rpartition("-")[0]: told for name, _, told in lines}


def repeated(run: Path) -> list[int]:
    """How many epochs that were in the journal each further attempt at a run computed again."""
    counts, last = [], 0
    for record in journal.read(run):
        if record["event"] == "epoch":
            last = record["epoch"]
        elif record["event"] == "start":
            counts.append(last - record["resumed_from"])
    return counts
