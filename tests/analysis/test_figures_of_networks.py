"""Figures of what networks do: values by class, features in the plane, correlations of logits."""

import subprocess
import sys

import numpy as np
import pytest

from analysis import figures
from analysis.figures.representations import SHOWN

RNG = np.random.default_rng(0)
NAMES = {"beta": "β", "confidence": "confidence"}


def values(pairs=1, epochs=5, classes=100):
    return {
        name: {f"resnet32x4-shufflenetv{i}": 1 + RNG.random((epochs, classes)) for i in range(pairs)} for name in NAMES
    }


def square(size):
    return np.corrcoef(RNG.normal(size=(size, 50)))


def points(classes):
    target = np.repeat(np.arange(classes), 5)
    return [RNG.normal(size=(len(target), 2)) for _ in range(2)], target


def embedded(classes):
    both, target = points(classes)
    return figures.embedding(*both, target, names=("student vgg8", "teacher vgg13"), title="T")


DRAWN = {
    "one pair": lambda: figures.by_class(values(), names=NAMES, title="T"),
    "13 pairs": lambda: figures.by_class(values(13, 240), names=NAMES, title="T"),
    "one epoch": lambda: figures.by_class(values(2, 1, 3), names=NAMES, title="T"),
    "10 classes": lambda: embedded(10),
    "100 classes": lambda: embedded(100),
    "correlation": lambda: figures.correlation(square(100), square(100), title="T"),
    "equal": lambda: figures.correlation(np.eye(3), np.eye(3), title="T"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_is_cut_off(name):
    figure = DRAWN[name]()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    edge = 0.03  # inches: less than a letter
    assert box.x0 > -edge and box.y0 > -edge and box.x1 < width + edge and box.y1 < height + edge


def test_values_by_class():
    given = values(2, 4, 10)
    given["beta"]["resnet32x4-shufflenetv0"][:, 3] = np.nan  # a class without images
    left, right, *_ = figures.by_class(given, names=NAMES, title="T").axes
    for line, table in zip(left.lines, given["beta"].values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3, 4])
        np.testing.assert_allclose(line.get_ydata(), np.nanmean(table, axis=1))
    for line, table in zip(right.lines, given["beta"].values(), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), np.sort(table[-1]))


def test_nothing_by_class():
    with pytest.raises(ValueError, match="nothing to draw: no β or confidence by class was recorded"):
        figures.by_class({}, names=NAMES, title="T")


def test_of_many_classes_few_have_a_colour():
    for axes in embedded(100).axes:
        grey, *coloured = axes.collections
        assert len(grey.get_offsets()) == 5 * (100 - SHOWN) and len(coloured) == SHOWN
        assert [text.get_text() for text in axes.texts] == ["0", "16", "33", "50", "66", "82", "99"]
    assert [len(axes.collections) - 1 for axes in embedded(10).axes] == [10, 10]


def test_the_difference_is_students_minus_teachers():
    student, teacher = square(6), square(6)
    (image,) = figures.correlation(student, teacher, title="T").axes[0].images
    np.testing.assert_allclose(image.get_array(), student - teacher)
    assert image.get_clim()[0] == -image.get_clim()[1]


@pytest.mark.parametrize("kind", ["tsne", "correlation"])
def test_numbers_in_a_file_are_drawn_beside_it(kind, tmp_path):
    both, target = points(4) if kind == "tsne" else ([square(4), square(4)], np.arange(4))
    file = tmp_path / "run.npz"
    np.savez(file, student=both[0], teacher=both[1], target=target, names=["student", "teacher"], title="T")
    done = subprocess.run(
        [sys.executable, "-m", "analysis.figures", kind, str(file)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [str(file.with_suffix(".png")), str(file.with_suffix(".svg"))]
    assert all(file.with_suffix(suffix).stat().st_size > 1000 for suffix in (".png", ".svg"))
