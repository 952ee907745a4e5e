"""The table as files and on the terminal, and the options that choose its runs."""

import json
import os
import shutil
import subprocess

import mlflow
import pytest

from analysis import literature, load
from analysis.__main__ import main
from edkd import tracking
from tests.analysis.runs import OTHER, PAIR, block, make, seeded


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
        (["--uri", f"sqlite:///{store}"], f"no MLflow store at {store} (see --uri"),
        (["--uri", f"sqlite:///{store}", "--results", str(tmp_path)], f"no MLflow store at {store} (see --uri"),
        ([], f"no MLflow store at {tmp_path / 'mlflow.db'} (see --uri"),
        (["--results", str(folder)], f"--results {folder}: there is no such folder"),
    ):
        for packed in (make("vanilla", "vgg8"), make()):
            runs[:] = [packed]
            assert main([*options, "--output", str(tmp_path)]) == 1
            assert expected in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_packed_runs_that_are_named_stand_alone_also_by_another_path(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(load, "RESULTS", tmp_path / "packed")
    (tmp_path / "packed").mkdir()
    monkeypatch.setattr(load, "load_packed", lambda folder: [make()])
    assert main(["--output", str(tmp_path / "out"), "--results", str(tmp_path / "packed/../packed")]) == 0
    assert "--results" in (tmp_path / "out/table.md").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["--output", str(tmp_path / "other")]) == 1
    assert "--results DIR without --uri reads packed runs alone" in capsys.readouterr().err


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
    client = mlflow.MlflowClient(store)
    (sweep,) = client.search_runs(["1"], "tags.`edkd.sweep` = 'nightly'")
    assert {file.path for file in client.list_artifacts(sweep.info.run_id)} == {"table.csv", "table.html", "table.md"}
    assert sweep.data.tags["mlflow.note.content"] == (
        "2 distilled students of digits, 1 pair: mean top-1 after the last epoch, in percent, of the 1 pair with every "
        "method: KD 51.00."
    )
    assert sweep.data.metrics == {"last/top1 KD": 51.0, "best/top1 KD": 51.5}
    assert main(["--uri", store, "--experiment", "other"]) == 1
    assert "'other'" in capsys.readouterr().err
