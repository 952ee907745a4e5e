"""Figures: every number of a frame has its mark, nothing is cut off, and a file is the same each time."""

from functools import partial
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import same_color
from matplotlib.markers import MarkerStyle

from analysis import figures
from analysis import statistics as st
from analysis.figures.intervals import limits
from analysis.figures.labels import apart, beside
from analysis.figures.style import STANDOUT, page, signed

NAMES = [f"m{i}" for i in range(20)]
PAIRS = [f"resnet32x4-shufflenetv{i}" for i in range(13)]
TITLES = {name: f"Method{i}" for i, name in enumerate(NAMES)}
SIZES = [(1, 1, 1), (3, 1, 5), (3, 7, 3), (20, 13, 2)]
QUANTITY = "test top-1 at the last epoch"


def frames(methods, pairs, seeds):
    """What the statistics give for so many methods, pairs and seeds.

    Where there are several pairs, the second has one seed alone, and the third lacks the last method.
    """
    names, rng = NAMES[:methods], np.random.default_rng(0)
    there = [
        (pair, name, 1 if i == 1 else seeds)
        for i, pair in enumerate(PAIRS[:pairs])
        for name in names
        if not (i == 2 and name == names[-1])
    ]
    runs = [(pair, name, seed) for pair, name, n in there for seed in range(n)]
    tidy = pd.DataFrame(
        [(*run, "t", protocol, value) for run in runs for protocol, value in zip(("last", "best"), noisy(rng))],
        columns=["pair", "method", "seed", "teacher", "protocol", "value"],
    )
    cells = tidy.groupby(["pair", "method", "protocol"], sort=False)["value"].agg(["size", "mean"]).reset_index()
    cells = with_interval(cells.rename(columns={"size": "n"}))
    last = cells[cells["protocol"] == "last"].drop(columns="protocol")
    both = last.merge(last, on="pair", suffixes=("_first", "_second"))
    both = both[both["method_first"] > both["method_second"]].rename(
        columns={"method_first": "first", "method_second": "second", "n_first": "n"}
    )
    both["mean"] = both["mean_first"] - both["mean_second"]
    comparisons = with_interval(both[["pair", "first", "second", "n", "mean"]]).assign(p_holm=0.02)
    comparisons["values"] = [[mean + i for i in range(n)] for mean, n in zip(comparisons["mean"], comparisons["n"])]
    pooled = comparisons.groupby(["first", "second"])["mean"].mean().reset_index()
    pooled = pooled.assign(wins=3, ties=2, losses=1, p_holm=np.resize([0.0004, 0.03, np.nan], len(pooled)))
    curves = pd.DataFrame(
        [(*run, epoch, 50 + epoch + rng.normal()) for run in runs for epoch in range(1, 6)],
        columns=["pair", "method", "seed", "epoch", "top1"],
    )
    measured = last.assign(top1=last["mean"], hours=1 + rng.random(len(last)), memory=np.nan)
    measured = measured.assign(agreement=90 - measured["hours"], kl_teacher=0.5, ece=measured["hours"])
    published = last.assign(published=last["mean"] + rng.normal(size=len(last)))
    published["protocol"] = [["last", "best", "unknown"][i % 3] for i in range(len(last))]
    return SimpleNamespace(
        drawn={},
        titles={name: TITLES[name] for name in names},
        runs=pd.DataFrame(runs, columns=["pair", "method", "seed"]),
        tidy=tidy,
        cells=cells,
        last=last,
        comparisons=comparisons.rename(columns={"mean": "difference"}),
        pooled=pooled,
        curves=curves,
        measured=measured,
        published=published,
    )


def noisy(rng):
    last = 70 + rng.normal()
    return last, last + rng.random()


def with_interval(frame):
    half = np.where(frame["n"] > 1, 0.4, np.nan)
    return frame.assign(low=frame["mean"] - half, high=frame["mean"] + half)


