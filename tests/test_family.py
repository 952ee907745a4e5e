"""`edkd family`: a teacher, its cache and all its students by one command, which may be stopped and called again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commandline import Ended, edkd, error, files, journals

from analysis import literature
from analysis.__main__ import main as analyse
from edkd import building, family, packed, teachers
from edkd.budget import Budget
from edkd.compose import compose_values
from edkd.family_plan import FAMILIES, METHODS, Family

KEY = "digits-8-10perclass-test10"
TINY = [
    "dataset=digits",
    "dataset.image_size=8",
    "dataset.train_per_class=10",
    "dataset.test_per_class=10",
    "schedule=short",
    "schedule.epochs=2",
    "engine.device=cpu",
    "engine.threads=1",
]
STUDENTS = {
    *(f"{student}/vanilla-s0" for student in ("vgg8", "mobilenetv2")),
    *(f"vgg13-{student}/{method}-s0" for student in ("vgg8", "mobilenetv2") for method in ("kd", "dkd", "edkd")),
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def of_vgg13(*arguments: str, data: list[str] = TINY) -> Ended:
    return edkd("family", "vgg13", *arguments, *data)


def put(name: str, top1: float | None, *, dataset: str = "cifar100") -> None:
    """A teacher in the store that says how good it is."""
    network = building.build(compose_values([f"teacher={name}"])["teacher"]["model"], "teacher.model", num_classes=10)
    test: teachers.Accuracy | None = None if top1 is None else {"top1": top1, "top5": 90.0, "loss": 1.0}
    teachers.publish(
        Path("outputs/teachers"), dataset, name, network.state_dict(),
        id="file:0", source="elsewhere", epochs=None, recipe=None, test=test, num_classes=10, replace=False,
    )  # fmt: skip


def done(output: Path) -> set[str]:
    return {name for name, records in journals(output).items() if records[-1]["event"] == "end"}


def events(output: Path, event: str) -> int:
    return sum(record["event"] == event for records in journals(output).values() for record in records)


# ---- the whole way


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stopped_in_the_middle_of_the_students_and_called_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path("outputs")
    with monkeypatch.context() as patched:  # the time is over as soon as two students have begun
        began = [f"outputs/runs/{KEY}/vgg8/*/journal.jsonl", f"outputs/runs/{KEY}/vgg13-vgg8/*/journal.jsonl"]
        over = lambda budget: 0.0 if all(list(Path().glob(each)) for each in began) else 1.0  # noqa: E731
        patched.setattr(Budget, "left", over)
        stopped = of_vgg13("--minutes", "60", "--jobs", "2", "--pack", "packed")
    assert stopped.code == 3, stopped
    assert "the 60 minutes are over\n" in stopped.out
    assert f"teacher vgg13 has {journals(output)['vgg13/vanilla-s0'][-1]['last']['top1']:.2f} %; nothing" in stopped.out
    assert "vgg13/vanilla-s0" in done(output) and len(done(output)) < 9
    assert events(output, "failure") == 0
    (table,) = output.glob(f"teachers/{KEY}/vgg13.*.logits")
    remaining = [line.split(":")[0].strip() for line in stopped.out.splitlines() if line.startswith(f"  {KEY}/")]
    assert {name.removeprefix(f"{KEY}/").rpartition("-")[0] for name in remaining} == STUDENTS - done(output)

    finished = of_vgg13("--minutes", "60", "--jobs", "2", "--pack", "packed")
    assert finished.code == 0, finished
    assert finished.out.endswith("family vgg13: 9 of 9 runs finished\n")
    assert done(output) == {*STUDENTS, "vgg13/vanilla-s0"}
    assert list(output.glob("teachers/*/*.logits")) == [table], "the students found what was computed for them"
    assert len(packed.find(Path("packed"))) == 9
    ends = [records[-1] for records in journals(output).values()]
    assert all(end["peak_memory_mb"] > 0 and end["seconds"] > 0 for end in ends)

    capsys.readouterr()
    told = of_vgg13("--dry-run", "seed=0,1")
    assert told.code == 0
    assert f"family vgg13 on {KEY}: 9 of 17 runs finished\n[1/2] compute" in told.out
    assert told.out.count(": about ") == 2 and "as recorded on cpu" in told.out

    assert analyse(["--results", "packed", "--dataset", KEY, "--pairs", "vgg13-vgg8,vgg13-mobilenetv2"]) == 0
    assert "6 distilled students, 2 students alone; 8 of them from packed" in Path("outputs/table.md").read_text()

    # Elsewhere, with what was packed and nothing else, the teacher alone is left.
    planned = of_vgg13("--dry-run", "--pack", "packed", "output=elsewhere")
    assert planned.out.startswith(
        f"family vgg13 on {KEY}: 8 of 9 runs finished\n[1/1] train the teacher vgg13, 2 epochs"
    )
    assert not Path("elsewhere").exists()
    elsewhere = of_vgg13("--minutes", "0.0001", "--pack", "packed", "output=elsewhere")
    assert elsewhere.code == 3
    assert elsewhere.out.startswith("8 finished runs taken over from packed\n[1/1] train the teacher vgg13, 2 epochs\n")
    assert elsewhere.out.endswith(
        f"0 runs packed, 8 there already, 0 left out; in packed\nfamily vgg13: 8 of 9 runs finished\n  {KEY}/vgg13/"
        f"{next(Path('packed/vgg13').iterdir()).name.removesuffix('.jsonl.gz')}: epoch 0 of 2\n"
        "the same command continues\n"
    )


def test_a_run_that_fails_is_told_and_the_others_go_on() -> None:
    put("vgg13", 50.0, dataset=KEY)
    done = of_vgg13("--pack", "packed", "schedule.lr=1e9", "engine.teacher_cache=false")
    assert done.code == 1, done
    assert "[1/1] train 8 students, 1 at a time\n" in done.out
    assert "family vgg13: 1 of 9 runs finished\n" in done.out
    assert done.out.count(": epoch 0 of 2, failed: epoch 1") == 8
    assert packed.find(Path("packed")) == []


def test_a_teacher_that_fails_ends_the_way() -> None:
    done = of_vgg13("schedule.lr=1e9")
    assert done.code == 1
    assert done.err == "edkd: that step failed with exit code 1, see above; the same command continues\n"
    assert "[1/3] train the teacher vgg13, 2 epochs\n" in done.out and "[2/3]" not in done.out


def test_no_time_at_all() -> None:
    done = of_vgg13("--minutes", "0.0001")
    assert done.code == 3
    assert "the 0.0001 minutes are over\nfamily vgg13: 0 of 9 runs finished\n" in done.out
    assert files(Path()) == set()


# ---- the plan


def test_a_dry_run_writes_nothing() -> None:
    done = of_vgg13("--dry-run", "--jobs", "3", "seed=0,1,0", "tracking=sqlite")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == f"family vgg13 on {KEY}: 0 of 17 runs finished"
    assert [line.split(":")[0] for line in lines[1::2]] == [
        "[1/3] train the teacher vgg13, 2 epochs",
        "[2/3] compute the teacher's logits for 2 epochs of seed 0, 1",
        "[3/3] train 16 students, 3 at a time",
    ]
    assert all(line.endswith(f": {family.NO_ESTIMATE}") for line in lines[1::2])
    assert lines[2] == f"      python launch.py distiller=vanilla student=vgg13 seed=0 tracking=sqlite {' '.join(TINY)}"
    assert lines[6] == (
        "      python launch.py -m seed=0,1 pair=vgg13-vgg8,vgg13-mobilenetv2 distiller=vanilla,kd,dkd,edkd "
        f"hydra/launcher=local hydra.launcher.n_jobs=3 tracking=sqlite {' '.join(TINY)}"
    )
    assert files(Path()) == set()


def test_steps_can_be_timed_for_it() -> None:
    done = of_vgg13("--dry-run", "--measure")
    assert done.code == 0
    assert done.out.count(", measured here\n") == 2
    assert "seed 0: its time is in that of the students\n" in done.out


def test_the_families_are_the_seven_pairs_and_the_mislabelled_one() -> None:
    pairs = {f"{teacher}-{student}" for teacher, students in FAMILIES.items() for student in students}
    assert pairs == {*literature.SEVEN, "resnet32x4-shufflenetv2"}
    for name in FAMILIES:
        assert family.published(name) == literature.network("teacher", name)
        planned = Family(name, [], 1)
        assert planned.given.schedule.epochs == 240 and planned.given.dataset.key == family.PUBLISHED_ON
        assert len(planned.students) == len(FAMILIES[name]) * len(METHODS)
        assert all(job.settings.tracking.uri is None for job in planned.students)
    assert family.published("vgg8") is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["vgg8"], "no family vgg8; there are: vgg13, wrn_40_2, resnet32x4, resnet50"),
        (["vgg13", "--minutes", "0"], "--minutes 0: must be above 0"),
        (["vgg13", "--jobs", "0"], "--jobs 0: must be 1 or more"),
        (["vgg13", "--measure"], "--measure times steps for --dry-run"),
        (["vgg13", "pair=vgg13-vgg8"], "pair=vgg13-vgg8: a family is trained as it is; --jobs"),
        (["vgg13", "distiller.beta=2"], "distiller.beta=2: a family is trained as it is; --jobs"),
        (["vgg13", "hydra/launcher=slurm"], "hydra/launcher=slurm: a family is trained as it is; --jobs"),
        (["vgg13", "schedule.epoch=3"], "schedule.epoch: no such key"),
        (["vgg13", "seed=x", "--dry-run"], "seed=x: must be"),
    ],
)
def test_what_makes_no_sense(arguments: list[str], said: str) -> None:
    assert error(edkd("family", *arguments)).startswith(said)
    assert files(Path()) == set()


# ---- the teacher's accuracy


@pytest.mark.parametrize("top1", [73.63, 75.65, None])
def test_a_teacher_off_by_more_than_a_point_is_refused(top1: float | None) -> None:
    put("vgg13", top1)
    ended = edkd("family", "vgg13", "dataset.root=nowhere", "dataset.download=false")
    have = "was never measured" if top1 is None else f"has {top1:.2f} %"
    assert error(ended) == (
        f"teacher vgg13 {have} after its last epoch, published are 74.64 %: more than 1 point off means a fault to "
        "find before students are trained (outputs/teachers/cifar100/vgg13.pt); --accept-teacher goes on"
    )
    assert not Path("outputs/runs").exists()


@pytest.mark.parametrize(("top1", "more"), [(73.65, []), (75.63, []), (50.0, ["--accept-teacher"])])
def test_a_teacher_as_good_as_the_published_goes_on(top1: float, more: list[str]) -> None:
    put("vgg13", top1)
    ended = edkd("family", "vgg13", "--minutes", "0.0001", *more)
    assert ended.code == 3
    assert ended.out.startswith(f"teacher vgg13 has {top1:.2f} % after its last epoch, published are 74.64 %\n[1/2] ")


# ---- the time limit

CHILD = """
import signal, subprocess, sys, time
def stop(number, frame):
    print(f"told {signal.Signals(number).name}", flush=True)
    if number == int(sys.argv[1]):
        sys.exit(7)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""


