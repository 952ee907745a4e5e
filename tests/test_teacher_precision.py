"""`edkd teachers precision`: the figures are those of the definitions, and only the teacher differs among students."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from commandline import edkd, error, launch

from edkd.teacher_precision import Difference, difference

DATA = ["dataset.image_size=8", "dataset.train_per_class=20", "dataset.test_per_class=10", "engine.device=cpu"]


def test_the_same_logits_differ_in_nothing() -> None:
    logits = torch.randn(7, 5)
    assert difference(logits, logits.clone()) == Difference(0, 0, 0, 0, 100)


def test_differences_by_their_definitions() -> None:
    one, other = torch.randn(6, 5), torch.randn(6, 5)
    other[0] = one[0]

    def softmax(logits: torch.Tensor) -> np.ndarray:
        powers = np.exp(logits.double().numpy() / 4)
        return powers / powers.sum(axis=1, keepdims=True)

    p, q = softmax(one), softmax(other)
    gap = np.abs(one.double().numpy() - other.double().numpy())
    expected = [gap.max(), gap.mean(), np.abs(p - q).max(), (p * np.log(p / q)).sum(axis=1).mean()]
    agree = 100 * np.mean(one.numpy().argmax(1) == other.numpy().argmax(1))
    assert list(difference(one, other)) == pytest.approx([*expected, agree])


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with a teacher resnet8."""
    output = tmp_path_factory.mktemp("precision") / "outputs"
    common = [*DATA, "schedule=short", "schedule.epochs=2", "engine.threads=1", "tracking=journal", f"output={output}"]
    assert launch("dataset=digits", "distiller=vanilla", "student=resnet8", *common).code == 0
    return output


def test_the_report(output: Path) -> None:
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    values = [*DATA, "student=resnet8", "schedule=short", "schedule.epochs=1", "engine.threads=1", f"output={output}"]
    done = edkd("teachers", "precision", "resnet8", "-d", "digits", "--seeds", "0", "1", "0", *values)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("resnet8 of digits-8-20perclass-test10: 200 training images in the views of epoch 1 of ")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.out.splitlines() if line[0] == "|"]
    far = {row[0]: [float(cell.removesuffix("%")) for cell in row[1:]] for row in rows[2:5]}
    fp16, bf16 = far["computed in fp32, stored in fp16"], far["computed in fp32, stored in bf16"]
    assert list(far)[2] == "computed and stored in bf16"
    assert all(0 < small < large for small, large in zip(fp16[:4], bf16[:4], strict=True))
    students = rows[7:]
    assert [row[0] for row in students] == ["fp32", *far]
    assert students[0][2] == "" and {row[3] for row in students} == {"2"}
    assert all(re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d", row[1]) for row in students)
    assert all(re.fullmatch(r"-?\d+\.\d\d ± \d+\.\d\d", row[2]) for row in students[1:])
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before

    # The students that the exact teacher taught are those of ordinary runs.
    finals = []
    for seed in (0, 1):
        run = launch("dataset=digits", "teacher=resnet8", "distiller=kd", *values, f"seed={seed}", "tracking=journal")
        assert run.code == 0, run
        found = re.search(r"top-1 last ([\d.]+) %", run.err + run.out)
        assert found is not None, run
        finals.append(float(found[1]))
    assert float(students[0][1].split()[0]) == pytest.approx(np.mean(finals), abs=0.01)


def test_what_cannot_be_compared(output: Path) -> None:
    values = ["-d", "digits", *DATA, f"output={output}"]
    told = error(edkd("teachers", "precision", "resnet8", *values, "--seeds", "0", "-1"))
    assert told.startswith("seed -1: must be a whole number")
    assert error(edkd("teachers", "precision", "resnet9", *values)).startswith("teacher=resnet9: no such option")
    assert error(edkd("teachers", "precision", "vgg8", *values)).startswith(
        "no teacher vgg8 for the data set digits-8-"
    )
