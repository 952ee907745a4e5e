"""The table's numbers: means, paired differences, the order of rows, and what is published."""

import argparse
import math

import numpy as np
import pytest

from analysis import attach, literature, load
from edkd import tracking
from tests.analysis.runs import OTHER, PAIR, block, make, placed, seeded


def test_published_numbers_are_complete():
    known = literature.read("cifar100")
    assert literature.SEVEN[0] == "resnet32x4-resnet8x4" and literature.SEVEN[6] == literature.MISLABELLED
    assert (known["teacher"] + "-" + known["student"] == known["pair"]).all() and (known["source"] != "").all()
    for pair in literature.SEVEN:
        kd, dkd, edkd = (literature.number(pair, method) for method in ("kd", "dkd", "edkd"))
        assert (kd.protocol, dkd.protocol, edkd.protocol) == ("last", "best", "best")
        assert kd.authors is edkd.authors is None and None not in (kd.table, dkd.table, dkd.authors, edkd.table)
    margins = [literature.number(p, "edkd").table - literature.number(p, "dkd").table for p in literature.SEVEN]
    assert np.mean(margins) == pytest.approx(0.34, abs=0.005)  # as the third note says
    assert literature.number("vgg13-vgg8", "dkd")[:3] == (74.14, 74.68, "best")
    assert literature.network("teacher", "resnet110") == 74.31 and literature.network("student", "vgg8") == 70.36
    assert literature.network("student", "resnet110") is None and literature.number(PAIR, "unheard") is None
    assert literature.number("vgg13-vgg8", "crd")[:3] == (None, 73.94, "last")
    assert literature.number("vgg13-mobilenetv2", "mlkd") is None, "480 epochs are another recipe"


def test_cells_blocks_and_layout(analyse):
    runs = [make("kd", seed=s, top1=v) for s, v in ((1, 72.0), (2, 73.0), (3, 74.0))]
    runs += [make("edkd", seed=5, top1=75.5), make("mine", pair="resnet56-resnet20", seed=1, top1=60.0)]
    code, text, csv, _ = analyse(runs)
    assert code == 0
    last, best = block(text, "Last epoch"), block(text, "Best epoch, chosen on the test set itself")
    pairs = [f"{t}-{s.strip('*¹')}" for t, s in zip(last["teacher"], last["**student**"])]
    assert pairs == [*literature.SEVEN, "resnet56-resnet20"]
    assert list(last)[3:] == ["teacher alone", "KD", "mine", "EDKD"]  # nothing ran DKD or a student alone
    assert last["KD"] == ["", "", "", "73.00 ± 1.00 (n=3)<br><sub>published 72.98 (+0.02)</sub>", "", "", "", ""]
    assert best["KD"][3] == "74.00 ± 1.00 (n=3)<br><sub>published [72.98]</sub>"
    assert last["EDKD"][3] == "75.50 (n=1)<br><sub>published [74.68]</sub>"
    assert best["EDKD"][3] == "76.50 (n=1)<br><sub>published 74.68 (+1.82)</sub>"
    assert last["mine"] == [""] * 7 + ["60.00 (n=1)"]
    assert last["teacher alone"][3] == "74.64<br><sub>published 74.64</sub>"
    assert last["teacher alone"][7] == "74.64<br><sub>published 72.34</sub>"
    assert [entry for i, entry in enumerate(last["teacher alone"]) if i not in (3, 7)] == [""] * 6
    assert "REDUCED" not in text and "Paired" not in text  # the seeds 1, 2, 3 and 5 make no pair
    assert all(note in text for note in literature.NOTES)
    assert len(csv) == 6 and set(csv["kind"]) == {"last", "best"}
    row = csv[(csv["kind"] == "best") & (csv["method"] == "kd")].iloc[0]
    assert (row["n"], row["top1_mean"], row["top1_sd"], row["seeds"]) == (3, 74.0, 1.0, "1 2 3")
    assert row["top1_values"] == "73.0000 74.0000 75.0000"
    assert (row["published"], row["published_protocol"], row["same_protocol"]) == (72.98, "last", "no")
    assert row["top1_ci95_high"] - 74 == pytest.approx(4.302653 / math.sqrt(3), abs=1e-4)
    assert math.isnan(csv[csv["method"] == "edkd"]["top1_sd"].iloc[0])


