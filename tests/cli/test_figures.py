"""`edkd figures`, on runs that `launch.py` made."""

from pathlib import Path

import numpy as np
import pytest

from edkd.runs import representations
from tests.commandline import edkd, error, journals, run_file


@pytest.mark.parametrize("kind", ["tsne", "correlation"])
def test_figures_of_a_run(output: Path, kind: str) -> None:
    done = edkd("figures", kind, "resnet8-resnet8/kd-s0")
    assert (done.code, done.err) == (0, "")
    name = f"resnet8-resnet8-{run_file(output, 'kd', 'last.pt').parent.name}-{kind}"
    drawn = [f"outputs/figures/{name}.{ending}" for ending in ("png", "svg", "npz")]
    assert done.out.splitlines() == drawn
    assert all(Path(path).stat().st_size > 1000 for path in drawn[:2])
    with np.load(drawn[2]) as held:
        assert held["title"] == "resnet8 → resnet8, kd, seed 0"
        if kind == "tsne":
            assert held["student"].shape == held["teacher"].shape == (100, 2)
            tops = {name: records[-1]["last"]["top1"] for name, records in journals(output).items()}
            assert list(held["names"]) == [
                f"student resnet8, top-1 {tops['resnet8-resnet8/kd-s0']:.2f} %",
                f"teacher resnet8, top-1 {tops['resnet8/vanilla-s0']:.2f} %",
            ]
        else:
            for matrix in (held["student"], held["teacher"]):
                np.testing.assert_allclose(matrix, matrix.T)
                np.testing.assert_allclose(np.diag(matrix), np.ones(10))


def test_networks_that_give_logits_alone(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predicted = representations._predicted
    monkeypatch.setattr(representations, "_predicted", lambda *given: (None, predicted(*given)[1]))
    message = error(edkd("figures", "tsne", "resnet8-resnet8/kd-s0"))
    assert message == "resnet8 gives no pooled_feat, which this figure shows (docs/extending.md)"
    assert edkd("figures", "correlation", "resnet8-resnet8/kd-s0").code == 0


def test_a_folder_that_cannot_be_written(output: Path) -> None:
    (output / "figures").touch()
    message = error(edkd("figures", "correlation", "resnet8-resnet8/kd-s0"))
    assert message.startswith("could not save outputs/figures/resnet8-resnet8-") and message.endswith("not a folder")


def test_runs_without_what_is_drawn(output: Path) -> None:
    assert error(edkd("figures", "tsne", "resnet8/vanilla-s0")).endswith(" has no teacher to be compared with")
    run_file(output, "kd", "last.pt").unlink()
    message = error(edkd("figures", "tsne", "resnet8-resnet8/kd-s0"))
    assert message.endswith(" has no last.pt: it has not finished, or was unpacked or imported")
