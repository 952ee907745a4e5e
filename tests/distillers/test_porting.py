"""The two classes of docs/porting.md: the port computes what the reference-style class does, and trains."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edkd import models
from edkd.distillers import Batch
from edkd.distillers.base import Shapes, Spec
from tests.commandline import REPOSITORY, journals, launch
from tests.distillers.test_extension import files_in


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's files."""
    for name, text in files_in((REPOSITORY / "docs" / "porting.md").read_text()).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        sys.modules.pop(Path(name).stem, None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


class Theirs(nn.Module):
    """A network that returns its features in a dictionary, as the field's do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Any]]:
        made = self.network(image)
        return made.logits, {"pooled_feat": made.pooled_feat}


def test_the_port_computes_the_same_losses(folder: Path) -> None:
    theirs, ours = (importlib.import_module(name).Margin for name in ("theirs", "margin"))
    torch.manual_seed(0)
    student, teacher = models.resnet8(num_classes=5).eval(), models.resnet8x4(num_classes=5).eval()
    values = {"WEIGHT": 2.0, "FEAT_WEIGHT": 0.5, "WARMUP": 2, "STUDENT_DIM": 64, "TEACHER_DIM": 256}
    reference = theirs(Theirs(student), Theirs(teacher), SimpleNamespace(MARGIN=SimpleNamespace(**values)))
    port = ours(weight=2.0, feat_weight=0.5, warmup=2)
    shapes = [Shapes((), (), width, (width, 8, 8)) for width in (64, 256)]
    port.setup(Spec(shapes[0], shapes[1], 5, 100))
    port.embed.load_state_dict(reference.embed.state_dict())
    for epoch in (1, 2, 3):
        image, target = torch.randn(8, 3, 32, 32), torch.randint(5, (8,))
        logits, expected = reference.forward_train(image, target, epoch=epoch)
        batch = Batch(index=torch.arange(8), target=target, epoch=torch.tensor(float(epoch)))
        with torch.no_grad():
            taught = teacher(image)
        found = port(student(image), taught, batch)
        assert torch.equal(logits, student(image).logits)
        assert tuple(found.losses) == port.loss_names
        for name, loss in found.losses.items():
            torch.testing.assert_close(loss, expected[f"loss_{name}"])


def test_the_port_trains(tiny: list[str], folder: Path) -> None:
    assert launch("--config-dir", "myconf", "-m", *tiny, "distiller=margin").code == 0
    records = journals(folder / "outputs")["resnet8-resnet8/margin-s0"]
    epochs = [record["metrics"] for record in records if record["event"] == "epoch"]
    assert all({"train/loss_ce", "train/loss_kd", "train/loss_hint", "margin_scale"} <= {*each} for each in epochs)
    assert epochs[1]["train/loss"] < epochs[0]["train/loss"]
    assert epochs[1]["margin_scale"] != epochs[0]["margin_scale"]
