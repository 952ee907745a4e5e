"""Real SQLite stores for the tests of tracking."""

import shutil

import pytest

from edkd import tracking


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A SQLite file with MLflow's schema, which takes a second to make."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    tracking.create_store(uri=f"sqlite:///{path}", experiment="unused", artifacts=None)
    return path


@pytest.fixture
def where(tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return {
        "uri": f"sqlite:///{tmp_path}/mlflow.db",
        "experiment": "edkd",
        "artifacts": str(tmp_path / "odd %20 #name"),
    }


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "runs" / "kd-s0"


@pytest.fixture
def calls(monkeypatch):
    """The number of metrics, parameters and tags of each batch that was logged."""
    from mlflow import MlflowClient

    original, sizes = MlflowClient.log_batch, []

    def counting(self, run_id, metrics=(), params=(), tags=()):
        sizes.append((len(metrics), len(params), len(tags)))
        original(self, run_id, metrics=metrics, params=params, tags=tags)

    monkeypatch.setattr(MlflowClient, "log_batch", counting)
    return sizes
