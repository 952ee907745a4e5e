"""The journal survives what crashes leave behind, and tells what has become of a run."""

import json
import os
import subprocess
import sys
import time
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
    log = Journal(run_dir / journal.FILE)
    for record in records:
        log.append(record)
    return run_dir


def test_records_come_back_in_order_with_a_time(tmp_path: Path) -> None:
    before = time.time()
    written(tmp_path, START, epoch(1), {"event": "end", "time": 5.0})
    records = journal.read(tmp_path / journal.FILE)
    assert [record["event"] for record in records] == ["start", "epoch", "end"]
    assert before <= records[0]["time"] <= time.time()
    assert records[2]["time"] == 5.0
    assert records[0]["config"] == START["config"]


def test_numbers_that_are_not_finite_are_null_for_every_json_reader(tmp_path: Path) -> None:
    record = epoch(1, loss=float("nan"), other=float("inf")) | {"list": [float("-inf"), 1.5], "pair": (1, 2)}
    written(tmp_path, record)

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    (line,) = (tmp_path / journal.FILE).read_text().splitlines()
    loaded = json.loads(line, parse_constant=refuse)
    assert loaded["metrics"]["loss"] is None
    assert loaded["metrics"]["other"] is None
    assert loaded["list"] == [None, 1.5]
    assert loaded["pair"] == [1, 2]


def test_text_that_is_no_unicode_can_be_written(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\n")
    written(tmp_path, START | {"name": name}, epoch(1))
    assert journal.read(tmp_path / journal.FILE)[0]["name"] == name


@pytest.mark.parametrize("record", [{}, {"event": 3}, {"epoch": 1}])
def test_a_record_needs_an_event(tmp_path: Path, record: journal.Record) -> None:
    with pytest.raises(ValueError, match="needs an event"):
        written(tmp_path, record)


def test_a_value_that_json_does_not_know_writes_nothing(tmp_path: Path) -> None:
    written(tmp_path, START)
    before = (tmp_path / journal.FILE).read_bytes()
    with pytest.raises(TypeError):
        written(tmp_path, {"event": "epoch", "epoch": object()})
    assert (tmp_path / journal.FILE).read_bytes() == before


@pytest.mark.parametrize(
    "rest", [b"{", b'{"event": "epo', b'{"event": "epoch"}', b"\x00\x00\x00", b"\xff{}\n", b"[]\n", b"\n"]
)
def test_what_a_crash_left_at_the_end_is_ignored_and_cut_off(tmp_path: Path, rest: bytes) -> None:
    path = written(tmp_path, START, epoch(1)) / journal.FILE
    whole = path.read_bytes()
    path.write_bytes(whole + rest)
    assert [record["event"] for record in journal.read(path)] == ["start", "epoch"]
    assert journal.tail_state(tmp_path).last_epoch == journal.state(tmp_path).epochs[1]
    Journal(path).append(epoch(2))
    assert path.read_bytes().startswith(whole + b'{"event": "epoch"')
    assert [record.get("epoch") for record in journal.read(path)] == [None, 1, 2]


def test_every_cut_of_a_journal_can_be_read_and_continued(tmp_path: Path) -> None:
    path = written(tmp_path, START | {"config": {}}, epoch(1), epoch(2)) / journal.FILE
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        kept = whole[:size].count(b"\n")
        assert len(journal.read(path)) == kept
        assert journal.tail_state(tmp_path).status == ("interrupted" if kept else "new")
        Journal(path).append({"event": "end"})
        assert len(journal.read(path)) == kept + 1
        assert journal.tail_state(tmp_path).status == "finished"


def test_what_a_run_is_stands_in_its_first_start_whatever_failed_before(tmp_path: Path) -> None:
    started = START | {"config": {"schedule": {"epochs": 9}}}
    failures = [{"event": "failure", "error": f"no teacher, {number}"} for number in range(2)]
    written(tmp_path, *failures)
    assert journal.tail_state(tmp_path) == journal.state(tmp_path)
    written(tmp_path, started, epoch(1), epoch(2))
    found, whole = journal.tail_state(tmp_path), journal.state(tmp_path)
    assert (found.status, found.epochs_total, found.run) == ("interrupted", 9, whole.run)
    assert (found.first_start, found.last_epoch) == (whole.first_start, whole.last_epoch)


def test_damage_in_the_middle_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = written(tmp_path, START, epoch(1), epoch(2)) / journal.FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"garbage\n" + lines[2])
    with pytest.raises(EdkdError, match=rf"line 2 of {path} is not a journal record"):
        journal.read(path)
    path.write_bytes(b"garbage\n" + lines[1])
    with pytest.raises(EdkdError, match="line 1 of"):
        journal.tail_state(tmp_path)


