"""One run from its plan to its end: the files it leaves, what its journal tells, and every way it can stop."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from edkd import models, tracking
from edkd.config import job as config_job
from edkd.data.arrays import Arrays, Split
from edkd.distillers import Batch, Distiller, Outcome
from edkd.errors import EdkdError
from edkd.models.base import Prediction
from edkd.rundir import checkpoint, journal
from edkd.rundir.paths import checkpoints
from edkd.runs import attempt, method, run
from edkd.runs import inputs as run_inputs
from edkd.runs.evaluate import evaluate_network
from edkd.runs.teaching import import_teacher
from edkd.teachers import store as teacher_store
from edkd.teachers.source import Precision
from edkd.training.device import to_device
from edkd.training.evaluation import evaluate, measure

KEY = "digits-8-20perclass-test10"


def execute(job: config_job.Job, **options: Any) -> journal.RunState:
    return run.execute(job, **{"sweep": None, "show": False} | options)


def events(job: config_job.Job, *kinds: str) -> list[dict[str, Any]]:
    return [record for record in journal.read(job.directory) if record["event"] in kinds]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def taught(make_job: Any) -> config_job.Job:
    """A run that has made resnet8 a teacher."""
    job: config_job.Job = make_job("vanilla")
    execute(job)
    return job


@pytest.fixture
def student(make_job: Any, taught: config_job.Job) -> config_job.Job:
    """A run of EDKD whose teacher is there."""
    job: config_job.Job = make_job("edkd", teacher_id=f"run:{taught.run}")
    return job


class Stop:
    """Stops a run by an exception, once, after its n-th checkpoint."""

    def __init__(self, patch: pytest.MonkeyPatch, after: int, error: BaseException) -> None:
        self.left, self.error, self.save = after, error, checkpoint.save
        patch.setattr(checkpoint, "save", self)

    def __call__(self, state: dict[str, Any], path: Path) -> None:
        self.save(state, path)
        self.left -= 1
        if self.left == 0:
            raise self.error


def interrupt(job: config_job.Job, *, after: int) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Stop(patch, after, KeyboardInterrupt())
        execute(job)


# --- a run that goes well ---


def test_the_files_of_a_run(student: config_job.Job) -> None:
    execute(student)
    some = {"run.lock", "code.diff"}  # the second where the tests run in a changed checkout
    assert {path.name for path in student.directory.iterdir()} - some == {
        "config.yaml",
        "journal.jsonl",
        "run.log",
        "last.pt",
        "best.pt",
    }
    thawed, sweep = config_job.thaw(student.directory / "config.yaml")
    assert (thawed.run, sweep) == (student.run, None)
    log = (student.directory / "run.log").read_text().splitlines()
    assert [line.split(" INFO ")[1].split(":")[0] for line in log] == [
        student.name,
        "epoch 1/2",
        "epoch 2/2",
        student.name,
    ]


def test_a_start_says_what_is_run_on_what(student: config_job.Job, taught: config_job.Job) -> None:
    execute(student, sweep="grid-1")
    (start,) = events(student, "start")
    assert set(start) == {
        *("event", "time", "run", "name", "sweep", "resumed_from", "config", "tags", "versions"),
        *("host", "pid", "device", "threads", "slurm", "planned_with", "data_sha256", "teacher", "sources"),
    }
    assert (start["run"], start["name"], start["sweep"], start["resumed_from"]) == (
        student.run,
        student.name,
        "grid-1",
        0,
    )
    assert start["config"] == student.config
    assert start["versions"]["torch"] == torch.__version__
    assert start["versions"]["python"] == sys.version.split()[0]
    assert (start["host"], start["threads"]) == (socket.gethostname(), 1)
    assert start["device"].startswith("cpu (")
    assert start["data_sha256"] == run_inputs.load_arrays(student.settings)[1]
    entry = teacher_store.find(run_inputs.teacher_folder(student.settings), KEY, "resnet8")
    assert entry is not None
    last = events(taught, "end")[0]["last"]
    assert start["teacher"] == {"id": f"run:{taught.run}", "sha256": entry.sha256, "top1": pytest.approx(last["top1"])}
    assert events(taught, "start")[0]["teacher"] is None
    assert {name: start["tags"][name] for name in student.tags} == student.tags


def test_epochs_and_end(student: config_job.Job) -> None:
    state = execute(student)
    assert [record["epoch"] for record in events(student, "epoch")] == [1, 2]
    assert all("edkd/beta_mean" in record["metrics"] for record in events(student, "epoch"))
    assert state.status == "finished"
    (end,) = events(student, "end")
    assert set(end) == {"event", "time", "last", "best", "seconds", "peak_memory_mb", "num_classes"}
    epochs = journal.epochs(student.directory)
    metrics = epochs[2]["metrics"]
    assert end["last"] == {"epoch": 2, **{name: metrics[f"test/{name}"] for name in ("top1", "top5", "loss")}}
    best = max((1, 2), key=lambda epoch: (epochs[epoch]["metrics"]["test/top1"], -epoch))
    assert (end["best"]["epoch"], end["best"]["by"]) == (best, "test")
    assert set(end["best"]) == {"epoch", "top1", "top5", "loss", "by"}
    assert end["num_classes"] == 10


def test_the_saved_weights_have_the_accuracies_of_the_end(make_job: Any) -> None:
    job = make_job("vanilla", "dataset.validation=0.1", "schedule.epochs=3")
    end = execute(job).end
    assert end is not None
    assert end["best"]["by"] == "validation"
    data = run_inputs.device_data(run_inputs.load_arrays(job.settings)[0], job.settings, torch.device("cpu"))
    for name, file in (("last", "last.pt"), ("best", "best.pt")):
        saved = torch.load(job.directory / file, weights_only=True)
        assert (saved["student"], saved["run"], saved["epoch"]) == ("resnet8", job.run, end[name]["epoch"])
        network = models.resnet8(num_classes=10)
        network.load_state_dict(saved["model"])
        network = to_device(network, job.settings.engine, torch.device("cpu"))
        found = evaluate(network, data.test, Precision("fp32", torch.device("cpu")))
        assert found == {metric: end[name][metric] for metric in found}


def test_a_student_that_ends_in_its_method_is_saved_with_it(make_job: Any, taught: config_job.Job) -> None:
    job = make_job("simkd", teacher_id=f"run:{taught.run}")
    end = execute(job).end
    assert end is not None
    cpu = torch.device("cpu")
    inputs = run_inputs.gather(job.settings, job.teacher_id)
    state = method.new_state(job.settings, inputs)
    for name in ("last", "best"):
        saved = torch.load(job.directory / f"{name}.pt", weights_only=True)
        state.student.load_state_dict(saved["model"])
        state.distiller.load_state_dict(saved["distiller"])
        test = run_inputs.device_data(inputs.arrays, job.settings, cpu).test
        found = measure(state.trainable.eval().predict, test, cpu)
        assert found == {metric: end[name][metric] for metric in found}
        overall = evaluate_network(job.settings, job.directory / f"{name}.pt").overall
        assert found == {metric: overall[metric] for metric in found}
    with pytest.raises(EdkdError, match=r"last\.pt: the student of this method ends in modules of the method"):
        import_teacher(job.settings, job.directory / "last.pt", replace=True, force=False)


def test_the_accuracy_of_a_teacher_is_measured_once(student: config_job.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(student)
    entry = teacher_store.find(run_inputs.teacher_folder(student.settings), KEY, "resnet8")
    assert entry is not None
    (measured,) = entry.measured.values()
    assert measured["top1"] == events(student, "start")[0]["teacher"]["top1"]

    def again(*_: Any) -> None:
        raise AssertionError("measured twice")

    monkeypatch.setattr(run_inputs, "evaluate", again)
    assert (
        run_inputs.gather(student.settings, student.teacher_id).teacher_record == events(student, "start")[0]["teacher"]
    )


def test_a_teacher_is_measured_as_this_run_shows_it_the_images(
    student: config_job.Job, make_job: Any, caplog: pytest.LogCaptureFixture
) -> None:
    execute(student)
    assert "teacher resnet8 has" not in caplog.text
    other = make_job("edkd", "dataset.mean=[0.9,0.9,0.9]", teacher_id=student.teacher_id)
    execute(other)
    told, really = (events(job, "start")[0]["teacher"]["top1"] for job in (student, other))
    data = run_inputs.device_data(run_inputs.load_arrays(other.settings)[0], other.settings, torch.device("cpu"))
    network = run_inputs.gather(other.settings, other.teacher_id).teacher
    assert network is not None
    assert really == evaluate(network, data.test, Precision("fp32", torch.device("cpu")))["top1"] != told
    words = f"teacher resnet8 has {really:.2f} % on the test set of this run and had {told:.2f} % when it came into"
    assert (words in caplog.text) == (abs(really - told) > 1)


@pytest.mark.parametrize("kept", [0, 1])
def test_a_checkpoint_without_its_epoch_in_the_journal_is_refused(student: config_job.Job, kept: int) -> None:
    interrupt(student, after=1)
    book = student.directory / "journal.jsonl"
    book.write_text("".join(book.read_text().splitlines(keepends=True)[:kept]))  # the start
    with pytest.raises(EdkdError, match="has a checkpoint of epoch 1, and no record of that epoch in journal.jsonl"):
        execute(student)


def test_a_finished_run_is_left_alone(
    student: config_job.Job, taught: config_job.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = execute(student)
    before = contents(student.directory)
    monkeypatch.setattr(run, "gather", lambda *_: pytest.fail("a finished run needs nothing"))
    again = execute(student)
    assert (again.end, again.last_epoch, contents(student.directory)) == (first.end, first.last_epoch, before)

    stored = run_inputs.teacher_folder(taught.settings) / KEY / "resnet8.pt"
    teacher = stored.read_bytes()
    shutil.rmtree(stored.parent)
    execute(taught)  # puts its network there again
    assert stored.read_bytes() == teacher


def test_a_finished_network_that_is_lost_is_made_again(taught: config_job.Job) -> None:
    weights, stored = taught.directory / "last.pt", run_inputs.teacher_folder(taught.settings) / KEY / "resnet8.pt"
    before, teacher, end = weights.read_bytes(), stored.read_bytes(), events(taught, "end")[0]
    weights.unlink()
    assert execute(taught).status == "finished"  # as long as the store has the teacher, nothing is lost
    assert not weights.exists()
    stored.unlink()
    state = execute(taught)  # from its beginning
    assert (weights.read_bytes(), stored.read_bytes()) == (before, teacher)
    assert [record["resumed_from"] for record in events(taught, "start")] == [0, 0]
    assert state.end is not None
    assert {name: state.end[name] for name in ("last", "best")} == {name: end[name] for name in ("last", "best")}


def test_checkpoints_that_cannot_be_removed_do_not_make_a_run_fail(
    student: config_job.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(attempt, "checkpoints", lambda _: [SimpleNamespace(unlink=refused)])
        assert execute(student).status == "finished"
    assert len(checkpoints(student.directory)) == 2
    execute(student)  # the next look
    assert checkpoints(student.directory) == []


# --- teachers ---


def test_a_network_trained_alone_becomes_a_teacher(taught: config_job.Job) -> None:
    entry = teacher_store.find(run_inputs.teacher_folder(taught.settings), KEY, "resnet8")
    assert entry is not None
    assert (entry.id, entry.source, entry.epochs) == (f"run:{taught.run}", str(taught.directory), 2)
    assert entry.recipe == taught.tags["recipe"]
    assert entry.num_classes == 10
    assert entry.test == {name: value for name, value in events(taught, "end")[0]["last"].items() if name != "epoch"}
    stored, last = checkpoint.load_weights(entry.path), checkpoint.load_weights(taught.directory / "last.pt")
    assert all(torch.equal(stored[name], last[name]) for name in last)


def test_which_runs_become_teachers(taught: config_job.Job, student: config_job.Job, make_job: Any) -> None:
    store = run_inputs.teacher_folder(taught.settings)
    before = contents(store)
    other = make_job("vanilla", "schedule.lr=0.02")
    for job in (student, other, make_job("vanilla", "seed=1", "schedule.epochs=3")):  # it is there; no teacher's seed
        execute(job)
        assert {name: data for name, data in contents(store).items() if name.endswith(".pt")} == {
            name: data for name, data in before.items() if name.endswith(".pt")
        }
    how = f"edkd teachers import resnet8 {other.directory / 'last.pt'} --replace"
    assert how in (other.directory / "run.log").read_text()
    longer = make_job("vanilla", "schedule.epochs=3")
    execute(longer)
    entry = teacher_store.find(store, KEY, "resnet8")
    assert entry is not None
    assert (entry.id, entry.epochs) == (f"run:{longer.run}", 3)


def test_a_last_batch_of_one_that_batch_norm_cannot_take(make_job: Any) -> None:
    job = make_job("vanilla", "student=vgg8", "schedule.batch_size=199")  # of 200 images
    with pytest.raises(EdkdError, match="^the last batch of 200 images has one alone, .*: change schedule.batch_size"):
        execute(job)
    assert journal.state(job.directory).status == "failed"


def test_a_teacher_that_is_not_the_planned_one(make_job: Any, taught: config_job.Job) -> None:
    job = make_job("kd", teacher_id="run:aaaa")
    with pytest.raises(EdkdError, match=f"is run:{taught.run}, but the run was planned with run:aaaa: start the same"):
        execute(job)


def test_a_teacher_whose_weights_changed_since_the_run_began(student: config_job.Job) -> None:
    interrupt(student, after=1)
    path = run_inputs.teacher_folder(student.settings) / KEY / "resnet8.pt"
    state = checkpoint.load_weights(path)
    state["fc.bias"] += 0.1
    path.unlink()
    teacher_store.publish(
        run_inputs.teacher_folder(student.settings),
        KEY,
        "resnet8",
        state,
        id=str(student.teacher_id),
        source="trained again on another machine",
        epochs=2,
        recipe=None,
        test=None,
        num_classes=10,
        replace=True,
    )
    with pytest.raises(EdkdError, match=f"the weights of teacher {student.teacher_id} changed since .* began"):
        execute(student)
    assert journal.state(student.directory).status == "failed"


# --- data ---


@pytest.fixture
def own_images(tmp_path: Path) -> Iterator[list[str]]:
    """Overrides for a folder of images."""
    root, stream = tmp_path / "images", np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name in ("circle", "square", "star"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = stream.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    run_inputs._load_arrays.cache_clear()
    yield [
        "dataset=folder",
        "dataset.name=own",
        f"dataset.root={root}",
        "dataset.train_per_class=null",
        "dataset.test_per_class=null",
    ]
    run_inputs._load_arrays.cache_clear()


@pytest.mark.parametrize(
    ("records", "became"),
    [
        ([], "is new after epoch 0"),
        ([{"event": "start"}, {"event": "epoch", "epoch": 1}], "is interrupted after epoch 1"),
        ([{"event": "failure", "error": "loss_ce is nan\nat once"}], "failed"),
    ],
)
def test_a_student_names_what_became_of_its_teacher(make_job: Any, records: list[dict[str, Any]], became: str) -> None:
    teacher = make_job("vanilla")
    config_job.freeze(teacher, sweep="grid-1", threads=None)
    for record in records:
        journal.Journal(teacher.directory).append(record)
    job = make_job("kd", teacher_id=f"run:{teacher.run}")
    config_job.freeze(job, sweep="grid-1", threads=None)
    with pytest.raises(EdkdError, match="resnet8"):
        execute(job)
    assert journal.state(job.directory).error == (
        f"teacher resnet8 is not in {run_inputs.teacher_folder(job.settings)}: its run {teacher.directory} {became}; "
        "`edkd retry`, or the same command again, trains it first"
    )


def own_data(*, made: str) -> Any:
    """A data function of a user's, with one mistake."""
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.arange(4) % 2
    if made == "float images":
        images = images.astype(np.float32)
    elif made == "int32 labels":
        labels = labels.astype(np.int32)
    elif made == "labels from 1":
        labels += 1
    else:
        return None
    part = Split(images, labels)
    return Arrays(train=part, validation=None, test=part, classes=("dark", "light"))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("float images", "images are float32 (4, 8, 8, 3), expected uint8 [N, H, W, 3]"),
        ("int32 labels", "labels are int32 (4,), expected int64 [4]"),
        ("labels from 1", "train labels leave the range of the 2 classes"),
        ("nothing", "returned NoneType, expected Arrays or Streamed"),
    ],
)
def test_data_of_ones_own_that_do_not_fit_are_one_line(make_job: Any, made: str, message: str) -> None:
    settings = make_job("vanilla").settings
    source = {"_target_": f"{__name__}.own_data", "made": made}
    with pytest.raises(EdkdError) as raised:
        run_inputs.load_arrays(replace(settings, dataset=replace(settings.dataset, source=source)))
    assert str(raised.value) == f"dataset.source: {__name__}.own_data: {message}; see docs/extending.md, Data"


