"""What has become of runs, by directories as every kind of end leaves them, and the commands that show it."""

import dataclasses
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edkd.config.job import freeze
from edkd.errors import EdkdError
from edkd.rundir import lock
from edkd.rundir.journal import Journal, Record
from edkd.rundir.paths import find_runs, record_sweep
from edkd.slurm.queue import Entry
from edkd.status import select as selection
from edkd.status import state as run_state
from edkd.status import table
from edkd.status.state import RunStatus
from tests.commandline import REPOSITORY, Ended, edkd
from tests.fake_slurm import FakeSlurm, fake_slurm
from tests.status.many_runs import KINDS, SWEEP, make_runs

__all__ = ["fake_slurm"]  # a fixture

METRICS = {"test/top1": 61.25, "test/top5": 88.0, "test/loss": 1.5}
START = {"event": "start", "run": "a" * 16, "name": "x", "sweep": "digits-1", "config": {"schedule": {"epochs": 4}}}
END = {"event": "end", "last": {"top1": 61.25}, "best": {"top1": 62.5, "epoch": 3, "by": "test"}, "seconds": 84.0}


def epoch(number: int, **values: Any) -> Record:
    seconds = {"train": 20.0, "test": 1.0}
    return {
        "event": "epoch",
        "epoch": number,
        "metrics": METRICS,
        "seconds": seconds,
        "images_per_second": 950.4,
    } | values


class Slurm:
    """Answers for the queue, and remembers what it was asked."""

    def __init__(self, **entries: Entry) -> None:
        self.entries: Mapping[str, Entry] | None = {name.removeprefix("job"): entry for name, entry in entries.items()}
        self.asked: list[set[str]] = []

    def __call__(self, job_ids: Iterable[str]) -> Mapping[str, Entry] | None:
        self.asked.append(set(job_ids))
        return self.entries


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "outputs" / "runs" / "digits-8" / "vgg13-vgg8" / "kd-s3-0123abcd"
    directory.mkdir(parents=True)
    return directory


def written(run_dir: Path, *records: Record) -> None:
    for record in records:
        Journal(run_dir).append(record)


def submitted(run_dir: Path, job: str = "12_3", **values: Any) -> None:
    size = (run_dir / "journal.jsonl").stat().st_size if (run_dir / "journal.jsonl").exists() else 0
    (run_dir / "job.err").touch()
    values = {
        "job_id": job,
        "submitted": time.time(),
        "sweep": "digits-1",
        "log": str(run_dir / "job.err"),
        "journal_size": size,
    } | values
    (run_dir / "slurm.json").write_text(json.dumps(values))


def died(run_dir: Path, job: str | None = None, since: float | None = None) -> None:
    """Leave the note of a process that held the directory and was killed."""
    note = {"host": "n7", "pid": 4242, "since": since or time.time(), "slurm_job_id": job}
    (run_dir / "holder.json").write_text(json.dumps(note))


def seen(run_dir: Path, ask: Slurm | None = None) -> RunStatus:
    (view,) = run_state.look([run_dir], ask=ask or Slurm())
    return view


def verdict(run_dir: Path, ask: Slurm | None = None) -> tuple[str, str]:
    view = seen(run_dir, ask)
    return view.state, view.why


# ---- one run


def test_a_directory_names_its_run(run_dir: Path) -> None:
    view = seen(run_dir)
    assert (view.name, view.hash) == ("digits-8/vgg13-vgg8/kd-s3-0123abcd", "0123abcd")
    assert (view.dataset, view.pair, view.distiller, view.seed) == ("digits-8", "vgg13-vgg8", "kd", 3)
    other = run_dir.with_name("my-s2-kd-s10-0123abcd")
    other.mkdir()
    assert (seen(other).distiller, seen(other).seed) == ("my-s2-kd", 10)


