"""SLURM's queue through a `squeue` and a `sacct` that answer as the real ones were seen to."""

import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from edkd.slurm import queue
from edkd.slurm.queue import Entry

FORGOTTEN = "slurm_load_jobs error: Invalid job id specified"
AWAY = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
NO_ACCOUNTS = "Slurm accounting storage is disabled"


class Fake:
    """A folder of commands that print what they are told to, and write down how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def answers(self, command: str, *lines: str, error: str = "", code: int = 0, first: str = "") -> None:
        (self.folder / f"{command}.out").write_text("".join(f"{line}\n" for line in lines))
        (self.folder / command).write_text(
            f"#!/bin/sh\nprintf '%s\\n' \"$*\" >> '{self.folder}/{command}.asked'\n"
            f"env > '{self.folder}/{command}.env'\n{first}\n"
            f"cat '{self.folder}/{command}.out'\necho '{error}' >&2\nexit {code}\n"
        )
        (self.folder / command).chmod(0o755)

    def asked(self, command: str) -> list[list[str]]:
        try:
            return [line.split() for line in (self.folder / f"{command}.asked").read_text().splitlines()]
        except FileNotFoundError:
            return []


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake(tmp_path / "bin")
    fake.answers("squeue")
    fake.answers("sacct", error=NO_ACCOUNTS, code=1)
    monkeypatch.setenv("PATH", str(fake.folder), prepend=os.pathsep)
    return fake


def states(job_ids: Iterable[str]) -> dict[str, str] | None:
    found = queue.look_up(job_ids)
    return None if found is None else {job: entry.state for job, entry in found.items()}


def after(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def test_what_the_controller_knows_is_asked_once_and_of_it_alone(slurm: Fake) -> None:
    slurm.answers("squeue", "12_0|RUNNING|None|n1", "12_1|PENDING|JobArrayTaskLimit|", "12_2|PENDING|Priority|")
    slurm.answers("sacct", "12_0|COMPLETED|None|n1")
    assert states(["12_0", "12_1", "12_0"]) == {"12_0": "RUNNING", "12_1": "PENDING"}
    (words,) = slurm.asked("squeue")
    assert after(words, "-j") == "12" and after(words, "-t") == "all" and "-r" in words and "-h" in words
    assert slurm.asked("sacct") == []


def test_where_a_job_is_or_why_it_waits(slurm: Fake) -> None:
    slurm.answers("squeue", "1|RUNNING|None|n[1-2]", "2|PENDING|Dependency|", "3|PENDING|None|", "4|FAILED|NonZero|n2")
    assert queue.look_up(["1", "2", "3", "4"]) == {
        "1": Entry("RUNNING", "n[1-2]"),
        "2": Entry("PENDING", "Dependency"),
        "3": Entry("PENDING", ""),
        "4": Entry("FAILED", "n2"),
    }


def test_the_accounts_are_asked_for_what_the_controller_has_forgotten(slurm: Fake) -> None:
    slurm.answers("squeue", "7|RUNNING|None|n1")
    slurm.answers("sacct", "8|CANCELLED by 1000|None|n2", "9_1|TIMEOUT|None|n1", "9_0|NODE_FAIL|None|None assigned")
    assert states(["7", "8", "9_1", "10"]) == {"7": "RUNNING", "8": "CANCELLED", "9_1": "TIMEOUT"}
    (words,) = slurm.asked("sacct")
    assert after(words, "-j") == "8,9,10" and "-X" in words and "-P" in words and "-n" in words


@pytest.mark.parametrize("sacct", [True, False])
def test_without_accounts_what_is_forgotten_is_absent(
    slurm: Fake, monkeypatch: pytest.MonkeyPatch, sacct: bool
) -> None:
    slurm.answers("squeue", "7|COMPLETED|None|n1")
    if not sacct:
        (slurm.folder / "sacct").unlink()
        (slurm.folder / "env").symlink_to("/usr/bin/env")
        (slurm.folder / "cat").symlink_to("/bin/cat")
        monkeypatch.setenv("PATH", str(slurm.folder))
    assert states(["7", "8"]) == {"7": "COMPLETED"}
    assert len(slurm.asked("sacct")) == sacct


def test_a_single_unknown_job_is_no_failure_of_slurm(slurm: Fake) -> None:
    slurm.answers("squeue", error=FORGOTTEN, code=1)
    assert states(["999"]) == {}
    slurm.answers("sacct", "999|OUT_OF_MEMORY|None|n1")
    assert states(["999"]) == {"999": "OUT_OF_MEMORY"}


def test_what_the_accounts_alone_hold_for_alive_is_not(slurm: Fake) -> None:
    slurm.answers("sacct", "8|RUNNING|None|n2", "9|PENDING|None|None assigned", "10|REQUEUED|None|n1")
    assert states(["8", "9", "10"]) == {}


def test_a_requeued_job_waits_whatever_the_accounts_say(slurm: Fake) -> None:
    slurm.answers("squeue", "12_1|PENDING|BeginTime|")
    slurm.answers("sacct", "12_1|NODE_FAIL|None|n1")
    assert states(["12_1"]) == {"12_1": "PENDING"}


@pytest.mark.parametrize(
    ("printed", "tasks"),
    [("12_[3-5%2]", [3, 4, 5]), ("12_[3-5,9]", [3, 4, 5, 9]), ("12_[7]", [7]), ("12_[0-6:3%1]", [0, 3, 6])],
)
def test_arrays_that_are_printed_in_one_line(slurm: Fake, printed: str, tasks: list[int]) -> None:
    slurm.answers("squeue", f"{printed}|PENDING|Priority|")
    wanted = [f"12_{task}" for task in range(12)]
    assert states(wanted) == {f"12_{task}": "PENDING" for task in tasks}


def test_a_controller_that_is_away_says_nothing_about_jobs(slurm: Fake) -> None:
    slurm.answers("squeue", error=AWAY, code=1)
    slurm.answers("sacct", "8|COMPLETED|None|n2")
    assert states(["8"]) is None


def test_a_machine_without_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (states([]), states(["8"])) == ({}, None)


def test_a_command_that_hangs_is_ended_with_its_children(slurm: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    child = slurm.folder / "child"
    slurm.answers("squeue", "8|RUNNING|None|n1", first=f"sleep 600 & echo $! > '{child}'\nwait")
    monkeypatch.setattr(queue, "PATIENCE", 1.0)
    assert states(["8"]) is None
    pid = child.read_text().strip()
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":  # dead; in a container nobody may be there to bury it
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} lives on")


def test_settings_of_the_shell_do_not_filter_the_answer(slurm: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_STATES", "FAILED")
    monkeypatch.setenv("SACCT_FORMAT", "User")
    monkeypatch.setenv("SLURM_CONF", "/etc/elsewhere")
    states(["8"])
    for command in ("squeue", "sacct"):
        seen = (slurm.folder / f"{command}.env").read_text()
        assert "SQUEUE_STATES" not in seen and "SACCT_FORMAT" not in seen
        assert "SLURM_CONF=/etc/elsewhere" in seen and "SLURM_BITSTR_LEN=0" in seen


def test_lines_that_are_no_jobs_are_passed_over(slurm: Fake) -> None:
    slurm.answers("squeue", "CLUSTER: lab", "8|RUNNING|None|n1", "", "9|")
    assert states(["8", "9"]) == {"8": "RUNNING"}


def test_more_jobs_than_a_command_line_takes(slurm: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "_MANY", 2)
    slurm.answers("squeue", *(f"{number}|RUNNING|None|n1" for number in range(1, 4)))
    slurm.answers("sacct", "4|FAILED|None|n1", "5|TIMEOUT|None|n1", "6|COMPLETED|None|n1")
    jobs = [str(number) for number in range(1, 7)]
    words = ["RUNNING"] * 3 + ["FAILED", "TIMEOUT", "COMPLETED"]
    assert states(jobs) == dict(zip(jobs, words))
    (asked,) = slurm.asked("squeue")
    assert "-j" not in asked
    assert [after(words, "-j") for words in slurm.asked("sacct")] == ["4,5", "6"]
