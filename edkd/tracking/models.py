"""A trained student as an MLflow model, which loads without this project."""

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edkd.tracking.store import one_line, open_store, search

if TYPE_CHECKING:
    from torch import Tensor, nn


def log_model(
    network: "nn.Module",
    example: "Tensor",
    *,
    run: str,
    sweep: str | None,
    uri: str,
    experiment: str,
    artifacts: str | None,
) -> str | None:
    """Log a network (images to logits) as a model of the run with configuration hash `run`; return the model's URI.

    `torch.export` traces it with `example`, a batch of its input images, which also gives the signature. The run's tag
    `model` holds the URI; the tag `best_student` of its sweep holds the run's name and weights file. Returns None, and
    logs no model, if MLflow lacks the run or it already has one. Raises `EdkdError` if the store cannot be used.
    """
    with one_line(uri), tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow and torch.export: a user can act on none of them
        store = open_store(uri, experiment, artifacts)
        client = store.client
        found = search(client, store.experiment_id, f"tags.`edkd.run` = '{run}'")
        if not found:
            return None
        for parent in search(client, store.experiment_id, f"tags.`edkd.sweep` = '{sweep}'"):
            client.set_tag(
                parent.info.run_id, "best_student", f"{found[0].info.run_name}: {found[0].data.tags.get('weights')}"
            )
        if "model" in found[0].data.tags:
            return None
        from mlflow.entities import LoggedModelOutput, RunTag

        save_model(network, example, Path(name) / "model")
        run_id = found[0].info.run_id
        model = client.create_logged_model(store.experiment_id, found[0].info.run_name, source_run_id=run_id)
        client.log_model_artifacts(model.model_id, f"{name}/model")
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        client.log_batch(run_id, tags=[RunTag("model", model.model_uri)])
        return str(model.model_uri)


def save_model(network: "nn.Module", example: "Tensor", folder: Path, about: Mapping[str, Any] | None = None) -> None:
    """Write a network (images to logits) into a folder, with `about` as its metadata.

    `torch.export` traces it with `example`, a batch of its input images, which also gives the signature. The saved
    model takes batches of any size.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow and torch.export: a user can act on none of them
        import mlflow.pytorch  # takes seconds
        import torch
        from mlflow.models import infer_signature

        with torch.no_grad():
            logits = network(example)
        mlflow.pytorch.save_model(
            network,
            folder,
            signature=infer_signature(example.numpy(), logits.numpy()),
            input_example=example.numpy(),
            serialization_format="pt2",
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
            metadata=None if about is None else {**about},
        )


def predict_saved(folder: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits [B, K] that a saved model gives for images [B, 3, H, W], as MLflow's server would."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.pyfunc

        made: NDArray[np.float32] = mlflow.pyfunc.load_model(str(folder)).predict(images)
        return made
