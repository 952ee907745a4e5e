"""A method from outside the repository, as the README shows it: one Python file, one YAML file."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from edkd import CONF
from tests.commandline import REPOSITORY, Ended, error, files, journals, launch, python


def files_in(text: str) -> dict[str, str]:
    """The Python and YAML files that a page shows, by the name in their first line."""
    return dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", text, re.DOTALL))


def shown() -> tuple[dict[str, str], str]:
    """The files of the README's section, by the name in their first line, and its command."""
    readme = (REPOSITORY / "README.md").read_text()
    section = readme.partition("## A method of your own")[2].partition("\n## ")[0]
    (command,) = re.findall(r"^    (PYTHONPATH=.*)$", section, re.MULTILINE)
    return files_in(section), command


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
    sys.modules.pop("mse", None)
    return tmp_path


def edit(file: Path, text: str) -> None:
    """As an edit between two commands: the next one, in this process, imports it anew."""
    file.write_text(text)
    sys.modules.pop(file.stem, None)
    shutil.rmtree(file.with_name("__pycache__"), ignore_errors=True)


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
    assert done.out.splitlines()[-2].endswith(": 3 of 3 runs finished")
    found = journals(folder / "outputs")
    assert set(found) == {"vgg13/vanilla-s0", "vgg13-vgg8/kd-s0", "vgg13-vgg8/mse-s0"}
    start, epoch, end = found["vgg13-vgg8/mse-s0"]
    assert start["tags"]["distiller"] == "mse"
    assert start["config"]["distiller"] == {"_target_": "mse.MSE", "weight": 0.1}
    parts = epoch["metrics"]["train/loss_ce"] + epoch["metrics"]["train/loss_kd"]
    assert epoch["metrics"]["train/loss"] == pytest.approx(parts)
    assert end["event"] == "end"


def test_another_version_of_the_method_is_no_other_seed(tiny: list[str], folder: Path) -> None:
    command = ["--config-dir", "myconf", "-m", *tiny, "distiller=mse"]
    assert launch(*command).code == 0
    file = folder / "mse.py"
    edit(file, file.read_text().replace("self.weight *", "0 * self.weight *"))
    done = launch(*command, "seed=0,1")
    assert done.code == 0
    (warned,) = [line for line in done.err.splitlines() if "another version" in line]
    assert re.search(
        r"/mse-s0-\w+ was finished by another version of mse.MSE: to train it with this one, move ", warned
    )
    found = journals(folder / "outputs")
    first, second = found["resnet8-resnet8/mse-s0"][0], found["resnet8-resnet8/mse-s1"][0]
    assert "mse.MSE" in first["sources"] and "mse.MSE" in second["sources"]
    assert first["tags"]["cell"] != second["tags"]["cell"]
    edit(file, file.read_text().replace("0 * self.weight *", "self.weight *"))
    assert launch(*command, "seed=2").code == 0
    third = journals(folder / "outputs")["resnet8-resnet8/mse-s2"][0]
    assert third["tags"]["cell"] == first["tags"]["cell"]
    assert "mse.MSE" not in journals(folder / "outputs")["resnet8/vanilla-s0"][0]["sources"]