FAILURE = {"event": "failure", "error": "\n  loss_kd is   nan\nsecond line"}
LEFT = {"event": "interrupted"}
PRUNED = {"event": "pruned", "epoch": 2}


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([], ("new", "")),
        ([START, epoch(1), FAILURE], ("failed", "loss_kd is nan")),
        ([START, epoch(2)], ("vanished", "process gone")),
        ([START, epoch(2), LEFT], ("interrupted", "the same command continues it")),
        ([START, epoch(2), PRUNED], ("pruned", "its search has better trials")),
        ([START, epoch(2), PRUNED, START], ("vanished", "process gone")),  # another sweep continued it
        ([START, LEFT | {"reason": "stopped by SLURM's warning"}], ("interrupted", "stopped by SLURM's warning")),
    ],
)
def test_a_run_outside_slurm(run_dir: Path, records: list[Record], expected: tuple[str, str]) -> None:
    written(run_dir, *records)
    assert verdict(run_dir) == expected


def test_a_run_that_left_slurm_was_continued_by_hand_and_stopped(run_dir: Path) -> None:
    submitted(run_dir, submitted=time.time() - 60)
    written(run_dir, START | {"time": time.time() - 30, "slurm": {"job": "12_3"}}, epoch(1))
    assert verdict(run_dir) == ("vanished", "job gone from SLURM's queue")
    written(run_dir, START | {"time": time.time(), "slurm": None}, epoch(2), LEFT)
    assert verdict(run_dir) == ("interrupted", "the same command continues it")


def test_a_finished_run(run_dir: Path) -> None:
    written(run_dir, START, epoch(4), END)
    submitted(run_dir)
    slurm = Slurm()
    view = seen(run_dir, slurm)
    assert (view.state, view.epoch, view.epochs, view.top1, view.best) == ("done", 4, 4, 61.25, 62.5)
    assert (view.seconds, view.seconds_left, view.node, view.sweep) == (84.0, None, None, "digits-1")
    assert slurm.asked == []  # its journal says all


def test_a_running_run_and_its_time_left(run_dir: Path) -> None:
    with lock.hold(run_dir):
        written(run_dir, START)
        assert (seen(run_dir).state, seen(run_dir).seconds_left, seen(run_dir).epochs) == ("running", None, 4)
        written(run_dir, epoch(1))
        view = seen(run_dir)
    assert (view.state, view.epoch, view.images_per_second, view.seconds) == ("running", 1, 950.4, None)
    assert view.node == os.uname().nodename and view.job is None
    assert view.seconds_left is not None and 0 < view.seconds_left <= 3 * 21.0


def test_a_damaged_journal_fails_one_run_and_no_overview(run_dir: Path) -> None:
    written(run_dir, START)
    (run_dir / "journal.jsonl").write_bytes(b"garbage\n" + (run_dir / "journal.jsonl").read_bytes())
    state, why = verdict(run_dir)
    assert state == "failed" and "line 1" in why


# ---- one run of SLURM's


BEGUN = [START, epoch(2)]
AWAY = "away"


