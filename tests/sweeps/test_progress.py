"""What a sweep shows, from hand-made states of its runs."""

import io
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edkd.config.schema import Tracking
from edkd.console import duration
from edkd.errors import EdkdError
from edkd.rundir import journal, lock
from edkd.rundir.journal import RunState
from edkd.rundir.paths import record_sweep
from edkd.status.state import RunStatus
from edkd.sweeps import preview, progress, report
from edkd.sweeps.plan import Sweep


def epoch(number: int, train: float = 9.0, test: float = 1.0) -> dict[str, Any]:
    seconds, metrics = {"train": train, "test": test}, {"test/top1": 65.126}
    return {"event": "epoch", "epoch": number, "seconds": seconds, "metrics": metrics, "images_per_second": 1234.5}


END = {"event": "end", "last": {"top1": 70.126}, "best": {"top1": 71.0}, "seconds": 12.4}


def status(state: Any, done: int = 0, *, journal: Any = "finished", holder: Any = None, **more: Any) -> RunStatus:
    blank: dict[str, Any] = dict.fromkeys(["name", "hash", "dataset", "pair", "distiller"], "")
    known = RunState(status=journal, holder=holder)
    return RunStatus(Path("x"), **blank, seed=0, state=state, epoch=done, known=known, **more)


@pytest.fixture
def planned(make_job: Any) -> Sweep:
    """One teacher, and three students of it."""
    teacher = make_job("vanilla")
    students = [make_job(method, teacher_id=f"run:{teacher.run}") for method in ("kd", "dkd", "edkd")]
    return Sweep(students=students, teachers=[teacher], asked={job.run for job in students})


def statuses(planned: Sweep, *given: RunStatus) -> dict[str, RunStatus]:
    return dict(zip([job.run for job in planned.jobs], given, strict=True))


def test_the_plan(planned: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        status("failed", 1, journal="failed"),
        status("done", 2),
        status("vanished", 1, journal="interrupted"),
        status("waiting", job="12_3", journal="new"),
    ]
    preview.show_plan(planned, statuses(planned, *given))
    width = max(len(job.name) for job in planned.jobs)
    names = [job.name.ljust(width) for job in planned.jobs]
    assert capsys.readouterr().out.splitlines() == [
        f"stage      {'run'.ljust(width)}  state",
        f"1 teacher  {names[0]}  to resume (failed before), after epoch 1",
        f"2 student  {names[1]}  done",
        f"2 student  {names[2]}  to resume, after epoch 1",
        f"2 student  {names[3]}  waiting in SLURM (job 12_3)",
        f"sweep {planned.id}: 3 runs: 1 done, 1 to resume, 1 waiting in SLURM; teachers to train first: 1",
    ]


def test_the_plan_and_the_lines_show_what_a_sweep_varies(
    make_job: Any, capsys: pytest.CaptureFixture[str], screen: Any
) -> None:
    jobs = [make_job("kd", f"distiller.temperature={t}", f"seed={s}", teacher_id="x") for t in (1, 2) for s in (0, 1)]
    given = {job.run: status("new", journal="new") for job in jobs}
    preview.show_plan(Sweep(students=jobs, asked=set(given)), given)
    expected = [f"{job.name} temperature={t}" for job, t in zip(jobs, (1, 1, 2, 2))]
    assert [line[11:].removesuffix("  new") for line in capsys.readouterr().out.splitlines()[1:5]] == expected
    console = screen(terminal=False)
    view = progress._View(jobs, parallel=1)
    append(jobs[2], {"event": "start"}, epoch(1), END)
    view.refresh()
    assert console.file.getvalue().startswith(f"{expected[2]}: top-1")


