"""Work logs: what is a whole run, what is not, and why."""

import re
from pathlib import Path

import pytest

from edkd.config.schema import Schedule
from edkd.errors import EdkdError
from edkd.importers import Result, mdistiller
from tests.importers.worklogs import block, put, worklog

RECIPE = Schedule(
    epochs=240,
    batch_size=64,
    lr=0.05,
    momentum=0.9,
    weight_decay=5e-4,
    milestones=[150, 180, 210],
    gamma=0.1,
    warmup_epochs=20,
)


def read(folder: Path, text: str) -> list[Result | EdkdError]:
    return list(mdistiller.read(put(folder / "dkd,res32x4,res8x4", text), RECIPE))


def only(found: list[Result | EdkdError]) -> Result:
    (result,) = found
    assert isinstance(result, Result), result
    return result


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("dkd,res32x4,res8x4", ("dkd", "resnet32x4", "resnet8x4")),
        ("KD,wrn_40_2,wrn_16_2", ("kd", "wrn_40_2", "wrn_16_2")),
        ("reviewkd,wrn40_2,wrn40_1", ("reviewkd", "wrn_40_2", "wrn_40_1")),
        ("edkd,ResNet50,MobileNetV2", ("edkd", "resnet50", "mobilenetv2")),
        ("crd,vgg13,mv2", ("crd", "vgg13", "mobilenetv2")),
        ("at,res32x4,ShuffleV1", ("at", "resnet32x4", "shufflenetv1")),
        ("kd,res32x4,shuv2", ("kd", "resnet32x4", "shufflenetv2")),
        ("vanilla,res20", ("vanilla", "", "resnet20")),
    ],
)
def test_names_of_folders(folder: str, names: tuple[str, str, str]) -> None:
    assert mdistiller.named(Path(folder) / mdistiller.LOG) == names


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("dkd", "the folder 'dkd' is not named METHOD,TEACHER,STUDENT"),
        ("dkd,res32x4,res8x4,again", "is not named METHOD,TEACHER,STUDENT"),
        ("kd,res20", "names one network, which only vanilla training has"),
        ("kd,res32x4,res9", "'res9' is no network known here"),
        ("k d,res32x4,res8x4", "is not named METHOD,TEACHER,STUDENT"),
    ],
)
def test_names_that_say_too_little(folder: str, message: str) -> None:
    with pytest.raises(EdkdError, match=re.escape(message)):
        mdistiller.named(Path(folder) / mdistiller.LOG)


def test_a_whole_run(tmp_path: Path) -> None:
    result = only(read(tmp_path, worklog()))
    assert list(result.epochs) == list(range(1, 241))
    names = {"lr", "train/top1", "train/loss", "test/top1", "test/top5", "test/loss"}
    assert all(set(metrics) == names for metrics in result.epochs.values())
    tops = {epoch: metrics["test/top1"] for epoch, metrics in result.epochs.items()}
    assert result.best["top1"] == max(tops.values()) == tops[int(result.best["epoch"])]
    assert f"best_acc\t{result.best['top1']:.2f}" in result.source.read_text()
    assert result.notes == ()


def test_two_runs_one_after_the_other(tmp_path: Path) -> None:
    both = read(tmp_path, worklog(1) + worklog(2))
    alone = [only(read(tmp_path, worklog(seed))) for seed in (1, 2)]
    for number, (result, expected) in enumerate(zip(both, alone, strict=True), 1):
        assert isinstance(result, Result)
        assert (result.epochs, result.best) == (expected.epochs, expected.best)
        assert result.notes == (f"run {number} of 2 in the file",)


def test_a_restart_repeats_epochs_and_the_later_wins(tmp_path: Path) -> None:
    resumed = worklog(2, range(118, 241))
    result = only(read(tmp_path, worklog(1, range(1, 121), best=False) + resumed))
    assert list(result.epochs) == list(range(1, 241))
    later = re.findall(r"^test_acc: (.*)$", resumed, flags=re.MULTILINE)
    assert [result.epochs[epoch]["test/top1"] for epoch in range(118, 241)] == list(map(float, later))
    assert result.notes == ("epochs 118 to 120 repeated after a restart: the later counts",)


def test_a_run_that_began_again_from_the_first_epoch(tmp_path: Path) -> None:
    early, whole = read(tmp_path, worklog(1, range(1, 51), best=False) + worklog(2))
    assert str(early) == "run 1 of 2 in the file: ends after epoch 50 of 240"
    assert isinstance(whole, Result) and whole.epochs == only(read(tmp_path, worklog(2))).epochs


def test_a_run_without_its_last_line(tmp_path: Path) -> None:
    result = only(read(tmp_path, worklog(best=False)))
    assert result.notes == ("has no best_acc: the best epoch is that of the blocks",)


def test_a_loss_that_is_not_finite_is_noted(tmp_path: Path) -> None:
    result = only(read(tmp_path, worklog().replace("test_loss: 1.25", "test_loss: nan", 2)))
    assert result.notes == ("test_loss is not finite in 2 epochs, the first is 1",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (worklog(epochs=range(1, 188), best=False), "ends after epoch 187 of 240"),
        (worklog()[:-100], "ends after epoch 239 of 240"),  # in the middle of a block
        (worklog(epochs=range(1, 201)), "has 200 epochs, the recipe 240: schedule.epochs=200 names another one"),
        (worklog(epochs=[*range(1, 50), *range(55, 241)]), "epoch 55 follows epoch 49"),
        (worklog(epochs=range(2, 241)), "begins with epoch 2"),
        (worklog(rate=0.1), "the learning rate of epoch 1 is 0.10, the recipe's 0.05: "),
        (re.sub("best_acc.*", "best_acc\t75.00", worklog()), "best_acc is 75.00, but the highest test_acc is 7"),
        (worklog(epochs=[*range(1, 241), *range(200, 210)], best=False), "ends after epoch 209, which an earlier"),
    ],
)
def test_runs_that_are_not_whole(tmp_path: Path, text: str, message: str) -> None:
    (reason,) = read(tmp_path, text)
    assert isinstance(reason, EdkdError) and str(reason).startswith(message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("test_acc: ", "test_accuracy: ", "the block that ends in line 9 has no test_acc"),
        ("lr: 0.05", "lr: fast", "the block that ends in line 9: could not convert string to float: 'fast'"),
        ("epoch: 1\n", "epoch: one\n", "the block that ends in line 9: invalid literal"),
        ("test_loss: 1.25", "test_acc: 3.00", "line 8 is out of place: 'test_acc: 3.00'"),
        ("-" * 25, "Traceback (most recent call last):", "line 1 is out of place: 'Traceback (most recent call"),
        ("test_acc: ", "test_acc: 9", "accuracies that are no percentages of top 1 and 5"),
    ],
)
def test_files_in_another_form(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = block(1, 10.0, "0.05").replace(old, new, 1) + worklog(epochs=range(2, 241))
    with pytest.raises(EdkdError, match=re.escape(message)):
        read(tmp_path, text)
