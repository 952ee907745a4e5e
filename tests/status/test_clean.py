"""What `edkd clean` removes, and all that it must leave."""

from pathlib import Path
from typing import Any

import pytest
import torch

from edkd.rundir import checkpoint, lock
from edkd.rundir.journal import Journal
from edkd.rundir.paths import record_sweep
from edkd.status.clean import find_leftovers
from edkd.teachers import store
from edkd.teachers.cache_file import Table
from tests.commandline import Ended, edkd, error, files
from tests.status.test_state import END, START, epoch

CHECKPOINTS = ["checkpoint.prev.pt", "checkpoint.pt", "checkpoint.pt.damaged"]
KEPT = ["best.pt", "last.pt", "journal.jsonl"]
NAMES = {"done": "kd-s0-00000000", "failed": "kd-s1-11111111", "begun": "kd-s2-22222222", "new": "kd-s3-33333333"}
ENDS: dict[str, Any] = {
    "done": [START, epoch(4), END],
    "failed": [START, epoch(1), {"event": "failure", "error": "no space left"}],
    "begun": [START, epoch(1)],
    "new": [],
}


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of each kind, each with checkpoints and a file that was not wholly written."""
    monkeypatch.chdir(tmp_path)
    for kind, records in ENDS.items():
        directory = run_dir(Path("outputs"), kind)
        directory.mkdir(parents=True)
        for record in records:
            Journal(directory).append(record)
        for name in [*CHECKPOINTS, ".checkpoint.pt.tmp", "last.pt", "best.pt"]:
            (directory / name).write_bytes(b"x" * 8192)
    return Path("outputs")


def run_dir(output: Path, kind: str) -> Path:
    return output / "runs" / "digits-8" / "vgg13-vgg8" / NAMES[kind]


def removed(output: Path, *arguments: str) -> tuple[set[str], Ended]:
    """The files that `edkd clean` removes, by their paths below the folder, and what it prints."""
    before = files(output)
    ended = edkd("clean", *arguments)
    assert ended.code == 0, ended
    assert files(output) <= before
    return before - files(output), ended


def of(output: Path, kind: str, *names: str) -> set[str]:
    return {str((run_dir(output, kind) / name).relative_to(output)) for name in names}


# ---- runs


def test_what_runs_need_no_more(output: Path) -> None:
    partial = set.union(*(of(output, kind, ".checkpoint.pt.tmp") for kind in NAMES))
    found, ended = removed(output)
    assert found == of(output, "done", *CHECKPOINTS) | partial
    assert ended.out.splitlines() == [
        "incompletely written files: 4 files, 0.03 MB",
        "checkpoints of finished runs: 3 files, 0.02 MB",
        "removed 7 files, 0.06 MB",
    ]
    found, ended = removed(output)
    assert (found, ended.out) == (set(), "nothing to remove in outputs\n")


def test_a_dry_run_lists_the_files_and_removes_nothing(output: Path) -> None:
    found, ended = removed(output, "--dry-run")
    assert found == set()
    *listed, first, second, total = ended.out.splitlines()
    assert len(listed) == 7
    assert f"{run_dir(output, 'done') / 'checkpoint.pt'}  0.01 MB" in listed
    assert total == "would remove 7 files, 0.06 MB"
    assert removed(output)[1].out.splitlines()[:2] == [first, second]


def test_only_the_runs_of_a_sweep(output: Path) -> None:
    other = run_dir(output, "done").with_name("kd-s9-99999999")
    run_dir(output, "done").rename(other)
    record_sweep(output, "grid", [str(run_dir(output, "new").relative_to(output / "runs"))])
    cache(output, "vgg13", "0" * 64)  # of no teacher that is there
    assert removed(output, "grid")[0] == of(output, "new", ".checkpoint.pt.tmp")
    assert error(edkd("clean", "grid-2")).startswith("no sweep grid-2 in outputs; it has: digits-1, grid")


def test_a_run_that_is_held_is_left_alone(output: Path) -> None:
    with lock.hold(run_dir(output, "begun")), lock.hold(run_dir(output, "done")):
        found, _ = removed(output)
    assert not found & (of(output, "begun", ".checkpoint.pt.tmp") | of(output, "done", *CHECKPOINTS))
    assert found == of(output, "failed", ".checkpoint.pt.tmp") | of(output, "new", ".checkpoint.pt.tmp")


def test_a_run_that_begins_after_the_look_is_left_alone(output: Path) -> None:
    leftovers = find_leftovers(output, None)
    with lock.hold(run_dir(output, "begun")):
        assert [each.path for each in leftovers if not each.remove()] == [
            run_dir(output, "begun") / ".checkpoint.pt.tmp"
        ]
    assert (run_dir(output, "begun") / ".checkpoint.pt.tmp").exists()


def test_a_finished_run_without_its_weights_keeps_its_checkpoints(output: Path) -> None:
    (run_dir(output, "done") / "last.pt").unlink()
    found, _ = removed(output)
    assert not found & of(output, "done", *CHECKPOINTS)


def test_a_damaged_journal_is_not_that_of_a_finished_run(output: Path) -> None:
    path = run_dir(output, "done") / "journal.jsonl"
    path.write_bytes(b"garbled\n" + path.read_bytes())
    found, _ = removed(output)
    assert not found & of(output, "done", *CHECKPOINTS)


def test_a_file_that_cannot_be_removed(output: Path) -> None:
    path = run_dir(output, "done") / "checkpoint.pt"
    path.unlink()
    path.mkdir()
    assert edkd("clean").err.startswith(f"edkd: could not remove {path}: ")


def test_a_folder_without_runs() -> None:
    assert error(edkd("clean", "--output", "nowhere")).startswith("no runs in nowhere/runs")


# ---- teacher caches


def publish(output: Path, name: str, value: float = 0.0, **options: Any) -> str:
    """Put a network into the store; the SHA-256 of its file."""
    about = {"id": f"file:{value}", "source": "here", "epochs": 2, "recipe": None, "test": None, "num_classes": 10}
    weights = {"fc.weight": torch.full((2,), value)}
    options = {"replace": True, **about, **options}
    return store.publish(output / "teachers", "digits-8", name, weights, **options)[0].sha256


def cache(output: Path, name: str, network: str) -> set[str]:
    """A cache of a network, with an entry; its files, by their paths below the folder."""
    path = output / "teachers" / "digits-8" / f"{name}.{network[:8]}.logits"
    table = Table(path, key={"teacher": network}, rows=1000, classes=10, dtype=torch.float32)
    table.write(torch.tensor([3]).numpy(), table.encode(torch.ones(1, 10)))
    made = {str(each.relative_to(output)) for each in (path, Path(f"{path}.lock"))}
    assert made <= files(output)
    return made


@pytest.fixture
def finished(output: Path) -> Path:
    """An output folder of which no run has anything to remove."""
    edkd("clean")
    return output


def test_caches_of_teachers_that_are_there_stay(finished: Path) -> None:
    for name in ("vgg13", "wrn_40_2", "my.net-2"):
        cache(finished, name, publish(finished, name))
    assert removed(finished)[0] == set()


def test_caches_of_former_teachers(finished: Path) -> None:
    gone, replaced = (cache(finished, name, publish(finished, name)) for name in ("vgg13", "vgg19"))
    (finished / "teachers" / "digits-8" / "vgg13.pt").unlink()
    cache(finished, "vgg19", publish(finished, "vgg19", 1.0))
    found, ended = removed(finished)
    assert found == gone | replaced
    assert ended.out.startswith("caches of former teachers: 4 files, 0.0")  # a cache takes what its entries take


def test_a_cache_that_teaches_a_run_now_stays(finished: Path) -> None:
    network = publish(finished, "vgg13")
    cache(finished, "vgg13", network)
    publish(finished, "vgg13", 1.0)
    directory = run_dir(finished, "new")
    Journal(directory).append(START | {"teacher": {"id": "file:0", "sha256": network, "top1": 90.0}})
    with lock.hold(directory):
        assert removed(finished)[0] == set()
    assert len(removed(finished)[0]) >= 2


def test_a_cache_whose_teacher_has_a_damaged_sidecar_stays(finished: Path) -> None:
    cache(finished, "vgg13", publish(finished, "vgg13"))
    (finished / "teachers" / "digits-8" / "vgg13.json").write_text("{")
    assert removed(finished)[0] == set()


# ---- real checkpoints


def test_the_names_are_those_that_are_written(output: Path) -> None:
    path = run_dir(output, "done") / "checkpoint.pt"
    for each in path.parent.glob("*checkpoint*"):
        each.unlink()
    for number in (1, 2):
        checkpoint.save({"epoch": number}, path)
    assert removed(output)[0] >= of(output, "done", path.name, checkpoint.previous(path).name)