def test_a_journal_that_cannot_be_written_or_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / journal.FILE).mkdir()
    with pytest.raises(EdkdError, match=r"could not write the journal .*: Is a directory"):
        written(tmp_path, START)
    with pytest.raises(EdkdError, match=r"could not read the journal .*: Is a directory"):
        journal.state(tmp_path)
    with pytest.raises(EdkdError, match="could not read the journal"):
        journal.tail_state(tmp_path)


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    path = written(tmp_path, START, epoch(1)) / journal.FILE
    whole = path.read_bytes()
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from edkd.rundir.journal import Journal; from edkd.errors import EdkdError\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(whole) + 20},) * 2)\n"
        "try: Journal(Path(sys.argv[1])).append({'event': 'epoch', 'epoch': 2, 'text': 'x' * 100})\n"
        "except EdkdError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(journal.__file__).parents[2])},
    )
    assert done.stdout == f"could not write the journal {path}: File too large\n"
    assert path.read_bytes() == whole


def test_state_follows_the_events(tmp_path: Path) -> None:
    def status() -> tuple[str, str]:
        return journal.state(tmp_path).status, journal.tail_state(tmp_path).status

    assert status() == ("new", "new")
    written(tmp_path, START)
    assert status() == ("interrupted", "interrupted")
    written(tmp_path, epoch(1), {"event": "failure", "error": "the loss is nan in epoch 2", "epoch": 2})
    assert status() == ("failed", "failed")
    assert journal.state(tmp_path).error == journal.tail_state(tmp_path).error == "the loss is nan in epoch 2"
    written(tmp_path, START | {"attempt": 2, "host": "b"})
    assert status() == ("interrupted", "interrupted")
    assert journal.state(tmp_path).error is None
    written(tmp_path, epoch(2), {"event": "interrupted"})
    assert status() == ("interrupted", "interrupted")
    written(tmp_path, START | {"attempt": 3}, epoch(2, lr=0.5), {"event": "end", "last": {"top1": 52.0}})
    assert status() == ("finished", "finished")
    written(tmp_path, {"event": "interrupted"})  # Ctrl-C when all was done
    assert status() == ("finished", "finished")
    written(tmp_path, START | {"attempt": 4})
    assert status() == ("interrupted", "interrupted")


def test_a_run_whose_directory_is_held_is_running(tmp_path: Path) -> None:
    with lock.hold(tmp_path):
        assert journal.state(tmp_path).status == journal.tail_state(tmp_path).status == "running"
        written(tmp_path, START, epoch(1))
        assert journal.state(tmp_path).holder == lock.is_held(tmp_path) is not None
        assert journal.state(tmp_path).status == journal.tail_state(tmp_path).status == "running"
    assert journal.state(tmp_path).holder is None
    assert journal.state(tmp_path).status == journal.tail_state(tmp_path).status == "interrupted"


def test_state_of_a_resumed_run(tmp_path: Path) -> None:
    written(
        tmp_path, START, epoch(1), epoch(2), START | {"attempt": 2}, epoch(2, lr=0.5), {"event": "end", "seconds": 3}
    )
    found = journal.state(tmp_path)
    assert (found.run, found.name, found.epochs_total) == ("0123456789abcdef", "edkd-s1", 240)
    assert sorted(found.epochs) == [1, 2]
    assert found.epochs[2]["metrics"]["lr"] == 0.5
    assert found.last_epoch == found.epochs[2]
    assert found.first_start is not None and "attempt" not in found.first_start
    assert found.start is not None and found.start["attempt"] == 2
    assert found.end is not None and found.end["seconds"] == 3
    tail = journal.tail_state(tmp_path)
    assert (tail.run, tail.name, tail.epochs_total) == (found.run, found.name, found.epochs_total)
    assert (tail.first_start, tail.last_epoch, tail.end) == (found.first_start, found.last_epoch, found.end)
    assert list(tail.epochs) == [2]


@pytest.mark.parametrize("size", [0, 100, 16_000, 40_000])
def test_the_tail_agrees_whatever_the_length_of_the_lines(tmp_path: Path, size: int) -> None:
    written(tmp_path, START, *(epoch(number) | {"text": "x" * size} for number in (1, 2, 3)))
    written(tmp_path, {"event": "failure", "error": "y" * size})
    found, tail = journal.state(tmp_path), journal.tail_state(tmp_path)
    assert (tail.status, tail.last_epoch, tail.failure) == (found.status, found.last_epoch, found.failure)
    assert list(tail.epochs) == [3]


def test_an_overview_of_a_thousand_runs_is_quick(tmp_path: Path) -> None:
    metrics = {f"train/metric_{number}": 1.23456789 for number in range(12)}
    lines = [json.dumps(START | {"time": 1.0})]
    lines += [json.dumps({"time": 1.0, **epoch(number, **metrics)}) for number in range(1, 241)]
    (tmp_path / journal.FILE).write_text("\n".join([*lines, json.dumps({"event": "end", "time": 2.0})]) + "\n")
    began = time.process_time()
    states = [journal.tail_state(tmp_path) for _ in range(1000)]
    assert time.process_time() - began < 2.0
    assert all(state.status == "finished" and state.last_epoch for state in states)
