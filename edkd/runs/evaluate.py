"""Measuring networks outside a run: stored teachers and checkpoint files."""

import hashlib
from pathlib import Path

from edkd.config.schema import Settings, build
from edkd.errors import EdkdError
from edkd.rundir import checkpoint
from edkd.runs.setup import device_data, load_arrays, teacher_folder
from edkd.teachers import store
from edkd.teachers.source import Precision
from edkd.training.device import pick_device, to_device
from edkd.training.trainer import evaluate


def evaluate_network(cfg: Settings, file: Path | None) -> tuple[str, dict[str, float]]:
    """Measure `given.student` on the test set, with the weights in `file` or those of the stored teacher.

    Returns where the weights came from, and {"top1", "top5", "loss"} (percent, percent, nats). Raises EdkdError for
    weights that are missing, damaged, or of another network.
    """
    entry = None
    if file is None:
        entry = store.find(teacher_folder(cfg), cfg.dataset.key, cfg.student.name)
        if entry is None:
            raise EdkdError(
                f"no teacher {cfg.student.name} of {cfg.dataset.key} in {teacher_folder(cfg)}; "
                "-c FILE names a checkpoint"
            )
    weights = checkpoint.load_weights(file) if file is not None else None
    arrays, _ = load_arrays(cfg)
    device = pick_device(cfg.engine.device)
    network = build(cfg.student.model, "student.model", num_classes=arrays.num_classes)
    if entry is not None:
        store.load(entry, network)
    else:
        assert weights is not None
        checkpoint.load_into(network, weights, str(file))
    network = to_device(network, cfg.engine, device)
    measured = evaluate(network, device_data(arrays, cfg, device).test, Precision(cfg.engine.precision, device))
    return str(file) if entry is None else f"teacher {entry.id}", measured


def import_teacher(cfg: Settings, file: Path, *, replace: bool) -> store.Entry:
    """Put a checkpoint file into the teacher store, after checking its shapes and measuring it on the test set.

    Raises EdkdError as `evaluate_network` does, and if another teacher of that name is there and `replace` is False.
    """
    _, measured = evaluate_network(cfg, file)
    arrays, _ = load_arrays(cfg)
    weights = checkpoint.load_weights(file)
    identity = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    entry, _ = store.publish(
        teacher_folder(cfg),
        cfg.dataset.key,
        cfg.student.name,
        weights,
        id=f"file:{identity}",
        source=str(file.resolve()),
        epochs=None,
        recipe=None,
        test={**measured},
        num_classes=arrays.num_classes,
        replace=replace,
    )
    if entry.id != f"file:{identity}":
        raise EdkdError(f"{entry.dataset} has a teacher {entry.name} already ({entry.id}); --replace replaces it")
    return entry