def test_data_that_changed_since_the_run_began(make_job: Any, own_images: list[str], tmp_path: Path) -> None:
    job = make_job("vanilla", *own_images)
    interrupt(job, after=1)
    image = tmp_path / "images" / "train" / "star" / "0.png"
    original = image.read_bytes()
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(image)
    run_inputs._load_arrays.cache_clear()
    with pytest.raises(EdkdError, match=rf"^the data changed since {job.directory} began: restore them, or move"):
        execute(job)
    assert journal.state(job.directory).status == "failed"
    assert journal.state(job.directory).error == (
        f"the data changed since {job.directory} began: restore them, or move that directory away"
    )
    image.write_bytes(original)
    run_inputs._load_arrays.cache_clear()
    end = execute(job).end
    assert end is not None
    assert (end["last"]["epoch"], end["num_classes"], end["last"]["top5"]) == (2, 3, 100.0)


def test_real_cifar100(compose: Any, tiny: list[str], cifar100_root: Path) -> None:
    options = [f"dataset.root={cifar100_root}", "dataset.download=false", "schedule.epochs=1", "distiller=vanilla"]
    options += ["dataset.train_per_class=2", "dataset.test_per_class=1"]
    others = [option for option in tiny if not option.startswith("dataset")]
    try:
        job = config_job.make_job(compose(*others, *options), "vanilla", None)
        end = execute(job).end
    finally:
        run_inputs._load_arrays.cache_clear()
    assert end is not None
    assert (end["num_classes"], job.settings.dataset.key) == (100, "cifar100-2perclass-test1")
    assert 0 <= end["last"]["top1"] <= end["last"]["top5"] <= 100


