"""A run as SLURM starts it: real processes under submitit's own protocol, real signals, `scontrol` alone a script."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from edkd.config.job import Job, freeze
from edkd.rundir import checkpoint, journal, lock
from edkd.runs import preemption, run
from edkd.runs.preemption import SafePoints, Stopped
from edkd.slurm import job as slurm_job
from edkd.slurm import pack
from edkd.slurm.job import PORTS
from edkd.slurm.submission import Submission
from edkd.slurm.warning import Warned
from edkd.training import hardware
from edkd.training.device import cores
from tests.commandline import REPOSITORY, metrics
from tests.fake_slurm import FakeSlurm
from tests.integration.processes import free_ports
from tests.runs.networks import KILL_AT

EPOCHS = 40

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(fake_slurm: FakeSlurm, here: Path) -> Iterator[Start]:
    """`start(job)`: job 1 of the queue, in a process group of its own, as sbatch would start it."""
    processes: list[subprocess.Popen[str]] = []

    def started(
        *jobs: Job, delay: float = 60.0, timeout_min: int = 600, timeouts: int = 3, restarts: int = 0,
        several: int = 1, first: int = 0, gpus: str = "", **environment: str,
    ) -> Any:  # fmt: skip
        for job in jobs:
            freeze(job, sweep="grid-1", threads=None)
        options = {"signal-delay": delay, "timeout-min": timeout_min, "max-timeouts": timeouts, "folder": here}
        given = {**os.environ, "SLURM_JOB_ID": "1", "SLURM_RESTART_COUNT": str(restarts), "OMP_NUM_THREADS": "1"}
        given |= {"CUDA_VISIBLE_DEVICES": gpus, **environment}
        options |= {"runs-per-job": several, "first": first}
        process = subprocess.Popen(
            [
                *(sys.executable, "-u", "-m", "edkd.slurm.job"),
                *(f"--{name}={value}" for name, value in options.items()),
                *(f"{job.run}:{job.directory / 'config.yaml'}" for job in jobs),
            ],
            **{"env": given, "text": True, "start_new_session": True},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        processes.append(process)
        return process

    yield started
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def until(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


def warn(process: "subprocess.Popen[str]") -> None:
    """As SLURM does: every process of the step gets the signal."""
    os.killpg(process.pid, signal.SIGUSR2)


def events(job: Job) -> list[str]:
    return [record["event"] for record in journal.read(job.directory) if record["event"] != "epoch"]


# ---- the warning


def test_a_warned_job_goes_back_into_the_queue_and_ends_with_the_same_numbers(
    make_job: Any, start: Start, fake_slurm: FakeSlurm, here: Path
) -> None:
    job = make_job("vanilla", f"schedule.epochs={EPOCHS}")
    process = start(job)
    for attempt in (1, 2):
        reached = journal.state(job.directory).epoch + 2
        until(lambda wanted=reached: journal.state(job.directory).epoch >= wanted, process)
        warn(process)
        warn(process)
        _, said = process.communicate(timeout=120)
        assert "Traceback" not in said and "stopped on SLURM's warning" in said
        assert process.returncode == 1  # SLURM has the job in the queue by now
        assert fake_slurm.requeued() == ["1"] * attempt
        assert (events(job)[-1], lock.is_held(job.directory)) == ("interrupted", None)
        process = start(job, restarts=attempt)
    process.communicate(timeout=200)
    assert process.returncode == 0
    assert events(job) == ["start", "interrupted", "start", "interrupted", "start", "end"]
    records = journal.read(job.directory)
    assert [record["epoch"] for record in records if record["event"] == "epoch"] == list(range(1, EPOCHS + 1))
    undisturbed = make_job("vanilla", f"schedule.epochs={EPOCHS}", f"output={here / 'elsewhere'}")
    run.execute(undisturbed, sweep=None, show=False)
    assert metrics(records) == metrics(journal.read(undisturbed.directory))


@pytest.mark.parametrize(
    ("options", "disabled", "reason"),
    [
        ({"timeout_min": 0, "timeouts": 2, "restarts": 2}, False, "out of walltime, after 2 restarts"),
        ({"delay": 3.0}, True, "Requested operation is disabled"),
    ],
)
def test_a_job_that_is_not_queued_again_has_failed(
    options: dict[str, Any], disabled: bool, reason: str, make_job: Any, start: Start, fake_slurm: FakeSlurm
) -> None:
    fake_slurm.queue(j1="RUNNING")
    if disabled:
        fake_slurm.set("no_requeue")
    job = make_job("vanilla", f"schedule.epochs={10 * EPOCHS}")
    process = start(job, **options)
    until(lambda: journal.state(job.directory).epoch > 0, process)
    warn(process)
    process.communicate(timeout=120)
    assert process.returncode == 1
    error = journal.state(job.directory).error
    assert error is not None and error.startswith(f"stopped by SLURM and not queued again ({reason})")
    assert "hydra.launcher.timeout_min or max_num_timeout" in error


def test_a_job_that_slurm_has_queued_itself_has_not_failed(make_job: Any, start: Start, fake_slurm: FakeSlurm) -> None:
    """As it does with a job that it preempts: to be queued again is then refused."""
    fake_slurm.set("no_requeue")
    job = make_job("vanilla", f"schedule.epochs={10 * EPOCHS}")
    process = start(job)
    until(lambda: journal.state(job.directory).epoch > 0, process)
    fake_slurm.queue(j1="PENDING BeginTime")
    warn(process)
    process.communicate(timeout=50)
    assert (process.returncode, events(job)) == (1, ["start", "interrupted"])


def test_a_controller_that_is_away_is_asked_again(make_job: Any, start: Start, fake_slurm: FakeSlurm) -> None:
    fake_slurm.queue(j1="RUNNING")
    fake_slurm.set("away")
    job = make_job("vanilla", f"schedule.epochs={10 * EPOCHS}")
    process = start(job)
    until(lambda: journal.state(job.directory).epoch > 0, process)
    warn(process)
    until(lambda: len(fake_slurm.requeued()) == 1, process)
    fake_slurm.clear("away")
    process.communicate(timeout=50)
    assert (fake_slurm.requeued(), events(job)) == (["1", "1"], ["start", "interrupted"])


NOTED = """
import os, signal, subprocess, sys, time
from edkd.slurm.warning import warnings_noted
from edkd.runs.preemption import Stopped
signal.signal(signal.SIGUSR2, lambda number, frame: print("the old handler"))
with warnings_noted(float(sys.argv[1])) as warned:
    started = subprocess.Popen(["sleep", "60"])
    forked = os.fork()
    if forked == 0:
        time.sleep(60)
        os._exit(0)
    print("ready", flush=True)
    began = time.monotonic()
    try:
        while time.monotonic() - began < 60 and (warned.at is None or len(sys.argv) > 2):
            time.sleep(0.01)
        print("noted")
    except Stopped:
        print("broken off")
    time.sleep(0.2)
    print("children", started.poll(), os.waitpid(forked, os.WNOHANG)[0])
    os.kill(forked, signal.SIGKILL)
    started.kill()
    started.wait()
    warned.disarm()