def test_published_numbers_stand_beside_the_block_of_their_protocol(analyse):
    _, text, csv, _ = analyse([make("dkd")])
    best = block(text, "Best epoch")["DKD"][3]
    assert best == "71.00<br><sub>published 74.14 (−3.14)</sub><br><sub>authors 74.68 (−3.68)</sub>"
    assert csv.set_index("kind")["minus_published"].round(2).fillna(0).to_dict() == {"last": 0, "best": -3.14}
    source = "`dkd`: EDKD's own rerun of DKD (table), DKD (Zhao et al. 2022), mean of 5 runs (authors)."
    assert f"Sources of the published numbers, by method: {source}" in text
    text = analyse([make("edkd", best_by="validation")])[1]
    best = block(text, "Best epoch, chosen on held-out training images (validation)")
    assert best["EDKD"][3] == "71.00<br><sub>published [74.68]</sub>"


def test_the_tidy_frame_says_how_the_epoch_was_chosen(monkeypatch):
    runs = [make("kd", top1=70.0), make("dkd", seed=2, top1=71.0, best_by="validation", teacher_id="t2")]
    runs += [make("kd", seed=9, status="FAILED"), make("vanilla", "vgg8")]
    monkeypatch.setattr(load, "load_runs", lambda uri, experiment: runs)
    frame = load.tidy(load.read("http://127.0.0.1:1", "edkd", load.RESULTS, {}))
    assert frame.columns.tolist() == ["pair", "method", "seed", "teacher", "protocol", "value"]
    assert frame.sort_values(["seed", "value"]).to_numpy().tolist() == [
        [PAIR, "kd", 1, "t1", "last", 70.0],
        [PAIR, "kd", 1, "t1", "best", 71.0],
        [PAIR, "dkd", 2, "t2", "last", 71.0],
        [PAIR, "dkd", 2, "t2", "selected", 72.0],
    ]


def test_paired_differences_by_hand(analyse):
    runs = [make("kd", seed=s, top1=v) for s, v in ((1, 70.0), (2, 71.0), (4, 50.0))]
    runs += [make("edkd", seed=s, top1=v) for s, v in ((2, 71.5), (1, 71.5), (3, 99.0))]
    runs += [make("dkd", seed=3, top1=99.4), make("mine", seed=1, top1=71.25)]  # a method of the user's
    _, text, csv, _ = analyse(runs)
    gaps = block(text, "Paired differences, last epoch")
    assert gaps["EDKD − KD"][3] == "+1.00 (n=2)<br><sub>[−5.35, +7.35]</sub>"  # 1.5 and 0.5: 0.5 · 12.706 either side
    assert gaps["EDKD − DKD"][3] == "−0.40 (n=1)" and gaps["mine − KD"][3] == "+1.25 (n=1)"
    assert gaps["EDKD − mine"][3] == "+0.25 (n=1)"
    assert gaps["EDKD − KD"][:3] == ["", "", ""]
    row = csv[(csv["quantity"] == "paired difference") & (csv["method"] == "edkd-kd") & (csv["kind"] == "best")].iloc[0]
    assert (row["n"], row["top1_mean"], row["seeds"], row["top1_values"]) == (2, 1.0, "1 2", "1.5000 0.5000")


