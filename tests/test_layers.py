"""A package imports only packages of lower layers, and the commands start without what they do not need."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [  # from the ground up; packages of one layer do not import each other
    {"errors", "console"},
    {"models", "losses"},
    {"data", "rundir", "distillers"},
    {"tracking", "teachers", "config"},
    {"training", "importers"},
    {"runs"},
    {"slurm", "bench"},
    {"status"},
    {"sweeps"},
    {"cli"},
    {"hydra_plugins", "launch"},
]
OUTSIDE = {"analysis": {"tracking", "rundir", "errors", "console"}}
KNOWN_BY = {  # third-party package: who may import it
    "hydra": ("edkd/config/compose.py", "edkd/sweeps", "edkd/cli/launch.py", "hydra_plugins"),
    "omegaconf": ("edkd/config/compose.py", "edkd/sweeps", "edkd/cli/launch.py", "hydra_plugins"),
    "mlflow": ("edkd/tracking",),
    "optuna": ("edkd/runs/pruning.py", *(f"edkd/sweeps/{name}.py" for name in ("search", "space", "trials"))),
    "pandas": ("analysis",),
    "matplotlib": ("analysis/figures", "analysis/html_figures.py"),
    "jinja2": ("analysis/html_report.py",),
}
LIGHT = {  # what these load when they are imported, they need at once
    "edkd.status.state": {"torch", "mlflow", "hydra"},
    "edkd.rundir.journal": {"torch", "mlflow", "hydra"},
    "edkd.cli.main": {"torch", "mlflow", "hydra"},
    "edkd.cli.launch": {"torch", "mlflow", "optuna", "pandas"},
    "analysis": {"torch", "hydra"},
    "analysis.figures": {"torch", "mlflow", "hydra"},
    "edkd.data.sources": {"torch", "torchvision", "sklearn", "PIL"},
    "hydra_plugins.edkd_sweeper.sweeper": {"torch", "mlflow"},
    "hydra_plugins.edkd_slurm": {"torch", "mlflow"},
}


def sources() -> list[Path]:
    folders = (ROOT / "edkd", ROOT / "analysis", ROOT / "hydra_plugins")
    return [ROOT / "launch.py", *(path for folder in folders for path in sorted(folder.rglob("*.py")))]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "edkd" else parts[0]


def below(name: str) -> set[str]:
    height = next(number for number, layer in enumerate(LAYERS) if name in layer)
    return {name}.union(*LAYERS[:height])


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    name = package(path)
    if name == "__init__":  # of edkd itself
        assert not [each for each in imports(path) if each.startswith("edkd")]
        return
    allowed = {"CONF", "__version__"} | (OUTSIDE[name] if name in OUTSIDE else below(name))
    for each in imports(path):
        top, _, inner = each.partition(".")
        if top == "edkd":
            assert inner.split(".")[0] in allowed, f"{path.relative_to(ROOT)} imports {each}"
        elif top in KNOWN_BY:
            places = tuple(str(ROOT / place) for place in KNOWN_BY[top])
            assert str(path).startswith(places), f"{path.relative_to(ROOT)} imports {each}"


def test_beside_the_packages_there_is_little() -> None:
    assert {path.name for path in (ROOT / "edkd").glob("*.py")} == {"__init__.py", "console.py", "errors.py"}


@pytest.mark.parametrize("module", LIGHT)
def test_what_starts_quickly(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not LIGHT[module] & set(done.stdout.split())
