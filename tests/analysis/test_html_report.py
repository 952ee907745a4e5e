"""The HTML report: it says what the runs say, needs no network, and fits every screen."""

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pandas as pd
import pytest

from analysis import html_figures, html_report, literature, load
from analysis.missing import Missing, launch_commands
from edkd import tracking
from edkd.errors import EdkdError
from edkd.rundir import files
from edkd.rundir.journal import Journal
from edkd.rundir.settings import dataset_overrides
from tests.analysis.runs import OTHER, PAIR, make, placed, swept

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HASHES = {"data_sha256": "d" * 64, "teacher_sha256": "e" * 64}
MACHINE = {**HASHES, "device": "NVIDIA H100", "threads": "2", "versions.torch": "2.13.0"}
PARAMS = {
    "dataset.source._target_": "edkd.data.sources.digits",
    "dataset.source.image_size": "8",
    "dataset.image_size": "8",
    "dataset.validation": "0.0",
    "schedule.milestones": "[1, 2]",
    "schedule.epochs": "3",
    "engine.precision": "bf16",
}


class Page(HTMLParser):
    """What the test asks of a page: its elements, the addresses in them, and the cells of its tables."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.identifiers, self.tables = [], [], [], []
        self.inside = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.identifiers += [value for name, value in attrs if name == "id"]
        self.inside = tag
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside in ("td", "button"):
            self.tables[-1][-1][-1] += data


def store():
    """Two methods on two pairs and three seeds; of DKD one run failed, and one was never begun."""
    runs = []
    for pair in (PAIR, OTHER):
        for i, method in enumerate(("kd", "dkd")):
            for seed in (0, 1, 2):
                if (pair, method, seed) == (OTHER, "dkd", 2):
                    continue
                failed = (pair, method, seed) == (PAIR, "dkd", 2)
                changes = {"status": "FAILED"} if failed else {}
                run = make(
                    method,
                    pair,
                    seed,
                    70 + i + 0.1 * i * seed + seed,
                    epochs=3,
                    dataset="digits-8",
                    params=PARAMS,
                    **MACHINE,
                    **changes,
                )
                run["metrics"] |= {
                    "seconds": 1800.0,
                    "peak_memory_mb": 3000.0,
                    "test/agreement": 90.0 - i,
                    "test/kl_teacher": 0.4,
                    "test/ece": 3,
                }
                runs.append(run)
    return runs


@pytest.fixture
def write(monkeypatch, tmp_path):
    """Run the command on the given runs; returns its exit code."""

    def call(runs, *arguments):
        monkeypatch.setattr(load, "load_runs", lambda uri, experiment: runs)
        places = ["--output", str(tmp_path / "out"), "--results", str(tmp_path)]
        return html_report.main(["--uri", "http://name:secret@127.0.0.1:1", *places, *arguments])

    return call


def text_of(tmp_path):
    return (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_the_page_of_a_small_store(write, tmp_path):
    runs = store()
    for number, run in enumerate(runs):
        folder = tmp_path / f"out/runs/digits-8/{run['tags']['pair']}/m-s0-{number:08x}"
        folder.mkdir(parents=True)
        journal = Journal(folder)
        journal.append({"event": "start", "time": run["start_time"] / 1000, "run": run["tags"]["config_hash"]})
        for epoch in (1, 2, 3):
            journal.append({"event": "epoch", "epoch": epoch, "metrics": {"test/top1": 60.0 + epoch}})
    assert write(runs) == 0
    text = text_of(tmp_path)
    page = Page(text)
    said = html.unescape(text)
    assert "DKD − KD is +1.05 points on average over 2 pairs" in said  # of 1.0 and 1.1 on both
    assert "fewer than 5 pairs permit no interval over pairs and no conclusion on average" in said
    assert "With n = 2 and a typical standard deviation of the differences of 0.07 points" in said
    # Accuracies, a forest, matrix, curves, best − last, agreement, two costs; published numbers are of other data.
    assert page.tags.count("svg") == 8
    assert re.findall(r"<li>([^<:]*): nothing to draw", text) == ["Ours against published"]
    cells, differences, over_pairs, missing, provenance = page.tables
    assert [PAIR, "KD", "last", "3", "71.00", "1.00", "68.52 to 73.48"] in cells
    assert [PAIR, "DKD − KD", "best", "2", "+1.05", "0.07"] in [row[:6] for row in differences]
    assert [row[:3] for row in over_pairs[1:]] == [["DKD − KD", "2", "+1.05"]]
    assert sorted(missing[1:]) == [[PAIR, "dkd", "2", "failed"], [OTHER, "dkd", "2", "not begun"]]
    assert (
        f"edkd retry --output {tmp_path / 'out'} --dataset digits-8 --pair {PAIR} --distiller dkd --seed 2</pre>"
    ) in said
    assert (
        f"python launch.py -m distiller=dkd pair={OTHER} seed=2 dataset=digits dataset.image_size=8 "
        f"'schedule.milestones=[1,2]' schedule.epochs=3 engine.precision=bf16 output={tmp_path / 'out'}"
    ) in said
    assert len(provenance) == 1 + 10
    row = dict(zip(provenance[0], next(row for row in provenance if row[0] == runs[0]["name"])))
    assert row["data"] == "d" * 10 and row["teacher's hash"] == "e" * 10 and row["teacher"] == "t1"
    assert row["commit"] == "0123456789" and row["dirty"] == "no" and row["hours"] == "0.500"
    assert row["teacher's top-1"] == "74.64" and row["device"] == "NVIDIA H100" and row["versions"] == "torch 2.13.0"
    assert row["configuration"] == runs[0]["tags"]["config_hash"]
    assert "secret" not in text


def test_hours_and_memory_on_a_cpu_are_not_compared(write, tmp_path):
    runs = store()
    assert write(runs) == 0 and text_of(tmp_path).count('aria-label="Accuracy against ') == 2
    for run in runs:
        run["tags"]["device"] = "cpu (x86_64)"
    assert write(runs) == 0 and 'aria-label="Accuracy against ' not in text_of(tmp_path)
    assert "Accuracy against time: hours on a CPU depend on what else it computed" in text_of(tmp_path)
    assert "Accuracy against memory: memory on a CPU depends on what its process did before" in text_of(tmp_path)


@pytest.mark.parametrize(("rate", "words"), [("0.05", " schedule.epochs=8 "), ("0.1", " schedule.lr=0.1 ")])
def test_a_missing_run_has_the_rate_of_its_own_student(tmp_path, rate, words):
    params = {"schedule.epochs": "8", "schedule.lr": rate, "student.lr": "0.05"}
    runs = pd.DataFrame([{"dataset": "cifar100", "last_epoch": 8, "params": params}])
    rows = [Missing("resnet50-mobilenetv2", "kd", 1, "not begun")]  # whose student has 0.01
    (command,) = launch_commands(rows, runs, tmp_path)
    assert words in f"{command} " and ("schedule.lr" in command) == (rate == "0.1")


@pytest.mark.parametrize(("seeds", "words"), [((0, 0), ["teacher_seed=0"]), ((1000,), []), ((0, 1), [])])
def test_a_missing_run_has_the_teacher_of_the_others(tmp_path, seeds, words):
    rows = [{"dataset": "digits", "last_epoch": 8, "params": {"teacher_seed": str(seed)}} for seed in seeds]
    (command,) = launch_commands([Missing(PAIR, "kd", 1, "not begun")], pd.DataFrame(rows), tmp_path)
    assert [word for word in command.split() if word.startswith("teacher_seed")] == words


def test_packed_runs_are_unpacked_before_others_are_trained(write, tmp_path, monkeypatch):
    runs = [make(method, pair) for method, pair in (("kd", PAIR), ("dkd", PAIR), ("kd", OTHER))]
    united = load._united
    monkeypatch.setattr(load, "_united", lambda stored, packed: [{**run, "packed": True} for run in united(stored, ())])
    assert write(runs, "--pairs", f"{PAIR},{OTHER}") == 0
    unpack = f"edkd results unpack {tmp_path} --output {tmp_path / 'out'}"
    assert f"{unpack}\npython launch.py -m distiller=dkd pair={OTHER} " in html.unescape(text_of(tmp_path))


def test_the_student_alone_is_drawn_for_the_seeds_of_its_methods():
    runs = [make("kd", seed=s, top1=70.0) for s in (0, 1)] + [make("vanilla", "vgg8", s, 60.0 + s) for s in (0, 1, 2)]
    cells = html_figures.references(placed(runs))
    (alone,) = cells[(cells["method"] == html_figures._STUDENT) & (cells["protocol"] == "last")].to_dict("records")
    assert (alone["n"], alone["mean"]) == (2, 60.5)


def test_students_alone_of_other_seeds_are_named(write, tmp_path):
    runs = [make("kd", seed=1), make("dkd", seed=1), *(make("vanilla", "vgg8", seed) for seed in (0, 2))]
    assert write(runs, "--pairs", PAIR) == 0
    text = text_of(tmp_path)
    assert "student alone: 2 runs of seeds that the pair's methods do not have" in html.unescape(text)
    assert f"{PAIR}: methods − student alone: no common seed (methods: 1; vgg8 alone: 0, 2)" in text
    assert write([*runs, make("vanilla", "vgg8", 1)], "--pairs", PAIR) == 0
    assert "no common seed (methods" not in text_of(tmp_path)


def test_hours_of_runs_side_by_side_are_said_to_be(write, tmp_path):
    runs = store()
    for place, run in enumerate(runs):
        run["start_time"] += place * 3_600_000  # milliseconds
        run["metrics"]["seconds"] = 3600.0
    assert write(runs) == 0 and "; some runs at the same time" not in text_of(tmp_path)
    runs[0]["metrics"]["seconds"] = 3601.0
    assert write(runs) == 0 and "Accuracy against time, NVIDIA H100; some runs at the same time" in text_of(tmp_path)


def test_a_method_of_ones_own_is_trained_from_ones_own_folder(tmp_path):
    runs = pd.DataFrame([{"dataset": "digits", "last_epoch": 3, "params": {}}])
    (command,) = launch_commands([Missing(PAIR, "mine", 1, "not begun")], runs, tmp_path)
    assert "launch.py -m --config-dir DIR distiller=mine" in command


def test_runs_without_a_journal_are_in_no_curve(write, tmp_path):
    assert write(store()) == 0
    assert "10 of 10 runs: no journal here, and in no curve" in text_of(tmp_path)


def test_the_page_compares_with_the_student_alone(write, tmp_path):
    alone = [make("vanilla", "vgg8", seed, 65.0 + seed) for seed in (0, 1)]
    runs = [make(m, seed=s, top1=70.0 + i + 2 * s) for i, m in enumerate(("kd", "dkd")) for s in (0, 1)]
    assert write([*runs, *alone], "--pairs", PAIR) == 0
    cells, _, _, from_alone = Page(text_of(tmp_path)).tables[:4]
    assert ["vgg8", "student alone", "last", "2", "65.50", "0.71"] in [row[:6] for row in cells]
    gap = ["2", "+5.50", "0.71", "−0.85 to +11.85", "0.0577"]  # of 5 and 6 points: t = 11 with one degree of freedom
    assert from_alone[1:3] == [
        [PAIR, "KD − student alone", "last", *gap, "0.0977", "0 1"],
        [PAIR, "DKD − student alone", "last", "2", "+6.50", "0.71", "+0.15 to +12.85", "0.0489", "0.0977", "0 1"],
    ]
    assert len(from_alone) == 1 + 4


def test_the_choice_by_the_test_set_is_said(write, tmp_path):
    said = "The test set chose the epochs"
    for metric, there in (("last", False), ("best", True)):
        assert write(store(), "--metric", metric) == 0 and (said in text_of(tmp_path)) == there
    assert write([make("kd")], "--pairs", PAIR, "--metric", "best") == 0 and said not in text_of(tmp_path)


def test_other_settings_of_ours_are_no_baselines(write, tmp_path):
    runs = [run for value in (2, 4, 8) for run in swept(value, method="edkd")] + [make("kd"), make("dkd", top1=71.0)]
    assert write(runs, "--pairs", PAIR) == 0
    said = html.unescape(text_of(tmp_path))
    assert "The strongest of 2 baselines on the same pairs is DKD: EDKD temperature=8 − DKD" in said
    assert "EDKD temperature=8 − EDKD temperature=4" in said, "the tables have them"
    assert write(swept(2, 4, method="edkd"), "--pairs", PAIR) == 0
    assert "EDKD temperature=4 − EDKD temperature=2 is +2.00 points" in html.unescape(text_of(tmp_path))


def test_pairs_without_a_file_are_trained_by_their_networks(tmp_path):
    rows = [Missing(pair, "kd", 1, "not begun") for pair in (PAIR, "t-s1", "t-s2", "u-s1")]
    runs = pd.DataFrame([{"dataset": "digits", "last_epoch": 3, "params": {"schedule.epochs": "3"}}])
    head = "python launch.py -m distiller=kd"
    assert [line.partition(" seed=1")[0] for line in launch_commands(rows, runs, tmp_path)] == [
        f"{head} pair={PAIR}", f"{head} teacher=t student=s1,s2", f"{head} teacher=u student=s1",
    ]  # fmt: skip


def test_images_of_a_folder_are_trained_from_that_folder(tmp_path):
    params = {"dataset.source._target_": "edkd.data.sources.folder", "dataset.name": "birds", "dataset.root": "/birds"}
    runs = pd.DataFrame([{"dataset": "birds", "last_epoch": 3, "params": params}])
    (command,) = launch_commands([Missing(PAIR, "kd", 1, "not begun")], runs, tmp_path)
    assert "dataset=folder dataset.name=birds dataset.root=/birds" in command


@pytest.mark.parametrize("function", ["greys", "folder"])  # conf/ has an option of the second name
def test_data_of_ones_own_are_no_option_of_conf(tmp_path, function):
    params = {"dataset.source._target_": f"mine.{function}", "dataset.name": "mine"}
    assert dataset_overrides(params) == []
    runs = pd.DataFrame([{"dataset": "mine", "last_epoch": 3, "params": params}])
    (command,) = launch_commands([Missing(PAIR, "kd", 1, "not begun")], runs, tmp_path)
    assert command.startswith("python launch.py -m --config-dir DIR distiller=kd ") and " dataset=NAME " in command


def test_runs_by_other_values_are_trained_by_those_values(write, tmp_path):
    changed = {"distiller.temperature": "2.0", "optimizer._target_": "edkd.training.optimizers.DOT"}
    usual = {"distiller.temperature": "4.0", "optimizer._target_": "edkd.training.optimizers.SGD"}
    runs = [make("kd", seed=s, params=usual | {"engine.devices": "2"}, cell="a", name=f"a{s}") for s in (0, 1)]
    runs += [make("kd", params=changed | {"engine.devices": "2"}, cell="b", name="b")]
    assert write(runs, "--pairs", PAIR) == 0
    text = html.unescape(text_of(tmp_path))
    assert Page(text_of(tmp_path)).tables[-2][1:] == [
        [PAIR, "kd distiller.temperature=2.0 optimizer=dot", "0", "not begun"]
    ]
    words = f"pair={PAIR} seed=0 distiller.temperature=2.0 optimizer=dot engine.devices=2"
    assert f"python launch.py -m distiller=kd {words}" in text


def test_a_damaged_journal_leaves_out_its_run_alone(write, tmp_path):
    damaged, sound = (tmp_path / f"out/runs/cifar100/{PAIR}/{name}-s1-0123abcd" for name in ("dkd", "kd"))
    for folder in (damaged, sound):
        folder.mkdir(parents=True)
    (damaged / "journal.jsonl").write_text("{}\n" * 3)
    runs = [make("kd"), make("dkd")]
    start = {"event": "start", "time": runs[0]["start_time"] / 1000, "run": runs[0]["tags"]["config_hash"]}
    Journal(sound).append(start)
    assert write(runs, "--pairs", PAIR) == 0
    assert "Training curves: nothing to draw" in text_of(tmp_path)
    Journal(sound).append({"event": "epoch", "epoch": 1, "metrics": {"test/top1": 61.0}})
    assert write(runs, "--pairs", PAIR) == 0
    assert "Training curves: nothing to draw" not in text_of(tmp_path)


def test_published_numbers_of_the_pair_with_the_default_values(write, tmp_path):
    runs = [make("dkd", pair, params={"distiller.beta": beta}) for pair, beta in ((PAIR, "6.0"), (OTHER, "8.0"))]
    assert write(runs, "--pairs", f"{PAIR},{OTHER}") == 0
    cells = Page(text_of(tmp_path)).tables[0]
    assert cells[0][-2:] == ["published", "authors"]
    assert [(row[0], *row[-2:]) for row in cells if row[2] == "best"] == [(PAIR, "74.14", "74.68"), (OTHER, "", "")]
    assert [(row[0], *row[-2:]) for row in cells if row[2] == "last"] == [(PAIR, "[74.14]", "[74.68]"), (OTHER, "", "")]
    notes = html.unescape(re.sub("<.*?>", "", text_of(tmp_path)))
    assert "The rows of the published table mix protocols." in notes
    assert "Sources of the published numbers, by method: dkd: EDKD's own rerun of DKD (table)" in notes


def test_imported_runs_are_not_ours(write, tmp_path):
    runs = [make(method, seed=s) for method in ("kd", "dkd") for s in (0, 1)]
    runs.append(make("dkd.theirs", title="DKD (theirs)", year="2022", imported="theirs", teacher_id=""))
    assert write(runs, "--pairs", PAIR) == 0
    assert "DKD − KD" in text_of(tmp_path)


def test_students_alone_of_several_configurations_are_no_reference(write, tmp_path):
    runs = [make("kd"), make("dkd")]
    for value, top1 in (("SGD", 70.0), ("DOT", 60.0)):
        params = {"optimizer._target_": f"edkd.training.optimizers.{value}"}
        runs.append(make("vanilla", "vgg8", top1=top1, cell=value, params=params, name=value))
    assert write(runs, "--pairs", PAIR) == 0
    assert "KD − student alone" not in text_of(tmp_path)
    figure = text_of(tmp_path).partition("<figure>")[2].partition("</figure>")[0]
    assert "student alone" not in figure
    assert write(runs[:3], "--pairs", PAIR) == 0
    assert "KD − student alone" in text_of(tmp_path)


def test_the_page_needs_no_network(write, tmp_path):
    assert write(store()) == 0
    text = text_of(tmp_path)
    page = Page(text)
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(page.identifiers) == len(set(page.identifiers))
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.identifiers)


def test_names_are_escaped(write, tmp_path):
    runs = [make(method, PAIR, seed) for seed in (0, 1) for method in ("kd", "<b>&mine")]
    assert write(runs) == 0
    page = Page(text_of(tmp_path))
    assert "<b>&mine" not in text_of(tmp_path) and page.tables[0][2][1] == "<b>&mine"


def test_one_method_alone(write, tmp_path):
    assert write([make("kd")], "--pairs", PAIR) == 0
    text = text_of(tmp_path)
    assert "KD alone has runs: nothing is compared." in text and "Every method has a finished run" in text


def test_what_began_and_did_not_finish_is_missing_also_outside_of_the_grid(write, tmp_path):
    runs = [make("kd"), make("dkd", status="FAILED"), make("kd", seed=2, status="KILLED")]
    runs += [make("vanilla", "vgg8", status="RUNNING"), make("kd", name="earlier", status="FAILED", started=1)]
    runs += [make("kd", seed=3, cell="trial", status="KILLED", pruned_after="1")]
    assert write(runs, "--pairs", PAIR) == 0
    text = text_of(tmp_path)
    assert Page(text).tables[-2][1:] == [
        [PAIR, "dkd", "1", "failed"],
        [PAIR, "kd", "2", "interrupted"],
        ["vgg8", "vanilla", "1", "running"],
    ]
    assert f"--dataset cifar100 --pair {PAIR},vgg8 --distiller dkd,kd,vanilla --seed 1,2</pre>" in text
    assert "launch.py" not in text


def test_pairs_of_the_published_table_without_runs_are_missing(write, tmp_path):
    assert write([make("kd")]) == 0
    missing = Page(text_of(tmp_path)).tables[-2][1:]
    assert [row[1:] for row in missing] == [["kd", "1", "not begun"]] * 6
    assert {row[0] for row in missing} == {*literature.SEVEN} - {PAIR}


def test_few_methods_stand_beside_student_and_teacher_alone(write, tmp_path):
    alone = [make("vanilla", PAIR.split("-")[1], seed, 65.0 + seed) for seed in (0, 1)]
    assert write([make("kd"), make("kd", OTHER), *alone]) == 0
    figure = text_of(tmp_path).partition("<figure>")[2].partition("</figure>")[0]
    said = re.findall("<text[^>]*>([^<]*)</text>", figure)
    assert [said.count(word) for word in ("student alone", "KD", "teacher alone")] == [1, 1, 1]
    assert [said.count(mean) for mean in ("66.00", "70.00", "74.64")] == [1, 2, 2]
    assert "CIFAR-100, 240 epochs: students' top-1 accuracy" in html.unescape(figure)


def test_of_many_methods_the_closest_have_a_forest_plot(write, tmp_path):
    runs = [make(f"m{i}", pair, seed, 70.0 + i) for i in range(7) for pair in (PAIR, OTHER) for seed in (0, 1)]
    assert write(runs, "--ours", "m3", "--figures", str(tmp_path / "figures")) == 0
    assert sorted(re.findall('aria-label="(m3 − .*?)"', text_of(tmp_path))) == [f"m3 − m{i}" for i in (2, 4, 5, 6)]
    assert "m3 against 2 methods that do less well or share fewer pairs: see the matrix" in text_of(tmp_path)
    apart = [make("m7", pair, seed, 60.0, teacher_id="t2") for pair in (PAIR, OTHER) for seed in (0, 1)]
    narrow = [make("m8", PAIR, seed, 99.0) for seed in (0, 1)]
    assert write([*runs, *apart, *narrow], "--ours", "m3") == 0
    assert "m3 against m7: no common seed, teacher and kind of epoch" in text_of(tmp_path)
    assert "m3 against 3 methods that do less well or share fewer pairs" in text_of(tmp_path)
    assert sorted(re.findall('aria-label="(m3 − .*?)"', text_of(tmp_path))) == [f"m3 − m{i}" for i in (2, 4, 5, 6)]
    written = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert {"m3-m6.png", "m3-m6.svg", "accuracies-last-epoch.png"} <= set(written)


def test_the_figures_that_it_drew_are_attached_to_the_sweep(write, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(tracking, "attach", lambda uri, sweeps, *, paths, **values: given.extend(paths))
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "of-something-else.png").touch()
    runs = [make(method, **{"mlflow.parentRunId": "p"}) for method in ("kd", "dkd")]
    assert write(runs, "--figures", str(folder)) == 0
    assert set(given) == {*folder.iterdir(), tmp_path / "out/report.html"} - {folder / "of-something-else.png"}


def test_which_method_is_ours(write, tmp_path, capsys):
    assert write(store(), "--ours", "kd") == 0
    assert "KD − DKD is −1.05 points" in text_of(tmp_path)
    assert write(store(), "--ours", "crd") == 1
    assert "--ours names 'crd', which has no finished run; there are: KD, DKD" in capsys.readouterr().err


def test_the_page_is_written_in_one_piece(write, tmp_path, monkeypatch):
    assert write(store()) == 0
    before = text_of(tmp_path)

    def fail(*_):
        raise EdkdError("the disk is full")

    monkeypatch.setattr(files, "write_bytes", fail)
    assert write([make("kd")]) == 1
    assert text_of(tmp_path) == before


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome here")
def test_the_page_does_not_overflow(write, tmp_path):
    assert write(store()) == 0
    page = html.escape(text_of(tmp_path))
    frames = "".join(f'<iframe width="{w}" height="900" frameborder="0" srcdoc="{page}"></iframe>' for w in (390, 1400))
    script = """onload = () => document.title = [...document.querySelectorAll("iframe")].map(frame => {
        const page = frame.contentDocument, [heads, body] = page.querySelector("table").children;
        heads.rows[0].cells[4].firstElementChild.click();
        const means = [...body.rows].map(row => +row.cells[4].dataset.key);
        const sorted = means.every((mean, i) => !i || means[i - 1] <= mean);
        const { scrollWidth, clientWidth } = page.documentElement;
        const sizes = [...page.querySelectorAll("figure svg")].map(svg => svg.getBoundingClientRect());
        const drawn = sizes.filter(({ width, height }) => width > 250 && height > 60).length;
        return `${frame.width} ${scrollWidth - clientWidth} ${sorted} ${drawn}`;
    }).join()"""
    wrapper = tmp_path / "frames.html"
    wrapper.write_text(f"<!DOCTYPE html><title></title>{frames}<script>{script}</script>", encoding="utf-8")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
    ]
    done = subprocess.run([BROWSER, *flags, wrapper.as_uri()], capture_output=True, text=True, timeout=120)
    assert re.search("<title>(.*?)</title>", done.stdout)[1] == "390 0 true 7,1400 0 true 7"
    assert "CONSOLE" not in done.stderr  # where errors of the pages would be