def test_the_other_columns_of_the_csv(analyse):
    runs = [*seeded("kd", 70.0, 71.0, 72.0), *seeded("dkd", 70.6, 71.8, 73.0), *seeded("edkd", 71.0, 72.1, 73.4)]
    runs[1]["tags"] |= {"git_commit": "fedcba9876543210", "git_dirty": "True"}
    runs[2]["metrics"] |= {"best/top5": 94.0, "best/epoch": 229.0}
    csv = analyse(runs)[2].set_index(["kind", "method"])
    columns = ["top5_mean", "epoch_mean"]
    assert csv.loc[("last", "kd"), columns].tolist() == [90.0, 240.0]
    assert csv.loc[("best", "kd"), columns].tolist() == [92.0, pytest.approx((235 + 235 + 229) / 3)]
    assert csv.loc[("last", "kd"), "git_commits"] == "0123456789 fedcba9876+dirty"
    gaps = csv[csv["quantity"] == "paired difference"].loc["last"]
    p = {}
    for name, values in (("edkd-kd", (1.0, 1.1, 1.4)), ("edkd-dkd", (0.4, 0.3, 0.4))):
        t = np.mean(values) / np.std(values, ddof=1) * math.sqrt(3)
        p[name] = 1 - t / math.sqrt(2 + t**2)  # of Student's t with 2 degrees of freedom, on both sides
    assert gaps["p"].to_dict() == pytest.approx(p, rel=0.01)
    assert gaps["p_holm"].to_dict() == pytest.approx(dict.fromkeys(p, 2 * min(p.values())), rel=0.01)


def test_tags_name_and_order_the_rows(analyse):
    runs = [
        make("zz", title="AT", year="2017"),
        make("x", title="SP", year="2019"),
        make("cc", title="CC", year="2019"),
    ]
    runs += [make("kd", seed=1, started=2), make("kd", seed=2, started=1, title="KD", year="2015"), make("edkd")]
    runs += [make("edkd_ls", title="LS on EDKD"), make("dkd")]  # some of an earlier version, whose runs have no titles
    text = analyse(runs)[1]
    rows = ["KD", "AT", "CC", "SP", "DKD", "LS on EDKD", "EDKD"]
    assert list(block(text, "Last epoch"))[4:] == rows
    gaps = [f"EDKD − {row}" for row in rows[:6]] + [f"LS on EDKD − {row}" for row in rows[:5]]
    assert list(block(text, "Paired differences, last epoch"))[3:] == gaps
    text = analyse([make("kd"), make("zz", title="AT", year="2017")])[1]
    assert list(block(text, "Paired differences, last epoch"))[3:] == ["AT − KD"], "the newest, where all are published"


def test_students_of_two_teachers_are_not_compared(analyse):
    runs = [make("kd", seed=s, top1=v) for s, v in ((1, 70.0), (2, 71.0))]
    runs += [make("edkd", seed=1, top1=71.5, teacher_id="t2"), make("edkd", seed=2, top1=72.0, teacher_id="t2")]
    runs += [make("dkd", seed=s, top1=70.5, teacher_id="t2") for s in (1, 2)]
    _, text, csv, _ = analyse(runs)
    gaps = block(text, "Paired differences, last epoch")
    assert ("EDKD − KD" in gaps, gaps["EDKD − DKD"][3]) == (False, "+1.25 (n=2)<br><sub>[−1.93, +4.43]</sub>")
    assert f"{PAIR}: EDKD − KD, seed 1, 2: not taught by the same teacher" in text
    assert set(csv[csv["quantity"] == "paired difference"]["method"]) == {"edkd-dkd"}


def test_weights_tell_teachers_of_one_configuration_apart(analyse):
    runs = [make("kd", seed=s, top1=70.0, teacher_sha256="aa") for s in (1, 2)]
    runs += [make("edkd", seed=s, top1=71.5, teacher_sha256=weights) for s, weights in ((1, "aa"), (2, "bb"))]
    _, text, _, _ = analyse(runs)
    assert block(text, "Paired differences, last epoch")["EDKD − KD"][3] == "+1.50"
    assert f"{PAIR}: EDKD − KD, seed 2: not taught by the same teacher" in text
    assert f"\n- means over runs of several teachers: edkd on {PAIR}\n" in text


def test_students_that_share_their_teachers_seed_are_counted(analyse):
    teacher = make("vanilla", "vgg13", 1, 74.6, cell="abc")  # whose hash is abc1
    runs = [make("kd", seed=s, top1=70.0, teacher_id="run:abc1") for s in (1, 2)]
    _, text, _, _ = analyse([teacher, *runs])
    assert "\n- distilled students with the seed of their teacher: 1; in each epoch such a student saw " in text
    assert "the seed of their teacher" not in analyse([teacher, *runs[1:]])[1]


