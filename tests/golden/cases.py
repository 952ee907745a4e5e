"""What the golden tests freeze, and how it is computed. `python -m tests.golden.cases` records the files anew.

Record anew only for a deliberate change of an identity or of a number: runs that users have finished would no longer be
found, or would not continue as they began.
"""

import hashlib
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

from edkd.config import job as config_job
from edkd.config import schema
from edkd.config.compose import compose_values
from edkd.rundir import journal
from edkd.runs.run import execute
from edkd.training import hardware
from edkd.training.device import set_up

FOLDER = Path(__file__).parent
IDENTITIES, TRACES, SMOOTH = (FOLDER / name for name in ("identities.json", "traces.json", "smooth.json"))

LATER = ("test/agreement", "test/kl_teacher", "test/ece")

OVERRIDES = [
    "distiller=vanilla",
    "distiller=kd",
    "distiller=dkd",
    "distiller=edkd",
    *(
        f"distiller={method} pair={pair}"
        for method in ("dkd", "edkd")
        for pair in ("wrn_40_2-wrn_16_2", "vgg13-vgg8", "vgg13-mobilenetv2", "resnet56-resnet20")
    ),
    "distiller=kd pair=resnet32x4-shufflenetv2",
    "distiller=kd pair=resnet50-mobilenetv2 seed=3",
    "distiller=vanilla student=vgg13 seed=1",
    "distiller=vanilla student=mobilenetv2",
    "distiller=edkd distiller.weighting=sample",
    "distiller=kd distiller.temperature=2 distiller.kd_weight=0.5",
    "distiller=dkd pair=vgg13-vgg8 distiller.beta=3",
    "distiller=kd schedule=short",
    "distiller=kd schedule.epochs=100 schedule.batch_size=128 schedule.lr=0.1",
    "distiller=kd engine.precision=bf16",
    "distiller=kd engine.threads=3 engine.device=cpu tracking=journal output=/elsewhere",
    "distiller=kd teacher_seed=7",
    "distiller=dkd dataset.validation=0.1 dataset.validation_seed=2",
    "distiller=dkd dataset.train_per_class=20 dataset.test_per_class=10",
    "distiller=kd dataset=digits",
    "distiller=edkd dataset=digits dataset.image_size=8 teacher=resnet8 student=resnet8",
    "distiller=kd dataset=folder dataset.name=birds dataset.root=/data/birds dataset.image_size=64",
    "distiller=dkd dataset.padding=0 dataset.flip=false",
    "distiller=edkd dataset=digits dataset.image_size=8 dataset.train_per_class=100 schedule=short "
    "pair=wrn_40_2-wrn_40_1",
    "distiller=edkd experiment=cifar100_small",
    "distiller=edkd experiment=cifar100_short pair=resnet32x4-mobilenetv2 seed=2",
    "outside pair=vgg13-vgg8",
]

PAIRS = ("resnet32x4-resnet8x4", "vgg13-vgg8")
TINY = [
    "dataset=digits",
    "dataset.image_size=8",
    "dataset.train_per_class=8",
    "dataset.test_per_class=4",
    "schedule=short",
    "schedule.epochs=2",
    "schedule.batch_size=16",
    "engine.device=cpu",
    "engine.threads=1",
    "tracking=journal",
]


def make_job(words: list[str], teacher_id: str | None = None) -> Any:
    """The job of some overrides."""
    outside = "outside" in words
    if not any(word.startswith("teacher_seed=") for word in words):
        words = [*words, "teacher_seed=0"]  # as when the cases were recorded
    resolved = compose_values([word for word in words if word != "outside"])
    method = next((word.partition("=")[2] for word in words if word.startswith("distiller=")), "outside")
    if outside:
        resolved["distiller"] = {"_target_": "tests.golden.outside.Outside", "weight": 0.1}
    return config_job.make_job(resolved, method, teacher_id)


def teacher_job(words: list[str]) -> Any:
    """The job that trains the teacher of a student's job, as a sweep would plan it."""
    student = make_job(words).settings
    about_students = ("pair", "teacher", "student", "distiller", "seed", "outside")
    kept = [word for word in words if word.partition("=")[0].split(".")[0] not in about_students]
    alone = ["distiller=vanilla", f"student={student.teacher.name}", f"seed={student.teacher_seed}"]
    return make_job([*kept, *alone])


def identity(overrides: str) -> dict[str, Any]:
    """The names that a run has: of itself, its cell, its recipe, its teacher."""
    words = overrides.split()
    teacher_id = f"run:{teacher_job(words).run}" if make_job(words).settings.needs_teacher else None
    job = make_job(words, teacher_id)
    tags = {name: job.tags[name] for name in ("dataset", "pair", "distiller", "cell", "recipe")}
    return {"run": job.run, "name": job.name, "teacher_id": teacher_id, **tags}


def machine_of_traces() -> dict[str, str]:
    """What the bits of a trace depend on besides the code: many CPUs share a name and differ in their instructions."""
    cpu = [hardware._cpu(field) for field in ("model name", "cpu family", "model", "stepping")]
    kernels = torch.backends.cpu.get_cpu_capability()
    return {"cpu": " ".join(cpu), "kernels": kernels, "torch": torch.__version__, "machine": platform.machine()}


def trace(pair: str, precision: str, output: Path, *overrides: str) -> dict[str, Any]:
    """Train the teacher of a pair and a student with each method: all metrics of all epochs, and the weights' hash."""
    words = [*TINY, f"pair={pair}", f"engine.precision={precision}", f"output={output}", *overrides]
    teacher = teacher_job([*words, "distiller=kd"])
    made = {"vanilla": teacher}
    made |= {m: make_job([*words, f"distiller={m}"], f"run:{teacher.run}") for m in ("kd", "dkd", "edkd")}
    found: dict[str, Any] = {}
    for method, job in made.items():
        execute(job, sweep=None, show=False)
        epochs = journal.epochs(job.directory)
        weights = torch.load(job.directory / "last.pt", weights_only=True)["model"]
        digest = hashlib.sha256()
        for name, tensor in weights.items():
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        found[method] = {"epochs": [_recorded(epochs[e]["metrics"]) for e in sorted(epochs)]}
        found[method]["weights"] = digest.hexdigest()
    return found


def _recorded(metrics: dict[str, float]) -> dict[str, float]:
    """Without the metrics that runs have had since the recording."""
    return {name: value for name, value in metrics.items() if name not in LATER}


def smooth_trace(pair: str, output: Path) -> dict[str, Any]:
    """The same in fp32 at a rate so low that other kernels, which add in another order, end in nearly equal metrics."""
    return {method: made["epochs"] for method, made in trace(pair, "fp32", output, "schedule.lr=0.0001").items()}


if __name__ == "__main__":
    set_up(schema.settings(compose_values(TINY), "edkd").engine, 1)
    IDENTITIES.write_text(json.dumps({words: identity(words) for words in OVERRIDES}, indent=1) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        exact = {
            f"{pair} {precision}": trace(pair, precision, Path(folder) / f"{pair}-{precision}")
            for pair in PAIRS
            for precision in ("fp32", "bf16")
        }
        smooth = {pair: smooth_trace(pair, Path(folder) / f"{pair}-smooth") for pair in PAIRS}
    TRACES.write_text(json.dumps({"machine": machine_of_traces(), **exact}, indent=1) + "\n")
    SMOOTH.write_text(json.dumps(smooth, indent=1) + "\n")
