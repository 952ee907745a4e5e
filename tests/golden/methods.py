"""The recorded outputs of further methods: their cases, the rule that fills weights, and the comparison."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

CASES = json.loads((Path(__file__).parent / "methods.json").read_text())


def fill(module: nn.Module) -> None:
    """Replace every parameter and running statistic of a float64 module by those of the rule."""
    for key, old in module.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        x = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(old.shape))
        if key.endswith("running_var"):
            x = 0.5 + np.abs(x)
        elif old.ndim > 1:
            x = x * np.sqrt(2 / np.prod(old.shape[1:]))
        else:
            x = 0.1 * x + key.endswith("weight")
        old.copy_(torch.as_tensor(x))


def normal(stream: np.random.RandomState, *shape: int) -> Tensor:
    return torch.as_tensor(stream.standard_normal(shape))


def assert_recorded(tensor: Tensor, recorded: dict) -> None:
    """Compare length and dot product to 1e-9 of the length; what is 0 but for rounding was recorded near 1e-15."""
    assert list(tensor.shape) == recorded["shape"]
    values = tensor.detach().numpy()
    found = (np.linalg.norm(values), (values * np.random.RandomState(0).standard_normal(values.shape)).sum())
    allowed = max(1e-9 * recorded["l2"], 1e-12)
    assert abs(found[0] - recorded["l2"]) <= allowed
    assert abs(found[1] - recorded["dot"]) <= allowed
    first = values.ravel()[:6]
    assert np.abs(first - (recorded.get("all") or recorded["first"])[:6]).max() <= allowed


def draw_logits(inputs: dict) -> tuple[Tensor, Tensor, Tensor]:
    """Student's logits (which need a gradient), teacher's logits and targets of a case on logits of one view."""
    stream = np.random.RandomState(inputs["seed"])
    shape = inputs["batch"], inputs["classes"]
    student = normal(stream, *shape) * inputs["student_scale"]
    teacher = normal(stream, *shape) * inputs["teacher_scale"]
    target = torch.as_tensor(stream.randint(0, inputs["classes"], size=inputs["batch"]), dtype=torch.int64)
    teacher[torch.arange(inputs["batch"]), target] += inputs["teacher_boost"]
    return student.requires_grad_(), teacher, target