def test_imported_runs_are_neither_compared_nor_the_last_row(analyse):
    runs = [make(m, seed=s, top1=t) for m, t in (("kd", 70.0), ("dkd", 71.0)) for s in (1, 2)]
    runs[-1]["tags"]["teacher_id"] = "t2"
    runs.append(make("dkd.theirs", title="DKD (theirs)", year="2022", imported="theirs", teacher_id=""))
    code, text, _, _ = analyse(runs)
    assert code == 0 and list(block(text, "Last epoch"))[4:] == ["KD", "DKD", "DKD (theirs)"]
    assert list(block(text, "Paired differences, last epoch"))[3:] == ["DKD − KD"]


def test_methods_of_one_title_are_told_apart(analyse):
    runs = [make(name, title="KD", year="2015") for name in ("kd", "mykd")]
    assert list(block(analyse(runs)[1], "Last epoch"))[4:] == ["KD (kd)", "KD (mykd)"]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"distiller.temperature": "2.0"}, "distiller.temperature=2.0"),
        ({"optimizer._target_": "edkd.training.optimizers.DOT"}, "optimizer=dot"),
        ({"distiller.standardise": "True"}, "++distiller.standardise=True"),
        (
            {"optimizer._target_": "edkd.training.optimizers.DOT", "optimizer.delta": "0.01"},
            "optimizer.delta=0.01 optimizer=dot",
        ),
        ({"distiller.temperature": "4", "optimizer._target_": "edkd.training.optimizers.SGD"}, ""),
    ],
)
def test_published_numbers_stand_beside_the_default_values_alone(analyse, params, said):
    _, text, csv, _ = analyse([make("kd", params=params), make("vanilla", "vgg8", params={"engine.device": "cpu"})])
    last = block(text, "Last epoch")
    assert ("published" in last["KD"][3]) == (not said) and "published 70.36" in last["student alone"][3]
    assert (f"not the defaults: kd: {said}" in text) == bool(said)
    accuracies = csv[csv["quantity"] == "accuracy"]
    assert set(zip(accuracies["method"], accuracies["changed"].fillna(""))) == {("kd", said), ("vanilla", "")}


def test_the_values_of_a_pair_are_defaults(analyse):
    deep = make("deepkd", params={"optimizer._target_": "edkd.training.optimizers.DeepKD"})
    schedule = {"distiller.warmup_epochs": "20", "schedule.warmup_epochs": "20"}
    of_pair, other = ({**schedule, "distiller.beta": beta} for beta in ("6.0", "8.0"))
    assert "not the defaults" not in analyse([make("dkd", OTHER, params=of_pair), deep])[1]
    assert "not the defaults: dkd: distiller.beta=8.0" in analyse([make("dkd", OTHER, params=other)])[1]
    without = of_pair | {"distiller.warmup_epochs": "0"}
    assert "not the defaults: dkd: distiller.warmup_epochs=0" in analyse([make("dkd", OTHER, params=without)])[1]


@pytest.mark.parametrize(
    ("pair", "changed", "beside"),
    [
        (PAIR, {}, True),
        (PAIR, {"schedule.warmup_epochs": "0"}, False),
        (PAIR, {"schedule.batch_size": "128"}, False),
        (PAIR, {"schedule.milestones": "[60, 120]"}, False),
        (PAIR, {"schedule.lr": "0.01"}, False),
        ("vgg13-mobilenetv2", {"schedule.lr": "0.01"}, True),
        ("vgg13-mobilenetv2", {}, False),
        ("resnet32x4-shufflenetv1", {"schedule.lr": "0.01"}, True),
        ("resnet32x4-shufflenetv1", {}, False),
    ],
)
def test_published_numbers_stand_beside_the_published_recipe_alone(analyse, pair, changed, beside):
    published = {"schedule.batch_size": "64", "schedule.lr": "0.05", "schedule.milestones": "[150, 180, 210]"}
    text = analyse([make("dkd", pair, params={**published, "schedule.warmup_epochs": "20", **changed})])[1]
    assert ("another recipe than the field's" in text) == (not beside) and ("<sub>published" in text) == beside