def test_a_run_is_not_continued_by_another_version_of_its_method(tiny: list[str], folder: Path) -> None:
    file = folder / "mse.py"
    whole = file.read_text()
    failing = "        if float(batch.epoch) > 1:\n            raise ValueError('one\\ntwo')\n        ce = "
    edit(file, whole.replace("        ce = ", failing))
    command = ["--config-dir", "myconf", "-m", *tiny, "distiller=mse"]
    failed = launch(*command)
    assert failed.code == 1
    assert "failed: ValueError: one; see " in failed.out and "\ntwo" not in failed.out + failed.err
    other_weights = "\n    def setup(self, spec):\n        self.norm = __import__('torch').nn.BatchNorm1d(2)\n"
    for version in (whole, whole + other_weights):
        edit(file, version)
        refused = launch(*command)
        assert refused.code == 1
        assert "the code of mse.MSE changed since " in refused.out
        assert " reached epoch 1: restore it, or move " in refused.out
    edit(file, whole)
    shutil.rmtree(next(folder.glob("outputs/runs/*/resnet8-resnet8/mse-s0-*")))
    assert launch(*command).code == 0


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("{'ce': ce}", "returned dict; it must return edkd.distillers.Outcome("),
        ("None", "returned NoneType; it must return"),
        ("Outcome({}, {})", "returned no loss; it must return"),
        ("Outcome({'ce': 1.0}, {})", "returned losses['ce'] as float; it must be a 0-dim tensor"),
        ("Outcome({'ce': ce}, {'y': 1.0})", "returned metrics['y'] as float; it must be a 0-dim tensor"),
        ("Outcome({'ce': ce.detach()}, {})", "returned losses without a gradient: none depends on the student"),
        ("Outcome({'ce': ce.expand(3)}, {})", "returned losses['ce'] as shape (3,); it must be a 0-dim tensor"),
        ("Outcome([ce], {})", "returned losses as list; it must be a dictionary"),
        ("Outcome({'ce': ce}, {'train/loss': ce})", "returned metrics['train/loss']; every run has metrics of its own"),
        ("Outcome({'ce': ce}, {}, student.logits[:, 0])", "returned logits of shape (64,); 64 images have shape (64, "),
        (
            "Outcome({'ce': ce}, {}, None, {'p': ce})",
            "returned by_class['p'] as shape (); it must be a tensor of shape",
        ),
    ],
)
def test_what_a_method_may_not_return(tiny: list[str], folder: Path, returned: str, said: str) -> None:
    file = folder / "mse.py"
    assert "return Outcome(losses" in file.read_text()
    edit(file, re.sub("return Outcome.*", f"return {returned}", file.read_text()))
    done = launch("--config-dir", "myconf", "-m", *tiny, "distiller=mse")
    assert done.code == 1
    assert f"failed: mse.MSE {said}" in done.out


def test_ones_own_student_without_a_file_to_teach(tiny: list[str], folder: Path) -> None:
    (folder / "myconf/student").mkdir()
    shutil.copy(CONF / "student" / "resnet8.yaml", folder / "myconf/student/mynet.yaml")
    said = error(run(tiny, "teacher=mynet"))
    assert said == "teacher=mynet: no such option; to teach, student/mynet.yaml needs a teacher/mynet.yaml beside it"


def test_the_pages_optimiser(tiny: list[str], folder: Path) -> None:
    shown = files_in((REPOSITORY / "docs/extending.md").read_text())
    (folder / "myconf/optimizer").mkdir()
    for name in ("adamw.py", "myconf/optimizer/adamw.yaml"):
        (folder / name).write_text(shown[name])
    sys.modules.pop("adamw", None)
    done = launch("--config-dir", "myconf", *tiny, "distiller=vanilla", "optimizer=adamw", "schedule.lr=0.01")
    assert done.code == 0, done
    (records,) = journals(folder / "outputs").values()
    assert set(records[0]["sources"]) == {"adamw.AdamW"}
    first, second = (record["metrics"]["train/loss"] for record in records if record["event"] == "epoch")
    assert second < first


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
        ({"beta": 2.0}, "", "distiller.beta: no such value; allowed: weight"),
        ({"weight": None}, "", "distiller.weight is missing; see conf/distiller"),
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
    methods = sorted(["mse", *(path.stem for path in (CONF / "distiller").glob("*.yaml"))])
    assert message == f"distiller=mes: no such option, did you mean mse?; allowed: {', '.join(methods)}"


def test_nothing_in_the_repository_knows_the_method() -> None:
    assert not (CONF / "distiller" / "mse.yaml").exists()


def test_a_method_with_a_module_of_its_own(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in files_in((REPOSITORY / "docs" / "extending.md").read_text()).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    done = launch("--config-dir", "myconf", "-m", *tiny, "student=resnet14", "distiller=hint")
    assert done.code == 0, done
    _, first, last, _ = journals(tmp_path / "outputs")["resnet8-resnet14/hint-s0"]
    assert last["metrics"]["train/loss_kd"] < first["metrics"]["train/loss_kd"]
