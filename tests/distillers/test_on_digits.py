"""Every method of conf/distiller trained on digits as a run trains it: its loss falls, and it resumes exactly.

Its losses read no value and its steps wait for none, so that a CUDA graph can hold them; `tests/runs/test_gpu.py`
records them.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from edkd import CONF, models
from edkd.config.compose import compose_settings
from edkd.config.schema import Settings
from edkd.distillers.base import Batch
from edkd.runs.inputs import Inputs, device_data, load_arrays
from edkd.runs.method import new_state
from edkd.runs.teacher_source import teacher_source
from edkd.training.step import Step
from edkd.training.trainer import TrainState, seeded, train_epoch

CPU = torch.device("cpu")
EPOCHS = 4
METHODS = sorted(path.stem for path in (CONF / "distiller").iterdir())
GIVEN = [
    *("dataset=digits", "dataset.image_size=8", "dataset.train_per_class=16", "teacher=resnet14", "student=resnet8"),
    *("schedule=short", "schedule.lr=0.01", "schedule.warmup_epochs=0", "engine.teacher_cache=false"),
]

aten = torch.ops.aten
READING = {
    *(aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default),
    *(aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default, aten.bincount.default),
    aten.lift_fresh.default,  # torch.tensor(…): a copy from the host
}


class WithoutReading(TorchDispatchMode):
    """Fails at an operator that waits for a value, or whose result has a size that depends on one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        indices = args[1] if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default) else ()
        masked = any(isinstance(each, Tensor) and each.dtype == torch.bool for each in indices)
        assert func not in READING and not masked, f"{func} reads a value back in every step"
        return func(*args, **(kwargs or {}))


def configured(method: str, folder: Path) -> Settings:
    """A method, with values that differ from its own after a space, as it learns from the digits."""
    own = ["distiller.negatives=64"] if method == "crd" else []
    return compose_settings([*f"distiller={method}".split(), *GIVEN, *own, f"output={folder}"])


def begun(cfg: Settings) -> tuple[TrainState, Step]:
    """A run before its first step, of a teacher that knows as little as its student."""
    arrays, _ = load_arrays(cfg)
    with seeded(1, 0, CPU):
        teacher = models.resnet14(num_classes=10).eval().requires_grad_(requires_grad=False)
    inputs = Inputs(arrays, "", CPU, teacher if cfg.needs_teacher else None, None)
    state, data = new_state(cfg, inputs), device_data(arrays, cfg, CPU).train
    needs_feats = state.distiller.needs_feats
    source = teacher_source(cfg, inputs, data, needs_feats) if cfg.needs_teacher else None
    return state, Step(
        state.trainable, state.optimizer, source, data, batch_size=cfg.schedule.batch_size, capture=False
    )


@pytest.mark.parametrize(
    "read", [float, torch.nonzero, lambda x: x[x > 0], torch.unique, lambda x: torch.tensor([1.0])]
)
def test_reading_is_noticed(read: Any) -> None:
    value = torch.ones(())
    with WithoutReading(), pytest.raises(AssertionError, match="reads a value back"):
        read(value)


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls_and_a_resumed_run_has_the_same_bits(method: str, tmp_path: Path) -> None:
    # CRD's distillation loss rises at first: its memories gather while Z stays what the first batch made it.
    falling = "train/loss_ce" if method == "crd" else "train/loss"
    cfg = configured(method, tmp_path)
    state, step = begun(cfg)
    losses = []
    for epoch in range(EPOCHS):
        if epoch == EPOCHS - 1:
            saved = copy.deepcopy(state.state())
        losses.append(train_epoch(state, step, cfg.schedule, seed=0)[falling])
        state.epoch += 1
    assert losses[-1] < losses[0]

    resumed, step = begun(cfg)
    resumed.restore(saved)
    assert train_epoch(resumed, step, cfg.schedule, seed=0)[falling] == losses[-1]
    first, second = (each.trainable.state_dict() for each in (state, resumed))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())

    step.data.begin(0, EPOCHS + 1, cfg.schedule.batch_size, 0, 1, 0)
    step.begin(EPOCHS + 1)
    with WithoutReading():
        step(cfg.schedule.batch_size)


@pytest.mark.parametrize("method", [*METHODS, "ctkd distiller.decay=linear"])
def test_no_value_is_read_from_the_device(method: str, tmp_path: Path) -> None:
    """Tensors on the meta device have no values: reading one, or branching on one, raises."""
    cfg = configured(method, tmp_path)
    trainable, teacher = begun(cfg)[0].trainable.to("meta"), models.resnet14(num_classes=10).to("meta").eval()
    images, numbers = torch.zeros(4, 3, 8, 8, device="meta"), torch.zeros(4, dtype=torch.int64, device="meta")
    with torch.no_grad():
        given = teacher(images, want_feats=True)
    strong = (images, given) if trainable.distiller.needs_strong_view else None
    batch = Batch(numbers, numbers, torch.zeros((), device="meta"))
    outcome, _ = trainable(images, given if cfg.needs_teacher else None, batch, strong)
    torch.stack(list(outcome.losses.values())).sum().backward()
    assert all(value.is_meta and value.ndim == 0 for value in (*outcome.losses.values(), *outcome.metrics.values()))
