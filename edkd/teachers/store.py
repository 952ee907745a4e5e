"""The teacher store: trained networks by data set and name, each with a sidecar that records its origin.

``<store>/<dataset>/<name>.pt`` is a plain weights file ``{"model": state_dict}``; ``<name>.json`` beside it is
the sidecar: the fields of `Entry`. A file is used only if its SHA-256 is still the one in its sidecar.
"""

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import yaml
from filelock import FileLock, Timeout
from torch import Tensor, nn

from edkd import CONF
from edkd.errors import EdkdError
from edkd.rundir import checkpoint, files
from edkd.rundir.paths import NAME, RunDir
from edkd.rundir.settings import dataset_overrides, leaves

Accuracy = dict[str, float | None]  # "top1" and "top5" in percent, "loss"; None where not finite
Model = TypeVar("Model", bound=nn.Module)

_IMPORT = "`edkd teachers import NAME FILE --dataset KEY`"
_PATIENCE = 60.0  # seconds for another process to finish publishing

_log = logging.getLogger("edkd.teachers.store")


@dataclass(frozen=True)
class Entry:
    """A teacher of the store, as its sidecar describes it."""

    name: str
    dataset: str  # the data set's key
    sha256: str  # hex digest of the weights file
    id: str  # "run:<configuration hash>", "file:<the imported file's SHA-256, 16 digits>", or of a library's weights
    source: str  # the run directory, the file that was imported, or the library's name of the weights
    epochs: int | None  # epochs of its training, if known
    recipe: str | None  # recipe of its training, if known
    num_classes: int
    test: Accuracy | None  # accuracy that its source reports
    added: str  # ISO 8601, UTC
    path: Path  # the weights file; not in the sidecar
    # measured accuracies, by the digest of the data and their normalisation
    measured: dict[str, Accuracy] = field(default_factory=dict)

    @property
    def sidecar(self) -> Path:
        """Where the sidecar lies."""
        return self.path.with_suffix(".json")


def find(store: Path, dataset: str, name: str) -> Entry | None:
    """The teacher as its sidecar describes it (the weights are not read), or None if there is none.

    A sidecar without weights, left by a teacher that was removed or partly published, counts as none. Raises
    `EdkdError` for a weights file without a sidecar, or a sidecar that cannot be read.
    """
    path = _path(store, dataset, name)
    found = None
    with suppress(EdkdError):
        found = _find(path, dataset, name)
    if found is None and (path.exists() or path.with_suffix(".json").exists()):
        # Another process may be publishing it: wait for the lock, then look again, even if locking fails.
        with suppress(EdkdError), _locked(path.parent):
            pass
        return _find(path, dataset, name)
    return found


def listing(store: Path) -> list[Entry]:
    """All teachers, by data set and name. One for which `find` raises is left out, with a warning in the log."""
    entries = []
    files_there = [path for path in Path(store).glob("*/[!.]*") if path.suffix in (".pt", ".json")]
    for dataset, name in sorted({(path.parent.name, path.stem) for path in files_there}):
        try:
            entry = find(store, dataset, name)
        except EdkdError as error:
            _log.warning("%s", error)
            continue
        if entry is not None:
            entries.append(entry)
    return entries


def publish(
    store: Path,
    dataset: str,
    name: str,
    weights: Path | dict[str, Tensor],
    *,
    id: str,
    source: str,
    epochs: int | None,
    recipe: str | None,
    test: Accuracy | None,
    num_classes: int,
    replace: bool,
) -> tuple[Entry, bool]:
    """Put a network into the store; returns the entry in the store and whether this call wrote it.

    ``weights`` is a state_dict, or any file that `checkpoint.load_weights` reads. A usable entry of the same ``id``
    stays, and so does one of another ``id`` unless ``replace``. Replaced weights are kept as ``<name>.pt.bak``. Safe
    for several processes. Raises `EdkdError` if the file cannot be used or the store cannot be written.
    """
    path = _path(store, dataset, name)
    state = checkpoint.load_weights(weights) if isinstance(weights, Path) else weights
    with _locked(path.parent):
        present = _usable(path, dataset, name)
        if present is not None and (present.id == id or not replace):
            return present, False
        data = checkpoint.weights_bytes(state)
        entry = Entry(
            name=name,
            dataset=dataset,
            sha256=hashlib.sha256(data).hexdigest(),
            id=id,
            source=source,
            epochs=epochs,
            recipe=recipe,
            num_classes=num_classes,
            test=None if test is None else _finite(test),
            added=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            path=path,
        )
        with files.replacing(path, data):
            backup, replaced = path.with_name(f"{path.name}.bak"), path.exists()
            if replaced:
                path.replace(backup)
            try:
                _write_sidecar(entry)  # a kill now leaves a sidecar alone, which counts as no teacher
            except EdkdError:
                if replaced:
                    backup.replace(path)
                raise
    return entry, True