@pytest.mark.parametrize(
    ("before", "since", "entry", "expected"),
    [
        # It has not begun.
        ([], [], Entry("PENDING", "Dependency"), ("waiting", "Dependency")),
        ([], [], Entry("REQUEUED", ""), ("waiting", "")),
        ([], [], Entry("CONFIGURING", "Resources"), ("waiting", "Resources")),
        ([], [], Entry("RUNNING", "n2"), ("waiting", "starting on n2")),
        ([], [], Entry("COMPLETING", "n2"), ("waiting", "COMPLETING on n2")),
        ([], [], Entry("CANCELLED", ""), ("vanished", "CANCELLED")),
        ([], [], Entry("OUT_OF_MEMORY", "n1"), ("vanished", "OUT_OF_MEMORY")),
        ([], [], Entry("COMPLETED", "n1"), ("vanished", "job ended without a record in the journal")),
        ([], [], None, ("vanished", "job gone from SLURM's queue")),
        ([], [], AWAY, ("waiting", "SLURM cannot be asked now")),
        # It runs, on a node whose lock may not be seen here, or died there.
        ([], BEGUN, Entry("RUNNING", "n2"), ("running", "")),
        ([], BEGUN, Entry("TIMEOUT", "n1"), ("vanished", "TIMEOUT")),
        ([], BEGUN, Entry("NODE_FAIL", "n1"), ("vanished", "NODE_FAIL")),
        ([], BEGUN, AWAY, ("waiting", "SLURM cannot be asked now")),
        ([], [*BEGUN, END], AWAY, ("done", "")),
        # It made way, and waits until it starts again.
        ([], [*BEGUN, LEFT], Entry("PENDING", "BeginTime"), ("waiting", "BeginTime")),
        ([], [*BEGUN, LEFT], Entry("RUNNING", "n1"), ("waiting", "starting on n1")),
        ([], [*BEGUN, LEFT, START], Entry("RUNNING", "n1"), ("running", "")),
        # It has failed once its job has left the queue.
        ([], [START, FAILURE], Entry("COMPLETED", "n1"), ("failed", "loss_kd is nan")),
        ([], [START, FAILURE], None, ("failed", "loss_kd is nan")),
        ([], [START, FAILURE], AWAY, ("failed", "loss_kd is nan")),
        ([], [START, FAILURE], Entry("RUNNING", "n1"), ("running", "")),
        ([], [START, FAILURE], Entry("PENDING", "BeginTime"), ("waiting", "BeginTime")),
        # So has one that its search ended.
        ([], [*BEGUN, PRUNED], Entry("COMPLETED", "n1"), ("pruned", "its search has better trials")),
        ([], [*BEGUN, PRUNED], AWAY, ("pruned", "its search has better trials")),
        ([*BEGUN, PRUNED], [], Entry("PENDING", "Priority"), ("waiting", "Priority")),
        # The failure of an earlier job is not this one's.
        ([START, FAILURE], [], Entry("PENDING", "Priority"), ("waiting", "Priority")),
        ([START, FAILURE], [], Entry("CANCELLED", ""), ("vanished", "CANCELLED")),
    ],
)
def test_a_run_of_slurms(
    run_dir: Path, before: list[Record], since: list[Record], entry: Any, expected: tuple[str, str]
) -> None:
    written(run_dir, *before)
    submitted(run_dir, submitted=time.time() + 60)  # by the clock of the submitting machine
    written(run_dir, *since)
    if since:  # the note of the job's process, whose lock may not be seen here
        died(run_dir, job="12_3", since=time.time() + 120)
    slurm = Slurm(**({"job12_3": entry} if isinstance(entry, Entry) else {}))
    if entry == AWAY:
        slurm.entries = None
    view = seen(run_dir, slurm)
    assert (view.state, view.why) == expected
    assert (view.job, view.log) == ("12_3", run_dir / "job.err")
    assert {job for jobs in slurm.asked for job in jobs} == (set() if view.state == "done" else {"12_3"})
    assert view.node == (entry.where if view.state == "running" else None)


def test_a_run_that_failed_in_a_job_of_several_has_failed_while_that_goes_on(run_dir: Path) -> None:
    submitted(run_dir, several=True)
    written(run_dir, START, FAILURE)
    assert verdict(run_dir, Slurm(job12_3=Entry("RUNNING", "n1"))) == ("failed", "loss_kd is nan")


@pytest.mark.parametrize(
    ("state", "said"), [("FAILED", ": its log was never written: do the compute nodes see {}?"), ("CANCELLED", "")]
)
def test_a_job_without_a_log_ran_where_the_folder_is_not_seen(run_dir: Path, state: str, said: str) -> None:
    submitted(run_dir, log=str(run_dir / "absent" / "job.err"))
    (run_dir / "absent").mkdir()
    view = seen(run_dir, Slurm(job12_3=Entry(state, "n1")))
    assert (view.state, view.why) == ("vanished", state + said.format(run_dir / "absent"))
    assert view.why_vanished == f"{view.why} (SLURM job 12_3)"


