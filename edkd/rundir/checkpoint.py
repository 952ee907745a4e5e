"""Saving and loading weights: atomic, verified, and never executing what a file holds.

Two kinds of files:

- *Checkpoints* (`save`, `load`) are for resuming a run: a header of magic, length and SHA-256, then the output of
  `torch.save`. The previous checkpoint is kept beside the current one. A power cut, a kill or a full disk at any
  moment leaves at least one of the two whole, and a damaged one is detected.
- *Weights files* (`save_weights`, `load_weights`) are for exchange: plain `torch.save` files
  ``{"model": state_dict, ...}`` that any program of the field reads.

Files are read with ``weights_only=True``, so a file from a stranger cannot run code.
"""

import contextlib
import copyreg
import hashlib
import io
import logging
import pickle
import re
import struct
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edkd.errors import EdkdError, import_extra
from edkd.models.base import in_own_names
from edkd.rundir import files

MAGIC = b"EDKDCKP1"
_HEADER = struct.Struct(">8sQ32s")  # magic, length of the payload in bytes, its SHA-256
# Keys of a state_dict in our files and in files of other programs.
_KEYS = ("model", "student", "state_dict", "model_state_dict", "net")
_WRAPPERS = ("module.", "_orig_mod.")  # prefixes of DataParallel and torch.compile
_NAMED = 3  # number of keys that an error line names

_log = logging.getLogger("edkd.rundir.checkpoint")


def previous(path: Path) -> Path:
    """The path of the checkpoint before the one at ``path``: checkpoint.pt -> checkpoint.prev.pt."""
    return path.with_name(f"{path.stem}.prev{path.suffix}")


def save(state: dict[str, Any], path: Path) -> None:
    """Write ``state`` (tensors, numbers, strings, containers of these) as the checkpoint at ``path``, atomically.

    An existing checkpoint becomes `previous`. Raises `EdkdError` if the state cannot be written; the existing
    checkpoints are then unchanged.
    """
    path = Path(path)
    payload = _serialise(state)
    header = _HEADER.pack(MAGIC, len(payload), hashlib.sha256(payload).digest())
    with files.replacing(path, header, payload):
        # A kill between the two renames leaves no current checkpoint, but a whole previous one, which `load` takes.
        if path.exists():
            path.replace(previous(path))


def load(path: Path) -> tuple[dict[str, Any], Path] | None:
    """The checkpoint at ``path``, or the previous one where that is damaged or absent, and the file it came from.

    None if there is neither. A fallback is logged as a warning. Tensors are on the CPU. Raises `EdkdError` if files
    exist but all are damaged.
    """
    path = Path(path)
    faults = []
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            data = _read(candidate)
            state = _deserialise(candidate, _verified(candidate, data))
        except EdkdError as error:
            faults.append(str(error))
            continue
        if candidate != path:
            _log.warning("%s; continuing from %s", faults[0] if faults else f"{path} is missing", candidate)
            with contextlib.suppress(OSError):  # or the next save would keep the damaged one instead of the whole one
                path.replace(path.with_name(f"{path.name}.damaged"))
        return state, candidate
    if faults:
        raise EdkdError(
            f"no usable checkpoint: {'; '.join(faults)}; delete the damaged files to start from the beginning"
        )
    return None


def save_weights(model_state: dict[str, Tensor], path: Path, **info: Any) -> None:
    """Write ``{"model": model_state, **info}`` as a plain `torch.save` file, atomically (`load_weights` reads it)."""
    files.write_bytes(path, weights_bytes(model_state, **info))


def weights_bytes(model_state: dict[str, Tensor], **info: Any) -> memoryview:
    """The content of a file of `save_weights`."""
    return _serialise({"model": portable(model_state), **info})