ALL = st.Pooled(pairs=7, mean=0.1, low=-0.2, high=0.4, improvement=0.9, wins=4, ties=2, losses=1, p_wilcoxon=0.02)
DRAW = {
    "forest": lambda f: figures.forest(
        f.comparisons,
        ALL,
        first="m1",
        second="m0",
        titles=TITLES,
        quantity=QUANTITY,
        title="T",
    ),
    "accuracies": lambda f: figures.accuracies(f.cells, protocol="last", titles=f.titles, quantity=QUANTITY, title="T"),
    "gaps": lambda f: figures.best_last_gaps(f.tidy, titles=f.titles, title="T"),
    "matrix": lambda f: figures.matrix(f.pooled, titles=f.titles, quantity=QUANTITY, title="T"),
    "curves": lambda f: figures.training_curves(f.curves, titles=f.titles, title="T"),
    "published": lambda f: figures.against_published(f.published, titles=f.titles, title="T"),
    "agreement": lambda f: figures.teacher_agreement(f.measured, titles=f.titles, quantity=QUANTITY, title="T"),
    "costs": lambda f: figures.costs(f.measured, against="hours", titles=f.titles, quantity=QUANTITY, title="T"),
}
OF_TWO = ("forest", "matrix")  # need two methods


def drawn(name, given):
    """A figure that several tests look at."""
    if name not in given.drawn:
        given.drawn[name] = DRAW[name](given)
    return given.drawn[name]


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: "x".join(map(str, size)))
def given(request):
    return frames(*request.param)


def points(axes, markers="os^Dv", *, filled=None):
    """How many marks are drawn: all, or those that are filled (True) or open (False)."""
    lines = [line for line in axes.lines if line.get_marker() in markers]
    fills = [line.get_markerfacecolor() for line in lines for _ in line.get_xdata()]
    shapes = [MarkerStyle(marker) for marker in markers]
    paths = [shape.get_path().transformed(shape.get_transform()).vertices for shape in shapes]
    for dots in axes.collections:
        if isinstance(dots, PathCollection) and any(
            np.array_equal(path, dots.get_paths()[0].vertices) for path in paths
        ):
            fills += np.resize(dots.get_facecolor(), (len(dots.get_offsets()), 4)).tolist()
    return sum(filled in (None, not same_color(fill, "white")) for fill in fills)


def intervals(axes):
    """How many lines are drawn from one value to another."""
    lines = [lines for lines in axes.collections if isinstance(lines, LineCollection)]
    return sum(len(each.get_segments()) for each in lines if each.get_transform() == axes.transData)


def texts(axes):
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("name", DRAW)
def test_nothing_is_cut_off(name, given):
    if name in OF_TWO and len(given.titles) == 1:
        with pytest.raises(ValueError, match="nothing to draw"):
            DRAW[name](given)
        return
    figure = drawn(name, given)
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 > -0.01 and box.y0 > -0.01 and box.x1 < width + 0.01 and box.y1 < height + 0.01
    assert "T" in [text.get_text() for text in figure.texts]


@pytest.mark.parametrize("name", DRAW)
def test_without_data_a_figure_says_what_is_missing(name):
    frame = vars(frames(3, 1, 1)).items()
    empty = {key: value.head(0) for key, value in frame if isinstance(value, pd.DataFrame)}
    with pytest.raises(ValueError, match="nothing to draw: no .*[mM]"):
        DRAW[name](SimpleNamespace(**empty, titles={"m0": "KD", "m1": "DKD"}))


def test_a_forest_has_a_dot_for_every_seed():
    given = frames(3, 7, 3)
    axes = drawn("forest", given).axes[0]
    assert points(axes, filled=False) == 1  # the second pair, with one seed
    assert points(axes, filled=True) == 6 * 3 + 6  # seeds, means
    assert intervals(axes) == 6
    assert len(axes.patches) == 1
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [pair.replace("-", " → ") for pair in PAIRS[:7]] + ["all 7 pairs"]
    row = given.comparisons[given.comparisons["first"] == "m1"].iloc[0]
    assert {f"{signed(row['difference'])} [{signed(row['low'])}, {signed(row['high'])}]", "adjusted p"} <= {
        *texts(axes)
    }
    assert "Method1 − Method0" in axes.get_xlabel()


