"""Compose configurations of a run and of a sweep's jobs with Hydra, and explain errors in one line."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from edkd import CONF
from edkd.config import schema
from edkd.errors import EdkdError, did_you_mean

_LIBRARIES = ("torchvision", "timm")  # options of conf/student and conf/teacher that need an arch


def _without_hydra(composed: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])


def resolve(composed: DictConfig) -> dict[str, Any]:
    """A composed configuration without Hydra's own node, all interpolations resolved. Raises EdkdError if one fails."""
    plain = _without_hydra(composed)
    try:
        resolved = OmegaConf.to_container(plain, resolve=True)
    except OmegaConfBaseException as error:
        text = _first_line(error)
        _, missing, key = text.partition("Missing mandatory value: ")
        where = f"{error.full_key}: " if error.full_key else ""
        raise EdkdError(f"{key} has no value yet: set {key}=…" if missing else f"{where}{text}") from error
    assert isinstance(resolved, dict)
    if absent := sorted(OmegaConf.missing_keys(plain)):
        raise EdkdError(f"{absent[0]} has no value yet: set {absent[0]}=…")
    schema.refuse_unused(OmegaConf.to_yaml(plain), resolved)
    return {str(key): value for key, value in resolved.items()}


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """One line for a user: what was wrong with a command line of these overrides, what is allowed."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        if group == "teacher" and any((folder / "student" / f"{name}.yaml").exists() for folder in _folders()):
            needed = f"to teach, student/{name}.yaml needs a teacher/{name}.yaml beside it"
            return f"teacher={name}: no such option; {needed}"
        return f"{group}={name}: no such option{did_you_mean(name, error.options)}; allowed: {', '.join(error.options)}"
    text = _first_line(error)
    removed = [override for override in overrides if override.startswith("~")]
    if removed and text.startswith("Error resolving interpolation"):  # of a default such as tweak/…/${teacher}
        group = removed[0][1:].partition("=")[0]
        return f"{removed[0]}: a run needs one; allowed are the options of conf/{group}"
    if isinstance(error, UnicodeDecodeError) and (broken := undecodable()):
        return f"{broken}: YAML files are text in UTF-8, this one is not ({error.reason})"
    if isinstance(error, yaml.YAMLError):
        return " ".join(str(error).split())
    if found := re.match("In '(.+?)': (?:Could not load '(.+)'|.* raised while composing config:)", text):
        return _in_file(found[1], found[2], error.__context__)
    if text == "Input config does not have a `_target_` field":
        chosen = [each.partition("=")[2] for each in overrides if each.startswith("hydra/launcher=")]
        file = _file(f"hydra/launcher/{chosen[-1]}") if chosen else "hydra.launcher"
        return f"{file} does not say what it changes: it begins with `defaults: [slurm, _self_]`"
    if isinstance(error, ConfigCompositionException) and text.startswith("Could not override '"):
        return _unknown_key(text.split("'")[1], overrides)
    if isinstance(error, ConfigCompositionException) and text.startswith(("Ambiguous value", "Sweep parameters")):
        override = text.split("'")[1]
        return f"{override}: several values are a sweep: add -m"
    if text.startswith("Config group override must be a string"):
        return _unnamed_option(overrides) or text
    if isinstance(error, OverrideParseException):
        if "'<EOF>'" in text:
            return f"{error.override} is no KEY=VALUE: it ends where a value is expected"
        key, equals, value = error.override.partition("=")
        quotes = f"; if that is the value, it needs quotes of its own: \"{key}='{value}'\"" if equals and value else ""
        return f"{error.override} is no KEY=VALUE: {text}{quotes}"
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        text = f"{text}: {_first_line(error.__cause__)}"
    return text


def _unnamed_option(overrides: Sequence[str]) -> str | None:
    """Name the first override that chooses an option by a number, null or the like; None if none does."""
    parsed = OverridesParser.create().parse_overrides([text for text in overrides if "=" in text])
    for override in parsed:
        group, value = override.key_or_group, override.value()
        options = {path.stem for folder in _folders() for path in (folder / group).glob("*.yaml")}
        values = value.list if isinstance(value, ChoiceSweep) else [value]
        if options and not all(isinstance(each, str | list | QuotedString) for each in values):
            return f"{override.input_line}: an option's name is a text; allowed: {', '.join(sorted(options))}"
    return None


def _in_file(option: str, wanted: str | None, cause: BaseException | None) -> str:
    """What is wrong in the file of an option: it names another option that does not exist, or OmegaConf's error."""
    if wanted is not None:
        group, _, name = wanted.rpartition("/")
        there = sorted(path.stem for folder in _folders() for path in (folder / group).glob("*.yaml"))
        return (
            f"{_file(option)}: defaults: no such option {name}{did_you_mean(name, there)}; allowed: {', '.join(there)}"
        )
    package, key = option.rpartition("/")[0].replace("/", "."), getattr(cause, "key", None)
    where = f"{_file(option)}: {package}.{key}" if key is not None else _file(option)
    keys = getattr(getattr(cause, "object_type", None), "__dataclass_fields__", {})
    if isinstance(cause, ConfigKeyError):
        allowed = sorted(name for name in keys if name != "_target_")
        return f"{where}: no such key{did_you_mean(str(key), allowed)}; allowed: {', '.join(allowed)}"
    text = _first_line(cause) if cause is not None else "cannot be read"
    return f"{where}: must be a list, such as ['…']" if "is not a ListConfig" in text else f"{where}: {text}"


