"""Every method of conf/distiller trained on digits as a run trains it: its loss falls, and it resumes exactly."""

import copy
from pathlib import Path

import pytest
import torch

from edkd import CONF, models
from edkd.config.compose import compose_settings
from edkd.config.schema import Settings
from edkd.runs.inputs import Inputs, device_data, load_arrays
from edkd.runs.method import new_state
from edkd.runs.teacher_source import teacher_source
from edkd.teachers.source import Precision
from edkd.training.step import Step
from edkd.training.trainer import TrainState, seeded, train_epoch

CPU = torch.device("cpu")
EPOCHS = 4
METHODS = sorted(path.stem for path in (CONF / "distiller").iterdir())
GIVEN = [
    *("dataset=digits", "dataset.image_size=8", "dataset.train_per_class=16", "teacher=resnet14", "student=resnet8"),
    *("schedule=short", "schedule.lr=0.01", "schedule.warmup_epochs=0", "engine.teacher_cache=false"),
]


def begun(cfg: Settings) -> tuple[TrainState, Step]:
    """A run before its first step, of a teacher that knows as little as its student."""
    arrays, _ = load_arrays(cfg)
    with seeded(1, 0, CPU):
        teacher = models.resnet14(num_classes=10).eval().requires_grad_(requires_grad=False)
    inputs = Inputs(arrays, "", CPU, teacher if cfg.needs_teacher else None, None)
    state, data = new_state(cfg, inputs), device_data(arrays, cfg, CPU).train
    needs_feats = state.distiller.needs_feats
    source = teacher_source(cfg, inputs, data, Precision("fp32", CPU), needs_feats) if cfg.needs_teacher else None
    return state, Step(
        state.trainable, state.optimizer, source, data, batch_size=cfg.schedule.batch_size, capture=False
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls_and_a_resumed_run_has_the_same_bits(method: str, tmp_path: Path) -> None:
    own = ["distiller.negatives=64"] if method == "crd" else []
    # CRD's distillation loss rises at first: its memories gather while Z stays what the first batch made it.
    falling = "train/loss_ce" if method == "crd" else "train/loss"
    cfg = compose_settings([f"distiller={method}", *GIVEN, *own, f"output={tmp_path}"])
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
