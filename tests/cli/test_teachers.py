"""The commands about trained networks, on runs that `launch.py` made."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from edkd import models
from edkd.console import size
from edkd.data import _torchvision
from edkd.rundir import checkpoint
from edkd.teachers import store as teacher_store
from tests.commandline import DIGITS, Ended, edkd, error, files, journals, launch, python, run_file

KEY = "digits-8-20perclass-test10"


def end(output: Path, name: str) -> dict[str, Any]:
    return journals(output)[name][-1]


def said(values: dict[str, Any]) -> str:
    return f"top-1 {values['top1']:.2f} %  top-5 {values['top5']:.2f} %  loss {values['loss']:.4f}"


def evaluate(*arguments: str) -> Ended:
    return edkd("evaluate", "-m", "resnet8", "-d", "digits", *arguments, *DIGITS)


# ---- evaluate


def test_a_stored_teacher(output: Path) -> None:
    before = files(output)
    done = evaluate()
    assert done.code == 0, done
    run = journals(output)["resnet8/vanilla-s0"][0]["run"]
    expected = said(end(output, "resnet8/vanilla-s0")["last"])
    assert done.out.startswith(f"resnet8 on {KEY} (teacher run:{run})\n{expected}\ncalibration error ")
    assert files(output) == before


def test_evaluation_in_fp32_is_fp32(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's default
    assert evaluate("engine.threads=1").code == 0
    assert not torch.backends.cudnn.allow_tf32 and torch.get_num_threads() == 1


def test_the_output_folder_as_an_option(output: Path, tmp_path: Path) -> None:
    shutil.copytree(output / "teachers", tmp_path / "of two, words" / "teachers")
    done = evaluate("--output", str(tmp_path / "of two, words"))
    assert done.code == 0, done
    done = evaluate("--output", str(tmp_path))
    assert done.code == 1 and str(tmp_path) in done.err, done
    done = edkd("teachers", "cache", "resnet8", "-d", "digits", "--output", str(tmp_path), *DIGITS)
    assert done.code == 1 and str(tmp_path) in done.err, done


def test_a_network_of_ones_own(output: Path) -> None:
    (output.parent / "own" / "student").mkdir(parents=True)
    (output.parent / "own" / "student" / "mine.yaml").write_text(
        "name: resnet8\nlr: 0.05\nmodel: {_target_: edkd.models.resnet8}\n"
    )
    done = python("-m", "edkd.cli.main", "evaluate", "-m", "mine", "-d", "digits", "--config-dir", "own", *DIGITS)
    assert (done.code, done.err) == (0, "")
    assert f"\n{said(end(output, 'resnet8/vanilla-s0')['last'])}\n" in done.out
    assert error(edkd("evaluate", "-m", "mine", "-d", "digits", "--config-dir", "others", *DIGITS)) == (
        "--config-dir others: there is no such folder"
    )


def test_as_a_module_in_a_process_of_its_own(output: Path) -> None:
    done = python("-m", "edkd.cli.main", "evaluate", "-m", "resnet8", "-d", "digits", *DIGITS)
    assert (done.code, done.err) == (0, "")
    assert f"\n{said(end(output, 'resnet8/vanilla-s0')['last'])}\n" in done.out


@pytest.mark.parametrize(("file", "which"), [("last.pt", "last"), ("best.pt", "best")])
def test_a_file_of_ours(output: Path, file: str, which: str) -> None:
    path = run_file(output, "kd", file)
    done = evaluate("-c", str(path))
    assert done.code == 0, done
    assert done.out.startswith(f"resnet8 on {KEY} ({path})\n{said(end(output, 'resnet8-resnet8/kd-s0')[which])}\n")


@pytest.mark.parametrize("prefix", ["", "module.", "module.student."])
def test_a_file_of_the_fields(output: Path, prefix: str) -> None:
    state = checkpoint.load_weights(run_file(output, "kd", "last.pt"))
    torch.save({"epoch": 240, "model": {f"{prefix}{key}": value for key, value in state.items()}}, "theirs.pth")
    done = evaluate("-c", "theirs.pth")
    assert done.code == 0, done
    assert f"\n{said(end(output, 'resnet8-resnet8/kd-s0')['last'])}\n" in done.out


def test_a_student_that_ends_in_its_method(output: Path) -> None:
    common = ["dataset=digits", *DIGITS, "schedule=short", "schedule.epochs=1", "tracking=journal", "teacher=resnet8"]
    done = launch(*common, "student=resnet8", "distiller=simkd", "engine.threads=1")
    assert done.code == 0, done
    last = journals(output)["resnet8-resnet8/simkd-s0"][-2]["metrics"]
    path = run_file(output, "simkd", "last.pt")
    found = json.loads(evaluate("-c", str(path), "--teacher", "resnet8", "--json").out)
    for name in ("top1", "top5", "loss", "ece", "agreement", "kl_teacher"):
        assert found[name] == last[f"test/{name}"]

    content = torch.load(path, weights_only=True)
    method = {f"distiller.{key}": value for key, value in content["distiller"].items()}
    student = {f"student.{key}": value for key, value in content["model"].items()}
    checkpoint.save({"epoch": 1, "model": student | method}, path.parent / "checkpoint.pt")
    unfinished = error(evaluate("-c", str(path.parent / "checkpoint.pt")))
    assert "distiller=simkd ends in modules of its method" in unfinished and "name best.pt, which" in unfinished

    Path("moved.pt").write_bytes(path.read_bytes())
    named = evaluate("-c", "moved.pt", "--teacher", "resnet8", "--json", "distiller=simkd")
    assert json.loads(named.out)["loss"] == found["loss"]
    assert error(evaluate("-c", "moved.pt")) == (
        "moved.pt: the student ends in modules of its method (`distiller` in the file), and lies in no run's "
        "directory: name the method and its teacher, such as distiller=simkd teacher=resnet32x4"
    )
    assert error(evaluate("-c", "moved.pt", "distiller=simkd", "teacher=resnet32x4")).startswith(
        "moved.pt (distiller) does not fit the architecture SimKD: of 20 entries "
    )
    assert error(import_(str(path), "--replace")).endswith(" ends in modules of the method, and can be no teacher")


def test_all_that_is_measured(output: Path) -> None:
    path = str(run_file(output, "kd", "last.pt"))
    done = evaluate("-c", path, "--teacher", "resnet8", "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    last = journals(output)["resnet8-resnet8/kd-s0"][-2]["metrics"]
    for name in ("top1", "top5", "loss", "ece", "agreement", "kl_teacher"):  # the run has measured them, too
        assert found[name] == last[f"test/{name}"]
    assert [(each["name"], each["images"]) for each in found["classes"]] == [(str(n), 10) for n in range(10)]
    assert sum(each["top1"] for each in found["classes"]) / 10 == pytest.approx(found["top1"])
    assert (found["images"], found["weights"], found["teacher"]) == (100, path, "resnet8")

    rows = [line.split(",") for line in evaluate("-c", path, "--csv").out.splitlines()]
    assert rows[0] == ["class", "images", "top1"]
    assert rows[1:] == [[each["name"], "10", str(each["top1"])] for each in found["classes"]]

    lines = evaluate("-c", path, "--teacher", "resnet8").out.splitlines()
    assert lines[2].startswith(f"calibration error {found['ece']:.2f} %  100 images, ")
    assert lines[3] == f"agreement with resnet8 {found['agreement']:.2f} %  KL from it {found['kl_teacher']:.4f}"
    accuracies = sorted(each["top1"] for each in found["classes"])
    assert [float(part.split()[-2]) for part in lines[4].split(": ")[1].split(",")] == accuracies[:5]
    assert [float(part.split()[-2]) for part in lines[5].split(": ")[1].split(",")] == accuracies[:4:-1]


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (lambda: models.resnet14(num_classes=10).state_dict(), "; it fits resnet14 with 10 classes"),
        (lambda: models.resnet8(num_classes=7).state_dict(), "; it fits resnet8 with 7 classes"),
        (
            lambda: models.vgg8(num_classes=10).state_dict() | {"extra": torch.zeros(1)},
            "; the closest network is vgg8 with 32 of 33 entries",
        ),
        (lambda: {"weight": torch.zeros(1)}, "; no network here has an entry of it"),
    ],
)
def test_weights_of_another_network(output: Path, weights: Any, said: str) -> None:
    torch.save(weights(), "other.pt")
    message = error(evaluate("-c", "other.pt"))
    assert message.startswith("other.pt does not fit the architecture ResNet: of 56 entries ") and said in message


def test_weights_that_are_not_finite(output: Path) -> None:
    state = checkpoint.load_weights(run_file(output, "kd", "last.pt"))
    torch.save({name: value * float("nan") for name, value in state.items()}, "nan.pt")
    done = evaluate("-c", "nan.pt")
    assert (done.code, "  loss nan\n" in done.out) == (0, True)
    assert done.err == "edkd: nan.pt: the network's logits are not finite, so that its accuracies mean nothing\n"


def test_what_cannot_be_evaluated(output: Path) -> None:
    before = files(output)
    (output.parent / "broken.pt").write_bytes(b"PK\x03\x04 and no more")
    torch.save({"model": {"weight": torch.zeros(1)}}, output.parent / "other.pt")
    assert "nowhere.pt" in error(evaluate("-c", "nowhere.pt"))
    assert "broken.pt" in error(evaluate("-c", "broken.pt"))
    assert error(evaluate("-c", "other.pt")).startswith("other.pt")
    assert error(edkd("evaluate", "-m", "vgg8", "-d", "digits", *DIGITS)).startswith(
        f"no teacher vgg8 of {KEY} in outputs/teachers (there: resnet8); -c FILE names a checkpoint"
    )
    assert error(edkd("evaluate", "-m", "resnet8", "-d", "digits")).startswith(
        f"no teacher resnet8 of digits-16 in outputs/teachers (there: none; resnet8 of {KEY} by dataset=digits "
        "dataset.image_size=8 dataset.train_per_class=20 dataset.test_per_class=10); -c FILE names a "
    )
    assert error(edkd("evaluate", "-m", "vgg9", "-d", "digits")).startswith(
        "student=vgg9: no such option, did you mean vgg19?; allowed: imagenet_resnet18, "
    )
    assert error(edkd("evaluate", "-m", "vgg8", "-d", "3")).startswith("dataset=3: ")
    assert error(edkd("evaluate", "-m", "vgg8", "-d", "digit")).startswith(
        "dataset=digit: no such option, did you mean digits?; allowed: cifar100, digits, folder"
    )
    assert error(edkd("evaluate", "-m", "vgg8", "-d", "digits", "dataset.root=x")).startswith(
        "dataset.root: no such key in dataset=digits; allowed: flip, image_size, "
    )
    assert files(output) == before


def test_a_checkpoint_of_a_run_is_measured_on_the_data_of_that_run(output: Path) -> None:
    file = str(run_file(output, "kd", "last.pt"))
    done = edkd("evaluate", "-m", "resnet8", "-c", file)
    assert (done.code, done.out.partition(" images")[0]) == (0, evaluate("-c", file).out.partition(" images")[0])
    assert " 50 images, " in edkd("evaluate", "-m", "resnet8", "-c", file, "dataset.test_per_class=5").out


def test_the_data_of_a_run_need_no_option(output: Path) -> None:
    """They are taken as they were frozen, with their normalisation and whatever their option was called."""
    file = run_file(output, "kd", "last.pt")
    config = yaml.safe_load((file.parent / "config.yaml").read_text())
    config["dataset"] |= {"name": "shades", "mean": [0.9, 0.9, 0.9], "std": [0.05, 0.05, 0.05]}
    (file.parent / "config.yaml").write_text(yaml.safe_dump(config))
    normalised = ("dataset.mean=[0.9,0.9,0.9]", "dataset.std=[0.05,0.05,0.05]")
    done = edkd("evaluate", "-m", "resnet8", "-c", str(file))
    assert done.out.startswith("resnet8 on shades-"), done
    assert done.out.splitlines()[1] == evaluate("-c", str(file), *normalised).out.splitlines()[1]
    assert done.out.splitlines()[1] != evaluate("-c", str(file)).out.splitlines()[1]


def test_values_of_the_source_win_over_those_of_the_run(output: Path) -> None:
    file = str(run_file(output, "kd", "last.pt"))
    larger = "++dataset.source.image_size=16"
    evaluated = [edkd("evaluate", "-m", "resnet8", "-c", file, *more) for more in ([], [larger])]
    assert evaluated[0].code == evaluated[1].code == 0
    assert evaluated[0].out.splitlines()[1] != evaluated[1].out.splitlines()[1]


@pytest.mark.parametrize("text", ["dataset: cifar100\n", "dataset: {mean: [0.9, 0.9, 0.9], std: [0.1, 0.1, 0.1]}\n"])
def test_a_configuration_of_another_program_is_none_of_a_run(output: Path, tmp_path: Path, text: str) -> None:
    shutil.copy(run_file(output, "kd", "last.pt"), tmp_path / "field.pt")
    (tmp_path / "config.yaml").write_text(text)
    message = error(edkd("evaluate", "-m", "resnet8", "-c", "field.pt", "dataset.root=x", "dataset.download=false"))
    assert message.startswith("CIFAR-100 not found: looked for x/cifar-100-python")


def test_the_default_data_set_is_cifar100(output: Path) -> None:
    shutil.copy(run_file(output, "kd", "last.pt"), "elsewhere.pt")
    message = error(edkd("evaluate", "-m", "resnet8", "-c", "elsewhere.pt", "dataset.download=false"))
    assert message.startswith("CIFAR-100 not found: looked for data/cifar-100-python; dataset.root=DIR names ")


# ---- teachers


def test_the_list_of_teachers(output: Path) -> None:
    run = journals(output)["resnet8/vanilla-s0"][0]["run"]
    top1 = end(output, "resnet8/vanilla-s0")["last"]["top1"]
    done = edkd("teachers", "list")
    assert (done.code, done.err) == (0, "")
    head, row = done.out.splitlines()
    assert head.split() == ["name", "data", "top-1", "%", "epochs", "recipe", "origin", "cache"]
    assert row.split()[:4] == ["resnet8", KEY, f"{top1:.2f}", "2"]
    (cache,) = output.glob("teachers/*/*.logits")
    assert row.endswith(f"  run {run[:8]}  {size(cache.stat().st_blocks * 512)}")

    empty = edkd("teachers", "list", "--output", "elsewhere")
    assert empty.code == 0 and empty.out.startswith("no teachers in elsewhere/teachers; ")

    with (output / "teachers" / KEY / "resnet8.pt").open("ab") as file:
        file.write(b"\0")
    damaged = edkd("teachers", "list")
    assert damaged.out.startswith(f"{KEY}/resnet8: ") and "does not match its sidecar resnet8.json" in damaged.out


def import_(*arguments: str) -> Ended:
    return edkd("teachers", "import", "resnet8", *arguments, "-d", "digits", *DIGITS)


def test_a_file_becomes_a_teacher(output: Path) -> None:
    file = run_file(output, "kd", "last.pt")
    run = journals(output)["resnet8/vanilla-s0"][0]["run"]
    kept = error(import_(str(file), "--force"))  # two epochs teach it little
    assert kept == f"{KEY} has a teacher resnet8 already (run:{run}); --replace replaces it"

    done = import_(str(file), "--replace", "--force")
    assert done.code == 0, done
    last = end(output, "resnet8-resnet8/kd-s0")["last"]
    identity = f"file:{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
    path = Path("outputs") / "teachers" / KEY / "resnet8.pt"
    assert done.out == f"resnet8 of {KEY}: top-1 {last['top1']:.2f} %, {identity}, in {path}\n"
    entry = teacher_store.find(Path("outputs") / "teachers", KEY, "resnet8")
    assert entry is not None
    assert (entry.id, entry.num_classes, entry.epochs) == (identity, 10, None)
    assert entry.test == {name: last[name] for name in ("top1", "top5", "loss")}
    assert import_(str(file), "--force").code == 0  # the same file again
    assert f"  {file.relative_to(output.parent)}" in edkd("teachers", "list").out
    assert f"\n{said(last)}\n" in evaluate().out

    common = ["dataset=digits", *DIGITS, "schedule=short", "schedule.epochs=1", "tracking=journal", "teacher=resnet8"]
    assert launch(*common, "student=resnet8", "distiller=dkd", "engine.threads=1").code == 0
    assert journals(output)["resnet8-resnet8/dkd-s0"][0]["teacher"]["id"] == identity


def test_a_file_of_torchvision_becomes_a_teacher_as_it_is(output: Path) -> None:
    torch.manual_seed(0)
    torch.save(_torchvision.load().models.get_model("shufflenet_v2_x0_5", num_classes=10).state_dict(), "theirs.pth")
    name = "torchvision_shufflenet_v2_x0_5"
    where = ["-d", "digits", *DIGITS]
    done = edkd("teachers", "import", name, "theirs.pth", "--force", *where)
    assert done.code == 0, done
    assert done.out.startswith(f"{name} of {KEY}: top-1 ")
    by_arch = ["torchvision", "theirs.pth", "--force", "teacher.arch=shufflenet_v2_x0_5"]
    assert edkd("teachers", "import", *by_arch, *where).out == done.out
    measured = edkd("evaluate", "-m", name, "--teacher", name, *where).out
    assert f"\nagreement with {name} 100.00 %  KL from it 0.0000\n" in measured
    common = ["dataset=digits", *DIGITS, "schedule=short", "schedule.epochs=1", "tracking=journal", "engine.threads=1"]
    assert edkd("teachers", "cache", name, "--epochs", "1", *where).code == 0
    taught = launch(
        *common, "teacher=torchvision", "teacher.arch=shufflenet_v2_x0_5", "student=resnet8", "distiller=kd"
    )
    assert taught.code == 0, taught
    assert error(edkd("teachers", "import", "torchvision_resnet18", "theirs.pth", *where)).startswith(
        "theirs.pth does not fit the architecture ResNet: of 122 entries "
    )


def test_what_cannot_become_a_teacher(output: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(1)}}, "other.pt")
    before, sidecar = files(output), output / "teachers" / KEY / "resnet8.json"
    content = json.loads(sidecar.read_text())
    assert error(import_("other.pt", "--replace")).startswith("other.pt")
    assert "nowhere.pt" in error(import_("nowhere.pt", "--replace"))
    assert files(output) == before and json.loads(sidecar.read_text()) == content


@pytest.mark.parametrize("fault", [float("nan"), 0.0])
def test_a_network_that_knows_nothing_becomes_a_teacher_by_force_alone(output: Path, fault: float) -> None:
    state = checkpoint.load_weights(run_file(output, "kd", "last.pt"))
    torch.save({"model": {key: value * fault for key, value in state.items()}}, "useless.pt")
    before = files(output)
    assert "chance is 10 %" in error(import_("useless.pt", "--replace"))
    assert files(output) == before
    assert import_("useless.pt", "--replace", "--force").code == 0
