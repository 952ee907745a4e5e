"""The outputs of a finished run's student and its teacher for the test images, as numbers for figures."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edkd.config.instantiate import build
from edkd.config.job import thaw
from edkd.data.base import EvaluationData
from edkd.errors import EdkdError
from edkd.rundir import checkpoint, files
from edkd.rundir.paths import RunDir
from edkd.runs.inputs import device_data, gather
from edkd.training.device import set_up, to_device
from edkd.training.evaluation import EVALUATION_BATCH

Array = NDArray[np.float32]


class Outputs(NamedTuple):
    """One network's outputs for the test images."""

    name: str
    features: Array | None  # [N, D], before the classifier; None for a network that gives none
    logits: Array  # [N, K]


class Representations(NamedTuple):
    """Both networks' outputs, in the order of the test images."""

    title: str  # which run it is
    student: Outputs
    teacher: Outputs
    target: NDArray[np.int64]  # [N]


def represent(run_dir: Path, output: Path) -> Representations:
    """Run the last student of a finished run and its teacher, in `output`'s store, over the test images.

    Raises EdkdError for a run without teacher or weights, and for a student that ends in modules of its method.
    """
    file = RunDir(run_dir).last
    if not file.is_file():
        raise EdkdError(f"{run_dir} has no {file.name}: it has not finished, or was unpacked or imported")
    job, _ = thaw(RunDir(run_dir).config)
    cfg = replace(job.settings, output=str(output))
    if not cfg.needs_teacher:
        raise EdkdError(f"{job.name} has no teacher to be compared with")
    if checkpoint.ends_in_method(file):
        raise EdkdError(f"{job.name}: its student ends in modules of the method, and has no features of its own")
    set_up(cfg.engine)
    inputs = gather(cfg, job.teacher_id)
    assert inputs.teacher is not None
    student = build(cfg.student.model, "student.model", num_classes=inputs.arrays.num_classes)
    checkpoint.load_into(student, checkpoint.load_weights(file), str(file))
    test = device_data(inputs.arrays, cfg, inputs.device).test
    networks = ((cfg.student.name, to_device(student, cfg.engine, inputs.device)), (cfg.teacher.name, inputs.teacher))
    seen = [Outputs(name, *_predicted(network, test, inputs.device)) for name, network in networks]
    target = torch.cat([target for _, target in test.batches(EVALUATION_BATCH[inputs.device.type])])
    title = f"{cfg.teacher.name} → {cfg.student.name}, {cfg.method}, seed {cfg.seed}"
    return Representations(title, seen[0], seen[1], target.cpu().numpy())


@torch.inference_mode()
def _predicted(network: nn.Module, data: EvaluationData, device: torch.device) -> tuple[Array | None, Array]:
    """Pooled features [N, D], where the network gives them, and logits [N, K], in single precision."""
    network.eval()
    made = [network(images, want_feats=True) for images, _ in data.batches(EVALUATION_BATCH[device.type])]
    features = [each.pooled_feat for each in made if each.pooled_feat is not None]
    return _array(features) if features else None, _array([each.logits for each in made])


def _array(parts: list[Tensor]) -> Array:
    return torch.cat(parts).float().cpu().numpy()


def tsne(found: Representations, to: Path) -> None:
    """Write both networks' features in two dimensions, by t-SNE, into an npz file.

    van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 9, 2008, as scikit-learn computes it. Raises
    EdkdError for a network without them.
    """
    from sklearn.manifold import TSNE

    for seen in (found.student, found.teacher):
        if seen.features is None:
            raise EdkdError(f"{seen.name} gives no pooled_feat, which this figure shows (docs/extending.md)")
    perplexity = min(30.0, (len(found.target) - 1) / 3)
    points = [
        TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(seen.features)
        for seen in (found.student, found.teacher)
    ]
    names = []
    for role, seen in (("student", found.student), ("teacher", found.teacher)):
        top1 = 100 * float((seen.logits.argmax(1) == found.target).mean())
        names.append(f"{role} {seen.name}, top-1 {top1:.2f} %")
    _save(to, student=points[0], teacher=points[1], target=found.target, names=names, title=found.title)


def correlation(found: Representations, to: Path) -> None:
    """Write the correlations between the classes' logits over the test images, [K, K] each, into an npz file."""
    student, teacher = (np.corrcoef(seen.logits.astype(np.float64).T) for seen in (found.student, found.teacher))
    _save(to, student=student, teacher=teacher, title=found.title)


def _save(to: Path, **arrays: Any) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    files.write_bytes(to, content.getbuffer())