def verify(entry: Entry) -> bytes:
    """The content of the weights file. Raises `EdkdError` unless it is, byte for byte, what was published."""
    try:
        data = entry.path.read_bytes()
    except OSError as error:
        raise EdkdError(f"could not read {entry.path}: {error.strerror or error}") from error
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise EdkdError(
            f"{entry.path} does not match its sidecar {entry.sidecar.name} (SHA-256); "
            f"restore it, or remove it, to have it trained again or to import it with {_IMPORT}"
        )
    return data


def load(entry: Entry, model: Model) -> Model:
    """Load a verified teacher into ``model``, and return it frozen: eval mode, no parameter requires a gradient.

    Raises `EdkdError` if the file changed or does not fit the model.
    """
    weights = checkpoint.load_weights(entry.path, verify(entry))
    checkpoint.load_into(model, weights, f"teacher {entry.name} ({entry.path})")
    return model.eval().requires_grad_(False)


def record_accuracy(entry: Entry, test: Accuracy, shown: str) -> None:
    """Record in the sidecar the accuracy on the test set of the data with the digest `shown`.

    If the store cannot be written, or holds another network by now, nothing changes and a warning is logged.
    """
    try:
        with _locked(entry.path.parent):
            present = _find(entry.path, entry.dataset, entry.name)
            if present is None or present.sha256 != entry.sha256:
                raise EdkdError(f"{entry.path} was replaced meanwhile")
            _write_sidecar(dataclasses.replace(present, measured=present.measured | {shown: _finite(test)}))
    except EdkdError as error:
        _log.warning("the accuracy of teacher %s was not recorded: %s", entry.name, error)


def there(dataset: str, name: str, store: Path) -> str:
    """In brackets, the teachers of a data set, and the other data sets of which `name` is a teacher."""
    entries = listing(store)
    known = [entry.name for entry in entries if entry.dataset == dataset]
    others = [entry for entry in entries if entry.name == name and entry.dataset != dataset]
    listed = [", ".join(known) or "none", *(f"{name} of {entry.dataset}{_by(entry)}" for entry in others)]
    return f"(there: {'; '.join(listed)})"


def _by(entry: Entry) -> str:
    """By which options the data set of a teacher that was trained here is chosen; empty where that is not known."""
    try:
        config = yaml.safe_load(RunDir(Path(entry.source)).config.read_bytes())
        words = dataset_overrides({key: str(value) for key, value in leaves(config)})
    except (OSError, yaml.YAMLError, AttributeError):
        words = []
    return f" by {' '.join(words)}" if words else ""


def missing(dataset: str, name: str, store: Path, seed: int) -> EdkdError:
    """The error for a run whose teacher is not in the store; it names the ways to add one, with `seed` for its run."""
    alone = f"`python launch.py distiller=vanilla student={name} seed={seed}` with the same dataset options trains it, "
    return EdkdError(
        f"no teacher {name} for the data set {dataset} in {store} {there(dataset, name, store)}; a sweep (-m) "
        f"of its students trains it first, {alone if (CONF / 'student' / f'{name}.yaml').exists() else ''}"
        f"`edkd teachers import {name} FILE` adds one from a file"
    )


def _path(store: Path, dataset: str, name: str) -> Path:
    for value, kind in ((dataset, "data set key"), (name, "teacher name")):
        if not NAME.fullmatch(value):
            raise EdkdError(f"{value!r} is no {kind}; allowed are up to 100 letters, digits, '_', '-' and '.'")
    return Path(store) / dataset / f"{name}.pt"


def _find(path: Path, dataset: str, name: str) -> Entry | None:
    sidecar = path.with_suffix(".json")
    if not sidecar.exists() and not path.exists():
        return None
    if not sidecar.exists():
        raise EdkdError(f"{path} has no sidecar {sidecar.name}, so its origin is unknown; add teachers with {_IMPORT}")
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(sidecar.read_bytes())
        names = [each.name for each in dataclasses.fields(Entry) if each.name != "path"]
        entry = Entry(path=path, **{each: found[each] for each in names})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise EdkdError(
            f"could not read the sidecar {sidecar} ({type(error).__name__}: {error}); import again with {_IMPORT}"
        ) from error
    if (entry.dataset, entry.name) != (dataset, name):
        raise EdkdError(f"{sidecar} is the sidecar of teacher {entry.name} for {entry.dataset}; import with {_IMPORT}")
    return entry


def _usable(path: Path, dataset: str, name: str) -> Entry | None:
    try:
        entry = _find(path, dataset, name)
        if entry is not None:
            verify(entry)
    except EdkdError:
        return None
    return entry


def _write_sidecar(entry: Entry) -> None:
    content = {key: value for key, value in dataclasses.asdict(entry).items() if key != "path"}
    files.write_bytes(entry.sidecar, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def _finite(test: Accuracy) -> Accuracy:
    return {key: value if value is not None and math.isfinite(value) else None for key, value in test.items()}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".lock", timeout=_PATIENCE, fallback_to_soft=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise EdkdError(f"the teacher store {folder} has been locked for {_PATIENCE:.0f} seconds; try again") from None
    except OSError as error:
        raise EdkdError(f"could not lock the teacher store {folder}: {error}") from error
    try:
        yield
    finally:
        lock.release()
