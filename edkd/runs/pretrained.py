"""Teachers that come with weights (`teacher.weights`): those of torchvision or timm by name, or of a file."""

import hashlib
import logging
import math
from pathlib import Path

from torch import Tensor

from edkd.config.instantiate import build
from edkd.config.schema import Settings
from edkd.data.arrays import Arrays
from edkd.data.files import Streamed
from edkd.errors import EdkdError
from edkd.models import foreign
from edkd.rundir import checkpoint
from edkd.teachers import store

LOG = logging.getLogger("edkd")
_LIBRARIES = {f"edkd.models.foreign.{library}": library for library in ("torchvision", "timm")}


def weights_id(cfg: Settings) -> str:
    """What the weights of a configuration's teacher will be called in the store; nothing is downloaded for it.

    Raises EdkdError for weights that the library does not have, and for a file that cannot be read.
    """
    file = _file(cfg)
    if file is None:
        return _named(cfg).id
    try:
        return f"file:{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
    except OSError as error:
        raise EdkdError(f"teacher.weights={file}: could not read it: {error.strerror or error}") from error


def publish_weights(cfg: Settings, folder: Path, arrays: Arrays | Streamed) -> store.Entry:
    """Put the weights of a configuration's teacher into the store, from their file or the library's server.

    Logs one warning where the library trained them on images of another normalisation or size. Raises EdkdError for a
    download that fails, and for weights that do not fit, such as weights for another number of classes.
    """
    file, known = _file(cfg), None
    if file is None:
        known = _named(cfg)
        weights = _downloaded(known)
    else:
        weights = checkpoint.load_weights(file)
    where = f"teacher.weights={cfg.teacher.weights}"
    network = build(cfg.teacher.model, "teacher.model", num_classes=arrays.num_classes)
    checkpoint.load_into(network, weights, where)
    if known is not None and (fault := _otherwise(known, cfg, arrays.image_size)):
        LOG.warning("%s were trained %s: other images make them a worse teacher", where, fault)
    entry, _ = store.publish(
        folder,
        cfg.dataset.key,
        cfg.teacher.name,
        weights,
        id=weights_id(cfg),
        source=str(file.resolve()) if file is not None else weights_id(cfg),
        epochs=None,
        recipe=None,
        test=None,
        num_classes=arrays.num_classes,
        replace=False,
    )
    return entry


def _file(cfg: Settings) -> Path | None:
    """The file that holds the weights; None where they are a library's, whose names have no ending."""
    assert cfg.teacher.weights is not None
    path = Path(cfg.teacher.weights).expanduser()
    return path if path.suffix or path.is_file() else None


def _named(cfg: Settings) -> foreign.Pretrained:
    library = _LIBRARIES.get(cfg.teacher.model["_target_"])
    if library is None:
        raise EdkdError(f"teacher.weights={cfg.teacher.weights}: only torchvision and timm have weights by name")
    assert cfg.teacher.weights is not None
    return foreign.pretrained(library, cfg.teacher.model["arch"], cfg.teacher.weights)


def _downloaded(known: foreign.Pretrained) -> dict[str, Tensor]:
    try:
        return known.load()
    except Exception as error:  # each library and its downloader raise their own
        raise EdkdError(
            f"could not download the weights {known.id}: {type(error).__name__}: {error}; without a network, "
            "teacher.weights=FILE names a file that has them"
        ) from error


def _otherwise(known: foreign.Pretrained, cfg: Settings, size: int) -> str:
    """How the images that trained a library's weights differ from the data set's; empty if they do not."""
    faults = [
        f"with {name} {wanted} (dataset.{name} is {given})"
        for name, wanted, given in (("mean", known.mean, cfg.dataset.mean), ("std", known.std, cfg.dataset.std))
        if not all(math.isclose(a, b, abs_tol=5e-4) for a, b in zip(wanted, given))
    ]
    if size != known.size:
        faults.append(f"on images of {known.size}x{known.size} (here {size}x{size})")
    return ", ".join(faults)