def test_a_job_from_before_does_not_count_once_a_local_process_took_over(run_dir: Path) -> None:
    submitted(run_dir, submitted=time.time() - 60)
    written(run_dir, START)
    died(run_dir)
    slurm = Slurm(job12_3=Entry("TIMEOUT", "n1"))
    assert verdict(run_dir, slurm) == ("vanished", "process gone: 4242 on n7")
    assert seen(run_dir, slurm).job is None


def test_a_run_that_ends_while_the_queue_is_asked_has_not_vanished(run_dir: Path) -> None:
    submitted(run_dir)
    written(run_dir, START | {"slurm": {"job": "12_3"}}, epoch(4))

    def ends_meanwhile(job_ids: Iterable[str]) -> Mapping[str, Entry]:
        written(run_dir, END)
        return {"12_3": Entry("COMPLETED", "n1")}

    (view,) = run_state.look([run_dir], ask=ends_meanwhile)
    assert view.state == "done"


def test_a_run_that_is_submitted_again_while_the_queue_is_asked_has_not_vanished(run_dir: Path) -> None:
    submitted(run_dir)

    def again(job_ids: Iterable[str]) -> Mapping[str, Entry]:
        submitted(run_dir, job="13")
        return {"12_3": Entry("CANCELLED", "")}

    (view,) = run_state.look([run_dir], ask=again)
    assert (view.state, view.job) == ("waiting", "13")


def test_slurm_is_asked_once_for_all(run_dir: Path) -> None:
    others = [run_dir.with_name(f"kd-s{seed}-0123abcd") for seed in range(4, 7)]
    for number, directory in enumerate([run_dir, *others]):
        directory.mkdir(exist_ok=True)
        submitted(directory, job=f"12_{number}")
    written(others[0], START, END)
    slurm = Slurm(job12_0=Entry("PENDING", ""), job12_2=Entry("PENDING", ""), job12_3=Entry("FAILED", ""))
    states = [view.state for view in run_state.look([run_dir, *others], ask=slurm)]
    assert states == ["waiting", "done", "waiting", "vanished"]
    assert slurm.asked == [{"12_0", "12_2", "12_3"}]


# ---- frozen configurations, sweeps


def test_the_end_of_a_frozen_configuration_is_enough(make_job: Any) -> None:
    job = make_job("kd", teacher_id="run:0123456789abcdef")
    freeze(job, sweep="digits-2", threads=1)
    about = run_state.about(job.directory)
    assert (about["hash"], about["teacher_id"], about["sweep"]) == (job.run, "run:0123456789abcdef", "digits-2")
    assert seen(job.directory).sweep == "digits-2"
    assert run_state.about(job.directory.parent) == {}


def test_a_run_belongs_to_every_sweep_that_asked_for_it(run_dir: Path) -> None:
    output = run_dir.parents[3]
    written(run_dir, START, END)
    other = run_dir.with_name("kd-s4-0123abcd")
    other.mkdir()
    record_sweep(output, "digits-2", ["digits-8/vgg13-vgg8/kd-s3-0123abcd", "digits-8/vgg13-vgg8/kd-s4-0123abcd"])
    assert [view.seed for view in selection.Selection(output, sweep="digits-1").look()] == [3]
    assert [view.seed for view in selection.Selection(output, sweep="digits-2").look()] == [3, 4]
    with pytest.raises(EdkdError, match="no sweep digits-9 in .*; it has: digits-1, digits-2$"):
        selection.Selection(output, sweep="digits-9").look()


# ---- the tree of a large sweep


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("many")
    make_runs(output, 70, 8)
    (output / "runs" / "cifar100" / "vgg13-vgg8" / "notes").mkdir()  # no run
    return output