def test_a_pooled_row_without_interval_is_an_open_mark():
    given = frames(2, 1, 1)
    pooled = SimpleNamespace(**{**ALL._asdict(), "pairs": 1, "low": np.nan, "high": np.nan, "p_wilcoxon": np.nan})
    arguments = {"first": "m1", "second": "m0", "titles": TITLES, "quantity": "x", "title": "T"}
    axes = figures.forest(given.comparisons.assign(p_holm=np.nan), pooled, **arguments).axes[0]
    assert points(axes, "D", filled=False) == 1 and not axes.patches
    assert "p" in texts(axes) and "adjusted p" not in texts(axes)


def test_accuracies_have_one_dot_a_cell(given):
    panels = drawn("accuracies", given).axes
    assert len(panels) == given.last["pair"].nunique()
    for axes, (_, cells) in zip(panels, given.last.groupby("pair", sort=False)):
        assert points(axes, "o", filled=False) == (cells["n"] == 1).sum()
        assert points(axes, "o", filled=True) == intervals(axes) == (cells["n"] > 1).sum()
    assert [label.get_text() for label in panels[0].get_yticklabels()] == list(given.titles.values())


def test_gaps_have_one_dot_a_run(given):
    axes = drawn("gaps", given).axes[0]
    assert points(axes, "o") == len(given.runs)
    assert len([text for text in texts(axes) if text != "mean"]) == intervals(axes) == len(given.titles)


def test_a_run_with_one_protocol_has_no_gap():
    given = frames(3, 1, 5)
    half = given.tidy.drop(given.tidy[(given.tidy["seed"] == 0) & (given.tidy["protocol"] == "best")].index)
    assert points(figures.best_last_gaps(half, titles=TITLES, title="T").axes[0], "o") == 3 * 4


def test_a_cell_of_the_matrix_mirrors_the_other():
    given = frames(3, 7, 3)
    axes = drawn("matrix", given).axes[0]
    cells = {text.get_position(): text.get_text().split("\n") for text in axes.texts}
    assert len(cells) == 6
    mean = given.pooled.set_index(["first", "second"])["mean"]["m1", "m0"]
    assert cells[0, 1] == [signed(mean), "3/2/1", "p<.001"]  # x is the column
    assert cells[1, 0] == [signed(-mean), "1/2/3", "p<.001"]
    assert cells[1, 2][2] == "p –"
    assert [label.get_text() for label in axes.get_xticklabels()] == list(given.titles.values())


def test_curves_have_a_line_a_method_and_a_band_where_there_are_seeds(given):
    panels = drawn("curves", given).axes
    direct = len(given.titles) <= 7
    for axes, (_, runs) in zip(panels, given.curves.groupby("pair", sort=False)):
        assert len(axes.lines) == runs["method"].nunique()
        assert len(axes.collections) == direct * (runs.groupby("method")["seed"].nunique() > 1).sum()
        assert sorted(texts(axes)) == sorted({TITLES[m] for m in runs["method"]} if direct else ())


def test_only_highlighted_methods_have_colour_and_name():
    given = frames(20, 13, 2)
    figure = figures.training_curves(given.curves, titles=given.titles, title="T", highlight=["m3"], from_epoch=3)
    axes = figure.axes[0]
    assert texts(axes) == ["Method3"] and not figure.legends
    assert len({line.get_color() for line in axes.lines}) == 2
    assert min(line.get_xdata()[0] for line in axes.lines) == 3


def test_the_colour_of_ours_is_the_same_in_every_figure_and_of_no_other_method():
    given = frames(9, 3, 2)
    same = {"titles": given.titles, "title": "T", "ours": "m3"}
    curves = figures.training_curves(given.curves, **same)
    costs = figures.costs(given.measured, against="hours", quantity=QUANTITY, **same)
    agreement = figures.teacher_agreement(given.measured, quantity=QUANTITY, **same)
    for figure in (curves, costs, agreement):
        entries = {line.get_label(): line.get_color() for line in figure.legends[0].get_lines()}
        assert [name for name, colour in entries.items() if colour == STANDOUT] == ["Method3"]


