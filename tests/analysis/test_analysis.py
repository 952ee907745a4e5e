"""The table: which runs enter it, what the numbers are, and what it says about itself."""

import argparse
import json
import math
import os
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from analysis import attach, literature, load
from analysis.__main__ import main
from edkd import tracking

PAIR, OTHER = "vgg13-vgg8", "wrn_40_2-wrn_16_2"
RECIPE = "240ep-b64-fp32-1a2b3c4d"


def make(method="kd", pair=PAIR, seed=1, top1=70.0, **changes):
    """A finished run as `load_runs` gives it; best is the last epoch's accuracy + 1."""
    teacher, student = pair.split("-") if "-" in pair else ("", pair)
    cell = changes.pop("cell", f"c{abs(hash((method, pair))):x}"[:12])
    epochs = changes.pop("epochs", 240)
    tags = {"pair": pair, "teacher": teacher, "student": student, "distiller": method, "dataset": "cifar100"}
    tags |= {"seed": str(seed), "recipe": RECIPE, "cell": cell, "config_hash": f"{cell}{seed}", "best_by": "test"}
    tags |= {"git_commit": "0123456789abcdef", "git_dirty": "False"}
    tags |= {"teacher_top1": "74.64", "teacher_id": "t1"} if teacher else {}
    metrics = {"last/top1": top1, "last/top5": 90.0, "last/loss": 1.0, "last/epoch": float(epochs)}
    metrics |= {"best/top1": top1 + 1, "best/top5": 91.0, "best/loss": 1.0, "best/epoch": epochs - 5.0}
    name = changes.pop("name", f"{pair}/{method}-s{seed}")
    started = changes.pop("started", 1_790_000_000_000)
    status = changes.pop("status", "FINISHED")
    params = {"seed": str(seed), **changes.pop("params", {})}
    tags |= changes
    return {
        "run_id": f"{name}@{started}",
        "name": name,
        "status": status,
        "tags": tags,
        "params": params,
        "metrics": metrics if status == "FINISHED" else {"test/top1": 12.0},
        "start_time": started,
        "end_time": started,
    }


@pytest.fixture(autouse=True)
def _no_packed_results(monkeypatch, tmp_path):
    """Tables here are of these tests' own runs, whatever results the repository holds."""
    monkeypatch.setattr(load, "RESULTS", tmp_path / "no results")


@pytest.fixture
def analyse(monkeypatch, tmp_path, capsys):
    """Run the command on the given runs: (exit code, table.md, table.csv as a frame, standard error)."""

    def call(runs, *arguments):
        for old in tmp_path.glob("out/*"):
            old.unlink()
        monkeypatch.setattr(load, "load_runs", lambda uri, experiment: runs)
        code = main(["--uri", "http://127.0.0.1:1", "--output", str(tmp_path / "out"), *arguments])
        text, csv = tmp_path / "out/table.md", tmp_path / "out/table.csv"
        assert text.exists() == csv.exists() == (code == 0), "both files or none"
        found = (text.read_text(encoding="utf-8").replace("\u00a0", " "), pd.read_csv(csv)) if code == 0 else ("", None)
        assert sorted(p.name for p in tmp_path.glob("out/*")) == (["table.csv", "table.md"] if code == 0 else [])
        return code, *found, capsys.readouterr().err

    return call


