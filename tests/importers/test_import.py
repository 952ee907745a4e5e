"""`edkd import`: each run once, as a journal that status, MLflow and the table take beside ours."""

import json
from pathlib import Path

import pytest

from analysis.__main__ import main as analysis
from edkd import tracking
from edkd.rundir import files
from tests.commandline import edkd, error, journals
from tests.importers.test_repdistiller import NAME, saved
from tests.importers.worklogs import put, worklog

PAIR = "resnet32x4-resnet8x4"


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work logs of KD, of two runs of DKD in one file, of a student alone, and one that ends early."""
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "theirs/kd,res32x4,res8x4", worklog(1))
    put(tmp_path / "theirs/dkd,res32x4,res8x4", worklog(2) + worklog(3))
    put(tmp_path / "theirs/vanilla,res8x4", worklog(4))
    put(tmp_path / "theirs/edkd,vgg13,vgg8", worklog(5, range(1, 51), best=False))
    return tmp_path / "theirs"


def test_each_run_once(logs: Path) -> None:
    first = edkd("import", "mdistiller", str(logs))
    assert (first.code, first.err) == (0, "")
    *_, reason, _, _, _, _, numbers, hint = first.out.splitlines()
    assert reason == f"left out: {logs}/edkd,vgg13,vgg8/worklog.txt: ends after epoch 50 of 240"
    assert numbers == "4 runs imported, 0 there already, 1 left out; in outputs"
    assert hint == "next: edkd sync --output outputs, then make table"
    before = journals(Path("outputs"))
    assert set(before) == {
        f"{PAIR}/kd.mdistiller-s0",
        f"{PAIR}/dkd.mdistiller-s0",
        f"{PAIR}/dkd.mdistiller-s1",
        "resnet8x4/vanilla.mdistiller-s0",
    }

    logs.rename(logs.with_name("moved"))
    again = edkd("import", "mdistiller", "moved/kd,res32x4,res8x4/worklog.txt", "moved")
    assert again.out.endswith("0 runs imported, 5 there already, 1 left out; in outputs\n")
    assert journals(Path("outputs")) == before
    other = edkd("import", "mdistiller", "moved", "schedule.batch_size=128")
    assert "worklog.txt: there by the recipe 240ep-b64-fp32-" in other.out and "to import it anew" in other.out
    assert other.out.endswith("0 runs imported, 0 there already, 5 left out; in outputs\n")
    assert edkd("import", "mdistiller", "moved", "--output", "others").out.endswith(
        "next: edkd sync --output others, then make table ARGS='--output others'\n"
    )

    status = edkd("status", "--json")
    assert status.code == 0
    runs = json.loads(status.out)["runs"]
    assert {(run["state"], run["why"], run["epoch"], run["epochs"]) for run in runs} == {
        ("done", "imported from mdistiller", 240, 240)
    }


def test_beside_ours_in_the_table(logs: Path) -> None:
    assert edkd("import", "mdistiller", str(logs)).code == 0
    imported = journals(Path("outputs"))[f"{PAIR}/kd.mdistiller-s0"]
    ours = [dict(record) for record in imported]
    ours[0] = {key: value for key, value in ours[0].items() if key != "imported"} | {
        "run": "0123456789abcdef",
        "tags": {key: value for key, value in ours[0]["tags"].items() if key != "imported"}
        | {"distiller": "kd", "title": "KD", "config_hash": "0123456789abcdef", "cell": "ours"},
        "teacher": {"id": "run:1", "top1": 79.4},
    }
    ours[-1] = {**ours[-1], "last": {**ours[-1]["last"], "top1": 61.0}}
    folder = Path("outputs/runs/cifar100") / PAIR / "kd-s0-01234567"
    files.write_bytes(folder / "journal.jsonl", "".join(f"{json.dumps(each)}\n" for each in ours).encode())

    assert edkd("sync").code == 0
    runs = tracking.load_runs("sqlite:///outputs/mlflow.db", "edkd")
    assert sorted(run["tags"].get("imported", "ours") for run in runs) == [*["mdistiller"] * 4, "ours"]
    assert edkd("sync").out == "outputs and MLflow agree\n"
    store = "sqlite:///outputs/mlflow.db"
    assert analysis(["--uri", store, "--results", "outputs", "--output", "table"]) == 0
    text = Path("table/table.md").read_text()
    assert "| KD | 61.00 (n=1)<br>" in text
    top1 = imported[-1]["last"]["top1"]
    assert f"| KD (mdistiller) | {top1:.2f} (n=1) |" in text
    assert "| DKD (mdistiller) | " in text and "(n=2)" in text
    assert "4 of them imported from mdistiller; seeds: 0\n" in text
    assert "Paired differences" not in text and "not taught by the same teacher" not in text
    assert "marks imported results" in text


def test_checkpoints_alone_make_a_row(logs: Path) -> None:
    save = logs.parent / "save/student_model"
    saved(save / NAME, {40: 50.0, 240: 73.0}, (238, 73.25))
    done = edkd("import", "repdistiller", "save")
    assert done.code == 0, done
    assert edkd("import", "repdistiller", str(save / NAME)).out.endswith(
        "0 runs imported, 1 there already, 0 left out; in outputs\n"
    )
    assert edkd("sync").code == 0
    assert analysis(["--uri", "sqlite:///outputs/mlflow.db", "--results", "outputs", "--output", "table"]) == 0
    text = Path("table/table.md").read_text()
    assert "| KD (repdistiller) | 73.00 |" in text
    (run,) = tracking.load_runs("sqlite:///outputs/mlflow.db", "edkd")
    assert (run["metrics"]["best/top1"], run["params"]["distiller.a"]) == (73.25, "0.9")
    assert "last/loss" not in run["metrics"]


def test_another_recipe_is_named_as_for_a_run_of_ours(logs: Path) -> None:
    put(logs / "kd,vgg13,vgg8", worklog(6, range(1, 201)))
    first, second = "schedule.epochs=200", "schedule.milestones=[150,180,210]"
    done = edkd("import", "mdistiller", first, str(logs / "kd,vgg13,vgg8"), second)
    assert done.code == 0, done
    (records,) = journals(Path("outputs")).values()
    assert records[0]["tags"]["recipe"].startswith("200ep-b64-fp32-")
    assert records[-1]["last"]["epoch"] == 200


def test_nothing_to_import(logs: Path) -> None:
    done = edkd("import", "mdistiller", str(logs / "edkd,vgg13,vgg8"), "elsewhere")
    assert (done.code, done.err) == (1, "edkd: nothing was imported\n")
    assert "left out: elsewhere: no worklog.txt there or below\n" in done.out
    assert not Path("outputs").exists()
    (logs / "README.md").write_text("# Results")
    alone = error(edkd("import", "mdistiller", str(logs / "README.md")))
    assert alone == f"nothing was imported: {logs / 'README.md'}: no worklog.txt there or below"
    wrong = edkd("import", "mdistiller", str(logs), "schedule.epoch=3")
    assert error(wrong).startswith("schedule.epoch: no such key in schedule")