def test_no_published_number_stands_beside_values_that_its_paper_chose_for_the_pair(analyse):
    runs = [make("ttm", pair, title="TTM", year="2024") for pair in (PAIR, "resnet32x4-resnet8x4")]
    text = analyse([*runs, make("wttm", title="WTTM", year="2024")])[1]
    best = block(text, "Best epoch")
    assert "authors 74.33" in best["TTM"][3]
    assert "authors" not in best["TTM"][0] and "authors" not in best["WTTM"][3]


def test_a_mean_over_pairs_is_of_those_that_every_method_has(monkeypatch):
    runs = [make("kd", top1=73.0), make("edkd", top1=72.0), make("kd", OTHER, top1=60.0)]
    for run in runs:
        run["tags"]["mlflow.parentRunId"] = "p"
    given = {}
    monkeypatch.setattr(tracking, "attach", lambda uri, sweeps, **values: given.update(values))
    attach.to_sweeps(placed(runs), argparse.Namespace(uri="x"), [])
    assert given["sentence"] == (
        "3 distilled students of cifar100, 2 pairs: mean top-1 after the last epoch, in percent, of the 1 pair with "
        "every method: KD 73.00, EDKD 72.00."
    )
    assert given["metrics"]["last/top1 EDKD"] == 72.0 and given["metrics"]["best/top1 KD"] == 74.0
    attach.to_sweeps(placed(runs[1:]), argparse.Namespace(uri="x"), [])
    assert given["sentence"].endswith("in percent: no pair has all.") and given["metrics"] == {}


def test_students_alone_and_their_teachers(analyse):
    runs = [make(seed=1), make("vanilla", "vgg8", seed=1, top1=69.0), make("vanilla", "vgg8", seed=2, top1=71.0)]
    runs += [make("smooth", "vgg8", seed=1, top1=69.5)]  # a method of the user's that needs no teacher
    runs += [make("vanilla", "vgg13", seed=0, cell=c, top1=74.0) for c in ("a", "b")]  # teachers, no row of the table
    code, text, csv, _ = analyse(runs)
    last = block(text, "Last epoch")
    assert code == 0
    assert last["student alone"][3] == "70.00 ± 1.41 (n=2)<br><sub>published 70.36</sub>"
    assert last["student alone"][4] == "" and last["student alone, smooth"][3] == "69.50 (n=1)"
    assert len(last["teacher"]) == 7, "a network alone is no column"
    assert set(csv["pair"]) == {PAIR, "vgg8"}
    assert "runs: 1 distilled student, 3 students alone; seeds: 1 (alone: 1, 2)" in text
    text = analyse([make("kd"), make("edkd", teacher_top1="73.10")])[1]
    assert block(text, "Last epoch")["teacher alone"][3].startswith("73.10 / 74.64")


def test_each_method_is_compared_with_the_student_alone_seed_by_seed(analyse):
    runs = [make("vanilla", "vgg8", seed=s, top1=v) for s, v in ((0, 60.0), (1, 70.0), (2, 71.0), (9, 99.0))]
    runs += [make("vanilla", "wrn_16_2", seed=0, top1=50.0)]
    runs += [make("kd", seed=s, top1=v, teacher_id=f"t{s}") for s, v in ((1, 71.0), (2, 73.0), (3, 90.0))]
    runs += [make("edkd", seed=1, top1=72.0), make("edkd", OTHER, seed=1, top1=72.0)]
    runs += [make("dkd.theirs", title="DKD (theirs)", imported="theirs", teacher_id="", seed=1)]
    text, csv = analyse(runs)[1:3]
    gaps = block(text, "Paired differences, last epoch")
    assert list(gaps)[3:] == ["EDKD − KD", "KD − student alone", "EDKD − student alone"]
    assert gaps["KD − student alone"][3] == "+1.50 (n=2)<br><sub>[−4.85, +7.85]</sub>"
    assert (gaps["EDKD − student alone"][3], gaps["EDKD − student alone"][1]) == ("+2.00 (n=1)", "")
    row = csv[(csv["method"] == "kd-vanilla") & (csv["kind"] == "best")].iloc[0]
    assert (row["pair"], row["seeds"], row["top1_values"]) == (PAIR, "1 2", "1.0000 2.0000")
    assert row["quantity"] == "difference from the student alone"
    assert row["p_holm"] == row["p"] > 0, "the comparisons of methods are a family of their own"


