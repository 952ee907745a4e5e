"""Imports point down only: the design's direction, checked over the syntax trees of everything that is shipped."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "edkd",
    "edkd/bench",
    "edkd/data",
    "edkd/distillers",
    "edkd/models",
    "hydra_plugins/edkd_slurm",
    "hydra_plugins/edkd_sweeper",
    "analysis",
)


class Import(NamedTuple):
    name: str
    """Dotted and absolute; of `from a import b` it is a.b."""
    line: int
    at_top: bool
    """Whether importing the module runs it: neither inside a function nor for type checking only."""


class Rule(NamedTuple):
    """Within `where`, whatever is under `banned` is refused, unless it is under `allowed`. All are dotted prefixes."""

    where: tuple[str, ...]
    banned: tuple[str, ...]
    allowed: tuple[str, ...] = ()
    but: tuple[str, ...] = ()
    """Modules under `where` that the rule does not speak of."""


FOUNDATIONS = (
    "edkd.losses",
    "edkd.models",
    "edkd.data",
    "edkd.building",
    "edkd.files",
    "edkd.lock",
    "edkd.errors",
)
EVERYTHING = ("edkd", "hydra_plugins", "analysis", "launch")
KNOW_HYDRA = ("edkd.app", "edkd.compose", "edkd.composer", "edkd.planning", "edkd.sweep", "hydra_plugins")
RULES = (
    *(Rule((module,), banned=EVERYTHING, allowed=("edkd.errors", module)) for module in FOUNDATIONS),
    Rule(("edkd.journal",), banned=EVERYTHING, allowed=("edkd.errors", "edkd.files", "edkd.lock")),
    Rule(("edkd.checkpoint",), banned=EVERYTHING, allowed=("edkd.errors", "edkd.files")),
    Rule(
        ("edkd.distillers",),
        banned=EVERYTHING,
        allowed=("edkd.losses", "edkd.models.base", "edkd.errors", "edkd.distillers"),
    ),
    Rule(("edkd.trainer",), banned=("edkd.distillers",), allowed=("edkd.distillers.base",)),
    Rule(("edkd",), banned=("hydra_plugins", "analysis", "launch")),
    Rule(EVERYTHING, banned=("edkd.bench",), but=("edkd.bench", "edkd.cli")),
    Rule(EVERYTHING, banned=("hydra", "omegaconf"), but=KNOW_HYDRA),
    Rule(EVERYTHING, banned=("mlflow",), but=("edkd.tracking",)),
    Rule(EVERYTHING, banned=("pandas",), but=("analysis",)),
    Rule(
        ("analysis",),
        banned=("torch", "torchvision", "edkd"),
        allowed=("edkd.tracking", "edkd.errors", "edkd.journal", "edkd.wording"),
    ),
)
# Importing the first, with all that this imports in turn within the project, must not load the second.
LIGHT = (
    ("hydra_plugins", ("torch", "torchvision", "mlflow")),
    ("analysis", ("torch", "torchvision")),
    ("edkd.tracking", ("torch", "torchvision")),
    ("edkd.journal", ("torch", "torchvision")),
    ("edkd.cli", ("torch", "torchvision", "mlflow")),
    ("edkd.status", ("torch", "torchvision", "mlflow")),
    ("edkd.roster", ("torch", "torchvision", "mlflow")),
    ("edkd.selection", ("torch", "torchvision", "mlflow")),
    ("edkd.board", ("torch", "torchvision", "mlflow")),
)


def under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def imports_of(module: str, source: str, is_package: bool = False) -> list[Import]:
    """Every import of a module, wherever it stands, also `importlib.import_module("...")` with a literal."""

    def absolute(node: ast.ImportFrom) -> str:
        if node.level == 0:
            return node.module or ""
        parents = module.split(".")
        base = parents[: len(parents) - node.level + is_package]
        return ".".join([*base, node.module] if node.module else base)

    def visit(node: ast.AST, at_top: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (Import(f"{absolute(node)}.{alias.name}", node.lineno, at_top) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (
                Import(argument.value, node.lineno, at_top)
                for argument in node.args[:1]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            )
        if isinstance(node, ast.If) and ast.unparse(node.test).split(".")[-1] == "TYPE_CHECKING":
            children = [(child, False) for child in node.body] + [(child, at_top) for child in node.orelse]
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            children = [(child, at_top and not inside) for child in ast.iter_child_nodes(node)]
        for child, top in children:
            yield from visit(child, top)

    return list(visit(ast.parse(source), at_top=True))


def project(root: Path) -> dict[str, list[Import]]:
    """The imports of every module that is shipped, by dotted name."""
    files = [path for package in ("edkd", "hydra_plugins", "analysis") for path in (root / package).rglob("*.py")]
    files += [path for path in (root / "launch.py",) if path.exists()]
    modules = {}
    for path in sorted(files):
        is_package = path.name == "__init__.py"
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if is_package else parts)
        modules[name] = imports_of(name, path.read_text(encoding="utf-8"), is_package)
    return modules


def broken(rule: Rule, modules: dict[str, list[Import]]) -> list[str]:
    """The imports that a rule refuses, each as `module:line imports name`."""
    return [
        f"{module}:{found.line} imports {found.name}"
        for module, imports in modules.items()
        if under(module, rule.where) and not under(module, rule.but)
        for found in imports
        if under(found.name, rule.banned) and not under(found.name, rule.allowed)
    ]


def loaded(module: str, modules: dict[str, list[Import]]) -> dict[str, str]:
    """Everything that importing a module loads, each with the chain of modules that leads to it."""
    chains: dict[str, str] = {}
    pending = [(module, module)]
    while pending:
        name, chain = pending.pop()
        # Importing a.b.c runs a and a.b first; of `from a import b`, a.b may be a module or merely a name in a.
        for end in range(1, name.count(".") + 2):
            part = ".".join(name.split(".")[:end])
            if part in chains:
                continue
            chains[part] = chain
            pending += [(found.name, f"{chain} -> {found.name}") for found in modules.get(part, []) if found.at_top]
    return chains


@pytest.fixture(scope="module")
def modules() -> dict[str, list[Import]]:
    return project(ROOT)


@pytest.mark.parametrize("package", PACKAGES)
def test_there_is_something_to_check(package: str, modules: dict[str, list[Import]]) -> None:
    assert any(under(module, (package.replace("/", "."),)) for module in modules), f"{package} holds no Python file"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{'+'.join(rule.where)} not {'+'.join(rule.banned)}")
def test_imports_point_down(rule: Rule, modules: dict[str, list[Import]]) -> None:
    assert broken(rule, modules) == []


@pytest.mark.parametrize(("light", "heavy"), LIGHT, ids=[light for light, _ in LIGHT])
def test_light_modules_load_nothing_heavy(light: str, heavy: tuple[str, ...], modules: dict[str, list[Import]]) -> None:
    starts = [module for module in modules if under(module, (light,))]
    assert starts, f"there is no {light}"
    chains = [chain for start in starts for name, chain in loaded(start, modules).items() if name in heavy]
    assert chains == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("edkd.losses", "from edkd.models.base import Prediction"),
        ("edkd.lock", "from edkd import journal"),
        ("edkd.checkpoint", "from edkd import journal"),
        ("edkd.building", "from edkd import config"),
        ("edkd.models.resnet", "import edkd.losses"),
        ("edkd.models.resnet", "from .. import losses"),
        ("edkd.data.batches", "def f():\n    from edkd import trainer"),
        ("edkd.distillers.kd", "from edkd.models.resnet import resnet8"),
        ("edkd.distillers.kd", "from edkd import trainer"),
        ("edkd.trainer", "from edkd.distillers.kd import KD"),
        ("edkd.trainer", "import importlib\nimportlib.import_module('edkd.distillers.kd')"),
        ("edkd.trainer", "from omegaconf import OmegaConf"),
        ("edkd.run", "from mlflow.tracking import MlflowClient"),
        ("edkd.teachers", "import hydra.utils"),
        ("edkd.tracking", "import pandas as pd"),
        ("edkd.trainer", "from edkd.bench import plain"),
        ("edkd.run", "import analysis.load"),
        ("analysis.load", "import torch"),
        ("analysis.load", "from edkd.run import run"),
        ("analysis.load", "import mlflow"),
    ],
)
def test_an_import_upwards_is_noticed(module: str, source: str) -> None:
    modules = {module: imports_of(module, source)}
    assert any(broken(rule, modules) for rule in RULES)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("edkd.losses", "from edkd.errors import EdkdError"),
        ("edkd.models.resnet", "from .base import Prediction"),
        ("edkd.distillers.edkd", "from edkd import losses\nfrom edkd.models.base import Prediction"),
        ("edkd.trainer", "from edkd.distillers.base import Distiller"),
        ("edkd.tracking", "import mlflow"),
        ("hydra_plugins.edkd_sweeper", "from edkd.sweep import plan\nimport omegaconf"),
        ("analysis.load", "import pandas\nfrom edkd import tracking"),
        ("edkd.journal", "import hydrant, torchless"),
    ],
)
def test_an_import_downwards_is_fine(module: str, source: str) -> None:
    modules = {module: imports_of(module, source)}
    assert [message for rule in RULES for message in broken(rule, modules)] == []


def test_relative_imports_are_resolved() -> None:
    source = "from . import a\nfrom .b import c\nfrom ..d import e"
    assert [found.name for found in imports_of("p.q", source, is_package=True)] == ["p.q.a", "p.q.b.c", "p.d.e"]
    assert [found.name for found in imports_of("p.q.r", source)] == ["p.q.a", "p.q.b.c", "p.d.e"]


def test_heavy_modules_are_found_through_others_but_not_in_functions() -> None:
    sources = {
        "edkd": "",
        "edkd.sweep": "from edkd.run import run",
        "edkd.run": "try:\n    from torch import nn\nexcept ImportError:\n    nn = None",
        "edkd.late": "def f():\n    import torch",
        "edkd.typed": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
    }
    modules = {name: imports_of(name, source) for name, source in sources.items()}
    assert loaded("edkd.sweep", modules)["torch"] == "edkd.sweep -> edkd.run.run -> torch.nn"
    assert "torch" not in loaded("edkd.late", modules)
    assert "torch" not in loaded("edkd.typed", modules)
