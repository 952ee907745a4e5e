"""Whatever stops a run, and wherever: started again, it ends with the same bits as a run that nothing stopped."""

import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edkd.config.job import Job, make_job, thaw
from edkd.errors import EdkdError
from edkd.rundir import checkpoint, journal, lock
from edkd.rundir.paths import checkpoints
from edkd.runs import run
from tests.commandline import REPOSITORY

EPOCHS = 10
KEY = "digits-8-20perclass-test10-val0.1"
PARTIAL = ".checkpoint.pt.tmp"
KILLED = -signal.SIGKILL

# Starts launch.py again and again, each time in a process of its own, forked from one that has done the imports: such
# a process can be killed as cheaply as it deserves. Reads an order a line, says the pid, waits, says how it ended.
# `limit` is the largest file that the process may write; `die` = [call, name, n] kills it when it is about to make the
# n-th such call: to os.fsync, or to Path.replace or Path.unlink for a file of that name.
NURSERY = """
import json, os, pathlib, resource, runpy, signal, sys
import hydra, hydra.core.plugins, joblib, sklearn.datasets, torch._dynamo, torch._inductor, PIL.Image
import edkd.cli.launch, edkd.config.job, edkd.runs.run, edkd.sweeps.single
hydra.core.plugins.Plugins.instance()

def deadly(owner, call, name, left):
    original = getattr(owner, call)
    def called(first, *others, **options):
        nonlocal left
        left -= name is None or first.name == name
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(first, *others, **options)
    setattr(owner, call, called)

for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if pid == 0:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        if order["limit"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], order["limit"]))
        if order["die"]:
            deadly(os if order["die"][0] == "fsync" else pathlib.Path, *order["die"])
        sys.argv = ["launch.py", *order["argv"]]
        code = 0
        try:
            runpy.run_path("launch.py", run_name="__main__")
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 70
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

Death = tuple[str, str | None, int]


class Nursery:
    """Real processes of launch.py, one at a time."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self.log = process, log

    def start(self, *argv: str, limit: int = 0, die: Death | None = None) -> int:
        """Start one; its process id."""
        assert self.process.stdin is not None
        order = {"argv": argv, "log": str(self.log), "limit": limit, "die": die}
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return self._number()

    def wait(self) -> int:
        """How it ended: its exit code, or minus the signal."""
        return self._number()

    def run(self, *argv: str, limit: int = 0, die: Death | None = None) -> int:
        """Start one and wait for it."""
        self.start(*argv, limit=limit, die=die)
        return self.wait()

    def _number(self) -> int:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the nursery died; its traceback is above"
        return int(line)


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY],
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Nursery(process, tmp_path_factory.mktemp("nursery") / "log")
        process.communicate()


def arguments(output: Path, *overrides: str) -> list[str]:
    """A student of EDKD, whose best epoch a held-out part chooses."""
    return [
        "dataset=digits",
        "dataset.image_size=8",
        "dataset.train_per_class=20",
        "dataset.test_per_class=10",
        "dataset.validation=0.1",
        "teacher=resnet8",
        "student=resnet8",
        "teacher_seed=0",
        "schedule=short",
        f"schedule.epochs={EPOCHS}",
        "schedule.milestones=[4]",
        "allow_weak_teacher=true",
        "engine.device=cpu",
        "engine.threads=1",
        "tracking=journal",
        f"output={output}",
        *overrides,
    ]


