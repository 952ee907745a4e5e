"""Whole runs on a GPU: the recorded step, the cache in its memory, and continuing, for every method, bit for bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edkd import CONF
from edkd.config.job import Job
from edkd.rundir import journal
from edkd.runs.evaluate import evaluate_network
from tests.conftest import MakeJob
from tests.runs.test_run import execute, interrupt

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

METHODS = sorted(path.stem for path in (CONF / "distiller").glob("*.yaml"))
# Whole batches are recorded in the second epoch, the last and smaller one in the fourth.
ON_GPU = ["engine.device=cuda", "schedule.epochs=6", "allow_weak_teacher=true"]
SMALLER = {"crd": ["distiller.negatives=32", "distiller.feat_dim=16"]}


@pytest.fixture
def trained(make_job: MakeJob, tmp_path: Path) -> Any:
    """`trained(folder, method, *overrides, stop=None)`: a run on the GPU, after its teacher; interrupted, continued."""

    def made(folder: str, method: str, *overrides: str, stop: int | None = None) -> Job:
        output = f"output={tmp_path / folder}"
        teacher = make_job("vanilla", *ON_GPU, "schedule.epochs=2", output)
        if not (tmp_path / folder).exists():
            execute(teacher)
        identity = None if method == "vanilla" else f"run:{teacher.run}"
        job = make_job(method, *ON_GPU, *SMALLER.get(method, []), output, *overrides, teacher_id=identity)
        if stop is not None:
            interrupt(job, after=stop)
        assert execute(job).status == "finished"
        return job

    return made


def metrics(job: Job) -> dict[int, Any]:
    return {epoch: (each["metrics"], each.get("by_class")) for epoch, each in journal.epochs(job.directory).items()}


def weights(job: Job) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(job.directory / "last.pt", weights_only=True)["model"]
    return loaded


def assert_same(one: Job, other: Job) -> None:
    assert metrics(one) == metrics(other)
    expected = weights(other)
    assert all(torch.equal(value, expected[name]) for name, value in weights(one).items())


def assert_recorded(job: Job) -> None:
    assert "no CUDA graph" not in (job.directory / "run.log").read_text()


@pytest.mark.parametrize("method", METHODS)
def test_a_recorded_run_gives_the_bits_of_one_step_by_step(trained: Any, method: str) -> None:
    recorded, eager = trained("a", method), trained("b", method, "engine.capture=false")
    assert_same(recorded, eager)
    assert_recorded(recorded)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["kd", "edkd", "mlkd_one_view"])
def test_the_cache_gives_the_bits_of_the_teacher_in_every_step(trained: Any, method: str, precision: str) -> None:
    chosen = f"engine.precision={precision}"
    cached, online = trained("a", method, chosen), trained("b", method, chosen, "engine.teacher_cache=false")
    assert len(list(cached.directory.parents[3].glob("teachers/**/*.logits"))) == 1
    assert_same(cached, online)


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("method", ["edkd", "crd", "fitnet", "simkd", "deepkd", "mlkd", "ctkd"])
def test_an_interrupted_run_ends_with_the_bits_of_one_that_was_not(trained: Any, method: str, stop: int) -> None:
    assert_same(trained("a", method, stop=stop), trained("b", method))


def test_a_checkpoint_within_an_epoch(trained: Any) -> None:
    every_step = "engine.checkpoint_every_minutes=1e-9"
    assert_same(trained("a", "edkd", every_step, stop=18), trained("b", "edkd"))


@pytest.mark.filterwarnings("ignore")  # of torch's compiler
def test_a_compiled_student(trained: Any) -> None:
    job = trained("a", "kd", "engine.compile=true")
    assert len(metrics(job)) == 6
    assert_recorded(job)


def test_a_network_trained_on_the_gpu_is_evaluated_on_the_cpu(trained: Any) -> None:
    job = trained("a", "vanilla")
    settings = job.settings
    on_cpu = replace(settings, engine=replace(settings.engine, device="cpu", threads=1))
    same, near = (evaluate_network(each, job.directory / "last.pt").overall for each in (settings, on_cpu))
    last = metrics(job)[6][0]
    assert same["top1"] == last["test/top1"]
    assert near["loss"] == pytest.approx(last["test/loss"], rel=1e-3)