def test_an_overview_of_many_runs(many: Path) -> None:
    views = run_state.look(find_runs(many))
    assert [view.directory for view in views] == sorted(view.directory for view in views)
    assert Counter(view.state for view in views) == {kind: 10 * KINDS.count(kind) for kind in set(KINDS)}
    for view in views:
        known = {"done": (8, 8, 71.2), "failed": (4, 8, None), "vanished": (4, 8, None), "new": (0, None, None)}
        assert (view.epoch, view.epochs, view.best) == known[view.state], view
        assert view.sweep == SWEEP
        assert view.why == {"failed": "loss_kd is nan in epoch 121: a lower learning rate may help"}.get(
            view.state, "process gone" if view.state == "vanished" else ""
        )


# ---- edkd status


def shown(*arguments: str) -> Ended:
    return edkd("status", *arguments)


def rows(ended: Ended) -> list[list[str]]:
    header, *lines, _ = ended.out.splitlines()
    assert header.split()[0] == "state"
    return [line.split() for line in lines]


def test_the_table_ends_with_what_needs_attention(many: Path) -> None:
    done = shown("--output", str(many))
    assert (done.code, done.err) == (1, "")
    assert [row[0] for row in rows(done)] == ["done"] * 40 + ["new"] * 10 + ["vanished"] * 10 + ["failed"] * 10
    assert done.out.splitlines()[-1] == "70 runs: 40 done, 10 new, 10 vanished, 10 failed"
    first = rows(done)[0]
    assert first[:5] == ["done", "8/8", "71.23", "71.20", "0:08:00"] and first[5].startswith("resnet32x4-")
    assert done.out.splitlines()[-2].endswith("  loss_kd is nan in epoch 121: a lower learning rate may help")


def test_the_output_folder_is_understood_as_launch_py_takes_it(run_dir: Path) -> None:
    assert shown(f"output={run_dir.parents[3]}") == shown("--output", str(run_dir.parents[3]))


def test_a_running_row(run_dir: Path) -> None:
    with lock.hold(run_dir):
        written(run_dir, START, epoch(1))
        done = shown("--output", str(run_dir.parents[3]))
    (row,) = rows(done)
    assert row[:4] == ["running", "1/4", "61.25", "950"] and row[5:7] == ["left", os.uname().nodename]
    assert row[7:] == ["vgg13-vgg8/kd-s3-0123abcd"]
    assert done.code == 3


def test_filters(many: Path) -> None:
    done = shown(SWEEP, "--output", str(many), "--state", "failed,vanished", "--distiller", "dkd", "--seed", "0,1,2")
    assert rows(done) and {row[0] for row in rows(done)} <= {"failed", "vanished"}
    assert all("/dkd-s" in " ".join(row) for row in rows(done))
    done = shown("--output", str(many), "--pair", "vgg13-vgg8", "--state", "done")
    assert done.code == 0 and all("vgg13-vgg8/" in row[-1] for row in rows(done))
    done = shown("--output", str(many), "--state", "waiting")
    assert (done.code, done.out) == (0, "0 runs\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such"], f"no sweep no-such in {{many}}; it has: {SWEEP}"),
        (["--pair", "vgg13-vgg9"], "no run has pair vgg13-vgg9; there are: resnet32x4-resnet8x4, vgg13-mobilenetv2"),
        (["--seed", "99"], "no run has seed 99; there are: 0, 1, 2, 3, 4"),
    ],
)
def test_a_question_that_makes_no_sense(many: Path, arguments: list[str], message: str) -> None:
    done = shown("--output", str(many), *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"edkd: {message.format(many=many)}") and done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "nowhere"], "edkd: no runs in nowhere/runs; --output DIR names the folder that holds runs/\n"),
        (
            ["--state", "dead"],
            "no state dead; there are: done, pruned, new, waiting, running, interrupted, vanished, failed",
        ),
        (["--watch", "digits-1"], "SWEEP comes before --watch"),
        (["--watch", "0"], "above 0"),
        (["--watch", "--json"], "not allowed with"),
    ],
)
def test_an_option_that_makes_no_sense(arguments: list[str], message: str) -> None:
    done = shown(*arguments)
    assert done.code == 2 and message in done.err


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ([], 0),
        (["done", "done"], 0),
        (["done", "pruned"], 0),
        (["done", "failed"], 1),
        (["running", "vanished"], 1),
        (["done", "interrupted"], 3),
        (["done", "new"], 3),
        (["waiting"], 3),
        (["running"], 3),
    ],
)
def test_exit_codes(states: list[Any], code: int, run_dir: Path) -> None:
    view = seen(run_dir)
    assert table.exit_code([dataclasses.replace(view, state=state) for state in states]) == code


