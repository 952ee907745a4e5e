"""Sweeps that are handed to SLURM: what is submitted, what is found again, what has ended."""

import contextlib
import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from edkd.config import job as config_job
from edkd.errors import EdkdError
from edkd.rundir import files, journal, lock
from edkd.slurm import queue, submit
from edkd.slurm.submission import Submission
from edkd.status import wait
from edkd.status.state import RunStatus, look
from edkd.sweeps import sweep
from tests.commandline import REPOSITORY, Ended, edkd, error, journals, launch, metrics, python
from tests.fake_slurm import FakeSlurm, fake_slurm

__all__ = ["fake_slurm"]  # a fixture


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "SILENCE", 0.3)


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


# ---- submitting


def test_both_stages_are_submitted_at_once_and_students_wait_for_their_own_teacher(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path
) -> None:
    done = slurm(tiny, "distiller=kd,dkd", "teacher=resnet8,resnet14", "hydra.launcher.array_parallelism=2")
    assert (done.code, done.err) == (0, "")
    assert "6 jobs submitted to SLURM: 1, 2, 3\n" in done.out and "`edkd status`" in done.out
    teachers, first, second = map(flags, fake_slurm.scripts())
    assert (teachers["array"], first["array"], second["array"]) == ("0-1%2",) * 3
    assert "dependency" not in teachers
    given = submissions(here / "outputs")
    waits = {"1_0": "afterany:1_0", "1_1": "afterany:1_1"}
    for teacher in ("resnet8", "resnet14"):
        students = [given[f"{teacher}-resnet8/{method}-s0"]["job_id"].split("_")[0] for method in ("kd", "dkd")]
        assert students[0] == students[1]
        script = {"2": first, "3": second}[students[0]]
        assert script["dependency"] == waits[given[f"{teacher}/vanilla-s0"]["job_id"]]


def test_what_the_launcher_is_given_reaches_sbatch(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = [
        *("partition=gpu", "account=lab", "qos=short", "constraint=a100", "gpus_per_node=2", "cpus_per_task=3"),
        *("mem_gb=5", "timeout_min=30", "signal_delay_s=77", "setup=['module load x']", "python='container python'"),
    ]
    tiny = [each for each in tiny if not each.startswith("engine.threads")]
    assert slurm(tiny, "distiller=vanilla", *(f"++hydra.launcher.{each}" for each in options)).code == 0
    assert "gpus_per_node=2: a run uses one GPU; idle: 1" in caplog.text
    (script,) = fake_slurm.scripts()
    found = flags(script)
    expected = {
        **{"partition": "gpu", "account": "lab", "qos": "short", "constraint": "a100", "gpus-per-node": "2"},
        **{"cpus-per-task": "3", "mem": "5GB", "time": "30", "signal": "USR2@77", "requeue": ""},
    }
    assert {name: found.get(name) for name in expected} == expected
    assert "array" not in found
    assert "\nmodule load x\n" in script
    assert " --cpus-per-task=3 bash " in script and " container python -u -m edkd.slurm.job --" in script
    (config,) = (here / "outputs").rglob("config.yaml")
    assert yaml.safe_load(config.read_text())["engine"]["threads"] == 3


def test_arrays_are_no_larger_than_the_cluster_allows_and_a_submission_names_its_job(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path
) -> None:
    fake_slurm.set("max_array_size", "2\n")
    began = time.time()
    assert slurm(tiny, "distiller=vanilla", "seed=0,1,2,3,4").code == 0
    assert [flags(script).get("array") for script in fake_slurm.scripts()] == ["0-1%2", "0-1%2", None]
    *others, last = submissions(here / "outputs").values()
    assert [each["job_id"] for each in others] == ["1_0", "1_1", "2_0", "2_1"]
    assert began < last.pop("submitted") < time.time()
    (sweep,) = (here / "outputs" / "sweeps").glob("*.json")
    log = str(here / "outputs" / "sweeps" / "slurm" / "3_0_log.err")
    assert last == {"job_id": "3", "sweep": sweep.stem, "log": log, "journal_size": 0, "several": False}


def test_jobs_inherit_nothing_of_a_job_that_submits_them(
    tiny: list[str], fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fake_slurm.folder / "bin" / "sbatch").write_text(f"#!/bin/bash\nenv >{fake_slurm.folder}/env\necho job 1\n")
    for name in ("SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "SLURM_CONF", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "7")
    assert slurm(tiny, "distiller=vanilla").code == 0
    env = dict(line.split("=", 1) for line in (fake_slurm.folder / "env").read_text().splitlines() if "=" in line)
    assert "SLURM_JOB_ID" not in env and "SLURM_CPUS_PER_TASK" not in env
    assert (env["SLURM_CONF"], env["SBATCH_ACCOUNT"]) == ("7", "7")
    assert str(Path(submit.__file__).parents[2]) in env["PYTHONPATH"].split(":")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("timeout_min=0", "hydra.launcher.timeout_min=0: must be at least 1"),
        ("timeout_min=2", "hydra.launcher.signal_delay_s=120: SLURM would warn a job of 120 s (timeout_min=2)"),
        ("signal_delay_s=0", "hydra.launcher.signal_delay_s=0: must be at least 1"),
        ("poll_s=-1", "hydra.launcher.poll_s=-1.0: must be at least 0.1"),
        ("max_num_timeout=-1", "hydra.launcher.max_num_timeout=-1: must be at least 0"),
        ("gpus_per_node=-1", "hydra.launcher.gpus_per_node=-1: must be at least 0"),
        ("name=''", "hydra.launcher.name is empty"),
        (
            "tasks_per_node=2",
            "hydra.launcher.tasks_per_node=2: must be 1, a task that starts the processes of its node",
        ),
        ("nodes=0", "hydra.launcher.nodes=0: must be at least 1"),
        ("runs_per_job=0", "hydra.launcher.runs_per_job=0: must be at least 1"),
    ],
)
@pytest.mark.parametrize("dry_run", [(), ("+dry_run=true",)])
def test_a_value_that_makes_no_sense_is_refused_before_anything_is_planned(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path, given: str, said: str, dry_run: tuple[str, ...]
) -> None:
    before = set(here.iterdir())
    told = error(launch("-m", *tiny, "distiller=vanilla", "hydra/launcher=slurm", f"hydra.launcher.{given}", *dry_run))
    assert told.startswith(said)
    assert fake_slurm.scripts() == [] and set(here.iterdir()) == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "hydra.launcher.partitoin=main",
            "no such key in hydra.launcher, did you mean partition?; allowed: _target_, account, ",
        ),
        ("+hydra.launcher.partitoin=main", "hydra.launcher.partitoin: no such key; allowed: account, "),
        ("hydra.launcher.exclude=n[1-2]", "it needs quotes of its own: \"hydra.launcher.exclude='n[1-2]'\""),
    ],
)
def test_a_key_that_there_is_not(tiny: list[str], fake_slurm: FakeSlurm, given: str, said: str) -> None:
    assert said in error(launch("-m", *tiny, "distiller=vanilla", "hydra/launcher=slurm", given))
    assert fake_slurm.scripts() == []