def undecodable() -> Path | None:
    """The file of an option that is not UTF-8; None where all are."""
    for path in (path for folder in _folders() for path in sorted(folder.rglob("*.yaml"))):
        try:
            path.read_text("utf-8")
        except UnicodeDecodeError:
            return path
    return None


def _file(option: str) -> str:
    """The file of an option, as a user finds it."""
    paths = [folder / f"{option}.yaml" for folder in _folders()]
    return str(next((path for path in paths if path.exists()), option))


def _folders() -> list[Path]:
    """Where options lie: in the user's folder, and in conf/."""
    own = own_folder()
    return [*([Path(own)] if own else []), CONF]


def _unknown_key(key: str, overrides: Sequence[str]) -> str:
    """The line for an unknown `key`; it lists the keys allowed there in the options that `overrides` choose."""
    if key == "dry_run":
        return "dry_run is no value of a run: write +dry_run=true"
    GlobalHydra.instance().clear()
    groups = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ("hydra", "tweak"))
    choosing = [*groups, "hydra/launcher", "hydra/sweeper"]
    chosen = [override for override in overrides if override.partition("=")[0] in choosing and "," not in override]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        try:
            composed = compose("config", overrides=[*chosen, *own_options()], return_hydra_config=True)
        except (HydraException, OmegaConfBaseException):
            composed = compose("config", return_hydra_config=True)
    node, choices = composed, composed.hydra.runtime.choices
    *parents, last = key.split("@")[0].split(".")
    known: list[str] = []
    for parent in parents:
        inner = node.get(parent) if parent in node else None
        if not isinstance(inner, DictConfig):
            last = parent
            break
        node, known = inner, [*known, parent]
    options = sorted(str(option) for option in node)
    if isinstance(node.get(last) if last in node else None, DictConfig):  # an override would add to a dictionary
        return f"{key}: it has no such entry yet; +{key}.NAME=VALUE adds one"
    if known and not options:
        return f"{key}: it has no such entry yet; +{key}=VALUE adds one"
    where = ".".join(known)
    if where == "hydra.launcher" and choices["hydra/launcher"] == "basic":
        return (
            f"{key}: no launcher is chosen that has values; hydra/launcher=local runs side by side, slurm on a cluster"
        )
    if where in choices:
        several = next((text for text in overrides if text.startswith(f"{where}=") and "," in text), None)
        where = f"{where}={choices[where]}"
        if several is not None:
            close = did_you_mean(last, options)
            return f"{key}: no such key in {where}{close}; ++{key}=… is checked with each of {several} instead"
    if not known:
        options = sorted({*options, *groups} - {"hydra"})
    return (
        f"{key}: no such {'key in ' + where if where else 'group or key'}"
        f"{did_you_mean(last, options)}; allowed: {', '.join(options)}"
    )