def test_json_has_every_run_and_only_json(many: Path) -> None:
    done = shown(SWEEP, "--output", str(many), "--json")
    found = json.loads(done.out)
    assert (done.code, done.err) == (1, "")
    assert list(found) == ["output", "sweep", "time", "counts", "runs"]
    assert found["counts"] == {
        "done": 40,
        "pruned": 0,
        "new": 10,
        "waiting": 0,
        "running": 0,
        "interrupted": 0,
        "vanished": 10,
        "failed": 10,
    }
    assert [run["name"] for run in found["runs"]] == [view.name for view in run_state.look(find_runs(many))]
    run = next(run for run in found["runs"] if run["state"] == "failed")
    assert (run["epoch"], run["epochs"], run["best"], run["job"]) == (4, 8, None, None)
    assert Path(run["directory"]).is_dir()


def test_help_documents_every_key_of_json_and_every_code(run_dir: Path) -> None:
    text = shown("--help").out
    assert seen(run_dir).document().keys() <= set(text.replace(",", " ").split())
    assert all(f"{code} " in text for code in (0, 1, 2, 3))


ERROR = "loss_kd is nan in epoch 121: a lower learning rate may help, and so may a longer warm-up of its weight"


@pytest.fixture
def crowd(run_dir: Path) -> list[RunStatus]:
    """A run in each state, with all that a row may hold, and the longest name of the table."""
    named = dataclasses.replace(
        seen(run_dir), name="cifar100/resnet32x4-mobilenetv2/edkd-s10-0123abcd", epochs=240, top1=71.23
    )
    return [
        dataclasses.replace(named, state="done", epoch=240, best=72.5, seconds=60000.0),
        dataclasses.replace(named, state="new", top1=None),
        dataclasses.replace(named, state="waiting", why="Resources", job="1234567_12"),
        dataclasses.replace(
            named, state="running", epoch=7, images_per_second=12345.0, seconds_left=50000.0, node="gpu-node-017"
        ),
        dataclasses.replace(named, state="vanished", epoch=8, why="TIMEOUT", job="1234567_13"),
        dataclasses.replace(named, state="failed", epoch=120, why=ERROR),
    ]


def drawn(views: list[RunStatus], width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table._table(views, width))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_names_and_errors_are_readable_on_a_narrow_terminal(crowd: list[RunStatus]) -> None:
    header, *lines = drawn(crowd, 80)
    assert header.split() == ["state", "epoch", "top-1", "%", "best", "%", "run"]
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [view.state for view in crowd]
    assert sum(line.endswith("resnet32x4-mobilenetv2/edkd-s10-0123abcd") for line in lines) == len(crowd)
    assert " ".join(" ".join(lines).split()).endswith(ERROR), "over several lines, and whole"


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (60, "state epoch top-1 %"),
        (90, "state epoch top-1 % time"),
        (100, "state epoch top-1 % best % time"),
        (110, "state epoch top-1 % best % time job"),
        (300, "state epoch top-1 % best % images/s time node job"),
    ],
)
def test_a_column_is_shown_if_the_names_leave_room_for_it(crowd: list[RunStatus], width: int, columns: str) -> None:
    header, *rows = drawn(crowd, width)
    assert header.split() == [*columns.split(), "run"]
    assert rows[-1].endswith(f"  {ERROR}") == (width == 300)


