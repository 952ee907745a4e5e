"""What the tests share: the real configuration, composed in this process and shrunk until a run takes a second."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from edkd import CONF
from edkd.config import job as config_job
from edkd.config.compose import resolve

Compose = Callable[..., dict[str, Any]]
MakeJob = Callable[..., config_job.Job]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job; tests send it to processes
    signal.signal(signal.SIGINT, signal.default_int_handler)

SLURM = Path(__file__).resolve().parent / "integration"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The tests on a real SLURM run only where they are named: `make test-slurm`."""
    named = any(Path(argument).resolve().is_relative_to(SLURM) for argument in config.args)
    return True if collection_path == SLURM and not named else None


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests that run beside each other share the cores; sums over one thread are the same on every machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread_again(_one_thread: None) -> None:
    torch.set_num_threads(1)  # an earlier test's command may have set others


@pytest.fixture(scope="session")
def compose() -> Compose:
    """`compose(*overrides)`: the real conf/ with these overrides, resolved to plain values, without Hydra's node."""

    def composed(*overrides: str) -> dict[str, Any]:
        GlobalHydra.instance().clear()
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            return resolve(hydra_compose("config", overrides=list(overrides)))

    return composed


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    """Overrides for a run of about a second: 200 digits of 8x8, 2 epochs, resnet8, all its files below `tmp_path`."""
    return [
        "dataset=digits",
        "dataset.image_size=8",
        "dataset.train_per_class=20",
        "dataset.test_per_class=10",
        "teacher=resnet8",
        "student=resnet8",
        "teacher_seed=0",  # so that the network alone of seed 0 is the teacher, too
        "schedule=short",
        "schedule.epochs=2",
        "schedule.milestones=[]",
        "engine.device=cpu",
        "engine.threads=1",
        "tracking=journal",
        f"output={tmp_path / 'outputs'}",
    ]


@pytest.fixture
def make_job(compose: Compose, tiny: list[str]) -> MakeJob:
    """`make_job(method, *overrides, teacher_id=...)`: a tiny run, planned and not yet started."""

    def made(method: str, *overrides: str, teacher_id: str | None = None) -> config_job.Job:
        return config_job.make_job(compose(*tiny, f"distiller={method}", *overrides), method, teacher_id)

    return made


@pytest.fixture(scope="session")
def cifar100_root(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder that holds the real cifar-100-python/: EDKD_TEST_CIFAR100, else made from the parts in ../shared."""
    named = os.environ.get("EDKD_TEST_CIFAR100")
    if named:
        return Path(named)
    unpack = Path(__file__).parents[2] / "shared" / "data" / "cifar100" / "unpack.py"
    if not unpack.is_file():
        pytest.skip("no CIFAR-100: EDKD_TEST_CIFAR100 names the folder that holds cifar-100-python/")
    base = tmp_path_factory.getbasetemp()
    root = (base if worker_id == "master" else base.parent) / "cifar100"  # one for all workers
    with FileLock(f"{root}.lock"):
        if not (root / "cifar-100-python" / "meta").exists():
            subprocess.run([sys.executable, str(unpack), str(root)], check=True, stdout=subprocess.DEVNULL)
    return root