def test_a_warm_up_longer_than_the_run(make_job: Any, screen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    console = screen(terminal=False)
    monkeypatch.setattr(preview, "console", console)
    preview.show_unreached([make_job("dkd", f"distiller.warmup_epochs={n}", teacher_id="x") for n in (2, 8)])
    assert console.file.getvalue() == (
        "WARNING: distiller.warmup_epochs 8 of dkd: in 2 epochs the weight of distillation never rises above 25% of "
        "its value; schedule.warmup_epochs sets it\n"
    )


@pytest.mark.parametrize(
    ("load", "threads", "own", "warned"),
    [(7.0, 4, None, True), (3.0, 4, None, False), (7.0, 1, None, False), (7.0, 4, 1, False)],
)
def test_a_machine_whose_cores_others_hold(
    load: float,
    threads: int,
    own: int | None,
    warned: bool,
    make_job: Any,
    screen: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    console = screen(terminal=False)
    monkeypatch.setattr(progress, "console", console)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    cfg = make_job("kd").settings
    progress.warn_if_busy(replace(cfg, engine=replace(cfg.engine, threads=own, device="cpu")), threads)
    assert ("a load of 7.0 on 8" in console.file.getvalue()) == warned


def test_a_summary_names_each_run_that_is_not_done(planned: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    teacher, *students = planned.jobs
    (teacher.directory).mkdir(parents=True)
    (teacher.directory / "run.log").touch()
    outcome = statuses(
        planned,
        status("failed", 1, why="EdkdError: training diverged"),
        status("running", 1, holder={"pid": 12, "host": "node7"}),
        status("new"),
        status("done", 2),
    )
    assert report.show_summary(planned, outcome) == 3
    assert capsys.readouterr().out.splitlines() == [
        f"sweep {planned.id}: 1 of 4 runs finished",
        f"  {teacher.name} failed: EdkdError: training diverged; see {teacher.directory / 'run.log'}",
        f"  {students[0].name} is running in another process (pid 12 on node7)",
        f"  {students[1].name} not started: its teacher resnet8 is not trained yet",
        "run the same command again, or `edkd retry`, to continue",
    ]


def test_a_summary_says_what_vanished_and_what_never_began(planned: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    lost = status("vanished", 1, why="process gone"), status("vanished", 0, why="TIMEOUT", job="1", log=Path("x.err"))
    assert report.show_summary(planned, statuses(planned, status("done", 2), *lost, status("new"))) == 3
    ends = [" vanished after epoch 1: process gone", " vanished after epoch 0: TIMEOUT (SLURM job 1)"]
    lines = capsys.readouterr().out.splitlines()[1:4]
    assert [line.endswith(end) for line, end in zip(lines, [*ends, " not started"])] == [True] * 3


def test_a_pruned_run_is_not_lost(planned: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    ends = [status("done", 2), status("done", 2), status("done", 2), status("pruned", 1)]
    assert report.show_summary(planned, statuses(planned, *ends)) == 0
    counted, pruned, steps = capsys.readouterr().out.splitlines()
    assert counted.endswith(": 3 of 4 runs finished") and pruned == f"  {planned.jobs[3].name} pruned after epoch 1"
    assert "`make table ARGS=" in steps


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`screen(terminal)`: a console in the report's place; what it shows is in its `file`."""

    def made(*, terminal: bool) -> Console:
        console = Console(file=io.StringIO(), force_terminal=terminal, width=200, color_system=None)
        monkeypatch.setattr(progress, "console", console)
        return console

    return made


def append(job: Any, *records: dict[str, Any]) -> None:
    job.directory.mkdir(parents=True, exist_ok=True)
    book = journal.Journal(job.directory)
    for record in records:
        book.append(record)


def test_runs_that_were_done_before_count_as_done(planned: Sweep, screen: Any) -> None:
    console = screen(terminal=True)
    for job in planned.jobs[:3]:
        append(job, {"event": "start"}, epoch(1), epoch(2), END)
    view = progress._View(planned.jobs, parallel=1)
    console.print(view.screen())
    assert "runs 3/4 · epochs 6/8" in console.file.getvalue()
    append(planned.jobs[3], {"event": "start"}, epoch(1), epoch(2), END)
    view.refresh()
    console.print(view.screen())
    assert "runs 4/4 · epochs 8/8" in console.file.getvalue()


def test_each_run_that_ends_is_shown_once(planned: Sweep, screen: Any) -> None:
    console = screen(terminal=False)
    finished, failed, before, _ = planned.jobs
    append(before, {"event": "start"}, {"event": "failure", "error": "long ago"})
    view = progress._View(planned.jobs, parallel=1)
    view.refresh()
    assert console.file.getvalue() == ""
    append(finished, {"event": "start"}, epoch(1), epoch(2), END)
    append(failed, {"event": "start"}, epoch(1), {"event": "failure", "error": "[red] diverged"})
    view.refresh()
    view.refresh()
    assert console.file.getvalue().splitlines() == [
        f"{finished.name}: top-1 last 70.13 %, best 71.00 %, 0:00:12",
        f"{failed.name}: failed: [red] diverged",
    ]


def test_the_time_left(planned: Sweep) -> None:
    view = progress._View(planned.jobs, parallel=2)
    teacher, first, second, _ = planned.jobs
    view.refresh()
    assert view.seconds_left() is None  # nothing is known yet
    append(teacher, {"event": "start"}, epoch(1, 18.0, 2.0), epoch(2, 18.0, 2.0), END)
    view.refresh()
    assert view.seconds_left() == 3 * 2 * 20 / 2  # the mean of all that is known; two at a time
    append(first, {"event": "start"}, epoch(1, 9.0, 1.0))
    view.refresh()
    assert view.seconds_left() == (1 + 2 + 2) * 10 / 2  # of its pair
    append(second, {"event": "start"}, {"event": "failure", "error": "diverged"})
    view.refresh()
    assert view.seconds_left() == 2 * 10  # what failed takes no more time; one run takes this long


def test_the_time_left_counts_stages_and_what_waits(planned: Sweep) -> None:
    teacher, *students = planned.jobs
    left = {teacher.run: 40.0} | {job.run: 30.0 for job in students}

    def seconds(parallel: int, most: int, *, waiting: bool = True) -> float:
        return progress.wall_time(planned.jobs, left, parallel, most, waiting=waiting)

    assert seconds(256, 1) == 40 + 30  # the students wait for the teacher, not for room
    assert seconds(2, 1) == 40 + 3 * 30 / 2
    del left[teacher.run]
    assert seconds(256, 1) == 3 * 30  # the cluster has room for one
    assert seconds(256, 2) == 3 * 30 / 2
    assert seconds(256, 2, waiting=False) == 30


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (3661, "1:01:01"), (86399, "23:59:59"), (129600, "1.5 days")]
)
def test_a_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_bars_on_a_terminal(planned: Sweep, screen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "POLL", 0.01)
    console = screen(terminal=True)
    job = planned.jobs[0]
    with progress.watch(planned.jobs, parallel=1), lock.hold(job.directory):
        append(job, {"event": "start"}, epoch(1))
        shown = threading.Event()
        for _ in range(1000):
            if "0:01:10 left" in console.file.getvalue():
                break
            shown.wait(0.01)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())
    assert re.search(r"runs 0/4 · epochs 1/8 ━+╸ +\d:\d\d:\d\d, 0:01:10 left", text)
    assert re.search(r"  resnet8 vanilla-s0  epoch 1/2  65\.13 %  1,23[45] images/s  0:00:\d\d left", text)


def test_a_narrow_terminal_cuts_names_and_many_runs_are_counted(planned: Sweep, screen: Any) -> None:
    console = screen(terminal=False)
    console.width = 60
    view = progress._View(planned.jobs * 3, parallel=12)
    for job in planned.jobs:
        append(job, {"event": "start"}, epoch(1))
        view.states[job.run] = replace(journal.state(job.directory), status="running")
    console.print(view.screen())
    _, *lines, last = console.file.getvalue().splitlines()
    assert len(lines) == progress.LINES and last == "and 4 more runs"
    assert all(re.search(r"… +epoch 1/2  65\.13 %  1,23[45] images/s  0:00:\d\d left$", line) for line in lines[1:])


def test_a_damaged_journal_does_not_end_the_watch(planned: Sweep) -> None:
    view = progress._View(planned.jobs, parallel=1)
    damaged, sound = planned.jobs[:2]
    damaged.directory.mkdir(parents=True)
    (damaged.directory / "journal.jsonl").write_text("damage\n{}\n")
    append(sound, {"event": "start"}, epoch(1), epoch(2), END)
    view.refresh()
    assert view.ended == {sound.run: "finished"}


def test_the_parent_run_gets_the_counts_and_a_server_that_is_away_is_a_warning(
    planned: Sweep, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given: dict[str, Any] = {}

    def away(what: Any, **more: Any) -> None:
        given.update(more, what=what)
        raise EdkdError("the server is away")

    monkeypatch.setattr(report.tracking, "start_sweep", away)
    monkeypatch.setattr(report.tracking, "settle_sweeps", away)
    monkeypatch.setattr(report.LOG, "propagate", True)
    outcome = statuses(planned, *(status("done", journal=each) for each in ("finished", "failed", *2 * ["finished"])))
    report.track_end(planned, outcome)  # without a store nothing is tracked
    assert not given

    where = Tracking(uri="sqlite:///x.db", artifacts="a", experiment="e")
    jobs = [replace(job, settings=replace(job.settings, tracking=where)) for job in planned.jobs]
    retried = replace(planned, teachers=[], students=jobs[1:3])
    append(jobs[3], {"event": "start"}, epoch(1), END)
    record_sweep(Path(jobs[0].settings.output), retried.id, [job.name for job in jobs[1:]])
    report.track_start("s", where)
    report.track_end(retried, outcome={job.run: outcome[job.run] for job in retried.jobs})
    place = {"uri": "sqlite:///x.db", "artifacts": "a", "experiment": "e"}
    assert given == {"what": {retried.id: {"finished": 2, "failed": 1}}, **place}, "one of them in its journal alone"
    assert [record.getMessage() for record in caplog.records] == [
        "the server is away; `edkd sync --uri sqlite:///x.db --experiment e` brings MLflow up to date later"
    ] * 2


def test_a_damaged_best_student_costs_no_summary(
    planned: Sweep, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report.LOG, "propagate", True)
    best = planned.students[0]
    best.directory.mkdir(parents=True)
    (best.directory / "best.pt").write_bytes(b"half of it")
    report.log_best_student(
        planned, statuses(planned, *(status("done", 2, best=each) for each in (1.0, 3.0, 2.0, 1.0)))
    )
    (record,) = caplog.records
    assert "best.pt" in record.getMessage() and record.getMessage().endswith(
        "; the same command logs the best student again"
    )