def test_a_launcher_file_of_ones_own(tiny: list[str], fake_slurm: FakeSlurm, here: Path) -> None:
    folder = here / "myconf" / "hydra" / "launcher"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("defaults: [slurm_detached, _self_]\npartition: gpu\nsetup: ['module load x']\n")
    given = [*tiny, "distiller=vanilla", "--config-dir", "myconf", "hydra/launcher=mine"]  # options among overrides
    done = launch(*given, "-m", "hydra.launcher.timeout_min=30")
    assert (done.code, done.err) == (0, "")
    (script,) = fake_slurm.scripts()
    assert flags(script)["partition"] == "gpu" and "module load x" in script


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "defaults: [slurm, _self_]\npartitoin: gpu\n",
            ": hydra.launcher.partitoin: no such key, did you mean partition?;",
        ),
        ("defaults: [slurm, _self_]\nsetup: module load x\n", ": hydra.launcher.setup: must be a list, such as ['…']"),
        (
            "defaults: [slurm, _self_]\nmem_gb: much\n",
            ": hydra.launcher.mem_gb: Value 'much' of type 'str' could not be",
        ),
        (
            "defaults: [slrum, _self_]\n",
            ": defaults: no such option slrum, did you mean slurm?; allowed: bad, local, slurm",
        ),
        ("partition: gpu\n", " does not say what it changes: it begins with `defaults: [slurm, _self_]`"),
        ("defaults: [slurm, _self_\n", '", line 2, column 1'),
    ],
)
def test_what_is_wrong_in_a_launcher_file_is_one_line(tiny: list[str], here: Path, text: str, said: str) -> None:
    file = here / "myconf" / "hydra" / "launcher" / "bad.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    told = error(launch("-m", *tiny, "distiller=vanilla", "--config-dir=myconf", "hydra/launcher=bad"))
    assert f"myconf/hydra/launcher/bad.yaml{said}" in told


@pytest.mark.parametrize(
    ("given", "expected", "absent"),
    [
        (".mail-user=ann@example.org", {"mail-user": "ann@example.org"}, {"no-requeue"}),
        (".requeue=false", {"no-requeue": ""}, {"requeue"}),
        (".requeue=null", {}, {"requeue", "no-requeue"}),
        ("={wckey: hi}", {"wckey": "hi"}, set()),
    ],
)
def test_any_other_option_of_sbatch(
    tiny: list[str], fake_slurm: FakeSlurm, given: str, expected: dict[str, str], absent: set[str]
) -> None:
    assert slurm(tiny, "distiller=vanilla", f"hydra.launcher.additional_parameters{given}").code == 0
    found = flags(fake_slurm.scripts()[0])
    assert expected.items() <= found.items()
    assert not absent & found.keys()


def contents(folder: Path) -> set[Path]:
    """All that is there, but for what MLflow keeps, and locks."""
    return {path for path in folder.rglob("*") if path.suffix not in (".lock", ".db")}


