"""`edkd teachers cache`: it fills what runs look for; killed, shared and out of space in real processes."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edkd.data.views import epoch_views
from edkd.rundir import provenance
from edkd.runs.teacher_source import wanted_rows
from edkd.teachers.cache import CachedTeacher
from tests.commandline import Ended, edkd, error, launch

DATA = ["dataset.image_size=8", "dataset.train_per_class=20", "dataset.test_per_class=10", "engine.device=cpu"]
COMMON = [*DATA, "schedule=short", "engine.threads=1"]
IMAGES, VIEWS = 200, 9


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with a teacher resnet8."""
    output = tmp_path_factory.mktemp("store") / "outputs"
    common = [*COMMON, "teacher_seed=0", "schedule.epochs=2", "tracking=journal", f"output={output}"]
    done = launch("dataset=digits", "distiller=vanilla", "student=resnet8", *common)
    assert done.code == 0, done
    return output


@pytest.fixture
def output(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The teacher alone, in outputs/ of the current directory."""
    monkeypatch.chdir(tmp_path)
    (source,) = store.glob("teachers/*/resnet8.pt")
    folder = tmp_path / "outputs" / "teachers" / source.parent.name
    folder.mkdir(parents=True)
    for path in (source, source.with_suffix(".json")):
        (folder / path.name).write_bytes(path.read_bytes())
    return tmp_path / "outputs"


def cache(*arguments: str) -> Ended:
    return edkd("teachers", "cache", *arguments, "-d", "digits", *COMMON)


def numbers(out: str) -> tuple[int, int, int]:
    """How many entries were there at the start, how many were to compute, and how many were computed in the end."""
    found = re.search(r"distinct; ([\d,]+) are there, ([\d,]+) to compute", out)
    assert found is not None, out
    computed = re.search(r"^computed ([\d,]+)", out, re.MULTILINE)
    assert computed is not None, out
    there, missing, done = (int(text.replace(",", "")) for text in (*found.groups(), computed[1]))
    return there, missing, done


def student(*arguments: str) -> Ended:
    common = [*COMMON, "teacher_seed=0", "schedule.epochs=2", "tracking=journal", "dataset=digits"]
    return launch(*common, "teacher=resnet8", "student=resnet8", "distiller=kd", *arguments)


def distinct(*seeds: int) -> int:
    return len(wanted_rows(seeds, 2, images=IMAGES, views=VIEWS))


def test_which_entries_runs_will_ask_for() -> None:
    drawn = {
        (image, int(view))
        for seed in (0, 3)
        for epoch in (1, 2)
        for image, view in enumerate(epoch_views(seed, epoch, IMAGES, VIEWS))
    }
    rows = wanted_rows([0, 3], 2, images=IMAGES, views=VIEWS)
    assert rows.tolist() == sorted(image * VIEWS + view for image, view in drawn)
    assert wanted_rows(None, 2, images=IMAGES, views=VIEWS).tolist() == list(range(IMAGES * VIEWS))


def test_runs_find_everything_that_was_filled(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = cache("resnet8", "--seeds", "0", "1", "--epochs", "2")
    assert (done.code, done.err) == (0, "")
    assert "resnet8 of digits-8-20perclass-test10: for runs in fp32 on the CPU with 1 thread\n" in done.out
    assert "2 epochs of 200 images with seeds 0, 1: 800 entries asked for" in done.out
    assert numbers(done.out) == (0, distinct(0, 1), distinct(0, 1))
    assert done.out.endswith(f"all {distinct(0, 1)} are there\n")

    def answer(self: Any, rows: Any) -> Any:
        raise AssertionError(f"{len(rows)} entries are missing")

    with monkeypatch.context() as patch:
        patch.setattr(CachedTeacher, "answer", answer)
        for seed in (0, 1):
            assert student(f"seed={seed}").code == 0
    assert numbers(cache("resnet8", "seed=0,1", "--epochs", "2").out) == (distinct(0, 1), 0, 0)


def test_what_runs_filled_is_found(output: Path) -> None:
    assert student("seed=1").code == 0
    done = cache("resnet8", "seed=1,0", "schedule.epochs=2")
    assert numbers(done.out) == (distinct(1), distinct(0, 1) - distinct(1), distinct(0, 1) - distinct(1))
    assert numbers(cache("resnet8", "--all").out)[:2] == (distinct(0, 1), IMAGES * VIEWS - distinct(0, 1))
    assert numbers(cache("resnet8", "--seeds", "7").out) == (len(wanted_rows([7], 5, images=IMAGES, views=VIEWS)), 0, 0)
    (table,) = output.glob("teachers/*/*.logits")
    other = cache("resnet8", "--epochs", "2", "engine.precision=bf16")
    assert numbers(other.out)[0] == 0
    (second,) = set(output.glob("teachers/*/*.logits")) - {table}
    assert second.stat().st_size < table.stat().st_size


def test_what_cannot_be_filled(output: Path) -> None:
    assert error(cache("resnet9")).startswith("teacher=resnet9: no such option, did you mean resnet8?; allowed: ")
    assert error(cache("resnet8", "resnet14")).startswith(
        "no teacher resnet14 for the data set digits-8-20perclass-test10 in outputs/teachers (there: resnet8); "
    )
    assert "GB, above engine.teacher_cache_gb=1e-06" in error(cache("resnet8", "engine.teacher_cache_gb=0.000001"))
    assert error(cache("resnet8", "engine.teacher_cache=false")).startswith("engine.teacher_cache=false: ")
    for seed in ("-1", "x", "4294967296"):
        assert error(cache("resnet8", f"seed={seed}")).startswith(f"seed {seed}: must be a whole number")
    assert error(cache("resnet8", "--epochs", "x")).startswith("schedule.epochs=x: must be a whole number")
    assert error(cache("resnet8", "--epochs", "0")).startswith("schedule.epochs=0: must be above 0")
    assert error(cache("resnet8", "--all", "--epochs", "1")).startswith("--all means every view")
    assert error(cache("--seeds", "0")).startswith("no teacher named; example: edkd teachers cache vgg13 ")
    assert list(output.glob("teachers/*/*.logits")) == []


# ---- in processes of their own: 9,800 entries, some seconds

MANY = ["resnet8", "--all", "dataset.padding=3"]
ALL = IMAGES * 49


def start(*arguments: str, file_limit: int | None = None) -> "subprocess.Popen[str]":
    def limit() -> None:
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    return subprocess.Popen(
        [sys.executable, "-m", "edkd.cli.main", "teachers", "cache", *arguments, "-d", "digits", *COMMON],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=limit,
    )


def wait_until_filling(process: "subprocess.Popen[str]", output: Path) -> Path:
    """The table, once a process has written a good part of its first pages."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        for path in output.glob("teachers/*/*.logits"):
            if path.stat().st_blocks * 512 > 40_000:
                return path
        time.sleep(0.005)
    raise AssertionError("nothing was written")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_stopped_leaves_what_it_has(output: Path, how: signal.Signals) -> None:
    process = start(*MANY)
    path = wait_until_filling(process, output)
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert (process.returncode, err) == (130, "")
        assert re.search(r"^stopped: [\d,]+ computed and kept; the same command continues\n\Z", out, re.MULTILINE)
    else:
        assert process.returncode == -how
    kept = path.read_bytes()
    there, missing, computed = numbers(cache(*MANY).out)
    assert 0 < there < ALL
    assert missing == computed == ALL - there
    words = np.frombuffer(kept, np.uint64, offset=4096).reshape(ALL, -1)
    after = np.frombuffer(path.read_bytes(), np.uint64, offset=4096).reshape(ALL, -1)
    same = (words == after).all(axis=1)
    assert there <= same.sum() <= there + 1, "what was there stays; an entry may lack its last zeros"


def test_processes_share_the_work(output: Path) -> None:
    processes = [start(*MANY) for _ in range(2)]
    ends = [process.communicate(timeout=250) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    computed = [numbers(out)[2] for out, _ in ends]
    assert ALL <= sum(computed) <= 1.25 * ALL, "no entry is computed by both, but for some at the same moment"
    assert numbers(cache(*MANY).out) == (ALL, 0, 0)


def test_a_full_disk_is_one_line_and_what_was_written_stays(output: Path) -> None:
    assert numbers(cache(*MANY[:1], *MANY[2:], "--epochs", "1").out)[2] == IMAGES
    process = start(*MANY, file_limit=300_000)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.startswith("edkd: outputs/teachers/") and err.count("\n") == 1
    assert " computed entries are kept; " in err and "the same command continues" in err
    assert "computed" not in out
    there, missing, computed = numbers(cache(*MANY).out)
    assert there >= IMAGES
    assert computed == missing == ALL - there


def test_without_a_terminal_lines_tell_how_far_it_is(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edkd.console.LINE_EVERY", 0.0)
    done = cache("resnet8", "--all")
    lines = done.err.splitlines()
    assert len(lines) == -(-IMAGES * VIEWS // 64)
    assert re.fullmatch(r"resnet8: 64 of 1,800, [\d,]+/s, \d+:\d\d:\d\d left", lines[0])
    assert re.fullmatch(r"resnet8: 1,800 of 1,800, [\d,]+/s, 0:00:00 left", lines[-1])


def test_a_table_is_of_the_code_that_made_it(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert student("seed=0").code == 0
    monkeypatch.setattr(provenance, "source", lambda patterns: "another")
    assert student("seed=1").code == 0
    assert len(list(output.glob("teachers/*/*.logits"))) == 2
    (sidecar,) = output.glob("teachers/*/resnet8.json")
    assert len(json.loads(sidecar.read_text())["measured"]) == 2, "the teacher was measured again"
