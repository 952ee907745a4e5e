"""Hydra's side of the command line: compose, hand over, and say in one line what was wrong."""

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from edkd import config
from edkd.console import console, fail
from edkd.errors import EdkdError

_WANTS_TRACEBACK = "HYDRA_FULL_ERROR" in os.environ


def main() -> None:
    """Entry point of `launch.py`: exits with 0 if all that was asked for is done, 1 after an error, 130 interrupted."""
    # Hydra then raises instead of printing, so that every error is reported here and in the same way.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        _compose_and_run()
    except KeyboardInterrupt:
        console.print("interrupted; the same command continues where this one stopped")
        raise SystemExit(130) from None
    except (EdkdError, HydraException, OmegaConfBaseException) as error:
        _tell(error)


def _tell(error: Exception) -> None:
    if _WANTS_TRACEBACK:
        raise error
    fail(explain(error))


def resolve(composed: DictConfig) -> dict[str, Any]:
    """A composed configuration without Hydra's own node, all interpolations resolved. Raises EdkdError if one fails."""
    plain = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    try:
        resolved = OmegaConf.to_container(plain, resolve=True)
    except OmegaConfBaseException as error:
        text = _first_line(error)
        _, missing, key = text.partition("Missing mandatory value: ")
        raise EdkdError(f"{key} has no value yet: set {key}=…" if missing else text) from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def task(composed: DictConfig) -> None:
    """What Hydra runs: a job that a sweep has frozen, or the one run that the command line describes."""
    if "frozen" in composed:
        from edkd import plan
        from edkd.run import execute

        job, sweep = plan.thaw(Path(composed.frozen))
        execute(job, sweep=sweep, show=False)
        return
    from edkd.single import run_one

    try:
        run_one(resolve(composed), HydraConfig.get().runtime.choices["distiller"])
    except EdkdError as error:  # told here, for Hydra would add a line of its own
        _tell(error)


def _compose_and_run() -> None:
    decorated: Callable[[], None] = hydra.main(
        version_base="1.3", config_path=str(config.folder()), config_name="config"
    )(task)
    decorated()


def explain(error: Exception) -> str:
    """One line for a user: what was wrong, what is allowed."""
    if isinstance(error, MissingConfigException) and error.options:
        wanted = (error.missing_cfg_file or "").partition("/")
        group, name = (error.missing_cfg_file or "").rsplit("/", 1) if wanted[1] else ("", error.missing_cfg_file or "")
        return f"{group}={name}: no such option{_guess(name, error.options)}; allowed: {', '.join(error.options)}"
    text = _first_line(error)
    if isinstance(error, ConfigCompositionException) and text.startswith("Could not override '"):
        return _unknown_key(text.split("'")[1])
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        text = f"{text}: {_first_line(error.__cause__)}"
    return text


def _unknown_key(key: str) -> str:
    """Name the keys that stand where `key` was meant to."""
    GlobalHydra.instance().clear()
    folder = config.folder()
    groups = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in ("hydra", "tweak"))
    chosen = [argument for argument in sys.argv[1:] if argument.partition("=")[0] in groups and "," not in argument]
    with initialize_config_dir(version_base="1.3", config_dir=str(folder)):
        try:
            node: Any = compose("config", overrides=chosen)
        except (HydraException, OmegaConfBaseException):
            node = compose("config")
    *parents, last = key.split("@")[0].split(".")
    known: list[str] = []
    for parent in parents:
        inner = node.get(parent) if parent in node else None
        if not isinstance(inner, DictConfig):
            last = parent
            break
        node, known = inner, [*known, parent]
    options = sorted(str(option) for option in node)
    if not known:
        options = sorted({*options, *groups})
    where = ".".join(known)
    return (
        f"{key}: no such {'key in ' + where if where else 'group or key'}"
        f"{_guess(last, options)}; allowed: {', '.join(options)}"
    )


def _guess(name: str, options: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, options, n=1)
    return f", did you mean {close[0]}?" if close else ""


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(lines) < 2 or not text.startswith("Error parsing override") else f"{text}: {lines[1]}"


def compose_settings(overrides: list[str]) -> config.Settings:
    """The typed configuration that some overrides give, outside a run. Raises EdkdError for what does not fit."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(config.folder())):
            composed = compose("config", overrides=["distiller=vanilla", *overrides], return_hydra_config=False)
            return config.settings(resolve(composed), "vanilla")
    except (HydraException, OmegaConfBaseException) as error:
        raise EdkdError(explain(error)) from error
