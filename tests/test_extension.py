"""A method from outside the repository, as the README shows it: one Python file, one YAML file."""

import re
from pathlib import Path

import pytest
import yaml
from commandline import REPOSITORY, Ended, error, files, journals, launch, python

from edkd import config


def shown() -> tuple[dict[str, str], str]:
    """The files of the README's section, by the name in their first line, and its command."""
    readme = (REPOSITORY / "README.md").read_text()
    section = readme.partition("## A method of your own")[2].partition("\n## ")[0]
    blocks = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", section, re.DOTALL)
    (command,) = re.findall(r"^    (PYTHONPATH=.*)$", section, re.MULTILINE)
    return dict(blocks), command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the README's two files, where its command is given."""
    blocks, _ = shown()
    assert set(blocks) == {"mse.py", "myconf/distiller/mse.yaml"}
    for name, text in blocks.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def configured(folder: Path, **changes: object) -> None:
    path = folder / "myconf" / "distiller" / "mse.yaml"
    values = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({name: value for name, value in values.items() if value is not None}))


def run(tiny: list[str], *arguments: str) -> Ended:
    return launch("--config-dir", "myconf", *tiny, "distiller=mse", *arguments)


def test_the_readmes_command(tiny: list[str], folder: Path) -> None:
    environment, program, script, *arguments = shown()[1].split()
    assert (environment, program, script) == ("PYTHONPATH=.", "python", "launch.py")
    assert "--config-dir" in arguments and "distiller=kd,mse" in arguments and "pair=vgg13-vgg8" in arguments
    small = [each for each in tiny if not each.startswith(("teacher=", "student="))]
    small += ["schedule.epochs=1", "dataset.train_per_class=8"]
    done = python(str(REPOSITORY / "launch.py"), *arguments, *small, PYTHONPATH=".")
    assert done.code == 0, done
    assert done.out.splitlines()[-1].endswith(": 3 of 3 runs finished")
    found = journals(folder / "outputs")
    assert set(found) == {"vgg13/vanilla-s0", "vgg13-vgg8/kd-s0", "vgg13-vgg8/mse-s0"}
    start, epoch, end = found["vgg13-vgg8/mse-s0"]
    assert start["tags"]["distiller"] == "mse"
    assert start["config"]["distiller"] == {"_target_": "mse.MSE", "weight": 0.1}
    parts = epoch["metrics"]["train/loss_ce"] + epoch["metrics"]["train/loss_kd"]
    assert epoch["metrics"]["train/loss"] == pytest.approx(parts)
    assert end["event"] == "end"


def test_a_run_of_its_own_with_its_own_tweak(tiny: list[str], folder: Path) -> None:
    tweak = folder / "myconf" / "tweak" / "mse" / "resnet8-resnet8.yaml"
    tweak.parent.mkdir(parents=True)
    tweak.write_text("# @package distiller\nweight: 0.5\n")
    assert launch(*tiny, "distiller=vanilla", "schedule.epochs=1").code == 0
    done = run(tiny, "schedule.epochs=1")
    assert done.code == 0, done
    start = journals(folder / "outputs")["resnet8-resnet8/mse-s0"][0]
    assert start["config"]["distiller"]["weight"] == 0.5


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, "distiller.weigth=2", "distiller.weigth: no such key in distiller=mse, did you mean weight?; allowed: "),
        ({"beta": 2.0}, "", "distiller.beta: mse.MSE takes no such value; allowed: weight"),
        ({"weight": None}, "", "distiller.weight is missing: mse.MSE needs it"),
        ({"weight": "much"}, "", "distiller.weight=much: must be a number"),
        ({}, "distiller.weight=[1]", "distiller.weight=[1]: must be a number"),
        ({"_target_": "mse.MES"}, "", "distiller._target_: cannot import mse.MES: "),
        ({"_target_": "mes.MSE"}, "", "distiller._target_: cannot import mes.MSE: No module named 'mes'"),
        ({"_target_": None}, "", "distiller._target_ must be the dotted path of a class or function, not None"),
    ],
)
def test_a_mistake_is_one_line(
    tiny: list[str], folder: Path, changes: dict[str, object], arguments: str, message: str
) -> None:
    configured(folder, **changes)
    before = files(folder)
    assert error(run(tiny, *arguments.split())).startswith(message)
    assert {name for name in files(folder) - before if "__pycache__" not in name} == set()


def test_a_misspelt_name_is_told_with_the_methods_from_both_places(tiny: list[str], folder: Path) -> None:
    message = error(launch("--config-dir", "myconf", *tiny, "distiller=mes"))
    assert message == "distiller=mes: no such option, did you mean mse?; allowed: dkd, edkd, kd, mse, vanilla"


def test_nothing_in_the_repository_knows_the_method() -> None:
    assert not (config.folder() / "distiller" / "mse.yaml").exists()
