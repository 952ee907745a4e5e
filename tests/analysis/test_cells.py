"""Which runs make a cell of the table, and which row and column they belong to."""

import pytest

from analysis import load
from tests.analysis.runs import OTHER, PAIR, block, make, swept


def test_data_sets_and_recipes_are_never_mixed(analyse):
    late = 1_790_000_000_000 + 86_400_000
    runs = [make(), make("edkd"), make(dataset="digits", recipe="3ep", epochs=3, started=late), make(recipe="8ep-x")]
    runs += [make("vanilla", "vgg8", dataset="folder", recipe="9ep")]  # makes no table, so it is no choice
    code, text, csv, error = analyse(runs)
    assert code == 0 and set(csv["dataset"]) == {"digits"}, "the newest"
    others = [line.strip() for line in error.splitlines() if line.startswith("  ")]
    assert others == [
        "--dataset cifar100 --recipe 240ep-b64-fp32-1a2b3c4d   (2 runs, newest 2026-09-21 14:13 UTC)",
        "--dataset cifar100 --recipe 8ep-x   (1 run, newest 2026-09-21 14:13 UTC)",
    ]
    assert "ARGS='--…'" in error.splitlines()[0]
    assert len(analyse(runs, "--dataset", "cifar100")[3].splitlines()) == 2
    assert analyse(runs, "--report")[3] == error, "the table and the report say it once"
    code, _, _, error = analyse(runs, "--dataset", "cifar10")
    assert code == 1 and "'cifar10'" in error and "--dataset digits" in error
    code, text, csv, _ = analyse(runs, "--dataset", "digits")
    assert code == 0 and set(csv["dataset"]) == {"digits"} and "--dataset digits --recipe 3ep" in text
    code, text, _, _ = analyse(runs, "--dataset", "cifar100", "--recipe", "240ep")
    assert code == 0 and "recipe: 240ep-b64-fp32-1a2b3c4d" in text


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


def test_damaged_journals_are_named(tmp_path):
    run_dir = tmp_path / "runs" / "digits" / "vgg13-vgg8" / "kd-s0-0123abcd"
    run_dir.mkdir(parents=True)
    epoch = '{"event": "epoch", "epoch": 1}\n'
    (run_dir / "journal.jsonl").write_text('{"event": "start"}\n' + epoch[:-9] + "\n" + epoch + '{"event": "end"}\n')
    ((path, line),) = load.damaged(f"sqlite:///{tmp_path / 'mlflow.db'}").items()
    assert path == "digits/vgg13-vgg8/kd-s0-0123abcd"
    assert line.startswith(f"line 2 of {run_dir / 'journal.jsonl'} is not a journal record")
    assert load.damaged("http://127.0.0.1:1") == {}


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
