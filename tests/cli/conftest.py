"""An output folder that `launch.py` filled, for the tests of commands."""

import shutil
from pathlib import Path

import pytest

from tests.commandline import DIGITS, launch


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with a teacher resnet8 and a student of it, never logged to MLflow. Not to be changed."""
    output = tmp_path_factory.mktemp("trained") / "outputs"
    common = [
        "dataset=digits",
        *DIGITS,
        "schedule=short",
        "schedule.epochs=2",
        "schedule.milestones=[]",
        "engine.threads=1",
        "teacher_seed=0",
        "tracking=journal",
    ]
    done = launch("-m", *common, "teacher=resnet8", "student=resnet8", "distiller=vanilla,kd", f"output={output}")
    assert done.code == 0, done
    return output


@pytest.fixture
def output(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in the current directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "outputs")
    return tmp_path / "outputs"