# --- runs that stop ---


def test_a_directory_that_another_process_holds(student: config_job.Job) -> None:
    holding = (
        "import sys; from edkd.rundir import lock\n"
        "with lock.hold(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(student.directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(EdkdError, match=f"{student.directory} is in use by pid {other.pid} on host "):
            execute(student)
        assert not (student.directory / "journal.jsonl").exists()
        other.communicate("")
    assert execute(student).status == "finished"


class Failing(Distiller):
    """Fails in the second epoch as long as `mode` says so."""

    needs_teacher = False
    mode = "error"

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        loss = F.cross_entropy(student.logits, batch.target)
        if batch.epoch > 1 and self.mode == "error":
            raise ValueError("the second epoch is too much")
        return Outcome({"ce": loss * float("nan") if batch.epoch > 1 and self.mode == "nan" else loss}, {})


@pytest.fixture
def failing(make_job: Any) -> config_job.Job:
    resolved = make_job("vanilla").config | {"distiller": {"_target_": f"{__name__}.Failing"}}
    return config_job.make_job(resolved, "failing", None)


def test_an_error_is_journalled_and_the_run_can_go_on(failing: config_job.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="the second epoch"):
        execute(failing)
    state = journal.state(failing.directory)
    assert state.status == "failed"
    assert state.failure is not None
    assert state.failure["error"] == "ValueError: the second epoch is too much"
    assert [record["epoch"] for record in events(failing, "epoch")] == [1]
    log = (failing.directory / "run.log").read_text()
    assert f"ERROR {failing.name} failed: ValueError: the second epoch is too much\nTraceback" in log
    assert not (failing.directory / "last.pt").exists()
    monkeypatch.setattr(Failing, "mode", "none")
    assert execute(failing).status == "finished"
    assert [record["resumed_from"] for record in events(failing, "start")] == [0, 1]


@pytest.mark.parametrize("minutes", [None, 1e-9])
def test_a_loss_that_is_not_finite(
    failing: config_job.Job, monkeypatch: pytest.MonkeyPatch, minutes: float | None
) -> None:
    engine = failing.config["engine"] | {"checkpoint_every_minutes": minutes}
    failing = config_job.make_job(failing.config | {"engine": engine}, "failing", None)
    monkeypatch.setattr(Failing, "mode", "nan")
    with pytest.raises(EdkdError, match=r"^epoch 2, step 1: train/loss_ce is not finite"):
        execute(failing)
    state = journal.state(failing.directory)
    assert state.error is not None
    assert state.error.startswith("epoch 2, step 1: train/loss_ce is not finite")
    assert "Traceback" not in (failing.directory / "run.log").read_text()
    saved = checkpoint.load(failing.directory / "checkpoint.pt")
    assert saved is not None
    assert saved[0]["epoch"] == 1
    assert all(value.isfinite().all() for value in saved[0]["model"].values())


def test_a_resumed_run_keeps_its_number_of_threads(make_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Planned, but at first kept from starting, so that the journal does not begin with the start.
    job = make_job("kd", teacher_id=f"run:{make_job('vanilla').run}")
    config_job.freeze(job, sweep=None, threads=None)
    with pytest.raises(EdkdError, match="no teacher resnet8"):
        execute(job)
    execute(make_job("vanilla"))
    interrupt(job, after=1)
    monkeypatch.setattr(attempt, "cores", lambda: 0)
    execute(make_job("kd", "engine.threads=2", teacher_id=job.teacher_id))
    assert [record["threads"] for record in events(job, "start")] == [1, 1]
    assert [record["resumed_from"] for record in events(job, "start")] == [0, 1]
    assert torch.get_num_threads() == 1
    assert "WARNING 1 threads share 0 CPU cores" in (job.directory / "run.log").read_text()


def test_a_run_that_begins_anew_takes_the_number_of_threads_that_it_is_given(make_job: Any) -> None:
    job = make_job("vanilla", "engine.threads=2")
    interrupt(job, after=1)
    for path in checkpoints(job.directory):
        path.unlink()
    execute(make_job("vanilla", "engine.threads=1"))
    assert [record["threads"] for record in events(job, "start")] == [2, 1]


@pytest.mark.timeout(1800)  # loaded machines take ten minutes to compile for one shape; training and test have one
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch's own making
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_student(make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    whole, broken, eager = (
        make_job("vanilla", *given, "schedule.batch_size=50", f"output={tmp_path / name}")
        for name, given in (("whole", ["engine.compile=true"]), ("broken", ["engine.compile=true"]), ("eager", []))
    )
    assert whole.run == eager.run, "where and how a run is computed is not in its name"
    interrupt(broken, after=1)
    for job in (whole, eager, broken):
        execute(job)
    compiled, plain, resumed = (
        [record["metrics"] for record in journal.epochs(job.directory).values()] for job in (whole, eager, broken)
    )
    assert compiled == resumed, "bit for bit"
    assert compiled[0]["train/loss"] == pytest.approx(plain[0]["train/loss"], rel=1e-3)
    weights = [checkpoint.load_weights(job.directory / "last.pt") for job in (whole, eager)]
    assert weights[0].keys() == weights[1].keys()


def test_a_tracking_store_that_breaks_meanwhile_costs_nothing(
    make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = make_job("vanilla")
    execute(quiet)
    resolved = make_job("vanilla", "tracking=sqlite").config
    elsewhere = str(tmp_path / "tracked")
    job = config_job.make_job(json.loads(json.dumps(resolved).replace(resolved["output"], elsewhere)), "vanilla", None)
    assert job.run == quiet.run
    where = job.settings.tracking
    assert where.uri == f"sqlite:///{elsewhere}/mlflow.db"
    tracking.create_store(uri=where.uri, experiment=where.experiment, artifacts=where.artifacts)
    save = checkpoint.save

    def breaking(state: dict[str, Any], path: Path) -> None:
        save(state, path)
        (tmp_path / "tracked" / "mlflow.db").write_bytes(b"no database any more " * 1000)

    monkeypatch.setattr(checkpoint, "save", breaking)
    assert execute(job).status == "finished"
    assert (job.directory / "run.log").read_text().count("WARNING tracking failed: ") == 1
    for file in ("last.pt", "best.pt"):
        assert (job.directory / file).read_bytes() == (quiet.directory / file).read_bytes()
    metrics = [[record["metrics"] for record in events(each, "epoch")] for each in (job, quiet)]
    assert metrics[0] == metrics[1]
