"""Packed results: what a repository holds of runs, and the table that is made from it."""

import gzip
import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import main as analyse
from edkd import tracking
from edkd.errors import EdkdError
from edkd.rundir import journal, results
from tests.commandline import edkd, error, files

HOST, KEY, PAIR = "node7", "digits-8", "vgg13-vgg8"


def run_of(method: str, seed: int = 0) -> str:
    return hashlib.sha256(f"{method}{seed}".encode()).hexdigest()[:16]


def name_of(method: str, seed: int = 0) -> str:
    return f"{PAIR}/{method}-s{seed}-{run_of(method, seed)[:8]}"


def start(method: str, seed: int = 0, at: float = 1e9) -> dict[str, Any]:
    run = run_of(method, seed)
    tags = {"pair": PAIR, "teacher": "vgg13", "student": "vgg8", "distiller": method, "dataset": KEY, "recipe": "2ep"}
    tags |= {"seed": str(seed), "cell": method, "config_hash": run, "git_commit": "c" * 40, "git_dirty": "false"}
    return {
        "event": "start",
        "time": at,
        "run": run,
        "name": f"{KEY}/{name_of(method, seed)}",
        "sweep": f"{KEY}-00000000",
        "resumed_from": 0,
        "config": {
            "seed": seed,
            "output": "/home/somebody/outputs",
            "dataset": {"root": "/data/images", "source": {"root": "/data/images", "_target_": "edkd.data.sources"}},
            "schedule": {"epochs": 2, "lr": 0.05},
            "tracking": {"uri": "http://somebody:secret@server:5000", "experiment": "edkd"},
        },
        "tags": tags,
        "versions": {"torch": "2.13.0"},
        "host": HOST,
        "pid": 17,
        "device": "NVIDIA H200",
        "threads": 2,
        "slurm": {"job_id": "5", "node": HOST},
        "data_sha256": "d" * 64,
        "teacher": {"id": "run:0", "sha256": "e" * 64, "top1": 74.64},
    }


def epoch(number: int, top1: float) -> dict[str, Any]:
    metrics = {"test/top1": top1, "train/loss": 0.1 + 0.2}
    seconds = {"train": 3.0, "test": 1.0}
    return {"event": "epoch", "epoch": number, "metrics": metrics, "seconds": seconds, "images_per_second": 400.0}


def end(top1: float) -> dict[str, Any]:
    last = {"epoch": 2, "top1": top1, "top5": 90.0, "loss": 1.0}
    best = {**last, "epoch": 1, "top1": top1 + 0.5, "by": "test"}
    return {"event": "end", "last": last, "best": best, "seconds": 8.0, "peak_memory_mb": 1234.5, "num_classes": 10}


