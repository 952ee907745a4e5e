"""Whatever stops a run, and wherever: started again, it ends with the same bits as a run that nothing stopped."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commandline import REPOSITORY

from edkd import checkpoint, journal, plan, run
from edkd.errors import EdkdError

EPOCHS = 7
KEY = "digits-8-20perclass-test10-val0.1"
PARTIAL = ".checkpoint.pt.tmp"

# Starts launch.py again and again, each time in a process of its own, forked from one that has done the imports: a
# process can then be killed as cheaply as it deserves. Reads {"argv", "log", "limit"} a line, says the pid, waits for
# that process, says how it ended. `limit` is the largest file that the process may write.
NURSERY = """
import json, os, resource, runpy, signal, sys
import hydra, hydra.core.plugins, joblib, sklearn.datasets, torch, PIL.Image
import edkd.app, edkd.plan, edkd.run, edkd.single
hydra.core.plugins.Plugins.instance()
for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if pid == 0:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        if order["limit"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], order["limit"]))
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


class Nursery:
    """Real processes of launch.py, one at a time."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self.log = process, log

    def start(self, *argv: str, limit: int = 0) -> int:
        """Start one; its process id."""
        assert self.process.stdin is not None
        print(json.dumps({"argv": argv, "log": str(self.log), "limit": limit}), file=self.process.stdin, flush=True)
        return self._number()

    def wait(self) -> int:
        """How it ended: its exit code, or minus the signal."""
        return self._number()

    def run(self, *argv: str, limit: int = 0) -> int:
        """Start one and wait for it."""
        self.start(*argv, limit=limit)
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
    saved = checkpoint.load(folder / "checkpoint.pt")
    assert saved is not None
    return {
        "metrics": {epoch: record["metrics"] for epoch, record in state.epochs.items()},
        "end": {name: state.end[name] for name in ("last", "best", "num_classes")},
        **{
            name: (folder / name).read_bytes() for name in ("last.pt", "best.pt", "checkpoint.pt", "checkpoint.prev.pt")
        },
    }


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    return [name for name in expected if found[name] != expected[name]]


def events(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    return [record for record in journal.read(folder / journal.FILE) if record["event"] in kinds]


# --- killed ---


def wait_until(condition: Callable[[], bool], pid: int) -> None:
    """Look often enough to see what lasts some milliseconds; give up when the process is gone."""
    until = time.monotonic() + 60
    while not condition() and time.monotonic() < until:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            time.sleep(0.0005)
            continue
        return


def test_a_run_that_is_killed_again_and_again(nursery: Nursery, undisturbed: Path, output: Path) -> None:
    chance, ends, torn = random.Random(7), [], 0
    command = arguments(output, "distiller=edkd")

    def lines() -> int:
        folder = directory(output)
        with contextlib.suppress(OSError):
            return (folder / journal.FILE).read_bytes().count(b"\n") if folder else 0
        return 0

    def saving() -> bool:
        folder = directory(output)
        return folder is not None and (folder / PARTIAL).exists()

    # Anywhere at all, just after an epoch was journalled, or in the middle of writing a checkpoint.
    for moment in ["saving", "anywhere", "epoch", "saving", "epoch", "anywhere", "saving", "epoch", "epoch", "epoch"]:
        before = lines()
        pid = nursery.start(*command)
        if moment == "anywhere":
            time.sleep(chance.uniform(0.05, 2.0))
        elif moment == "epoch":
            wait_until(lambda seen=before: lines() >= seen + 2, pid)  # a start and an epoch
            time.sleep(chance.uniform(0, 0.1))
        else:
            wait_until(saving, pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        ends.append(nursery.wait())
        torn += saving()
    assert nursery.run(*command) == 0, nursery.log.read_text()

    assert ends.count(-signal.SIGKILL) >= 6
    assert set(ends) <= {-signal.SIGKILL, 0}
    assert torn >= 1
    folder = directory(output)
    assert folder is not None
    starts = events(folder, "start")
    assert len(starts) >= 5
    assert len({record["resumed_from"] for record in starts}) >= 3
    assert journal.is_held(folder) is None
    assert differences(results(output), results(undisturbed)) == []


# --- damage and full disks ---


@pytest.fixture(scope="module")
def killed(nursery: Nursery, undisturbed: Path) -> Path:
    """An output folder with that teacher, and the student killed after some epochs, but not all."""
    output = Path(shutil.copytree(undisturbed.with_name("taught"), undisturbed.with_name("killed")))
    pid = nursery.start(*arguments(output, "distiller=edkd"))

    def enough() -> bool:
        folder = directory(output)
        last = journal.tail_state(folder).last_epoch if folder else None
        return last is not None and last["epoch"] >= 3

    wait_until(enough, pid)
    os.kill(pid, signal.SIGKILL)
    assert nursery.wait() == -signal.SIGKILL
    return output


@pytest.fixture
def halfway(killed: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(killed, tmp_path / "outputs"))


def job_of(output: Path) -> plan.Job:
    folder = directory(output)
    assert folder is not None
    job, _ = plan.thaw(folder / "config.yaml")
    return plan.make_job(job.config | {"output": str(output)}, "edkd", job.teacher_id)


def last_epoch(folder: Path) -> int:
    record = journal.tail_state(folder).last_epoch
    return record["epoch"] if record else 0


def test_a_damaged_checkpoint_costs_one_epoch(nursery: Nursery, undisturbed: Path, halfway: Path) -> None:
    folder = directory(halfway)
    assert folder is not None
    path = folder / "checkpoint.pt"
    saved, kept = checkpoint.load(path), checkpoint.load(checkpoint.previous(path))
    assert saved is not None
    assert kept is not None
    assert saved[0]["epoch"] == kept[0]["epoch"] + 1
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    assert nursery.run(*arguments(halfway, "distiller=edkd")) == 0, nursery.log.read_text()
    assert [record["resumed_from"] for record in events(folder, "start")] == [0, kept[0]["epoch"]]
    log = (folder / "run.log").read_text()
    assert f"{path} is damaged (its checksum does not match); continuing from {checkpoint.previous(path)}" in log
    assert differences(results(halfway), results(undisturbed)) == []


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
    resumed = checkpoint.load(path)
    assert resumed is not None
    limit = len(before) - 1000  # more than the weights alone, less than the weights and the optimiser
    assert (folder / "best.pt").stat().st_size < limit
    assert nursery.run(*arguments(halfway, "distiller=edkd", "engine.teacher_cache=false"), limit=limit) == 1
    told = nursery.log.read_text().splitlines()
    reason = f"could not save {path}: {os.strerror(errno.EFBIG)} ("
    assert [line for line in told if line.startswith("edkd: ")] == [told[-1]]
    assert told[-1].startswith(f"edkd: {reason}")
    assert not any("Traceback" in line for line in told)
    assert path.read_bytes() == before
    assert not (folder / PARTIAL).exists()
    state = journal.state(folder)
    assert state.status == "failed"
    assert str(state.error).startswith(reason)
    assert last_epoch(folder) == resumed[0]["epoch"] + 1  # trained and journalled, not saved: it is repeated
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
    assert journal.is_held(folder) is None