@pytest.fixture(scope="module")
def undisturbed(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with a teacher and a student that nothing stopped."""
    output = tmp_path_factory.mktemp("undisturbed")
    assert nursery.run(*arguments(output, "distiller=vanilla", "schedule.epochs=2")) == 0, nursery.log.read_text()
    shutil.copytree(output, output.with_name("taught"))
    assert nursery.run(*arguments(output, "distiller=edkd")) == 0, nursery.log.read_text()
    return output


@pytest.fixture
def output(undisturbed: Path, tmp_path: Path) -> Path:
    """An output folder with that teacher alone."""
    return Path(shutil.copytree(undisturbed.with_name("taught"), tmp_path / "outputs"))


def directory(output: Path) -> Path | None:
    """Where the student's run is, once it has begun."""
    return next((output / "runs" / KEY / "resnet8-resnet8").glob("edkd-s0-*"), None)


def results(output: Path) -> dict[str, Any]:
    """All that a run results in, bit for bit."""
    folder = directory(output)
    assert folder is not None
    state = journal.state(folder)
    assert state.end is not None
    return {
        "metrics": {epoch: record["metrics"] for epoch, record in journal.epochs(folder).items()},
        "end": {name: state.end[name] for name in ("last", "best", "num_classes")},
        **{name: (folder / name).read_bytes() for name in ("last.pt", "best.pt")},
    }


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    return [name for name in expected if found[name] != expected[name]]


def events(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    return [record for record in journal.read(folder) if record["event"] in kinds]


# --- killed ---


def wait_until(condition: Callable[[], bool], pid: int) -> None:
    """Look every few milliseconds; give up when the process is gone."""
    until = time.monotonic() + 60
    while not condition() and time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.002)


def lines(output: Path) -> int:
    """How many records the student's journal has."""
    folder = directory(output)
    path = folder / "journal.jsonl" if folder else None
    return path.read_bytes().count(b"\n") if path and path.exists() else 0


def killed_from_outside(nursery: Nursery, output: Path, *, epochs: int, delay: float) -> int:
    """Start the student, and kill it so many seconds after it journalled so many epochs; how it ended."""
    before = lines(output)
    pid = nursery.start(*arguments(output, "distiller=edkd"))
    if epochs:
        wait_until(lambda: lines(output) > before + epochs, pid)  # a start, and the epochs
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return nursery.wait()


def test_a_run_that_is_killed_again_and_again(nursery: Nursery, undisturbed: Path, output: Path) -> None:
    chance, command = random.Random(7), arguments(output, "distiller=edkd")

    # Before its first checkpoint; with a new one written and not yet in place; with the old one moved, the new one not.
    assert nursery.run(*command, die=("replace", PARTIAL, 1)) == KILLED
    folder = directory(output)
    assert folder is not None
    path = folder / "checkpoint.pt"
    assert not path.exists()
    assert nursery.run(*command, die=("replace", "checkpoint.pt", 1)) == KILLED
    assert path.exists()
    assert (folder / PARTIAL).exists()
    assert nursery.run(*command, die=("replace", PARTIAL, 2)) == KILLED
    assert not path.exists()
    assert checkpoint.previous(path).exists()

    # At moments that nobody chose: a call that the kernel waits for, any time after the start, any time after an epoch.
    ends = [nursery.run(*command, die=("fsync", None, chance.randrange(3, 10)))]
    ends.append(killed_from_outside(nursery, output, epochs=2, delay=chance.uniform(0, 0.05)))
    ends.append(killed_from_outside(nursery, output, epochs=0, delay=chance.uniform(0, 0.7)))
    ends.append(killed_from_outside(nursery, output, epochs=1, delay=chance.uniform(0, 0.05)))
    assert set(ends) <= {KILLED, 0}  # a fast machine may be done by now
    assert ends.count(KILLED) >= 2
    # Trained to the end, but nothing handed over yet.
    assert nursery.run(*command, die=("replace", ".last.pt.tmp", 1)) in (KILLED, 0)
    # Finished, and its checkpoints not removed yet.
    assert nursery.run(*command, die=("unlink", "checkpoint.pt", 1)) in (KILLED, 0)
    assert journal.state(folder).status == "finished"
    assert nursery.run(*command) == 0, nursery.log.read_text()
    assert checkpoints(folder) == []

    resumed = [record["resumed_from"] for record in events(folder, "start")]
    assert resumed[:4] == [0, 0, 1, 2]
    assert resumed == sorted(resumed)
    assert len(resumed) >= 5
    assert lock.is_held(folder) is None
    assert differences(results(output), results(undisturbed)) == []


def test_a_run_that_is_killed_after_its_best_epoch(nursery: Nursery, undisturbed: Path, output: Path) -> None:
    best = min(results(undisturbed)["end"]["best"]["epoch"], EPOCHS - 1)  # which epoch it is depends on the CPU
    command = arguments(output, "distiller=edkd")
    assert nursery.run(*command, die=("replace", PARTIAL, best + 1)) == KILLED
    assert nursery.run(*command) == 0, nursery.log.read_text()
    folder = directory(output)
    assert folder is not None
    assert [record["resumed_from"] for record in events(folder, "start")] == [0, best]
    assert differences(results(output), results(undisturbed)) == []


# --- damage and full disks ---


@pytest.fixture(scope="module")
def killed(nursery: Nursery, undisturbed: Path) -> Path:
    """An output folder with that teacher, and the student killed after some epochs, but not all."""
    output = Path(shutil.copytree(undisturbed.with_name("taught"), undisturbed.with_name("killed")))
    assert nursery.run(*arguments(output, "distiller=edkd"), die=("replace", "checkpoint.pt", 4)) == KILLED
    return output


@pytest.fixture
def halfway(killed: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(killed, tmp_path / "outputs"))


def job_of(output: Path) -> Job:
    folder = directory(output)
    assert folder is not None
    job, _ = thaw(folder / "config.yaml")
    return make_job(job.config | {"output": str(output)}, "edkd", job.teacher_id)


def test_a_damaged_checkpoint_costs_one_epoch(nursery: Nursery, undisturbed: Path, halfway: Path) -> None:
    folder = directory(halfway)
    assert folder is not None
    path = folder / "checkpoint.pt"
    saved, kept = checkpoint.load(path), checkpoint.load(checkpoint.previous(path))
    assert saved is not None
    assert kept is not None
    assert (saved[0]["epoch"], kept[0]["epoch"]) == (4, 3)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    assert nursery.run(*arguments(halfway, "distiller=edkd")) == 0, nursery.log.read_text()
    assert [record["resumed_from"] for record in events(folder, "start")] == [0, 3]
    log = (folder / "run.log").read_text()
    assert f"{path} is damaged (its checksum does not match); continuing from {checkpoint.previous(path)}" in log
    assert differences(results(halfway), results(undisturbed)) == []


def test_checkpoints_that_are_gone_are_missed(nursery: Nursery, halfway: Path) -> None:
    folder = directory(halfway)
    assert folder is not None
    for path in folder.glob("checkpoint*"):
        path.unlink()
    assert nursery.run(*arguments(halfway, "distiller=edkd")) == 0, nursery.log.read_text()
    assert [record["resumed_from"] for record in events(folder, "start")] == [0, 0]
    said = rf"WARNING {folder} had reached epoch [45] and has no checkpoint: it is trained anew"
    assert re.search(said, (folder / "run.log").read_text())


def test_two_damaged_checkpoints_are_an_error_not_a_new_beginning(halfway: Path) -> None:
    folder = directory(halfway)
    assert folder is not None
    for path in (folder / "checkpoint.pt", folder / "checkpoint.prev.pt"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EdkdError, match="^no usable checkpoint: "):
        run.execute(job_of(halfway), sweep=None, show=False)
    assert journal.state(folder).status == "failed"


def test_a_full_disk_while_a_checkpoint_is_saved(nursery: Nursery, undisturbed: Path, halfway: Path) -> None:
    folder = directory(halfway)
    assert folder is not None
    path = folder / "checkpoint.pt"
    before = path.read_bytes()
    limit = len(before) - 1000  # more than the weights alone, less than the weights and the optimiser
    assert (folder / "best.pt").stat().st_size < limit
    assert nursery.run(*arguments(halfway, "distiller=edkd", "engine.teacher_cache=false"), limit=limit) == 1
    told = nursery.log.read_text().splitlines()
    reason = f"could not save {path}: {os.strerror(errno.EFBIG)}"
    assert [line for line in told if line.startswith("edkd: ")] == [told[-1]]
    assert told[-1].startswith(f"edkd: {reason}")
    assert not any("Traceback" in line for line in told)
    assert path.read_bytes() == before
    assert not (folder / PARTIAL).exists()
    state = journal.state(folder)
    assert state.status == "failed"
    assert str(state.error).startswith(reason)
    assert state.epoch == 5  # trained and journalled, not saved: it is repeated
    assert nursery.run(*arguments(halfway, "distiller=edkd")) == 0, nursery.log.read_text()
    assert differences(results(halfway), results(undisturbed)) == []


def test_a_disk_too_full_for_the_journal_too(halfway: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = directory(halfway)
    assert folder is not None
    append = journal.Journal.append

    def full(self: journal.Journal, record: dict[str, Any]) -> None:
        if record["event"] != "start":
            raise EdkdError(f"could not write the journal {self.path}: {record['event']}")
        append(self, record)

    monkeypatch.setattr(journal.Journal, "append", full)
    with pytest.raises(EdkdError, match=r"could not write the journal .*: epoch$"):  # the first error, not the last
        run.execute(job_of(halfway), sweep=None, show=False)
    assert lock.is_held(folder) is None