def test_of_what_slurm_refuses_nothing_stays(tiny: list[str], fake_slurm: FakeSlurm, here: Path) -> None:
    said = ("invalid partition specified: gpux", "Batch job submission failed: Invalid partition name specified")
    fake_slurm.set("refuse", "".join(f"sbatch: error: {line}\n" for line in said))
    for _ in range(2):
        done = slurm(tiny, "distiller=kd", "hydra.launcher.partition=gpux")
        assert (done.code, done.err) == (
            1,
            "edkd: SLURM refused the jobs: invalid partition specified: gpux; Invalid partition name specified; "
            "see hydra.launcher\n",
        )
        assert contents(here / "outputs") <= {here / "outputs" / "sweeps"}
    assert edkd("status").err.startswith("edkd: no runs in outputs/runs")


def test_what_was_there_before_stays_though_slurm_refuses_it(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path
) -> None:
    assert slurm(tiny, "distiller=vanilla").code == 0
    (run,) = (path.parent for path in (here / "outputs").rglob("slurm.json"))
    journal.Journal(run).append({"event": "failure", "error": "no"})
    before = contents(here / "outputs")
    fake_slurm.set("refuse", "sbatch: error: no\n")
    assert slurm(tiny, "distiller=vanilla", "seed=0,1").code == 1
    assert contents(here / "outputs") - before == set(), "a new seed and a new sweep: both are gone again"
    assert before <= contents(here / "outputs")
    assert slurm(tiny, "distiller=vanilla").code == 1
    assert contents(here / "outputs") == before


def test_what_slurm_took_before_it_refused_the_rest_stays(tiny: list[str], fake_slurm: FakeSlurm, here: Path) -> None:
    sbatch = fake_slurm.folder / "bin" / "sbatch"
    sbatch.write_text(sbatch.read_text() + f"\necho 'sbatch: error: enough' >{fake_slurm.folder}/refuse\n")
    done = slurm(tiny, "distiller=kd,dkd")
    assert (done.code, done.err) == (
        1,
        "edkd: 1 job submitted: 1; 2 not: SLURM refused the jobs: enough; see hydra.launcher; "
        "the same command continues\n",
    )
    assert set(submissions(here / "outputs")) == {"resnet8/vanilla-s0"}
    assert [path.parent.parent.name for path in (here / "outputs").rglob("config.yaml")] == ["resnet8"]
    assert len(list((here / "outputs" / "sweeps").glob("*.json"))) == 1


def test_a_controller_that_goes_away_has_refused_nothing_and_its_jobs_are_found_again(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path
) -> None:
    sbatch, said = fake_slurm.folder / "bin" / "sbatch", "Socket timed out on send/recv operation"
    whole = sbatch.read_text()
    sbatch.write_text(f"{whole}\necho 'sbatch: error: {said}' >{fake_slurm.folder}/deaf\n")
    done = slurm(tiny, "distiller=kd,dkd")
    assert (done.code, done.err) == (
        1,
        f"edkd: 1 job submitted: 1; 2 not: SLURM does not answer: {said}; the same command continues\n",
    )
    assert set(submissions(here / "outputs")) == {"resnet8/vanilla-s0"}
    sbatch.write_text(whole)
    fake_slurm.clear("deaf")
    fake_slurm.queue(j1="RUNNING", j2_0="PENDING", j2_1="PENDING")  # it had heard all the same
    fake_slurm.set("away")
    assert "`squeue` says why" in slurm(tiny, "distiller=kd,dkd").err
    fake_slurm.clear("away")
    assert "0 jobs submitted to SLURM, 3 were in its queue already: 1, 2\n" in slurm(tiny, "distiller=kd,dkd").out
    assert submissions(here / "outputs")["resnet8-resnet8/dkd-s0"]["job_id"] == "2_1"
    fake_slurm.queue(j1="RUNNING")
    assert "2 jobs submitted to SLURM, 1 was in its queue already: 1, 3\n" in slurm(tiny, "distiller=kd,dkd").out


def test_ctrl_c_waits_until_what_was_submitted_is_written_down(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path
) -> None:
    sbatch = fake_slurm.folder / "bin" / "sbatch"
    whole = sbatch.read_text()
    sbatch.write_text(whole.replace("echo", "kill -INT $PPID $$; sleep 0.3; echo", 1))
    assert slurm(tiny, "distiller=kd").code == 130
    assert [each["job_id"] for each in submissions(here / "outputs").values()] == ["1"]
    sbatch.write_text(whole)
    fake_slurm.queue(j1="PENDING")
    assert "1 job submitted to SLURM, 1 was in its queue already: 1, 2\n" in slurm(tiny, "distiller=kd").out