def test_students_alone_of_several_configurations_are_compared_with_none(analyse):
    runs = [make("vanilla", "vgg8", cell=c, params={"schedule.lr": c}, name=c) for c in ("0.1", "0.2")]
    runs += [make("kd"), make("kd", OTHER), make("vanilla", "wrn_16_2", top1=60.0, params={"schedule.lr": "0.1"})]
    gaps = block(analyse(runs)[1], "Paired differences, last epoch")
    assert (gaps["KD − student alone"][1], gaps["KD − student alone"][3]) == ("+10.00", "")
    assert "KD − student alone" in analyse(runs[1:], "--rows", "schedule.lr")[1]


@pytest.mark.parametrize(
    ("dataset", "epochs", "title", "reference"),
    [
        ("cifar100-50perclass", 240, "# REDUCED: part of CIFAR-100 (cifar100-50perclass), 240 epochs", True),
        ("cifar100", 20, "# REDUCED: CIFAR-100, only 20 of 240 epochs", True),
        ("cifar100", 300, "# CIFAR-100, 300 epochs, another recipe than the field's", True),
        ("digits", 3, "# digits (not CIFAR-100), 3 epochs", False),
        ("cifar100", 240, "# CIFAR-100, 240 epochs", False),
    ],
)
def test_what_is_reduced_says_so(analyse, dataset, epochs, title, reference):
    _, text, csv, _ = analyse([make(dataset=dataset, epochs=epochs), make("dkd", dataset=dataset, epochs=epochs)])
    assert text.startswith(title)
    beside = dataset == "cifar100" and epochs == 240
    assert ("<sub>published" in text) == beside == ("published" in csv)
    assert ("## Published, full data, 240 epochs: not comparable" in text) == reference
    if reference:
        rows = block(text, "Published")
        assert rows["KD (last epoch)"] == ["73.33", "74.92", "73.54", "72.98", "67.37", "67.35", "74.45"]
        assert rows["DKD, its authors (best)"] == ["76.32", "76.23", "74.81", "74.68", "69.71", "70.35", "77.07"]
        assert rows["student alone"][3] == "70.36"


def test_bold_is_what_is_significant_against_every_other_method(analyse):
    runs = [*seeded("kd", 70.0, 71.0, 72.0), *seeded("edkd", 75.0, 76.01, 77.02), make("kd", OTHER), make("dkd", OTHER)]
    text = analyse(runs)[1]
    last = block(text, "Last epoch")
    assert last["EDKD"][3].startswith("**76.01 ± 1.01 (n=3)**") and last["KD"][3].startswith("71.00 ± 1.00 (n=3)")
    assert "after Holm's correction" in text and "**" not in str(last["DKD"]), "one run is never bold"
    text = analyse([*runs, *seeded("dkd", 75.5, 75.9, 77.0)])[1]
    assert "**" not in block(text, "Last epoch")["EDKD"][3] and "after Holm's correction" not in text


def test_one_run_throughout_is_said_once(analyse):
    text = analyse([make("kd"), make("edkd", pair="resnet32x4-mobilenetv2")])[1]
    assert text.count("n = 1 throughout.") == 2 and "(n=1)" not in text
    assert "n = 1 throughout" not in analyse([make("kd", seed=9), *seeded("edkd", 70.0, 71.0)])[1]


def test_a_footnote_mark_stands_only_with_its_note(analyse):
    mislabelled = {"pair": literature.MISLABELLED}
    assert analyse([make(**mislabelled)])[1].count("¹") == 2  # once a block
    assert "¹" not in analyse([make(**mislabelled, dataset="digits")])[1]
    text = analyse([make()], "--pairs", PAIR)[1]
    assert literature.NOTES[0] not in text and literature.NOTES[1] in text
