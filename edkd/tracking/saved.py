"""A network as a folder in MLflow's model format, which MLflow's own server serves without this project."""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

Array = NDArray[np.float32]


def save_model(network: "nn.Module", example: "Tensor", folder: Path, about: dict[str, Any]) -> None:
    """Write a network (images to logits) with its signature and an example of its input.

    The graph is traced by `torch.export`; batches of any size go through it. `about` becomes the model's metadata.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow and torch.export: none that a user could heed
        import mlflow.pytorch
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
            metadata=json.loads(json.dumps(about)),
        )


def predict_saved(folder: Path, images: Array) -> Array:
    """The logits [B, K] that a saved model gives for images [B, 3, H, W], as MLflow's server would."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.pyfunc

        made: Array = mlflow.pyfunc.load_model(str(folder)).predict(images)
        return made