def write(output: Path, method: str, *records: dict[str, Any], seed: int = 0, at: float = 1e9) -> Path:
    """A run of which the journal has these records after its start; its directory."""
    begun = start(method, seed, at)
    directory = output / "runs" / begun["name"]
    directory.mkdir(parents=True, exist_ok=True)
    lines = [{**record, "time": at + number} for number, record in enumerate((begun, *records))]
    (directory / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs that are finished, one that was interrupted, and three of other data; below the current directory."""
    monkeypatch.chdir(tmp_path)
    write(Path("outputs"), "kd", epoch(1, 50.0), epoch(2, 49.5), end(49.5))
    failure = {"event": "failure", "error": f"OSError: cannot read /data/x on {HOST}"}
    again = start("dkd") | {"resumed_from": 1}
    write(Path("outputs"), "dkd", epoch(1, 51.0), epoch(2, 1.0), failure, again, epoch(2, 52.0), end(52.0))
    write(Path("outputs"), "edkd", epoch(1, 53.0), failure)
    shutil.copytree(f"outputs/runs/{KEY}", "outputs/runs/other")
    return Path("outputs")


def pack(*arguments: str) -> str:
    done = edkd("results", "pack", "--dataset", KEY, *arguments)
    assert (done.code, done.err) == (0, ""), done
    return done.out


def path_of(method: str) -> Path:
    return Path(f"packed/{name_of(method)}.jsonl.gz")


def table(*arguments: str) -> dict[str, str]:
    """The cells of the table of the last epoch, by method."""
    assert analyse(["--pairs", PAIR, *arguments]) == 0
    block = Path("outputs/table.md").read_text().split("## Last epoch")[1].split("##")[0]
    rows = [line.replace("\u00a0", " ").strip("|").split("|") for line in block.splitlines() if line.startswith("|")]
    return {row[0].strip(): row[1].strip() for row in rows}


# ---- packing


def test_finished_runs_are_packed_and_the_rest_is_named(output: Path) -> None:
    said = pack("--to", "packed")
    assert files(Path("packed")) == {PAIR, *(f"{name_of(method)}.jsonl.gz" for method in ("kd", "dkd"))}
    assert said == (
        f"left out: {name_of('edkd')}: failed after epoch 1 of 2: OSError: cannot read /data/x on {HOST}\n"
        "left out: 3 runs of other: another data set\n"
        "2 runs packed, 0 there already, 4 left out; in packed\n"
    )


def test_what_is_kept_and_what_is_not(output: Path) -> None:
    pack("--to", "packed", "--all")
    records = results.read(path_of("dkd"))
    assert [record["event"] for record in records] == ["start", "epoch", "start", "epoch", "end"]
    first, one, resumed, two, last = records
    assert (one["metrics"]["test/top1"], two["metrics"]["test/top1"]) == (51.0, 52.0), "the last record of an epoch"
    assert one["metrics"]["train/loss"] == 0.1 + 0.2, "to the last bit"
    assert (last["seconds"], last["peak_memory_mb"]) == (8.0, 1234.5)
    whole = start("dkd")
    for known in ("run", "name", "tags", "versions", "device", "threads", "data_sha256", "teacher"):
        assert first[known] == resumed[known] == whole[known]
    assert first["config"] == {
        "seed": 0,
        "dataset": {"root": "…/images", "source": {"root": "…/images", "_target_": "edkd.data.sources"}},
        "schedule": {"epochs": 2, "lr": 0.05},
    }
    assert results.read(path_of("edkd"))[-1]["error"] == "OSError: cannot read …/x on …"
    for path in results.find(Path("packed")):
        text = gzip.decompress(path.read_bytes()).decode()
        assert not any(word in text for word in (HOST, "/home", "/data", "secret", "pid"))


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("/data", "…/data"),
        ("/data/my images/", "…/my images"),
        ("no /data/x, /y/z", "no …/x, …/z"),
        ("see(/a/b)", "see(…/b)"),
        ("images/s and cpu/x86 and 3 / 4", "images/s and cpu/x86 and 3 / 4"),
        ("data", "data"),
    ],
)
def test_absolute_paths_lose_their_folders(said: str, kept: str) -> None:
    once = results.compact([start("kd") | {"device": said}])
    assert once[0]["device"] == kept
    assert results.compact(once) == once, "what was unpacked elsewhere is packed again as it was"


def test_packing_again_writes_what_changed_alone(output: Path) -> None:
    pack("--to", "packed")
    pack("--to", "again")
    for path in results.find(Path("packed")):
        assert path.read_bytes() == Path("again", *path.parts[1:]).read_bytes()
    before = path_of("kd").stat().st_mtime_ns
    write(output, "edkd", epoch(1, 53.0), epoch(2, 54.0), end(54.0))
    path_of("dkd").write_bytes(b"damaged")
    assert pack("--to", "packed").endswith("2 runs packed, 1 there already, 3 left out; in packed\n")
    assert path_of("kd").stat().st_mtime_ns == before
    assert results.read(path_of("dkd"))[-1]["event"] == results.read(path_of("edkd"))[-1]["event"] == "end"


def test_another_run_of_the_same_configuration_is_not_overwritten(output: Path) -> None:
    pack("--to", "packed")
    before = path_of("kd").read_bytes()
    write(output, "kd", epoch(1, 10.0), epoch(2, 10.0), end(10.0), at=1.5e9)
    assert (
        f"left out: {name_of('kd')}: another run of the same configuration is packed there; "
        f"remove {path_of('kd')} to replace it\n" in pack("--to", "packed")
    )
    assert path_of("kd").read_bytes() == before


def test_runs_that_cannot_be_packed_are_named(output: Path) -> None:
    directory = write(output, "kd", epoch(1, 50.0), seed=1)
    (directory / "journal.jsonl").write_text(f"damaged\n{json.dumps(start('kd'))}\n")
    begun = write(output, "kd", seed=2)
    (begun / "journal.jsonl").unlink()
    said = pack("--to", "packed", "--all")
    assert f"left out: {name_of('kd', 1)}: line 1 of {directory / 'journal.jsonl'} is not a journal record" in said
    assert f"left out: {name_of('kd', 2)}: not begun\n" in said


def test_no_runs_and_no_place(output: Path) -> None:
    assert pack().endswith(f"in analysis/results/{KEY}\n"), "the default"
    assert error(edkd("results", "pack", "--output", "nowhere")).startswith("no runs in nowhere/runs;")
    done = edkd("results", "pack", "--dataset", "none", "--to", "packed")
    assert done.code == 1
    assert done.out.endswith("0 runs packed, 0 there already, 6 left out; in packed\n")
    other = f"; --dataset {KEY} packs those of another data set"
    assert done.err == f"edkd: nothing to pack: outputs has no finished run of none to pack{other}\n"
    Path("file").touch()
    assert error(edkd("results", "pack", "--dataset", KEY, "--to", "file")).startswith("could not save file/")


# ---- unpacking


def test_unpacked_runs_count_as_done(output: Path) -> None:
    pack("--to", "packed", "--all")
    done = edkd("results", "unpack", "packed", "--output", "elsewhere")
    line, hint = done.out.splitlines()
    assert hint == "next, for MLflow: edkd sync --output elsewhere"
    assert line.startswith("2 runs of packed now in elsewhere, journals without weights; ")
    again = edkd("results", "unpack", "packed", "--output", "elsewhere").out
    left = len(results.find(Path("packed")))
    assert again == (
        f"0 runs of packed now in elsewhere, journals without weights; {left} there already, or not finished\n"
    )
    found = [f"{KEY}/{name_of(method)}{file}" for method in ("kd", "dkd") for file in ("", "/journal.jsonl")]
    assert files(Path("elsewhere/runs")) == {KEY, f"{KEY}/{PAIR}", *found}
    assert journal.state(Path("elsewhere/runs") / KEY / name_of("kd")).status == "finished"
    assert results.unpack(Path("packed"), Path("elsewhere")) == 0
    assert results.unpack(Path("packed"), output) == 0, "what is there stays"
    assert error(edkd("results", "unpack", "nowhere")).startswith("nowhere has no packed runs")
    assert (
        error(edkd("results", "unpack", __file__))
        == f"{__file__} is a file; name the folder that holds it, or one above"
    )


# ---- the table


def test_the_table_is_made_without_a_store(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack("--to", "packed", "--all")
    cells = table("--results", "packed")
    assert (cells["KD"], cells["DKD"], cells["teacher alone"]) == ("49.50", "52.00", "74.64")
    assert "EDKD" not in cells
    text = Path("outputs/table.md").read_text()
    assert "2 distilled students, 0 students alone; 2 of them from packed journals" in text
    (again,) = re.findall(r"    python -m analysis (--results packed .*)", text)
    assert table(*shlex.split(again)) == cells, "the command that makes this table again"
    assert f"{KEY}/{name_of('edkd')}: failed" in text
    assert not Path("outputs/mlflow.db").exists()
    assert analyse(["--results", "outputs"]) == 1
    assert "no runs yet: there is no MLflow store" in capsys.readouterr().err


def test_a_run_that_is_in_both_counts_once(output: Path) -> None:
    store = "sqlite:///outputs/mlflow.db"
    write(output, "kd", epoch(1, 60.0), epoch(2, 60.5), end(60.5), seed=1, at=1.1e9)
    early = write(output, "dkd", epoch(1, 51.0))  # MLflow was told of its beginning alone
    for _, found in tracking.sync_all(output / "runs" / KEY, uri=store, experiment="edkd", artifacts=None):
        assert isinstance(found, tracking.SyncReport)
    write(output, "dkd", epoch(1, 51.0), epoch(2, 52.0), end(52.0))
    assert early.is_dir()
    pack("--to", "packed")
    cells = table("--results", "packed")
    assert (cells["KD"], cells["DKD"]) == ("55.00 ± 7.78 (n=2)", "52.00 (n=1)")
    text = Path("outputs/table.md").read_text()
    assert "3 distilled students, 0 students alone; 1 of them from packed journals" in text
    left_out = text.split("## Not in the table")[1].split("##")[0]
    assert left_out.split() == ["-", f"{KEY}/{name_of('edkd')}:", "failed"]


def test_runs_of_the_store_decide_which_table_it_is(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack("--to", "packed")
    records = results.read(path_of("dkd"))
    for record in records:
        if record["event"] == "start":
            record["tags"] |= {"dataset": "other", "config_hash": "f" * 16}
            record["time"] += 3600
    path_of("dkd").write_bytes(results.dump(records))
    assert analyse(["--results", "packed"]) == 0
    said = capsys.readouterr().err
    assert f"--dataset {KEY} --recipe 2ep " in said and "--dataset other --recipe 2ep " not in said, "a later start"
    tracking.sync_all(output / "runs" / KEY, uri="sqlite:///outputs/mlflow.db", experiment="edkd", artifacts=None)
    assert table("--results", "packed")["KD"] == "49.50"
    assert "--dataset" not in capsys.readouterr().err, "packed runs are no choice beside others"
    assert f"data set: {KEY}," in Path("outputs/table.md").read_text()
    assert table("--results", "packed", "--dataset", "other")["DKD"] == "52.00"


@pytest.mark.parametrize(
    "data",
    [b"", b"text", gzip.compress(b'{"event": "start"}\n')[:-9], gzip.compress(b"text"), gzip.compress(b"{}\n")],
    ids=["empty", "plain text", "cut", "packed text", "packed object"],
)
def test_a_damaged_file_is_one_line(output: Path, capsys: pytest.CaptureFixture[str], data: bytes) -> None:
    pack("--to", "packed")
    path_of("kd").write_bytes(data)
    with pytest.raises(EdkdError, match="is no packed run"):
        results.read(path_of("kd"))
    assert analyse(["--results", "packed"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"analysis: {path_of('kd')} is no packed run (") and said.count("\n") == 1
    assert said.endswith("): restore it from git, or remove it\n")


def test_a_record_without_its_values_is_one_line(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack("--to", "packed")
    path_of("kd").write_bytes(results.dump([{"event": "start", "time": 1.0}]))
    assert analyse(["--results", "packed"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"analysis: a record of {path_of('kd')} lacks what it needs (") and said.count("\n") == 1