def test_jobs_that_slurm_takes_after_their_command_was_killed_are_waited_for(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = fake_slurm.folder / "bin" / "sbatch"
    kill, away = fake_slurm.folder / "kill", fake_slurm.folder / "waits"
    late = f"[ -e {kill} ] && mv {kill} {away} && kill -KILL $PPID && while [ -e {away} ]; do sleep 0.1; done"
    late += f" && echo '1|PENDING|None|n1' >>{fake_slurm.folder}/queue"
    sbatch.write_text(sbatch.read_text().replace("n=$", f"{late}\nn=$", 1))
    fake_slurm.set("kill")
    killed = python(str(REPOSITORY / "launch.py"), "-m", *tiny, "hydra/launcher=slurm_detached", "distiller=vanilla")
    assert killed.code == -signal.SIGKILL and fake_slurm.scripts() == [], killed
    alone = submit.alone

    def begin(folder: Path) -> contextlib.AbstractContextManager[None]:
        threading.Timer(2, away.unlink).start()
        return alone(folder)

    monkeypatch.setattr(submit, "alone", begin)
    again = slurm(tiny, "distiller=vanilla")
    assert "0 jobs submitted to SLURM, 1 was in its queue already: 1\n" in again.out, again
    assert len(fake_slurm.scripts()) == 1


def test_a_job_is_given_several_runs(tiny: list[str], fake_slurm: FakeSlurm, here: Path) -> None:
    tiny = [each for each in tiny if not each.startswith("engine.threads")]
    several = ("hydra.launcher.runs_per_job=2", "hydra.launcher.cpus_per_task=7", "hydra.launcher.gpus_per_node=2")
    fake_slurm.set("max_array_size", "2")
    done = slurm(tiny, "distiller=vanilla", "seed=0,1,2,3,4", *several)
    assert (done.code, done.err) == (0, "") and "3 jobs of 5 runs submitted to SLURM: 1, 2\n" in done.out
    assert [each["job_id"] for each in submissions(here / "outputs").values()] == ["1_0", "1_0", "1_1", "1_1", "2"]
    array, single = fake_slurm.scripts()
    assert flags(array)["array"] == "0-1%2" and flags(single)["job-name"] == "edkd:resnet8/vanilla-s4"
    assert " --cpus-per-task=7 " in array and '--first $((2 * ${SLURM_ARRAY_TASK_ID:-0})) "${runs[@]}"' in array
    assert "update JobId=1_1 JobName=edkd:resnet8/vanilla-s2+1\n" in (fake_slurm.folder / "asked").read_text()
    configs = [yaml.safe_load(path.read_text()) for path in (here / "outputs").rglob("config.yaml")]
    assert {config["engine"]["threads"] for config in configs} == {3}


def test_a_sweep_with_several_runs_a_job(tiny: list[str], fake_slurm: FakeSlurm, here: Path) -> None:
    fake_slurm.set("run")
    fake_slurm.queue(j1_0="RUNNING", j1_1="PENDING")
    done = slurm(tiny, "distiller=vanilla", "seed=0,1,2", "hydra.launcher.runs_per_job=2", launcher="slurm")
    assert done.code == 0 and ": 3 of 3 runs finished\n" in done.out, done
    starts = [record for records in journals(here / "outputs").values() for record in records if "slurm" in record]
    assert {record["slurm"]["job_id"] for record in starts} == {"1_0"}  # one job after another: the first takes all


def test_a_run_is_spread_over_nodes(tiny: list[str], fake_slurm: FakeSlurm) -> None:
    tiny = [each for each in tiny if not each.startswith("engine.device=")]
    words = ("distiller=kd", "engine.devices=8", "hydra.launcher.nodes=2", "hydra.launcher.gpus_per_node=4")
    assert slurm(tiny, *words).code == 0
    for script in fake_slurm.scripts():  # the teacher's and the student's
        found = flags(script)
        assert [found[name] for name in ("nodes", "ntasks-per-node", "gpus-per-node")] == ["2", "1", "4"]
        assert " --kill-on-bad-exit=1 " in script
    assert slurm(tiny, "distiller=vanilla").code == 0
    assert "--kill-on-bad-exit" not in fake_slurm.scripts()[-1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ("engine.devices=4", "hydra.launcher.nodes=2", "hydra.launcher.gpus_per_node=4"),
            "engine.devices=4: hydra.launcher.nodes=2 with gpus_per_node=4: 8 GPUs",
        ),
        (("engine.devices=4",), "engine.devices=4: hydra.launcher.nodes=1 with gpus_per_node=1: 1 GPU"),
        (
            ("engine.devices=3", "hydra.launcher.nodes=2", "hydra.launcher.gpus_per_node=0", "engine.device=cpu"),
            "engine.devices=3: not the same number on each of hydra.launcher.nodes=2",
        ),
        (
            ("hydra.launcher.nodes=2", "hydra.launcher.runs_per_job=2"),
            "hydra.launcher.nodes=2: a job of several nodes has one run, not runs_per_job=2",
        ),
        (
            ("engine.devices=2", "hydra.launcher.gpus_per_node=4", "hydra.launcher.runs_per_job=2"),
            "engine.devices=2: with hydra.launcher.runs_per_job=2 each run has one GPU",
        ),
    ],
)
def test_devices_that_the_jobs_will_not_have_are_refused(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path, given: tuple[str, ...], said: str
) -> None:
    tiny = [each for each in tiny if not each.startswith("engine.device=")]
    assert error(slurm(tiny, "distiller=vanilla", *given)) == said
    assert fake_slurm.scripts() == [] and not (here / "outputs").exists()