def block(text, title):
    """One block of the Markdown table: {row label: [cell, ...]}, the header under `teacher`."""
    lines = text.split(f"## {title}", 1)[1].split("\n## ", 1)[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_damaged_journals_are_named(tmp_path):
    run_dir = tmp_path / "runs" / "digits" / "vgg13-vgg8" / "kd-s0-0123abcd"
    run_dir.mkdir(parents=True)
    epoch = '{"event": "epoch", "epoch": 1}\n'
    (run_dir / "journal.jsonl").write_text('{"event": "start"}\n' + epoch[:-9] + "\n" + epoch + '{"event": "end"}\n')
    ((path, line),) = load.damaged(f"sqlite:///{tmp_path / 'mlflow.db'}").items()
    assert path == "digits/vgg13-vgg8/kd-s0-0123abcd"
    assert line.startswith(f"line 2 of {run_dir / 'journal.jsonl'} is not a journal record")
    assert load.damaged("http://127.0.0.1:1") == {}


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
    assert gaps["EDKD − KD"][3] == "+1.00 ± 0.71 (n=2)"  # 1.5 and 0.5
    assert gaps["EDKD − DKD"][3] == "−0.40 (n=1)" and gaps["mine − KD"][3] == "+1.25 (n=1)"
    assert gaps["EDKD − mine"][3] == "+0.25 (n=1)"
    assert gaps["EDKD − KD"][:3] == ["", "", ""]
    row = csv[(csv["quantity"] == "paired difference") & (csv["method"] == "edkd-kd") & (csv["kind"] == "best")].iloc[0]
    assert (row["n"], row["top1_mean"], row["seeds"], row["top1_values"]) == (2, 1.0, "1 2", "1.5000 0.5000")


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
    assert ("EDKD − KD" in gaps, gaps["EDKD − DKD"][3]) == (False, "+1.25 ± 0.35 (n=2)")
    assert f"{PAIR}: EDKD − KD, seed 1, 2: not taught by the same teacher" in text
    assert set(csv[csv["quantity"] == "paired difference"]["method"]) == {"edkd-dkd"}


def test_weights_tell_teachers_of_one_configuration_apart(analyse):
    runs = [make("kd", seed=s, top1=70.0, teacher_sha256="aa") for s in (1, 2)]
    runs += [make("edkd", seed=s, top1=71.5, teacher_sha256=weights) for s, weights in ((1, "aa"), (2, "bb"))]
    _, text, _, _ = analyse(runs)
    assert block(text, "Paired differences, last epoch")["EDKD − KD"][3] == "+1.50"
    assert f"{PAIR}: EDKD − KD, seed 2: not taught by the same teacher" in text
    assert f"\n- means over runs of several teachers: edkd on {PAIR}\n" in text


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
        ({"distiller.temperature": "4", "optimizer._target_": "edkd.training.optimizers.SGD"}, ""),
    ],
)
def test_published_numbers_stand_beside_the_default_values_alone(analyse, params, said):
    _, text, csv, _ = analyse([make("kd", params=params), make("vanilla", "vgg8", params={"engine.device": "cpu"})])
    last = block(text, "Last epoch")
    assert ("published" in last["KD"][3]) == (not said) and "published 70.36" in last["student alone"][3]
    assert (f"not the defaults: kd: {said}" in text) == bool(said)
    assert set(zip(csv["method"], csv["changed"].fillna(""))) == {("kd", said), ("vanilla", "")}


def test_the_values_of_a_pair_are_defaults(analyse):
    deep = make("deepkd", params={"optimizer._target_": "edkd.training.optimizers.DeepKD"})
    of_pair, other = ({"distiller.beta": beta, "distiller.warmup_epochs": "20"} for beta in ("6.0", "8.0"))
    assert "not the defaults" not in analyse([make("dkd", OTHER, params=of_pair), deep])[1]
    assert "not the defaults: dkd: distiller.beta=8.0" in analyse([make("dkd", OTHER, params=other)])[1]


def test_a_mean_over_pairs_is_of_those_that_every_method_has(monkeypatch):
    runs = [make("kd", top1=73.0), make("edkd", top1=72.0), make("kd", OTHER, top1=60.0)]
    for run in runs:
        run["tags"]["mlflow.parentRunId"] = "p"
    given = {}
    monkeypatch.setattr(tracking, "attach", lambda uri, sweeps, **values: given.update(values))
    attach.to_sweeps(placed(runs), argparse.Namespace(uri=""), [])
    assert given["sentence"] == (
        "3 distilled students of cifar100, 2 pairs: mean top-1 after the last epoch, in percent, of the 1 pair with "
        "every method: KD 73.00, EDKD 72.00."
    )
    assert given["metrics"]["last/top1 EDKD"] == 72.0 and given["metrics"]["best/top1 KD"] == 74.0
    attach.to_sweeps(placed(runs[1:]), argparse.Namespace(uri=""), [])
    assert given["sentence"].endswith("in percent: no pair has all.") and given["metrics"] == {}


