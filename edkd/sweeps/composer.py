"""Composing the jobs of one sweep: Hydra's results, for a fraction of its work.

Of a job's overrides, only those that choose options say which files make up its configuration; the others are values,
written into the composed whole. So Hydra composes once for each choice of options, and values go into copies:

    options                                   -> composed by Hydra, once for each choice of them
    values that interpolations refer to, lists -> written and resolved by OmegaConf, once for each combination
    other plain values, such as a seed        -> replaced in the resolved configuration

What is not certain to give Hydra's own result in this way, and all that fails, is left to Hydra as a whole: results and
errors are those of composing each job on its own.
"""

import contextlib
import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from edkd.config.compose import explain, resolve
from edkd.errors import EdkdError

# `${a.b}` refers to a value and `${oc.env:NAME}` to none; what other interpolations look at is not known here.
_KNOWN_INTERPOLATION = re.compile(r"\$\{(?:([A-Za-z_][\w-]*(?:\.[\w-]+)*)|oc\.env:[^${}]*)\}")
_PLAIN = (type(None), bool, int, float, str)


class Composer:
    """Composes jobs that differ in a few overrides; `compose` gives what `by_hydra` does.

    `master` is the configuration that Hydra composed for the sweeper: it holds the overrides of Hydra itself.
    """

    def __init__(self, master: DictConfig, loader: ConfigLoader) -> None:
        self.master, self.loader = master, loader
        self.parser = OverridesParser.create(loader)
        self.parsed: dict[str, Override] = {}
        self.is_value: dict[tuple[str, bool], bool] = {}  # of (key, whether a mapping is written to it)
        self.chosen: dict[tuple[str, ...], _Chosen] = {}

    def compose(self, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
        """The resolved configuration of a job and the name of its method. Raises EdkdError for what does not fit."""
        try:
            return self._compose(overrides)
        except Exception:  # whatever it was: Hydra can do it after all, or says what is wrong in its own words
            return self.by_hydra(overrides)

    def by_hydra(self, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
        """The same, composed for this job alone."""
        try:
            composed = self.loader.load_sweep_config(self.master, list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise EdkdError(explain(error, overrides)) from error
        return resolve(composed), composed.hydra.runtime.choices["distiller"]

    def _compose(self, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
        later = self._writable(overrides)
        first = tuple(text for text in overrides if text not in later)
        if first not in self.chosen:
            self.chosen[first] = _Chosen(self.loader.load_sweep_config(self.master, list(first)))
        chosen = self.chosen[first]
        values = [self._parse(text) for text in overrides if self._is_value(text, overrides)]
        if not all(chosen.owns(value.key_or_group) for value in values):
            raise LookupError("a value is written through an interpolation")
        return chosen.resolved([self._parse(text) for text in later]), chosen.method

    def _writable(self, overrides: Sequence[str]) -> list[str]:
        """The overrides that may be written after all others: they change a value that no other of them touches."""
        values = [text for text in overrides if self._is_value(text, overrides)]
        keys = [self._parse(text).key_or_group for text in values]
        writable = []
        for text, key in zip(values, keys, strict=True):
            override = self._parse(text)
            alone = sum(_overlap(key, other) for other in keys) == 1
            if alone and override.type is OverrideType.CHANGE and override.package is None and "${" not in text:
                writable.append(text)
        return writable

    def _is_value(self, text: str, overrides: Sequence[str]) -> bool:
        """Whether Hydra takes an override for a value, rather than for the choice of an option."""
        if _kind(self._parse(text)) not in self.is_value:
            own = OmegaConf.to_container(self.master.hydra.overrides.hydra)
            assert isinstance(own, list)
            found = self.loader.compute_defaults_list(
                self.master.hydra.job.config_name, [*own, *overrides], RunMode.RUN
            ).config_overrides
            values = {_kind(override) for override in found}
            self.is_value |= {(kind := _kind(self._parse(each))): kind in values for each in overrides}
        return self.is_value[_kind(self._parse(text))]

    def _parse(self, text: str) -> Override:
        if text not in self.parsed:
            self.parsed[text] = self.parser.parse_override(text)
        return self.parsed[text]


class _Chosen:
    """What Hydra composed for a choice of options, before the values of single jobs are written into it."""

    def __init__(self, composed: DictConfig) -> None:
        self.method: str = composed.hydra.runtime.choices["distiller"]
        self.config = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        OmegaConf.set_struct(self.config, True)  # as Hydra does: a value that is not there cannot be changed
        self.raw = OmegaConf.to_container(self.config, resolve=False)
        self.referred = _referred(self.raw)
        self.written: dict[tuple[str, ...], dict[str, Any]] = {}

    def owns(self, key: str) -> bool:
        """Whether writing to a key changes what lies there, and not what an interpolation on the way refers to."""
        node = self.raw
        for part in key.split(".")[:-1]:
            if isinstance(node, dict) and part not in node:
                return True
            node = node[part] if isinstance(node, dict) else None
        return isinstance(node, dict)

    def resolved(self, values: Sequence[Override]) -> dict[str, Any]:
        """The resolved configuration with these values."""
        plain = [value for value in values if self._is_plain(value)]
        others = [value for value in values if value not in plain]
        key = tuple(str(value.input_line) for value in others)
        if key not in self.written:
            config = copy.deepcopy(self.config)
            for value in others:
                OmegaConf.update(config, value.key_or_group, value.value(), merge=True)
            self.written[key] = resolve(config)
        made: dict[str, Any] = _copied(self.written[key])
        for value in plain:
            *parents, last = value.key_or_group.split(".")
            node = made
            for parent in parents:
                node = node[parent]
            node[last] = value.value()
        return made

    def _is_plain(self, value: Override) -> bool:
        """Whether a value only replaces another of its type that nothing else looks at."""
        key, new = value.key_or_group, value.value()
        if self.referred is None or any(_overlap(key, other) for other in self.referred):
            return False
        old = self.raw
        for part in key.split("."):
            if not isinstance(old, dict) or part not in old:
                return False
            old = old[part]
        special = any(isinstance(each, str) and ("${" in each or each == "???") for each in (old, new))
        return type(old) is type(new) and isinstance(new, _PLAIN) and not special


def _kind(override: Override) -> tuple[str, bool]:
    return override.key_or_group, isinstance(override.value(), dict)


def _overlap(key: str, other: str) -> bool:
    """Whether one of two dotted keys is the other, or lies in it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _referred(node: Any) -> set[str] | None:
    """The keys that interpolations in an unresolved configuration refer to; None where that cannot be told."""
    if isinstance(node, dict | list):
        found: set[str] = set()
        for inner in node.values() if isinstance(node, dict) else node:
            below = _referred(inner)
            if below is None:
                return None
            found |= below
        return found
    if not isinstance(node, str) or "${" not in node:
        return set()
    if "${" in _KNOWN_INTERPOLATION.sub("", node):
        return None
    return {key for key in _KNOWN_INTERPOLATION.findall(node) if key}


def _copied(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _copied(inner) for key, inner in node.items()}
    return [_copied(inner) for inner in node] if isinstance(node, list) else node


@dataclass
class _ReadOnce:
    """Hydra's repository of configuration files, which otherwise reads every file again for every composition."""

    inner: Any
    place: str = ""  # where the files are looked for, if not where the repository was made for
    read: dict[tuple[str, str], Any] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_ReadOnce":
        return _ReadOnce(self.inner, self.place, self.read)  # Hydra takes a copy for each composition; we remember

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def initialize_sources(self, config_search_path: Any) -> None:
        self.inner = copy.deepcopy(self.inner)
        self.inner.initialize_sources(config_search_path)
        self.place = str([(each.provider, each.path) for each in config_search_path.get_path()])

    def load_config(self, config_path: str) -> Any:
        key = self.place, config_path
        if key not in self.read:
            self.read[key] = self.inner.load_config(config_path=config_path)
        return copy.deepcopy(self.read[key])


@contextlib.contextmanager
def files_read_once(loader: Any) -> Iterator[None]:
    """Within the block, a loader reads each configuration file once: a plan is made from one state of the files."""
    before = loader.repository
    loader.repository = _ReadOnce(before)
    try:
        yield
    finally:
        loader.repository = before