@pytest.mark.parametrize(
    ("obeys", "told"),
    [(signal.SIGINT, ["SIGINT"]), (signal.SIGTERM, ["SIGINT", "SIGTERM"]), (0, ["SIGINT", "SIGTERM"])],
)
def test_a_command_is_stopped_kindly_at_first(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, obeys: int, told: list[str]
) -> None:
    ready = tmp_path / "ready"
    budget = Budget(None)
    budget.reserve = 4.0
    child = CHILD.replace('print("ready", flush=True)', f"open({str(ready)!r}, 'w').close()")
    monkeypatch.setattr(Budget, "left", lambda budget: 0.0 if ready.exists() else 1.0)
    assert budget.run([sys.executable, "-c", child, str(int(obeys))]) is None
    assert capfd.readouterr().out.split() == [word for name in told for word in ("told", name)]


def test_a_command_that_ends_in_time() -> None:
    assert Budget(None).run([sys.executable, "-c", "raise SystemExit(5)"]) == 5
    assert Budget(10).run([sys.executable, "-c", ""]) == 0
    assert Budget(1e-9).run(["/no/such/command"]) is None


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_stopping_the_command_stops_its_steps(sent: signal.Signals) -> None:
    # As from a shell's `&`, which has SIGINT ignored.
    ignoring = "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); from edkd.cli import main; main()"
    command = [sys.executable, "-c", ignoring, "family", "vgg13", *TINY, "schedule.epochs=1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        deadline = time.monotonic() + 200
        while not (begun := list(Path().glob("outputs/runs/*/vgg13/*/holder.json"))):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(sent)
        process.communicate(timeout=100)
    assert process.returncode == 130
    assert not begun[0].exists(), "the step's process has ended, and let go of the run"
    assert "failure" not in (begun[0].parent / "journal.jsonl").read_text()