def placed(runs):
    return load.one_cell_each(pd.DataFrame(map(load._row, runs)), picked={}, latest=False)


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
    assert "runs: 1 distilled students, 3 students alone; seeds: 1 (alone: 1, 2)" in text
    text = analyse([make("kd"), make("edkd", teacher_top1="73.10")])[1]
    assert block(text, "Last epoch")["teacher alone"][3].startswith("73.10 / 74.64")


@pytest.mark.parametrize(
    ("dataset", "epochs", "title", "reference"),
    [
        ("cifar100-50perclass", 240, "# REDUCED: part of CIFAR-100 (cifar100-50perclass), 240 epochs", True),
        ("cifar100", 20, "# REDUCED: CIFAR-100, only 20 of 240 epochs", True),
        ("cifar100", 300, "# REDUCED: CIFAR-100, 300 epochs, another recipe than the field's", True),
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


def test_data_sets_and_recipes_are_never_mixed(analyse):
    late = 1_790_000_000_000 + 86_400_000
    runs = [make(), make("edkd"), make(dataset="digits", recipe="3ep", epochs=3, started=late), make(recipe="8ep-x")]
    runs += [make("vanilla", "vgg8", dataset="folder", recipe="9ep")]  # makes no table, so it is no choice
    code, _, _, error = analyse(runs)
    assert code == 1
    choices = [line.strip() for line in error.splitlines() if line.startswith("  ")]
    assert choices == [
        "--dataset cifar100 --recipe 240ep-b64-fp32-1a2b3c4d   (2 runs, newest 2026-09-21 14:13 UTC)",
        "--dataset cifar100 --recipe 8ep-x   (1 run, newest 2026-09-21 14:13 UTC)",
        "--dataset digits --recipe 3ep   (1 run, newest 2026-09-22 14:13 UTC)",
    ]
    assert "ARGS='--…'" in error.splitlines()[0]
    assert len(analyse(runs, "--dataset", "cifar100")[3].splitlines()) == 3
    code, _, _, error = analyse(runs, "--dataset", "cifar10")
    assert code == 1 and "'cifar10'" in error and "--dataset digits" in error
    code, text, csv, _ = analyse(runs, "--dataset", "digits")
    assert code == 0 and set(csv["dataset"]) == {"digits"} and "--dataset digits --recipe 3ep" in text
    code, text, _, _ = analyse(runs, "--dataset", "cifar100", "--recipe", "240ep")
    assert code == 0 and "recipe: 240ep-b64-fp32-1a2b3c4d" in text


def swept(*values, method="kd", **changes):
    """A run with each of these temperatures, whose top-1 is 70 + temperature."""
    return [
        make(
            method,
            **{"cell": f"{method}{value}", "top1": 70.0 + value, **changes},
            params={"distiller.temperature": str(value), "distiller.title": f"draft {value}", "engine.device": "cpu"},
            name=f"t{value}",
            started=1_790_000_000_000 + value,
        )
        for value in values
    ]


def test_a_sweep_of_a_hyper_parameter_makes_rows(analyse):
    runs = [*swept(10, 1, 4, seed=1), *swept(1, seed=2), *swept(4, pair=OTHER), make("edkd", top1=75.0)]
    code, text, csv, _ = analyse(runs)
    last = block(text, "Last epoch")
    assert code == 0 and list(last)[4:] == ["KD temperature=1", "KD temperature=4", "KD temperature=10", "EDKD"]
    assert last["KD temperature=1"][3] == "71.00 ± 0.00 (n=2)"
    assert last["KD temperature=4"][1] == "74.00 (n=1)<br><sub>published 74.92 (−0.92)</sub>", "4 is the default"
    assert block(text, "Paired differences, last epoch")["EDKD − KD temperature=4"][3] == "+1.00"
    assert set(csv["method"]) >= {"kd temperature=1", "kd temperature=10", "edkd-kd temperature=1"}
    _, text, csv, _ = analyse(runs, "--cell", f"{PAIR}:kd=kd10")
    assert "- t1: another configuration (cell kd1) was picked" in text and f"--cell {PAIR}:kd=kd10" in text
    taught = [*swept(1, 4), *swept(4, cell="kd of another teacher", top1=60.0)]
    assert "no parameter differs, but the teacher's weights or the code of the method" in analyse(taught)[3]
    _, text, csv, _ = analyse(taught, "--latest-cell")
    assert csv["top1_mean"].tolist()[:4] == [71.0, 72.0, 60.0, 61.0] and "--latest-cell" in text
    assert list(block(text, "Last epoch"))[4:] == ["KD temperature=1", "KD temperature=4"]


def test_runs_on_several_devices_have_rows_of_their_own(analyse):
    usual = {"engine.sync_batch_norm": "False"}
    runs = [make(cell=f"on{n}", top1=70.0 + n, params={"engine.devices": str(n)} | usual, name=f"n{n}") for n in (1, 2)]
    code, text, _, _ = analyse(runs)
    last = block(text, "Last epoch")
    assert code == 0 and list(last)[4:] == ["KD", "KD devices=2"]
    assert last["KD devices=2"][3].startswith("72.00")
    code, _, _, error = analyse([runs[0], make(cell="of an older run", name="old")])
    assert code == 1 and error.count("no parameter differs") == 2


def test_rows_and_columns_by_parameters(analyse):
    _, text, _, _ = analyse([*swept(10, 4), make("vanilla", "vgg8")], "--columns", "pair,distiller.temperature")
    last = block(text, "Last epoch")
    assert last["**student**"] == ["**vgg8 temperature=4**", "**vgg8 temperature=10**"]
    assert last["KD"] == ["74.00", "80.00"] and "--columns pair,distiller.temperature" in text
    assert last["student alone"][1].startswith("70.00") and "another configuration" not in text
    _, text, _, _ = analyse(swept(4), "--rows", "distiller.temperature", "--columns", "pair")
    assert block(text, "Last epoch")["KD temperature=4"][3].startswith("74.00")
    for name in ("method", "distiller"):
        code, _, _, error = analyse(swept(1, 4), "--rows", name)
        assert code == 1 and f"--cell {PAIR}:kd=kd1 " in error and "distiller.temperature=4; runs: t4" in error


@pytest.mark.parametrize("name", ["distiller.heat", "seed", "pair", "method"])
@pytest.mark.parametrize(("option", "always"), [("--rows", "method, distiller"), ("--columns", "pair")])
def test_what_sets_no_rows_or_columns_apart(analyse, option, name, always):
    code, _, _, error = analyse(swept(4), option, name)
    if name in always:
        assert code == 0
    else:
        refused = f"{option} names {name!r}, which is no parameter of the runs here; there are: {always}, "
        assert (code, error) == (1, f"analysis: {refused}distiller.temperature\n")


def test_another_optimizer_is_named_without_its_own_parameters(analyse):
    dot = {"optimizer._target_": "edkd.training.optimizers.DOT", "optimizer.delta": "0.075"}
    runs = [make(cell="a", params={"optimizer._target_": "edkd.training.optimizers.SGD"}), make(cell="b", params=dot)]
    rows = list(block(analyse(runs)[1], "Last epoch"))[4:]
    assert rows == ["KD optimizer=DOT", "KD optimizer=SGD"]


def test_configurations_are_never_mixed_in_a_cell(analyse):
    runs = [make(cell="aaaa", seed=s, params={"engine.device": "cpu"}) for s in (1, 2)]
    new = {"engine.device": "cuda"}
    runs.append(make(cell="bbbb", seed=3, teacher_id="t2", params=new, name="new", started=1_790_000_000_001))
    code, _, _, error = analyse(runs)
    assert code == 1
    assert f"--cell {PAIR}:kd=aaaa   (2 runs" in error and f"--cell {PAIR}:kd=bbbb   (1 run," in error
    assert "teacher_id=t1; runs: vgg13-vgg8/kd-s1, vgg13-vgg8/kd-s2" in error and "runs: new" in error
    assert "engine.device" not in error and "seed=" not in error
    _, text, csv, _ = analyse(runs, "--cell", f"{PAIR}:kd=aa")
    assert csv["n"].tolist() == [2, 2] and "- new: another configuration (cell bbbb) was picked" in text


def test_what_fits_no_cell_and_what_differs(analyse):
    for cell, known in ((f"{PAIR}:kd=b", "aaaa"), (f"{PAIR}:dkd=a", f"{PAIR}:kd")):
        code, _, _, error = analyse([make(cell="aaaa")], "--cell", cell)
        assert (code, len(error.splitlines())) == (1, 1) and known in error
    error = analyse([make(cell="aaaa"), make(cell="bbbb", seed=2, teacher_id="t2")])[3]
    assert "teacher_id=t1" in error and "teacher_id=t2" in error


def test_the_newest_of_a_seed_counts_and_the_unfinished_are_told(analyse):
    runs = [make(seed=1, top1=60.0, name="old", started=1), make(seed=1, top1=70.0, name="new", started=2)]
    runs += [make(seed=2, status="FAILED", name="broken"), make(seed=3, status="RUNNING", name="busy", cell="zz")]
    empty = make(seed=4, name="bare")
    empty["metrics"] = {}
    code, text, csv, _ = analyse([*runs, empty])
    assert code == 0 and csv["top1_mean"].tolist() == [70.0, 71.0] and csv["n"].tolist() == [1, 1]
    told = text.split("## Not in the table")[1].split("## Notes")[0].strip().splitlines()
    assert told == [
        "- old: an older run of a configuration and seed that is in the table",
        "- broken: failed",
        "- busy: running",
        "- bare: finished without final metrics",
    ]


def test_a_run_whose_journal_is_damaged_is_left_out_unless_it_is_packed(analyse, monkeypatch):
    runs = [make(seed=1), make(seed=2, top1=99.0, **{"edkd.path": "cifar100/vgg13-vgg8/kd-s2"})]
    reason = "line 2 of outputs/runs/cifar100/vgg13-vgg8/kd-s2/journal.jsonl is not a journal record"
    monkeypatch.setattr(load, "damaged", lambda uri: {"cifar100/vgg13-vgg8/kd-s2": reason})
    code, text, csv, error = analyse(runs)
    assert code == 0 and csv["seeds"].astype(str).tolist() == ["1", "1"]
    assert f"## Not in the table\n\n- {PAIR}/kd-s2: {reason}\n" in text and error == f"analysis: {reason}\n"
    assert "here (1 damaged)" in analyse(runs[1:])[3]
    monkeypatch.setattr(load, "load_packed", lambda folder: [make(seed=2, top1=80.0)])
    assert analyse(runs)[2]["seeds"].tolist() == ["1 2", "1 2"]


def test_sweep_parents_and_the_unfinished_make_no_table(analyse):
    parent = make(name="the-parent")
    parent["tags"] = {"edkd.sweep": "1"}
    assert "the-parent" not in analyse([parent, make()])[1]
    code, _, _, error = analyse([parent])
    assert code == 1 and "launch.py" in error and len(error.splitlines()) == 1
    code, _, _, error = analyse([make(status="FAILED"), make("vanilla", "vgg8")])
    assert code == 1 and len(error.splitlines()) == 1
    assert "no finished distillation run among the 2 runs here (1 failed, 1 finished)" in error


def seeded(method, *values, **changes):
    return [make(method, seed=seed, top1=top1, **changes) for seed, top1 in enumerate(values)]


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


def test_the_choice_of_metric_seeds_and_methods(analyse):
    runs = [*seeded("kd", 70.0, 71.0, 72.0), *seeded("dkd", 71.0), make("edkd", seed=9)]
    _, text, csv, _ = analyse(runs, "--metric", "last", "--seeds", "0,2", "--methods", "kd,dkd")
    assert csv[["method", "kind", "seeds"]].astype(str).to_numpy().tolist() == [
        ["dkd", "last", "0"], ["dkd-kd", "last", "0"], ["kd", "last", "0 2"],
    ]  # fmt: skip
    assert "## Best" not in text and "--methods kd,dkd --seeds 0,2 --metric last" in text
    for option, value, known in (("--seeds", "7", "7, which has no runs here; there are: 0, 1, 2, 9"),
                                 ("--methods", "kdd", "'kdd', which has no runs here; there are: dkd, edkd, kd"),
                                 ("--metric", "selected", "see --metric best")):  # fmt: skip
        code, _, _, error = analyse(runs, option, value)
        assert code == 1 and option in error and known in error
    code, _, _, error = analyse([make("kd"), make("vanilla", "vgg8", seed=2)], "--seeds", "2")
    assert code == 1 and "seed 2; there are some of pair vgg13-vgg8; distiller kd; seed 1" in error
    runs = [make("kd", best_by="validation"), make("edkd", best_by="validation")]
    assert set(analyse(runs)[2]["kind"]) == {"last", "selected"}
    assert "see --metric selected" in analyse(runs, "--metric", "best")[3]


def test_no_file_of_an_earlier_table_stays(tmp_path, monkeypatch):
    for top1, form in ((60.0, "markdown"), (70.0, "latex")):
        monkeypatch.setattr(load, "load_runs", lambda uri, experiment, top1=top1: [make(top1=top1)])
        assert main(["--uri", "http://127.0.0.1:1", "--output", str(tmp_path), "--format", form]) == 0
    texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert texts.keys() == {"table.md", "table.tex"} and all("70.00" in text for text in texts.values())


def test_latex_and_html(analyse, tmp_path, monkeypatch):
    runs = [*seeded("kd", 70.0, 71.0, 72.0, pair=OTHER), *seeded("edkd", 75.0, 76.01, 77.02, pair=OTHER)]
    monkeypatch.setattr(load, "load_runs", lambda uri, experiment: runs)
    call = ["--uri", "http://127.0.0.1:1", "--output", str(tmp_path), "--pairs", f"{OTHER},{literature.MISLABELLED}"]
    assert main([*call, "--format", "latex,html"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.html", "table.tex"]
    tex, page = ((tmp_path / name).read_text(encoding="utf-8") for name in ("table.tex", "table.html"))
    tables = tex.split(r"\toprule")[1:]
    rows = [row for table in tables for row in table.split(r"\bottomrule")[0].splitlines() if row.endswith(r"\\")]
    assert len(tables) == 4 and {row.count(" & ") for row in rows} == {2}
    assert r"EDKD & \textbf{76.01 $\pm$ 1.01 (n=3)} &  \\" in rows
    assert r"Student & wrn\_16\_2 & mobilenetv2\textsuperscript{1} \\" in rows
    assert r"\textbf{The seventh column" in tex and not set("±−→¹") & set(tex)
    assert "<tr><th>EDKD</th><td><b>76.01 ± 1.01 (n=3)</b>" in page and "<code>resnet32x4-mobilenetv2</code>" in page
    assert page.count("<table>") == page.count("</table>") == 4


TEX = next(filter(None, map(shutil.which, ("pdflatex", "lualatex", "tectonic"))), None)


@pytest.mark.skipif(TEX is None, reason="no pdflatex, lualatex or tectonic here")
def test_latex_compiles(tmp_path, monkeypatch):
    """With a full table, bold numbers, notes and names that TeX would take for commands; no line leaves the page."""
    runs = [run for pair in literature.SEVEN for run in seeded("kd", 70.0, 71.0, 72.0, pair=pair)]
    runs += [run for pair in literature.SEVEN for run in seeded("a_b%&", 75.0, 76.01, 77.02, pair=pair)]
    monkeypatch.setattr(load, "load_runs", lambda uri, experiment: runs)
    assert main(["--uri", "http://127.0.0.1:1", "--output", str(tmp_path), "--format", "latex"]) == 0
    head = r"\documentclass{article}\usepackage{booktabs}\usepackage{graphicx}\begin{document}\sloppy"
    (tmp_path / "page.tex").write_text(rf"{head}\input{{table.tex}}\end{{document}}")
    batch = [] if "tectonic" in TEX else ["-interaction=nonstopmode", "-halt-on-error"]
    done = subprocess.run([TEX, *batch, "page.tex"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "page.pdf").stat().st_size > 20_000 and "Overfull" not in done.stdout


def test_only_some_pairs(analyse):
    runs = [make(), make("vanilla", "wrn_16_2"), *(make(pair=OTHER, cell=cell) for cell in ("x", "y"))]
    code, text, csv, _ = analyse(runs, "--pairs", PAIR)  # the quarrel about the other pair is no matter here
    assert code == 0 and block(text, "Last epoch")["teacher"] == ["vgg13"] and set(csv["pair"]) == {PAIR}
    code, _, _, error = analyse(runs, "--pairs", "vgg13-vgg9")
    assert code == 1 and "'vgg13-vgg9'" in error and OTHER in error
    runs.append(make("vanilla", "mobilenetv2"))  # a student alone makes no table
    code, _, _, error = analyse(runs, "--pairs", "vgg13-mobilenetv2")
    assert code == 1 and "vgg13-mobilenetv2" in error


def test_the_lists_of_pairs_of_the_configuration(analyse):
    runs = [make(), make(pair=OTHER)]
    _, text, _, _ = analyse(runs, "--pairs", "vgg13")
    last = block(text, "Last epoch")
    assert last["**student**"] == ["**vgg8**", "**mobilenetv2**"] and f"--pairs {PAIR},vgg13-mobilenetv2 " in text
    assert len(block(analyse(runs, "--pairs", f"{OTHER},field")[1], "Last epoch")["teacher"]) == 13


def test_the_head_names_commits_and_the_command_without_a_password(analyse):
    runs = [make(), make("dkd", git_commit="fedcba9876543210", git_dirty="True")]
    text = analyse(runs, "--uri", "http://me:secret@server")[1]
    assert "git commits: 0123456789, fedcba9876+dirty" in text
    assert "--uri http://...@server " in text and "secret" not in text and "me:" not in text


@pytest.mark.parametrize(
    "bad", ["--cell kd=1", "--pairs vgg14", "--pairs ,", "--format pdf", "--seeds a", "--rows ,", "--recipes x"]
)
def test_bad_options(bad, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(bad.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("analysis: ") and bad.split()[0] in line and line.endswith("; see python -m analysis --help")


def test_a_store_that_is_not_there_is_not_made(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([]) == 1
    error = capsys.readouterr().err
    assert "no MLflow store at outputs/mlflow.db" in error and "launch.py" in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_what_was_named_and_is_not_there_is_an_error(tmp_path, capsys, monkeypatch):
    """Whatever results came with the code."""
    runs = [make("vanilla", "vgg8")]
    monkeypatch.setattr(load, "load_packed", lambda folder: runs)
    store, folder = tmp_path / "absent" / "x.db", tmp_path / "absent"
    for options, expected in (
        (["--uri", f"sqlite:///{store}"], f"no MLflow store at {store} (see --uri)"),
        (["--results", str(folder)], f"--results {folder}: there is no such folder"),
    ):
        for packed in (make("vanilla", "vgg8"), make()):
            runs[:] = [packed]
            assert main([*options, "--output", str(tmp_path)]) == 1
            (line,) = capsys.readouterr().err.splitlines()
            assert expected in line
    assert not list(tmp_path.iterdir())


def test_a_table_of_packed_runs_alone_says_so(analyse, monkeypatch):
    monkeypatch.setattr(load, "load_packed", lambda folder: [make()])
    said = f"analysis: all runs of this table are packed ones, from {load.RESULTS}\n"
    assert [analyse(stored)[3] for stored in ([], [make("dkd")])] == [said, ""]
    alone = make("vanilla", "vgg8", dataset="digits")
    assert analyse([alone])[3] == f"{said[:-1]}; the store has runs, but no finished student with a teacher\n"


def test_a_folder_without_packed_runs_is_named(analyse, tmp_path):
    assert analyse([make()], "--results", str(tmp_path))[::3] == (0, f"analysis: no packed runs in {tmp_path}\n")
    assert analyse([make()])[3] == ""


def test_an_older_table_survives_a_full_disk(analyse, tmp_path, monkeypatch, capsys):
    assert analyse([make()])[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(["--uri", "http://127.0.0.1:1", "--output", str(tmp_path / "out")]) == 1
    assert "No space left" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("width", ["60", "80", "250"])
def test_the_terminal_shows_every_number_at_any_width(monkeypatch, tmp_path, capsys, width):
    monkeypatch.setenv("COLUMNS", width)
    runs = [make(m, pair, s, 70 + s) for m in ("kd", "dkd") for pair in literature.SEVEN for s in (1, 2)]
    runs += [make("x", status="FAILED", name=f"lost-{i}") for i in range(12)]
    monkeypatch.setattr(load, "load_runs", lambda uri, experiment: runs)
    assert main(["--uri", "http://127.0.0.1:1", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("71.50") == shown.count("72.50") == 14
    assert max(len(line) for line in shown.splitlines() if "│" in line) <= int(width)
    assert ("published [76.01]" in shown) or width != "250"
    assert "lost-9" in shown and "lost-10" not in shown and "and 2 more" in shown
    assert f"Saved in {tmp_path / 'table.md'}" in shown


def test_of_many_methods_each_has_a_line_on_the_terminal(analyse, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    runs = [make(f"m{i}", pair, 1, 70.0 + i) for i in range(12) for pair in literature.SEVEN]
    monkeypatch.setattr(load, "load_runs", lambda uri, experiment: runs)
    assert main(["--uri", "http://127.0.0.1:1", "--output", str(tmp_path), "--metric", "last"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("│ m11 "))
    assert line.count("81.00") == 7


def test_from_journals_through_mlflow_to_the_table(tmp_path, capsys):
    """The whole way but for the training: two seeds finished, a third still at its first epoch."""
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracking.create_store(uri=store, experiment="edkd", artifacts=str(tmp_path / "artifacts"))
    tracking.start_sweep("nightly", uri=store, experiment="edkd", artifacts=None)
    for seed, top1 in ((1, 50.0), (2, 52.0), (3, None)):
        tags = make(seed=seed, dataset="digits", recipe="2ep", cell="aaaa")["tags"]
        for recorded_later in ("best_by", "teacher_top1", "teacher_id"):
            del tags[recorded_later]
        start = {"event": "start", "time": 1.79e9, "run": f"{seed:016x}", "name": f"digits/{PAIR}/kd-s{seed}"}
        start |= {"attempt": 1, "sweep": "nightly", "config": {"seed": seed, "schedule": {"epochs": 2}}, "tags": tags}
        start |= {"teacher": {"id": "t1", "sha256": "00", "top1": 97.5}, "versions": {}, "resumed_from": 0}
        records = [start, {"event": "epoch", "time": 1.79e9 + 1, "epoch": 1, "metrics": {"test/top1": 40.0}}]
        if top1 is not None:
            last = {"epoch": 2, "top1": top1, "top5": 90.0, "loss": 1.0}
            best = {"epoch": 1, "top1": top1 + 0.5, "top5": 90.0, "loss": 1.0, "by": "test"}
            records.append({"event": "end", "time": 1.79e9 + 2, "last": last, "best": best, "seconds": 2.0})
        folder = tmp_path / f"runs/kd-s{seed}"
        folder.mkdir(parents=True)
        (folder / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        tracking.sync_run(folder, uri=store, experiment="edkd", artifacts=None)
    assert main(["--uri", store, "--output", str(tmp_path)]) == 0
    text = (tmp_path / "table.md").read_text(encoding="utf-8").replace("\u00a0", " ")
    assert text.startswith("# digits (not CIFAR-100), 2 epochs")
    assert block(text, "Last epoch")["KD"] == ["51.00 ± 1.41 (n=2)"]
    assert block(text, "Best epoch, chosen on the test set itself")["KD"] == ["51.50 ± 1.41 (n=2)"]
    assert block(text, "Last epoch")["teacher alone"] == ["97.50"]
    assert f"digits/{PAIR}/kd-s3: interrupted" in text
    assert main(["--uri", store, "--experiment", "other"]) == 1
    assert "'other'" in capsys.readouterr().err
