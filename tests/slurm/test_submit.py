"""What a sweep submits to SLURM, and what it refuses."""

import contextlib
import errno
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from edkd.config import job as config_job
from edkd.errors import EdkdError
from edkd.rundir import files, journal
from edkd.slurm import queue, submit
from edkd.slurm.submission import Submission
from tests.commandline import REPOSITORY, edkd, error, journals, launch, python
from tests.fake_slurm import FakeSlurm
from tests.slurm.commands import flags, slurm, submissions


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
    assert yaml.safe_load(config.read_text())["run"]["threads"] == 3


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
        ("timeout_min=0 +dry_run=true", "hydra.launcher.timeout_min=0: must be at least 1"),
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
        (
            "stderr_to_stdout=true",
            "hydra.launcher.stderr_to_stdout=true: must be false, for a job's log",
        ),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_before_anything_is_planned(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path, given: str, said: str
) -> None:
    before = set(here.iterdir())
    words = ["-m", *tiny, "distiller=vanilla", "hydra/launcher=slurm"]
    told = error(launch(*words, *(f"{'' if each[0] == '+' else 'hydra.launcher.'}{each}" for each in given.split())))
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


def test_jobs_of_several_runs_that_a_command_did_not_write_down_are_found_again(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path
) -> None:
    words = ("distiller=vanilla", "seed=0,1,2", "hydra.launcher.runs_per_job=2")
    fake_slurm.set("deaf", "sbatch: error: Socket timed out on send/recv operation\n")
    assert slurm(tiny, *words).code == 1
    assert submissions(here / "outputs") == {}
    fake_slurm.clear("deaf")
    fake_slurm.queue(j1_0="RUNNING", j1_1="PENDING")
    assert "0 jobs submitted to SLURM, 3 were in its queue already: 1\n" in slurm(tiny, *words).out
    assert [each["job_id"] for each in submissions(here / "outputs").values()] == ["1_0", "1_0", "1_1"]


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
    assert {config["run"]["threads"] for config in configs} == {3}


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
    assert slurm(tiny, "distiller=edkd", "hydra.launcher.comment=ours").code == 0
    assert flags(fake_slurm.scripts()[-1])["comment"].strip("'").startswith("ours ")
    assert "update JobId=2_1 JobName=my_jobs:resnet8-resnet8/dkd-s0\n" in (fake_slurm.folder / "asked").read_text()


def test_slurms_logs_are_in_the_output_folder(tiny: list[str], fake_slurm: FakeSlurm, here: Path) -> None:
    assert slurm(tiny, "distiller=vanilla", f"output={here / 'elsewhere'}").code == 0
    assert (here / "elsewhere" / "sweeps" / "slurm" / "1_submission.sh").is_file()
    assert not (here / "outputs").exists()


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
    tiny: list[str], fake_slurm: FakeSlurm, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = files.write_text

    def full(path: Path, text: str) -> None:
        if path.name == "slurm.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text)

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_text", full)
        done = slurm(tiny, "distiller=vanilla", "student=resnet8")
    assert done.code == 1
    assert "slurm.json: No space left on device; SLURM has job 1 for this run" in done.err
    fake_slurm.queue(j1="PENDING")
    assert "1 was in its queue already: 1\n" in slurm(tiny, "distiller=vanilla", "student=resnet8").out
    assert len(list((here / "outputs").rglob("config.yaml"))) == 1, "the job needs it"


@pytest.mark.parametrize("name", ["_submission.sh", ".submitting"])
def test_a_full_disk_at_a_submission_is_one_line(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write = Path.open

    def full(path: Path, *args: Any, **kwargs: Any) -> Any:
        if name in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    done = slurm(tiny, "distiller=vanilla", "student=resnet8")
    assert done.code == 1 and "Traceback" not in done.err
    assert done.err.startswith("edkd: cannot write ") and done.err.endswith(": No space left on device\n")
    assert fake_slurm.scripts() == [] and not list((here / "outputs").rglob("config.yaml"))


def test_without_slurm_it_says_where_to_go(
    tiny: list[str], fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = slurm(tiny, "distiller=vanilla")
    assert done.code == 1
    assert "there is no sbatch on PATH" in done.err and "hydra/launcher=local" in done.err


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