os.kill(os.getpid(), signal.SIGUSR2)
"""


@pytest.mark.parametrize(("arguments", "word"), [(["60"], "noted"), (["0.5", "stuck"], "broken off")])
def test_the_warning_is_noted_and_children_are_left_alone(arguments: list[str], word: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", NOTED, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    warn(process)
    warn(process)
    said = process.communicate(timeout=60)[0].splitlines()
    # The old handler for a signal after the block.
    assert said == [word, "children None 0", "the old handler"]


@pytest.mark.parametrize(
    ("ago", "left", "stop"), [(0, 0.0, True), (0, 20.0, False), (0, 40.0, True), (25, 4.0, False), (25, 6.0, True)]
)
def test_an_epoch_is_finished_if_that_is_near(ago: float, left: float, stop: bool) -> None:
    warned = Warned(60.0)
    assert not warned.stop_asked(0.0)
    warned._at.value = time.monotonic() - ago
    assert warned.stop_asked(left) is stop


# ---- safe points


def test_the_rest_of_an_epoch_is_judged_by_its_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = [100.0], []
    monkeypatch.setattr(preemption.time, "monotonic", lambda: now[0])
    safe = SafePoints(lambda left: bool(asked.append(left)), None, every=None, done=0)
    now[0] = 102.0
    safe.after_step(1, 4, lambda: None)
    now[0] = 112.0
    safe.after_epoch({"seconds": {"train": 8.0, "test": 3.0}})
    now[0] = 114.0
    safe.after_step(2, 4, lambda: None)
    safe.after_step(4, 4, lambda: None)
    assert asked == [6.0, 0.0, 5.0]


@pytest.mark.parametrize(
    ("where", "minutes", "resumed"),
    [("step", "null", "after epoch 1"), ("step", "60", "in epoch 2, after step 2"), ("epoch", "null", "after epoch 1")],
)
def test_a_run_stops_where_it_is_told_and_continues(
    where: str, minutes: str, resumed: str, make_job: Any, here: Path
) -> None:
    job = make_job("vanilla", "schedule.epochs=3", f"engine.checkpoint_every_minutes={minutes}")
    calls = 0  # three within an epoch of four steps, and one after it

    def asked(left: float) -> bool:
        nonlocal calls
        calls += 1
        return left == 0.0 if where == "epoch" else calls == 6

    with pytest.raises(Stopped):
        run.execute(job, sweep=None, show=False, stop_asked=asked)
    assert events(job) == ["start", "interrupted"]
    assert set(journal.epochs(job.directory)) == {1}
    run.execute(job, sweep=None, show=False)
    assert f"resumed {resumed}\n" in (job.directory / "run.log").read_text()
    undisturbed = make_job("vanilla", "schedule.epochs=3", f"output={here / 'elsewhere'}")
    assert undisturbed.run == job.run
    run.execute(undisturbed, sweep=None, show=False)
    assert metrics(journal.read(job.directory)) == metrics(journal.read(undisturbed.directory))


def test_a_run_that_is_as_good_as_finished_is_finished(make_job: Any) -> None:
    job = make_job("vanilla", "schedule.epochs=1")
    assert run.execute(job, sweep=None, show=False, stop_asked=lambda left: left == 0.0).status == "finished"


# ---- failures


def test_a_run_that_fails_fails_its_job(make_job: Any, start: Start) -> None:
    job = make_job("kd", teacher_id="run:aaaa")
    process = start(job)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert events(job) == ["failure"]
    error = journal.state(job.directory).error
    assert error is not None and said.splitlines()[-1] == f"edkd: {error}"
    assert "Traceback" not in said


@pytest.mark.parametrize("whole", [False, True])
def test_a_job_that_cannot_begin_tells_its_journal(make_job: Any, start: Start, whole: bool) -> None:
    job, other = make_job("vanilla"), make_job("vanilla", "schedule.epochs=3")
    process = start(job)  # SLURM gives its configuration time to change, as Python does
    config = job.directory / "config.yaml"
    freeze(other, sweep=None, threads=None)
    changed = (other.directory / "config.yaml").read_text() if whole else config.read_text().replace(": 2", ": 3")
    journal.Journal(job.directory).append({"event": "failure", "error": "earlier"})
    config.write_text(changed)
    process.communicate(timeout=120)
    assert process.returncode == 1
    assert next(record["error"] for record in journal.read(job.directory)) == "earlier"
    error = str(journal.state(job.directory).error)
    assert ("is not what was submitted" if whole else "was changed after planning") in error


@pytest.mark.parametrize(
    ("device", "gpus", "failed"),
    [("auto", "0", True), ("auto", "", False), ("auto", "NoDevFiles", False), ("cpu", "0", False)],
)
def test_a_gpu_that_torch_does_not_find_fails_a_job_unless_the_cpu_is_asked_for(
    make_job: Any, here: Path, monkeypatch: pytest.MonkeyPatch, device: str, gpus: str, failed: bool
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    job = make_job("vanilla", f"engine.device={device}")
    config = freeze(job, sweep=None, threads=None)
    arguments = ["--signal-delay=60", "--timeout-min=9", "--max-timeouts=1", f"--folder={here}", f"{job.run}:{config}"]
    if not failed:
        slurm_job.main(arguments)
        assert journal.state(job.directory).status == "finished"
        return
    with pytest.raises(SystemExit) as ended:
        slurm_job.main(arguments)
    assert ended.value.code == 1
    error = str(journal.state(job.directory).error)
    assert error.startswith("SLURM gave this job a GPU (CUDA_VISIBLE_DEVICES=0), but torch ")
    assert "hydra.launcher.gpus_per_node=0 engine.device=cpu" in error and "\n" not in error


# ---- several processes, several nodes


def test_a_run_of_several_processes_that_slurm_ends_has_not_failed(make_job: Any, start: Start) -> None:
    """As it does by SIGTERM to all processes of a job that it queues again, or that is cancelled."""
    job = make_job("vanilla", f"schedule.epochs={10 * EPOCHS}", "engine.devices=2")
    process = start(job)
    until(lambda: journal.state(job.directory).epoch > 0, process)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert (process.returncode, events(job)) == (1, ["start", "interrupted"]), said
    assert said.endswith("\nedkd: SLURM has ended the tasks of this job, or one of them is gone\n"), said


def test_the_processes_of_a_run_stop_together_on_slurms_warning(
    make_job: Any, start: Start, fake_slurm: FakeSlurm
) -> None:
    scontrol = fake_slurm.folder / "bin" / "scontrol"  # SLURM ends the job while it is asked to queue it again
    scontrol.write_text(scontrol.read_text().replace("echo", "kill -TERM $PPID; echo", 1))
    job = make_job("vanilla", f"schedule.epochs={10 * EPOCHS}", "engine.devices=2")
    process = start(job)
    until(lambda: journal.state(job.directory).epoch > 0, process)
    warn(process)
    _, said = process.communicate(timeout=120)
    assert (process.returncode, events(job)) == (1, ["start", "interrupted"]), said
    assert fake_slurm.requeued() == ["1"] and "Traceback" not in said
    saved = checkpoint.load(job.directory / "checkpoint.pt")
    assert saved is not None and saved[0]["epoch"] == journal.state(job.directory).epoch


@pytest.fixture
def two_nodes() -> dict[str, str]:
    """What srun gives to both tasks of a job."""
    given = {"SLURM_STEP_NUM_NODES": "2", "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1"}
    return given | {"PYTHONPATH": str(REPOSITORY), "SLURM_JOB_ID": str(PORTS.index(free_ports(1)[0]))}


def test_what_ends_one_node_of_a_run_ends_the_others_with_the_same_line(
    make_job: Any, start: Start, two_nodes: dict[str, str]
) -> None:
    """A process of the second node dies in the second epoch of four batches."""
    job = make_job("vanilla", "student.model._target_=tests.runs.networks.mortal", "engine.devices=2")
    tasks = [start(job, SLURM_PROCID=number, **two_nodes, **{KILL_AT: "1,6"}) for number in "01"]
    said = [task.communicate(timeout=300)[1] for task in tasks]
    line = "process 2 of 2 was killed (SIGKILL), and the run ended with it; the same command continues it"
    assert [task.returncode for task in tasks] == [1, 1], said
    assert all(each.endswith(f"\nedkd: {line}\n") or each == f"edkd: {line}\n" for each in said), said
    assert [record.get("error") for record in journal.read(job.directory)] == [None, None, line]


def test_a_node_that_is_gone_without_a_reason(make_job: Any, start: Start, two_nodes: dict[str, str]) -> None:
    job = make_job("vanilla", f"schedule.epochs={10 * EPOCHS}", "engine.devices=2")
    first, second = (start(job, SLURM_PROCID=number, **two_nodes) for number in "01")
    until(lambda: journal.state(job.directory).epoch > 0, first)
    os.killpg(second.pid, signal.SIGKILL)
    _, said = first.communicate(timeout=120)
    line = "a process of another node is gone, and the run ended with it; the same command continues it"
    assert (first.returncode, journal.state(job.directory).error) == (1, line), said
    assert said.endswith(f"\nedkd: {line}\n") and "Traceback" not in said, said


# ---- several runs in a job


def handed_in(job: Job, job_id: str, logs: Path) -> None:
    freeze(job, sweep="grid-1", threads=None)
    Submission(job_id, time.time(), "grid-1", str(logs / f"{job_id}_0_log.err")).write(job.directory)


def test_a_job_with_several_runs_takes_the_next_as_one_ends(make_job: Any, start: Start, here: Path) -> None:
    """Two at a time on two pretended GPUs, of which one fails and one is killed; the last was another job's."""
    bad, killed, *good = (make_job("vanilla", f"seed={seed}", f"schedule.epochs={EPOCHS // 2}") for seed in range(5))
    for job in (bad, killed, *good):
        handed_in(job, "2" if job is good[-1] else "1", here)
    process = start(bad, killed, *good, several=2, gpus="3,5")
    bad.directory.joinpath("config.yaml").write_text("nonsense")
    until(lambda: lock.is_held(killed.directory) is not None, process)
    os.kill(lock.is_held(killed.directory)["pid"], signal.SIGKILL)
    assert process.communicate(timeout=250) and process.returncode == 1
    assert "is not a frozen configuration" in str(journal.state(bad.directory).error)
    assert journal.state(killed.directory).error == "its process was killed by signal 9"
    gpus = set()
    for job in good:
        assert events(job) == ["start", "end"]
        (first, *_) = journal.read(job.directory)
        gpus.add(first["slurm"]["cuda_visible_devices"])
        submission = Submission.read(job.directory)
        assert submission is not None and submission.job_id == "1"
        assert Path(submission.log) == here / f"1_{job.run[:8]}_log.err"
        assert job.name in Path(submission.log).read_text()
    assert gpus == {"3", "5"}