@pytest.mark.parametrize("name", ["costs", "agreement"])
def test_a_legend_has_only_the_highlighted_methods(name):
    given = frames(20, 13, 2)
    same = {"titles": given.titles, "quantity": QUANTITY, "title": "T", "highlight": ["m3", "m7"]}
    draw = {"costs": partial(figures.costs, against="hours"), "agreement": figures.teacher_agreement}[name]
    figure = draw(given.measured, **same)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Method3", "Method7"]
    assert any("Grey: the other methods." in text.get_text() for text in figure.texts)
    assert sum(points(axes) for axes in figure.axes) == len(given.measured) * (3 if name == "agreement" else 1)


def test_short_runs_are_in_minutes():
    given = frames(3, 1, 1)
    figure = figures.costs(
        given.measured.assign(hours=0.5), against="hours", titles=TITLES, quantity=QUANTITY, title="T"
    )
    assert "minutes a run" in [text.get_text() for text in figure.texts]
    assert {x for dots in figure.axes[0].collections for x, _ in dots.get_offsets().tolist()} >= {30.0}


def test_published_marks_differ_by_protocol(given):
    figure = drawn("published", given)
    for axes in figure.axes:
        for protocol, marker in (("last", "o"), ("best", "s"), ("unknown", "^")):
            drawn_there = protocol != "unknown" or axes is figure.axes[0]  # a difference needs a known epoch
            assert points(axes, marker) == (given.published["protocol"] == protocol).sum() * drawn_there
    assert len(texts(figure.axes[1])) == min(6, (given.published["protocol"] != "unknown").sum())
    identity = [line for line in figure.axes[0].lines if line.get_label() == "identity"]
    assert list(identity[0].get_xdata()) == list(identity[0].get_ydata())


def test_agreement_has_three_panels(given):
    figure = drawn("agreement", given)
    assert [points(axes) for axes in figure.axes] == [len(given.measured)] * 3
    direct = len(given.measured) <= 7
    named = texts(figure.axes[0]) if direct else [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == list(given.titles.values())


def test_costs_have_one_mark_a_method(given):
    figure = drawn("costs", given)
    for axes, (_, rows) in zip(figure.axes, given.measured.groupby("pair", sort=False)):
        assert points(axes) == len(rows)
        assert len(texts(axes)) == (len(rows) if len(given.titles) <= 7 else 0)


def test_costs_say_what_was_not_recorded():
    with pytest.raises(ValueError, match="no accuracy with memory recorded"):
        figures.costs(frames(3, 1, 1).measured, against="memory", titles=TITLES, quantity=QUANTITY, title="T")


def test_one_wide_interval_does_not_flatten_the_others():
    low, high = limits([70, 71, 72], [69.9, 70.9, 60], [70.1, 71.1, 84])
    assert 68 < low < 69.9 and 72 < high < 74


def test_labels_keep_their_distance():
    placed = apart([5.0, 1.0, 1.1, 1.2], gap=0.5, low=0.0, high=5.0)
    assert placed == pytest.approx([5.0, 0.6, 1.1, 1.6])
    assert apart([9.0, 9.0], gap=1.0, low=0.0, high=9.0) == pytest.approx([8.0, 9.0])
    figure = page(3, 3, "T")
    axes = figure.subplots()
    beside(axes, [(0.5, 0.5), (0.51, 0.5), (0.5, 0.51)], ["first", "second", "third"], ["black"] * 3)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


def test_numbers_are_typeset():
    assert [signed(value) for value in (0.5, -0.5, -0.001)] == ["+0.50", "−0.50", "0.00"]


@pytest.mark.parametrize("name", DRAW)
def test_the_same_figure_is_the_same_file(name, tmp_path):
    given, settings = frames(3, 2, 3), dict(matplotlib.rcParams)
    first = figures.save(DRAW[name](given), tmp_path / "first", name)
    again = figures.save(DRAW[name](given), tmp_path / "again", name)
    assert [path.name for path in first] == [f"{name}.png", f"{name}.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    svg = first[1].read_text()
    assert ">T</text>" in svg and "dc:date" not in svg
    assert dict(matplotlib.rcParams) == settings