def test_runs_that_their_hash_alone_tells_apart_show_their_settings(make_job: Any) -> None:
    jobs = [make_job("kd", f"distiller.temperature={t}", f"seed={s}", teacher_id="x") for t in (1, 2) for s in (0, 1)]
    for job in jobs:
        freeze(job, sweep="digits-1", threads=1)
    written(jobs[0].directory, {**START, "config": jobs[0].used}, END)
    lines = drawn([seen(job.directory) for job in jobs], 200)[1:]
    expected = [f"{job.name.partition('/')[2]} temperature={t}" for job, t in zip(jobs, (1, 1, 2, 2))]
    assert [line.endswith(name) for line, name in zip(lines, expected)] == [True] * 4


def test_why_a_job_cannot_begin_is_told_with_its_cure(run_dir: Path, fake_slurm: FakeSlurm) -> None:
    others = [run_dir.with_name(f"kd-s{seed}-0123abcd") for seed in (4, 5)]
    for number, directory in enumerate([run_dir, *others]):
        directory.mkdir(exist_ok=True)
        submitted(directory, job=f"12_{number}")
    (fake_slurm.folder / "queue").write_text(
        "12_0|PENDING|Priority|\n12_1|PENDING|launch failed requeued held|\n12_2|PENDING|launch failed requeued held|\n"
    )
    done = shown("--output", str(run_dir.parents[3]))
    assert (done.code, done.err) == (
        3,
        "SLURM: launch failed requeued held does not end by itself: `scontrol release 12_1,12_2` lets it start; "
        "`scontrol show job 12_1,12_2` says why it was held\n",
    )


# ---- edkd status --watch


def test_watching_what_no_run_is(run_dir: Path) -> None:
    written(run_dir, START, epoch(4), END)
    done = shown("--output", str(run_dir.parents[3]), "--watch", "--state", "failed")
    assert (done.code, done.err) == (0, "") and done.out.endswith("0 runs\n")


def test_watching_ends_with_the_last_run(run_dir: Path) -> None:
    written(run_dir, START, END)
    done = shown("--output", str(run_dir.parents[3]), "--watch")
    assert done.code == 0 and done.out.count("1 run: 1 done\n") == 1


@pytest.fixture
def terminal(run_dir: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`edkd status --watch 0.1` on a terminal of 60 columns and 12 lines, over 30 runs."""
    for seed in range(30):
        run_dir.with_name(f"kd-s{seed}-0123abcd").mkdir(exist_ok=True)
    controller, end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "edkd.cli.main", "status", "--watch", "0.1", "--output", str(run_dir.parents[3])],
        stdin=end, stdout=end, stderr=end, start_new_session=True,
        env=os.environ | {"COLUMNS": "60", "LINES": "12", "TERM": "xterm", "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    os.close(end)
    yield process, controller
    process.kill()
    process.wait()
    os.close(controller)


def read_until(controller: int, text: str) -> str:
    found = ""
    while text not in found:
        ready, _, _ = select.select([controller], [], [], 60)
        assert ready, found
        try:
            found += os.read(controller, 65536).decode(errors="replace")
        except OSError:  # the other end is closed
            break
    return found


def test_a_live_table_follows_the_runs_and_leaves_cleanly(
    terminal: tuple[subprocess.Popen[bytes], int], run_dir: Path
) -> None:
    process, controller = terminal
    screen = read_until(controller, "30 runs: 30 new")
    written(run_dir, START, {"event": "failure", "error": "no"})
    screen = read_until(controller, "1 failed")
    assert "29 new, 1 failed" in screen
    process.send_signal(signal.SIGINT)
    rest = read_until(controller, "\0")
    assert process.wait(60) == 1
    assert "Traceback" not in screen + rest and "\x1b[?25h" in rest  # the cursor is back
    assert "30 runs: 29 new, 1 failed" in rest  # the table stays