def test_a_warned_job_with_several_runs_continues_them_all(
    make_job: Any, start: Start, fake_slurm: FakeSlurm, here: Path
) -> None:
    jobs = [make_job("vanilla", f"seed={seed}", f"schedule.epochs={EPOCHS // 2}") for seed in range(2)]
    for job in jobs:
        handed_in(job, "1", here)
    process = start(*jobs, several=2)
    until(lambda: all(journal.state(job.directory).epoch > 1 for job in jobs), process)
    warn(process)
    process.communicate(timeout=250)
    assert (process.returncode, fake_slurm.requeued()) == (1, ["1"])
    assert "interrupted" in [events(job)[-1] for job in jobs]  # one may have been done
    process = start(*jobs, several=2, restarts=1)
    process.communicate(timeout=250)
    assert (process.returncode, fake_slurm.requeued()) == (0, ["1"])
    for job in jobs:
        epochs = [record["epoch"] for record in journal.read(job.directory) if record["event"] == "epoch"]
        assert (events(job)[-1], epochs) == ("end", list(range(1, EPOCHS // 2 + 1)))


def test_a_job_whose_runs_another_one_has_ends_with_them(make_job: Any, start: Start, here: Path) -> None:
    mine, other = make_job("vanilla"), make_job("vanilla", "seed=1")
    for job in (mine, other):
        handed_in(job, "1", here)
    with lock.hold(mine.directory):
        process = start(mine, other, several=2)
        until(lambda: journal.state(other.directory).status == "finished", process)
    assert process.communicate(timeout=250) and process.returncode == 0
    assert journal.state(mine.directory).status == "finished"


def test_of_two_jobs_that_take_a_run_at_once_the_slower_one_leaves_it(
    make_job: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job("vanilla")
    handed_in(job, "2", here)
    before = Submission.read(job.directory)
    python = here / "python"
    python.write_text(f"#!/bin/sh\nexit {pack.HELD}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    taking = pack.Pack(
        ["x:y/config.yaml", f"{job.run}:{job.directory}/config.yaml"], first=0, size=1, options=[], job="1"
    )
    taking.ended["x:y/config.yaml"] = 0
    taking.start_next()
    during = Submission.read(job.directory)
    assert during is not None and during.job_id == "1"
    taking.processes[0].process.wait()
    taking.collect()
    assert Submission.read(job.directory) == before and not taking.ended.get(f"{job.run}:{job.directory}/config.yaml")


# ---- twins


def test_a_twin_waits_for_the_one_that_has_the_directory(make_job: Any, start: Start) -> None:
    job = make_job("vanilla")
    with lock.hold(job.directory):
        process = start(job)
        assert process.stderr is not None
        line = next(line for line in process.stderr if not line.startswith("submitit"))
        assert line.startswith(f"waiting: run directory {job.directory} is in use by pid {os.getpid()}")
        assert not (job.directory / "journal.jsonl").exists()
    process.communicate(timeout=120)
    assert (process.returncode, events(job)) == (0, ["start", "end"])


def test_a_twin_that_waits_makes_way_too(make_job: Any, start: Start, fake_slurm: FakeSlurm) -> None:
    job = make_job("vanilla")
    with lock.hold(job.directory):
        process = start(job)
        assert process.stderr is not None
        next(line for line in process.stderr if line.startswith("waiting"))
        warn(process)
        process.communicate(timeout=120)
        assert fake_slurm.requeued() == ["1"]
    assert not (job.directory / "journal.jsonl").exists()


def test_a_run_that_another_finished_in_the_meantime_is_left_as_it_is(
    make_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job("vanilla")
    hold = lock.hold

    def late(directory: Path) -> Any:
        monkeypatch.setattr(lock, "hold", hold)
        run.execute(job, sweep=None, show=False)
        return hold(directory)

    monkeypatch.setattr(lock, "hold", late)
    assert run.execute(job, sweep=None, show=False).status == "finished"
    assert events(job) == ["start", "end"]


# ---- what SLURM says of a job


def test_outside_slurm_there_is_no_job(fake_slurm: FakeSlurm) -> None:
    assert (hardware.slurm_job(), hardware.slurm_note(), hardware.slurm_cores()) == (None, None, None)


def test_a_job_is_named_as_squeue_names_it(fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"JOB_ID": "14", "ARRAY_JOB_ID": "12", "ARRAY_TASK_ID": "0", "RESTART_COUNT": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert hardware.slurm_note() == {"job_id": "12_0", "node": "n7", "cuda_visible_devices": "3", "restarts": 2}
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID")
    assert hardware.slurm_job() == "14"


def test_a_job_computes_on_the_cores_that_it_was_given(fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    assert cores() == 16
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "6")
    assert cores() == 6
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert cores() == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    assert cores() == 1
