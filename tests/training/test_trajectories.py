"""Twelve optimisation steps of the published implementation, repeated with our models, distillers and the optimiser."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edkd import models
from edkd.distillers import Batch, Distiller
from edkd.distillers.dkd import DKD
from edkd.distillers.edkd import EDKD
from tests.models.test_models import fill

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "trajectories.json").read_text())
DISTILLERS: dict[str, Distiller] = {
    "dkd": DKD(ce_weight=1.0, alpha=1.0, beta=8.0, temperature=4.0, warmup_epochs=20),
    "edkd": EDKD(ce_weight=1.0, alpha=1.0, beta=8.0, temperature=4.0, warmup_epochs=20, weighting="batch"),
}


@pytest.mark.parametrize("case", GOLDEN, ids=[f"{c['method']}-{c['teacher']}-{c['student']}" for c in GOLDEN])
def test_the_recorded_trajectory(case: dict) -> None:
    teacher = fill(getattr(models, case["teacher"])(num_classes=case["classes"])).eval()
    student = fill(getattr(models, case["student"])(num_classes=case["classes"])).train()
    distiller = DISTILLERS[case["method"]]
    optimiser = torch.optim.SGD(student.parameters(), lr=case["lr"], momentum=0.9, weight_decay=5e-4)
    stream = np.random.RandomState(case["seed"])
    size = case["batch"]

    trajectory = []
    for step in range(case["steps"]):
        images = torch.as_tensor(stream.standard_normal((size, 3, 32, 32)))
        target = torch.as_tensor(stream.randint(0, case["classes"], size=size), dtype=torch.int64)
        epoch = torch.tensor(float(step // case["steps_per_epoch"] + 1))
        with torch.no_grad():
            teacher_prediction = teacher(images, want_feats=False)
        student_prediction = student(images, want_feats=False)
        outcome = distiller(student_prediction, teacher_prediction, Batch(torch.arange(size), target, epoch))
        optimiser.zero_grad()
        torch.stack(list(outcome.losses.values())).sum().backward()
        optimiser.step()
        trajectory.append([outcome.losses["ce"].item(), outcome.losses["kd"].item()])

    np.testing.assert_allclose(trajectory, case["losses"], rtol=1e-6)
    norm = torch.stack([parameter.detach().square().sum() for parameter in student.parameters()]).sum().sqrt()
    assert norm.item() == pytest.approx(case["parameter_l2"], rel=1e-6)