def own_folder() -> str | None:
    """The command line's --config-dir."""
    arguments = iter(sys.argv[1:])
    for option, equals, value in (each.partition("=") for each in arguments):
        if option in ("--config-dir", "-cd"):  # not argparse: it takes another command's -c FILE for an abbreviation
            return value if equals else next(arguments, None)
    return None


def own_options() -> list[str]:
    """The override that lets composition find the user's options in the command line's --config-dir."""
    config_dir = own_folder()
    if config_dir and not Path(config_dir).is_dir():
        raise EdkdError(f"--config-dir {config_dir}: there is no such folder")
    return [f"hydra.searchpath=[{quoted(f'file://{Path(config_dir).resolve()}')}]"] if config_dir else []


def set_output(master: DictConfig) -> None:
    """Give a sweep's own configuration the `output` of its command, which Hydra keeps for the sweep's jobs.

    The folders of launchers are below it.
    """
    for override in OverridesParser.create().parse_overrides(list(master.hydra.overrides.task)):
        if override.key_or_group == "output" and not override.is_sweep_override():
            master.output = override.value()


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def compose_settings(overrides: list[str]) -> schema.Settings:
    """The typed configuration that some overrides give, outside a run. Raises EdkdError for what does not fit."""
    return schema.settings(compose_values(["distiller=vanilla", *overrides]), "vanilla")


def chosen(role: str, name: str) -> list[str]:
    """The overrides that choose a network by its name in the teacher store: vgg13, torchvision_resnet34.

    role: student or teacher.
    """
    library, _, arch = name.partition("_")
    return [f"{role}={library}", f"{role}.arch={arch}"] if library in _LIBRARIES and arch else [f"{role}={name}"]


def compose_values(overrides: list[str]) -> dict[str, Any]:
    """The resolved configuration that some overrides give, outside a run. Raises EdkdError for what does not fit."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            return resolve(compose("config", overrides=[*overrides, *own_options()]))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise EdkdError(explain(error, overrides)) from error


def quoted(text: str) -> str:
    """A text quoted as the value of an override; quotes, backslashes and interpolations in it are escaped."""
    plain = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text)
    return "'{}'".format(plain.replace("${", "\\${"))


_SEED = re.compile(r"seed=(0|[1-9][0-9]*)")
_ABOUT_SEED = re.compile(r"(?<!\w)seed(?!\w)")
# An interpolation that names the seed, or that contains another one, so that its name is not known here.
_MAY_REFER_TO_SEED = re.compile(r"\$\{[^}]*((?<!\w)seed(?!\w)|\$\{)")


class Composer:
    """Composes jobs; `master` is the configuration that Hydra composed for the sweeper, with its own overrides."""

    def __init__(self, master: DictConfig, loader: ConfigLoader) -> None:
        self.master, self.loader = master, loader
        # Keyed by all overrides but the seed; the last item says whether other values may depend on the seed.
        self.composed: dict[tuple[str, ...], tuple[dict[str, Any], str, bool]] = {}

    def compose(self, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
        """The resolved configuration of a job and the name of its method. Raises EdkdError for what does not fit.

        Configurations share their parts, so the caller must not change them.
        """
        seeds = [text for text in overrides if _SEED.fullmatch(text)]
        others = tuple(text for text in overrides if text not in seeds)
        if len(seeds) != 1 or any(_ABOUT_SEED.search(text) for text in others):
            return self._by_hydra(overrides)[:2]
        if others not in self.composed:
            self.composed[others] = self._by_hydra(overrides)
        resolved, method, follows_seed = self.composed[others]
        if follows_seed:
            return self._by_hydra(overrides)[:2]
        return {**resolved, "seed": int(seeds[0].partition("=")[2])}, method

    def _by_hydra(self, overrides: Sequence[str]) -> tuple[dict[str, Any], str, bool]:
        try:
            composed = self.loader.load_sweep_config(self.master, list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise EdkdError(explain(error, overrides)) from error
        follows_seed = _MAY_REFER_TO_SEED.search(OmegaConf.to_yaml(_without_hydra(composed))) is not None
        return resolve(composed), composed.hydra.runtime.choices["distiller"], follows_seed
