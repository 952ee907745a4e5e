"""Composing the jobs of one sweep: with Hydra, once for the jobs that differ in nothing but their seed."""

import contextlib
import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from edkd.config.compose import explain, resolve
from edkd.errors import EdkdError

_SEED = re.compile(r"seed=(0|[1-9][0-9]*)")
_ABOUT_SEED = re.compile(r"(?<!\w)seed(?!\w)")
# An interpolation that names the seed, or that holds another one, so that what it names is not known here.
_MAY_REFER_TO_SEED = re.compile(r"\$\{[^}]*((?<!\w)seed(?!\w)|\$\{)")


class Composer:
    """Composes jobs; `master` is the configuration that Hydra composed for the sweeper, with its own overrides."""

    def __init__(self, master: DictConfig, loader: ConfigLoader) -> None:
        self.master, self.loader = master, loader
        self.composed: dict[tuple[str, ...], tuple[dict[str, Any], str] | None] = {}  # None: other values need the seed

    def compose(self, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
        """The resolved configuration of a job and the name of its method. Raises EdkdError for what does not fit.

        Configurations share their parts: they are to be read only.
        """
        seeds = [text for text in overrides if _SEED.fullmatch(text)]
        others = tuple(text for text in overrides if text not in seeds)
        if len(seeds) != 1 or any(_ABOUT_SEED.search(text) for text in others):
            return self._resolved(self._by_hydra(overrides))
        if others not in self.composed:
            composed = self._by_hydra(overrides)
            made = self._resolved(composed)
            self.composed[others] = None if _MAY_REFER_TO_SEED.search(_unresolved(composed)) else made
            return made
        known = self.composed[others]
        if known is None:
            return self._resolved(self._by_hydra(overrides))
        resolved, method = known
        return {**resolved, "seed": int(seeds[0].partition("=")[2])}, method

    def _by_hydra(self, overrides: Sequence[str]) -> DictConfig:
        try:
            return self.loader.load_sweep_config(self.master, list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise EdkdError(explain(error, overrides)) from error

    def _resolved(self, composed: DictConfig) -> tuple[dict[str, Any], str]:
        return resolve(composed), composed.hydra.runtime.choices["distiller"]


def _unresolved(composed: DictConfig) -> str:
    return OmegaConf.to_yaml(OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"]))


class _ReadOnce(ConfigRepository):
    """The configuration files, each read once however often Hydra composes."""

    def __init__(self, config_search_path: Any) -> None:
        super().__init__(config_search_path)
        self.read: dict[str, Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "_ReadOnce":
        return copy.copy(self)  # Hydra takes a copy for each composition: they share what was read

    def load_config(self, config_path: str) -> Any:
        if config_path not in self.read:
            self.read[config_path] = super().load_config(config_path)
        return copy.deepcopy(self.read[config_path])


@contextlib.contextmanager
def files_read_once(loader: Any) -> Iterator[None]:
    """Within the block, a loader reads each configuration file once: a plan is made from one state of the files."""
    before = loader.repository
    loader.repository = _ReadOnce(loader.config_search_path)
    try:
        yield
    finally:
        loader.repository = before
