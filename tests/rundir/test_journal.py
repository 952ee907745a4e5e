"""The journal survives what crashes leave behind, and tells what has become of a run."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edkd.errors import EdkdError
from edkd.rundir import journal, lock
from edkd.rundir.journal import Journal

START = {
    "event": "start",
    "run": "0123456789abcdef",
    "name": "edkd-s1",
    "config": {"schedule": {"epochs": 240}, "dataset": {"root": "data" * 200}},
    "host": "a",
}


def epoch(number: int, **metrics: float) -> journal.Record:
    return {"event": "epoch", "epoch": number, "metrics": {"test/top1": 50.0 + number, **metrics}}


def written(run_dir: Path, *records: journal.Record) -> Path:
    for record in records:
        Journal(run_dir).append(record)
    return run_dir / "journal.jsonl"


def events(run_dir: Path) -> list[str]:
    return [record["event"] for record in journal.read(run_dir)]


def test_records_come_back_in_order_with_a_time(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\n")  # no Unicode
    before = time.time()
    written(tmp_path, START | {"name": name}, epoch(1), {"event": "end", "time": 5.0})
    first, _, last = journal.read(tmp_path)
    assert events(tmp_path) == ["start", "epoch", "end"]
    assert before <= first["time"] <= time.time() and last["time"] == 5.0
    assert (first["config"], first["name"]) == (START["config"], name)


def test_numbers_that_are_not_finite_are_null_for_every_json_reader(tmp_path: Path) -> None:
    record = epoch(1, loss=float("nan"), other=float("inf")) | {"list": [float("-inf"), 1.5], "pair": (1, 2)}
    (line,) = written(tmp_path, record).read_text().splitlines()
    loaded = json.loads(line, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    assert (loaded["metrics"]["loss"], loaded["metrics"]["other"]) == (None, None)
    assert (loaded["list"], loaded["pair"]) == ([None, 1.5], [1, 2])


def test_a_value_that_json_does_not_know_writes_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, START)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        written(tmp_path, {"event": "x", "y": set()})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "rest",
    [
        b"{",
        b'{"event": "epo',
        b'{"event": "epoch"}',
        b"\x00\x00\x00",
        b"\xff{}\n",
        b"[]\n",
        b"\n",
        b'{"event": "epoch",\n',
    ],
)
def test_what_a_crash_left_at_the_end_is_ignored_and_cut_off(tmp_path: Path, rest: bytes) -> None:
    path = written(tmp_path, START, epoch(1))
    whole = path.read_bytes()
    path.write_bytes(whole + rest)
    assert events(tmp_path) == ["start", "epoch"]
    assert journal.state(tmp_path).epoch == 1
    Journal(tmp_path).append(epoch(2))
    assert path.read_bytes().startswith(whole + b'{"event": "epoch"')
    assert [record.get("epoch") for record in journal.read(tmp_path)] == [None, 1, 2]


def test_every_cut_of_a_journal_can_be_read_and_continued(tmp_path: Path) -> None:
    path = written(tmp_path, START | {"config": {}}, epoch(1), epoch(2))
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        kept = whole[:size].count(b"\n")
        assert len(journal.read(tmp_path)) == kept
        assert journal.state(tmp_path).status == ("interrupted" if kept else "new")
        Journal(tmp_path).append({"event": "end"})
        assert len(journal.read(tmp_path)) == kept + 1
        assert journal.state(tmp_path).status == "finished"


def test_damage_in_the_middle_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = written(tmp_path, START, epoch(1), epoch(2))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"garbage\n" + lines[2])
    for reader in (journal.read, journal.state, journal.epochs):
        with pytest.raises(EdkdError, match=rf"line 2 of {path} is not a journal record"):
            reader(tmp_path)


@pytest.mark.parametrize("damage", [lambda line: line[:-30] + b"\n", lambda line: b"\0\0" + line[2:]])
def test_a_damaged_epoch_is_noticed_though_it_is_skipped(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = written(tmp_path, START, epoch(1), epoch(2), {"event": "end"})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + damage(lines[1]) + lines[2] + lines[3])
    with pytest.raises(EdkdError, match=rf"line 2 of {path} is not a journal record"):
        journal.state(tmp_path)


def test_a_journal_that_cannot_be_written_or_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").mkdir()
    with pytest.raises(EdkdError, match=r"could not write the journal .*: Is a directory"):
        written(tmp_path, START)
    with pytest.raises(EdkdError, match=r"could not read the journal .*: Is a directory"):
        journal.state(tmp_path)


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    path = written(tmp_path, START, epoch(1))
    whole = path.read_bytes()
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from edkd.rundir.journal import Journal; from edkd.errors import EdkdError\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(whole) + 20},) * 2)\n"
        "try: Journal(Path(sys.argv[1])).append({'event': 'epoch', 'epoch': 2, 'text': 'x' * 100})\n"
        "except EdkdError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(journal.__file__).parents[2])},
    )
    assert done.stdout == f"could not write the journal {path}: File too large\n"
    assert path.read_bytes() == whole


def test_state_follows_the_events(tmp_path: Path) -> None:
    failure = {"event": "failure", "error": "the loss is nan in epoch 2"}
    steps: list[tuple[list[journal.Record], tuple[str, str | None, int]]] = [
        ([], ("new", None, 0)),
        ([failure], ("failed", failure["error"], 0)),  # of its teacher, say, before it could start
        ([START], ("interrupted", None, 0)),
        ([epoch(1), failure], ("failed", failure["error"], 1)),
        ([START | {"attempt": 2}], ("interrupted", None, 1)),
        ([epoch(2), {"event": "interrupted"}], ("interrupted", None, 2)),
        ([{"event": "pruned", "epoch": 2}], ("pruned", None, 2)),
        ([{"event": "interrupted"}], ("pruned", None, 2)),
        ([START | {"attempt": 3}, epoch(2, lr=0.5), {"event": "end", "seconds": 3}], ("finished", None, 2)),
        ([{"event": "interrupted"}], ("finished", None, 2)),  # Ctrl-C when all was done
        ([failure], ("finished", None, 2)),  # of a second job of the run, which could not begin
    ]
    for records, expected in steps:
        written(tmp_path, *records)
        found = journal.state(tmp_path)
        assert (found.status, found.error, found.epoch) == expected, records
    assert journal.read(tmp_path)[-1]["event"] == "end"  # for MLflow and packed results, too
    assert (found.run, found.name, found.epochs_total) == ("0123456789abcdef", "edkd-s1", 240)
    assert found.first_start is not None and "attempt" not in found.first_start
    assert found.start is not None and found.start["attempt"] == 3
    assert found.end is not None and found.end["seconds"] == 3
    epochs = journal.epochs(tmp_path)
    assert sorted(epochs) == [1, 2]
    assert epochs[2] == found.last_epoch and epochs[2]["metrics"]["lr"] == 0.5
    written(tmp_path, START | {"attempt": 4})
    assert journal.state(tmp_path).status == "interrupted"


def test_a_run_whose_directory_is_held_is_running(tmp_path: Path) -> None:
    with lock.hold(tmp_path):
        assert journal.state(tmp_path).status == "running"
        written(tmp_path, START, epoch(1))
        found = journal.state(tmp_path)
        assert found.holder == lock.is_held(tmp_path) is not None
        assert found.status == "running"
    found = journal.state(tmp_path)
    assert (found.status, found.holder) == ("interrupted", None)