def portable(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ``state_dict`` with its tensors on the CPU and contiguous, so that any machine and program reads them."""
    return {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}


def load_weights(path: Path, data: bytes | None = None) -> dict[str, Tensor]:
    """The network's ``state_dict`` from a checkpoint or weights file, ours or another program's.

    ``data`` is the file's content, if it was read already.
    The file holds a ``state_dict``, or a dictionary with one under one of `_KEYS`. Prefixes of wrappers (``module.``,
    ``_orig_mod.``, ``student.``) are stripped. From a distiller with teacher and connectors, the student is taken.
    Tensors are on the CPU. Raises `EdkdError` for any other content, and never executes a pickle.
    """
    path = Path(path)
    content = read(path, data)
    for key in _KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not _is_state(content):
        raise EdkdError(
            f"{path} holds no network weights; allowed are a state_dict, "
            f"or a dictionary that has one under one of the keys {', '.join(_KEYS)}"
        )
    return _strip(content)


def read(path: Path, data: bytes | None = None) -> Any:
    """What a file of ours, of PyTorch or of safetensors holds; ``data`` is its content, if it was read already.

    Raises `EdkdError` if the file is damaged, or holds more than tensors and plain values.
    """
    path = Path(path)
    data = _read(path) if data is None else data
    if data[8:9] == b"{":  # safetensors: 8 bytes of length, then a JSON header
        return _safetensors(path, data)
    return _deserialise(path, _verified(path, data) if data.startswith(MAGIC) else data)


def ends_in_method(path: Path) -> bool:
    """Whether a file of ours holds a student whose predictions come from modules of its method, saved beside it."""
    content = read(path)
    return isinstance(content, dict) and {"model", "distiller"} <= content.keys()


def load_into(model: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load ``state`` into ``model``; all keys and shapes must match. ``where`` names the weights in errors.

    Torchvision's names that the model knows become its own. The counters ``num_batches_tracked`` may all be missing,
    as in files of PyTorch before 0.4.1: no evaluation uses them. Raises `EdkdError` if the weights do not fit; the
    model is then unchanged.
    """
    own, state = model.state_dict(), in_own_names(model, state)
    counters = {key: value for key, value in own.items() if key.endswith(".num_batches_tracked")}
    if not counters.keys() & state.keys():
        state = counters | state
    faults = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
    }
    found = [
        f"{len(keys)} {kind} ({', '.join(keys[:_NAMED])}{', …' if len(keys) > _NAMED else ''})"
        for kind, keys in faults.items()
        if keys
    ]
    if found:
        architecture = getattr(model, "name", None) or type(model).__name__
        raise EdkdError(
            f"{where} does not fit the architecture {architecture}: of {len(own)} entries {', '.join(found)}"
        )
    model.load_state_dict(state)


def _safetensors(path: Path, data: bytes) -> dict[str, Any]:
    """The tensors of a file by name, or {"model", "distiller"} if `edkd export` wrote a method's tensors into it."""
    try:
        state: dict[str, Tensor] = import_extra("safetensors.torch", "export").load(data)
    except EdkdError:
        raise
    except Exception as error:
        raise EdkdError(f"{path} is damaged or no file of safetensors ({type(error).__name__})") from error
    method = {key.removeprefix("distiller."): state[key] for key in state if key.startswith("distiller.")}
    if not method:
        return state
    return {"model": {key: state[key] for key in state if key.startswith("student.")}, "distiller": method}


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in ("module.student.", "student."):  # of a distiller: the other keys are its teacher and connectors
        if any(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    while wrapper := next((each for each in _WRAPPERS if all(key.startswith(each) for key in state)), None):
        state = {key.removeprefix(wrapper): value for key, value in state.items()}
    return state


class _NumpyType:
    """Stands in for a ``numpy.dtype`` in a file: its code, such as "f8", and its byte order."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch("[biuf][1248]", code):
            raise pickle.UnpicklingError(f"numpy type {code!r} is not a number")
        self.code = code
        self.order = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "|"


def _numpy_scalar(kind: _NumpyType, data: bytes) -> bool | int | float:
    (number,) = np.frombuffer(data, dtype=f"{kind.order}{kind.code}")
    return number.item()


# Published checkpoints hold accuracies as numpy scalars, under the names of numpy 1 and 2. These stand-ins read them
# as Python numbers, so that a file cannot call anything of numpy.
_STAND_INS: list[Any] = [
    _NumpyType,
    (_NumpyType, "numpy.dtype"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
]


def _deserialise(path: Path, data: Any) -> Any:
    try:
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that torch did not write: the error below is clearer
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a damaged file
        objects = re.search(r"GLOBAL ([\w.]+)|numpy type '\w+'", str(error))
        if isinstance(error, pickle.UnpicklingError) and objects:
            raise EdkdError(
                f"{path} is refused: holds Python objects, not only tensors ({objects[1] or objects[0]})"
            ) from error
        if "TorchScript" in str(error):
            raise EdkdError(f"{path} is a TorchScript program, such as `edkd export` writes, no checkpoint") from error
        raise EdkdError(f"{path} is damaged or no file of PyTorch ({type(error).__name__})") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EdkdError(f"could not read {path}: {error.strerror or error}") from error


def _verified(path: Path, data: bytes) -> memoryview:
    """Check a checkpoint against its header and return its payload."""
    if not data.startswith(MAGIC) or len(data) < _HEADER.size:
        raise EdkdError(f"{path} is damaged (no checkpoint header)")
    _, length, digest = _HEADER.unpack_from(data)
    payload = memoryview(data)[_HEADER.size :]
    if len(payload) != length:
        raise EdkdError(f"{path} is damaged ({len(payload)} bytes of {length})")
    if hashlib.sha256(payload).digest() != digest:
        raise EdkdError(f"{path} is damaged (its checksum does not match)")
    return payload


def _reduce(state: OrderedDict[Any, Any]) -> tuple[Any, ...]:
    return OrderedDict, (), vars(state) or None, None, iter(state.items())


# `OrderedDict.__reduce__` gives the same. From Python 3.11 on, it also calls `copyreg._slotnames`, whose bare `except`
# swallows a Ctrl-C; and there is an OrderedDict in each tensor's pickle.
copyreg.pickle(OrderedDict, _reduce)


def _serialise(state: Any) -> memoryview:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getbuffer()