def test_jobs_are_named_after_their_runs(tiny: list[str], fake_slurm: FakeSlurm) -> None:
    assert slurm(tiny, "distiller=kd,dkd", "hydra.launcher.name='my jobs'").code == 0
    teacher, students = map(flags, fake_slurm.scripts())
    assert teacher["job-name"] == "my_jobs:resnet8/vanilla-s0"
    (sweep,) = {each["comment"].strip("'").split()[0] for each in (teacher, students)}
    assert students["job-name"] == f"my_jobs:{sweep}"
    assert "update JobId=2_1 JobName=my_jobs:resnet8-resnet8/dkd-s0\n" in (fake_slurm.folder / "asked").read_text()


def test_a_folder_for_logs_is_its_owners_alone(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = here / "outputs" / "sweeps" / "slurm"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert slurm(tiny, "distiller=vanilla").code == 0
    assert folder.stat().st_mode & 0o777 == 0o700 and [path.name for path in folder.iterdir()] == ["1_submission.sh"]
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert f"edkd: {folder} is another user's" in slurm(tiny, "distiller=vanilla", "seed=1").err
    assert len(fake_slurm.scripts()) == 1


def test_a_directory_that_somebody_else_uses_by_now_is_not_removed(make_job: Any) -> None:
    job, other = make_job("vanilla"), make_job("vanilla", "seed=1")
    made = [*config_job.absent(job), *config_job.absent(other)]
    for each in (job, other):
        config_job.freeze(each, sweep=None, threads=None)
    journal.Journal(job.directory).append({"event": "start"})
    config_job.remove_frozen(made)
    assert {"config.yaml", "journal.jsonl"} <= {path.name for path in job.directory.iterdir()}
    assert not other.directory.exists()
    assert config_job.absent(job) == []


def test_a_submission_that_cannot_be_written_names_the_job(
    tiny: list[str], fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = files.write_text

    def full(path: Path, text: str) -> None:
        if path.name == "slurm.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text)

    monkeypatch.setattr(files, "write_text", full)
    done = slurm(tiny, "distiller=vanilla", "student=resnet8")
    assert done.code == 1
    assert "slurm.json: No space left on device; SLURM has job 1 for this run" in done.err


def test_without_slurm_it_says_where_to_go(
    tiny: list[str], fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = slurm(tiny, "distiller=vanilla")
    assert done.code == 1
    assert "there is no sbatch on PATH" in done.err and "hydra/launcher=local" in done.err


# ---- coming again


def test_jobs_in_the_queue_are_found_again_and_not_submitted_twice(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path
) -> None:
    assert slurm(tiny, "distiller=kd", "seed=0,1").code == 0
    before = submissions(here / "outputs")
    fake_slurm.queue(j1="RUNNING", j2_0="PENDING", j2_1="CANCELLED")
    done = slurm(tiny, "distiller=kd", "seed=0,1,2")
    assert "2 jobs submitted to SLURM, 2 were in its queue already: 1, 2, 3\n" in done.out
    assert flags(fake_slurm.scripts()[2])["dependency"] == "afterany:1"
    after = submissions(here / "outputs")
    assert after.pop("resnet8-resnet8/kd-s2")["job_id"] == "3_1"
    assert after.pop("resnet8-resnet8/kd-s1")["job_id"] == "3_0"
    assert after == {name: before[name] for name in after}


@pytest.mark.parametrize("state", ["NODE_FAIL", "PREEMPTED"])
def test_a_job_that_slurm_is_about_to_queue_again_gets_no_twin(
    tiny: list[str], fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    assert slurm(tiny, "distiller=vanilla").code == 0
    fake_slurm.queue(j1=state)
    monkeypatch.setattr(sweep.time, "sleep", lambda seconds: fake_slurm.queue(j1="PENDING"))
    assert "0 jobs submitted to SLURM, 1 was in its queue already: 1\n" in slurm(tiny, "distiller=vanilla").out


def test_the_plan_says_what_is_in_the_queue_and_slurm_is_asked_once(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path
) -> None:
    squeue = fake_slurm.folder / "bin" / "squeue"
    squeue.write_text(squeue.read_text() + f"\necho >>{fake_slurm.folder}/squeues\n")

    def planned(done: Ended) -> list[str]:
        return [
            line.split("  ")[-1].strip()
            for line in done.out.splitlines()
            if line.startswith(("1 teacher", "2 student"))
        ]

    assert planned(slurm(tiny, "distiller=kd", "seed=0,1")) == ["new"] * 3
    assert not (fake_slurm.folder / "squeues").exists(), "there was nothing to ask"
    fake_slurm.queue(j1="RUNNING", j2_0="PENDING", j2_1="CANCELLED")
    again = slurm(tiny, "distiller=kd", "seed=0,1")
    assert planned(again) == ["waiting in SLURM (job 1)", "waiting in SLURM (job 2_0)", "new"]
    assert "2 runs: 1 waiting in SLURM, 1 new; teachers to train first: 1" in again.out
    assert "1 job submitted to SLURM, 2 were in its queue already" in again.out
    assert len((fake_slurm.folder / "squeues").read_text().splitlines()) == 1
    fake_slurm.set("away")
    assert all("waiting in SLURM (job " in each for each in planned(slurm(tiny, "distiller=kd", "seed=0,1")))
    assert len((fake_slurm.folder / "squeues").read_text().splitlines()) == 1
    fake_slurm.clear("away")
    assert planned(launch("-m", *tiny, "distiller=kd", "+dry_run=true")) == ["new"] * 2
    assert len((fake_slurm.folder / "squeues").read_text().splitlines()) == 1, "it is no business of another launcher"


def test_a_run_that_a_job_of_slurms_holds_runs_there(make_job: Any, tiny: list[str], fake_slurm: FakeSlurm) -> None:
    job = make_job("vanilla")
    config_job.freeze(job, sweep=None, threads=None)
    Submission("7_3", time.time(), "grid", "log").write(job.directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_JOB_ID", "10")
        holding = lock.hold(job.directory)
        holding.__enter__()
    try:
        shown = launch("-m", *tiny, "distiller=vanilla", "+dry_run=true").out
    finally:
        holding.__exit__(None, None, None)
    assert "  running in SLURM (job 7_3)\n" in shown


def test_what_may_still_be_queued_is_not_submitted_again_while_slurm_is_away(
    tiny: list[str], fake_slurm: FakeSlurm
) -> None:
    assert slurm(tiny, "distiller=vanilla").code == 0
    fake_slurm.set("away")
    done = slurm(tiny, "distiller=vanilla")
    assert done.code == 1 and "SLURM does not answer, and may still have 1 of these runs in its queue" in done.err
    assert len(fake_slurm.scripts()) == 1
    fake_slurm.clear("away")
    assert slurm(tiny, "distiller=vanilla").code == 0
    assert len(fake_slurm.scripts()) == 2


def test_a_failed_run_is_submitted_again_once_its_job_has_left(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path
) -> None:
    assert slurm(tiny, "distiller=vanilla").code == 0
    (run,) = (path.parent for path in (here / "outputs").rglob("slurm.json"))
    journal.Journal(run).append({"event": "failure", "error": "no"})
    fake_slurm.queue(j1="COMPLETING")
    assert "0 jobs submitted to SLURM, 1 was in its queue already: 1\n" in slurm(tiny, "distiller=vanilla").out
    fake_slurm.queue(j1="FAILED")
    assert "1 job submitted to SLURM: 2\n" in slurm(tiny, "distiller=vanilla").out


def test_students_of_a_teacher_that_trains_elsewhere_are_not_submitted(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path
) -> None:
    assert slurm(tiny, "distiller=kd").code == 0
    (teacher,) = (here / "outputs").glob("runs/*/resnet8/vanilla-*")
    with lock.hold(teacher):
        done = slurm(tiny, "distiller=kd", launcher="slurm")
    assert done.code == 1 and len(fake_slurm.scripts()) == 2
    assert "is running in another process" in done.out and "its teacher resnet8 is not trained yet" in done.out


@pytest.mark.parametrize("launcher", ["basic", "slurm"])
def test_who_repeats_a_finished_sweep_of_somebody_elses_is_told_so(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    assert launch("-m", *tiny, "distiller=vanilla", "schedule.epochs=1").code == 0
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    done = launch("-m", *tiny, "distiller=vanilla", "schedule.epochs=1", f"hydra/launcher={launcher}")
    assert (done.code, done.err) == (0, "") and ": 1 of 1 runs finished\n" in done.out
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before


# ---- waiting


def test_a_sweep_from_the_command_to_the_summary(tiny: list[str], fake_slurm: FakeSlurm, here: Path) -> None:
    fake_slurm.set("run")
    fake_slurm.queue(j1="RUNNING", j2="PENDING")
    done = slurm(tiny, "distiller=kd", "hydra.launcher.cpus_per_task=1", launcher="slurm")
    assert done.code == 0, done
    assert done.out.splitlines()[-2].endswith("2 of 2 runs finished")
    found = journals(here / "outputs")
    (start,) = [record for record in found["resnet8-resnet8/kd-s0"] if record["event"] == "start"]
    assert start["slurm"] == {"job_id": "2", "node": "n1", "cuda_visible_devices": None, "restarts": 0}
    elsewhere = here / "elsewhere"
    assert launch("-m", *tiny, "distiller=kd", f"output={elsewhere}").code == 0
    for name, records in journals(elsewhere).items():
        assert metrics(found[name]) == metrics(records)


def test_a_student_in_the_queue_outlives_its_teacher_and_says_why_it_failed(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path
) -> None:
    fake_slurm.set("run")
    fake_slurm.queue(j1="RUNNING", j2="PENDING Dependency")
    done = slurm(tiny, "distiller=kd", "schedule.lr=1e30", "hydra.launcher.cpus_per_task=1", launcher="slurm")
    assert done.code == 1, done
    (teacher,) = (here / "outputs").glob("runs/*/resnet8/vanilla-*")
    failed = next(line for line in done.err.splitlines() if " failed: teacher resnet8 is not in " in line)
    assert failed.endswith(f": its run {teacher} failed; `edkd retry`, or the same command again, trains it first")
    assert done.err.count("SLURM: 1 run waits: Dependency") == 1
    first, second = (line for line in done.out.splitlines() if " failed: " in line)
    assert "training diverged; lower schedule.lr" in first
    assert second.endswith(" failed: its teacher resnet8 is not trained yet")


def test_a_job_that_left_the_queue_without_a_word_has_vanished(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path
) -> None:
    log = here / "outputs" / "sweeps" / "slurm" / "1_0_0_log.err"
    log.parent.mkdir(parents=True)
    log.write_text(NO_PYTHON)
    fake_slurm.queue(j1_0="FAILED")
    done = slurm(tiny, "distiller=vanilla", "seed=0,1", launcher="slurm")
    assert done.code == 1
    first, second = (line for line in done.out.splitlines() if " vanished after epoch 0: " in line)
    why = f": FAILED: execve(): /nonexistent/python: No such file or directory (SLURM job 1_0, {log})"
    assert first.endswith(why) and "job gone from SLURM's queue (SLURM job 1_1)" in second
    assert f": vanished{why}\n" in done.err
    assert "  FAILED: execve(): /nonexistent/python: No such file or directory\n" in edkd("status").out


def test_what_another_command_has_continued_is_not_given_up(
    tiny: list[str], fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = sweep.wait

    def outlasted(run_dirs: Iterable[Path], poll_s: float) -> dict[Path, RunStatus]:
        ended = original(run_dirs, poll_s)
        assert {status.state for status in ended.values()} == {"vanished"}
        assert python(str(REPOSITORY / "launch.py"), "-m", *tiny, "distiller=vanilla").code == 0
        return ended

    monkeypatch.setattr(sweep, "wait", outlasted)
    done = slurm(tiny, "distiller=vanilla", launcher="slurm")
    assert done.code == 0 and "1 of 1 runs finished" in done.out, done


def test_a_warning_before_python_is_ready_ends_no_job(tiny: list[str], fake_slurm: FakeSlurm, here: Path) -> None:
    early = here / "python"
    early.write_text(f'#!/bin/sh\nkill -USR2 $$\nexec {sys.executable} "$@"\n')
    early.chmod(0o755)
    fake_slurm.set("run")
    fake_slurm.queue(j1="RUNNING")
    done = slurm(tiny, "distiller=vanilla", f"hydra.launcher.python={early}", launcher="slurm")
    assert done.code == 0 and "1 of 1 runs finished" in done.out, done


NO_PYTHON = """\
slurmstepd: error: execve(): /nonexistent/python: No such file or directory
srun: error: n1: task 0: Exited with exit code 2

"""


@pytest.mark.parametrize(
    ("log", "line"),
    [
        (NO_PYTHON, "execve(): /nonexistent/python: No such file or directory"),
        (
            "/var/spool/n1/job00002/slurm_script: line 19: module: command not found\n",
            "line 19: module: command not found",
        ),
        ("srun: error: Unable to create step\n", "srun: error: Unable to create step"),
        ("x" * 10_000 + "\n", "x" * 150 + "…"),
        ("\n", ""),
        (None, ""),
    ],
)
def test_the_last_line_of_a_log(here: Path, log: str | None, line: str) -> None:
    if log is not None:
        (here / "log").write_text(log)
    assert queue.last_line(here / "log") == line


@pytest.fixture
def run_dir(make_job: Any, fake_slurm: FakeSlurm) -> Path:
    """The directory of a run whose job 1 was submitted."""
    job = make_job("vanilla")
    config_job.freeze(job, sweep=None, threads=None)
    Submission("1", time.time(), "grid", "log").write(job.directory)
    return Path(job.directory)


def follow(run_dir: Path) -> tuple[threading.Thread, list[str]]:
    """A thread that waits for a run, and the states in which it has found it at the end."""
    ended: list[str] = []
    thread = threading.Thread(
        target=lambda: ended.extend(status.state for status in wait.wait([run_dir], 0.05).values()), daemon=True
    )
    thread.start()
    return thread, ended


def still_waiting(thread: threading.Thread) -> bool:
    thread.join(1.0)  # more than three times SILENCE
    return thread.is_alive()


def test_nothing_vanishes_while_slurm_is_away_or_the_directory_is_held(run_dir: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.set("away")
    thread, ended = follow(run_dir)
    assert still_waiting(thread)
    with lock.hold(run_dir):
        fake_slurm.clear("away")
        assert still_waiting(thread)
    thread.join(20)
    assert ended == ["vanished"]


def test_a_job_in_the_queue_has_not_ended_whatever_the_journal_says(run_dir: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.queue(j1="COMPLETING")
    journal.Journal(run_dir).append({"event": "failure", "error": "no"})
    thread, ended = follow(run_dir)
    assert still_waiting(thread)
    fake_slurm.queue(j1="FAILED")
    thread.join(20)
    assert ended == ["failed"]


def test_a_requeued_job_that_was_lost_for_a_moment_has_not_vanished(
    run_dir: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait, "SILENCE", 2.0)
    fake_slurm.queue(j1="NODE_FAIL")
    thread, ended = follow(run_dir)
    assert still_waiting(thread)
    fake_slurm.queue(j1="PENDING")
    assert still_waiting(thread) and still_waiting(thread)
    journal.Journal(run_dir).append({"event": "end"})
    thread.join(20)
    assert ended == ["done"]


def test_why_jobs_wait_is_shown_when_it_is_news(
    run_dir: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [run_dir.with_name(f"vanilla-s{seed}-0123abcd") for seed in range(3)]
    for seed, run in enumerate(runs):
        run.mkdir()
        Submission(f"1_{seed}", time.time(), "grid", "log").write(run)
    queues = [
        {"j1_0": "PENDING", "j1_1": "PENDING", "j1_2": "PENDING"},
        {"j1_0": "PENDING PartitionConfig", "j1_1": "PENDING PartitionConfig", "j1_2": "PENDING PartitionConfig"},
        {"j1_0": "PENDING Resources", "j1_1": "PENDING Priority", "j1_2": "PENDING Priority"},
        {"j1_0": "RUNNING", "j1_1": "PENDING ReqNodeNotAvail", "j1_2": "COMPLETED"},
        {"j1_0": "RUNNING", "j1_1": "PENDING Priority", "j1_2": "RUNNING"},
    ]
    shown: set[str] = set()
    for state in queues:
        fake_slurm.queue(**state)
        for _ in range(2):
            shown |= wait.show_reasons(look(runs), shown)
    assert capsys.readouterr().err.splitlines() == [
        "SLURM: 3 runs wait: PartitionConfig",
        f"SLURM: PartitionConfig does not end by itself: {queue.cure('PartitionConfig', '')}",
        "SLURM: 3 runs wait: Priority (2), Resources (1)",
        "SLURM: 1 run waits: ReqNodeNotAvail",
        f"SLURM: ReqNodeNotAvail does not end by itself: {queue.cure('ReqNodeNotAvail', '')}",
    ]


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("PartitionConfig", "smaller cpus_per_task"),
        ("JobHeldUser", "`scontrol release 7`"),
        ("launch failed requeued held", "`scontrol release 7`"),
        ("QOSMaxCpuPerUserLimit", "sacctmgr show qos"),
        ("AssocGrpGRES", "sacctmgr show assoc"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-3]", "sinfo -R"),
        ("DependencyNeverSatisfied", "`scancel 7`"),
        ("Dependency", ""),
        ("Priority", ""),
    ],
)
def test_what_helps_a_job_that_cannot_begin(reason: str, said: str) -> None:
    helps = queue.cure(reason, "7")
    assert said in helps and bool(said) == bool(helps)


@pytest.mark.parametrize("how", ["slow", "away"])
def test_a_controller_that_does_not_answer_is_named_before_sbatch_is_tried(
    tiny: list[str],
    fake_slurm: FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    fake_slurm.set(how)
    monkeypatch.setattr(queue, "PATIENCE", 0.2)
    assert slurm(tiny, "distiller=vanilla").code == 0
    assert [record.getMessage() for record in caplog.records] == ["SLURM does not answer; submitting anyway"]
    assert len(fake_slurm.scripts()) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"job_id": "1"}'])
def test_a_damaged_submission_is_none(text: str, here: Path) -> None:
    (here / "slurm.json").write_text(text)
    assert Submission.read(here) is None


def test_a_folder_that_cannot_be_written_is_one_line(make_job: Any, here: Path) -> None:
    (here / "sweeps").touch()
    with pytest.raises(EdkdError, match="cannot write below .*sweeps"), submit.alone(here / "sweeps"):
        pass


@pytest.mark.parametrize(("shown", "limit"), [("7", 7), ("0", 1), ("(null)", 1001)])
def test_the_largest_array(shown: str, limit: int, fake_slurm: FakeSlurm) -> None:
    fake_slurm.set("max_array_size", shown)
    assert submit.array_limit() == limit


@pytest.mark.parametrize("launcher", ["slurm", "local"])
def test_a_launcher_without_a_sweep_is_refused(launcher: str, tiny: list[str], fake_slurm: FakeSlurm) -> None:
    told = error(launch(*tiny, "distiller=vanilla", f"hydra/launcher={launcher}"))
    assert told == f"hydra/launcher={launcher} is for sweeps: add -m, also for one run"
