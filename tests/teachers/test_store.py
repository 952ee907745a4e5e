"""What comes out of the teacher store is what was put into it, or an error that says what to do."""

import dataclasses
import errno
import hashlib
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from edkd.errors import EdkdError
from edkd.rundir import checkpoint
from edkd.teachers import store as teacher_store
from edkd.teachers.store import Entry

TEST = {"top1": 79.42, "top5": 94.5, "loss": 0.9}


def network(outputs: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(3, outputs), nn.BatchNorm1d(outputs))


def published(store: Path, weights: Path | dict[str, Tensor], **changes: Any) -> tuple[Entry, bool]:
    values: dict[str, Any] = {"id": "run:aa", "source": "outputs/runs/x", "epochs": 240, "recipe": "240ep-b64"}
    values |= {"test": TEST, "num_classes": 2, "replace": False} | changes
    dataset, name = values.pop("dataset", "cifar100"), values.pop("name", "resnet8")
    return teacher_store.publish(store, dataset, name, weights, **values)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


def test_a_published_teacher_is_found_and_loaded_frozen(tmp_path: Path) -> None:
    state = network().state_dict()
    entry, new = published(tmp_path, state, test={**TEST, "loss": float("nan")})
    assert new
    path = tmp_path / "cifar100" / "resnet8.pt"
    assert entry.path == path
    assert entry.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert teacher_store.find(tmp_path, "cifar100", "resnet8") == entry
    assert teacher_store.find(tmp_path, "cifar100-n500", "resnet8") is None
    assert same(torch.load(path, weights_only=True)["model"], state)
    sidecar = json.loads(entry.sidecar.read_text(), parse_constant=lambda constant: pytest.fail(constant))
    assert sidecar.pop("added").endswith("+00:00")
    assert sidecar == {
        **{"name": "resnet8", "dataset": "cifar100", "sha256": entry.sha256, "num_classes": 2, "epochs": 240},
        **{"id": "run:aa", "source": "outputs/runs/x", "recipe": "240ep-b64", "measured": {}},
        "test": {"top1": 79.42, "top5": 94.5, "loss": None},
    }

    model = network().train()
    assert teacher_store.load(entry, model) is model
    assert same(model.state_dict(), state)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_weights_are_those_that_were_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = network().state_dict()
    entry, _ = published(tmp_path, state)
    verify = teacher_store.verify

    def replaced_afterwards(entry: Entry) -> Any:
        found = verify(entry)
        monkeypatch.undo()
        published(tmp_path, network().state_dict(), id="run:bb", replace=True)
        return found

    monkeypatch.setattr(teacher_store, "verify", replaced_afterwards)
    model = teacher_store.load(entry, network())
    assert same(model.state_dict(), state)


def test_what_is_there_stays_unless_replaced(tmp_path: Path) -> None:
    first, _ = published(tmp_path, network().state_dict())
    before = first.path.read_bytes()
    other = network().state_dict()
    assert published(tmp_path, other) == (first, False)
    assert published(tmp_path, other, replace=True) == (first, False)  # the same id: the same network
    assert published(tmp_path, other, id="run:bb") == (first, False)
    assert first.path.read_bytes() == before
    second, new = published(tmp_path, other, id="run:bb", replace=True)
    assert new
    assert teacher_store.find(tmp_path, "cifar100", "resnet8") == second
    assert same(checkpoint.load_weights(second.path), other)
    with pytest.raises(EdkdError, match="does not match its sidecar"):
        teacher_store.verify(first)


@pytest.mark.parametrize("written", [0, 1])  # files: the weights, then the sidecar
def test_a_teacher_stays_whose_successor_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    first, _ = published(tmp_path, network().state_dict())
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch, pytest.raises(EdkdError, match="No space left"):
        patch.setattr(os, "fsync", mock.Mock(side_effect=[None] * written + [full] * 9))
        published(tmp_path, network().state_dict(), id="run:bb", replace=True)
    assert teacher_store.find(tmp_path, "cifar100", "resnet8") == first
    teacher_store.verify(first)


FAULTS: dict[str, tuple[Callable[[str], str | None], str]] = {  # what becomes of the sidecar, and what is said
    "orphan weights": (lambda text: None, "has no sidecar resnet8.json"),
    "garbled": (lambda text: '{"name": ', "could not read the sidecar"),
    "a list": (lambda text: "[]", "could not read the sidecar"),
    "poor": (lambda text: '{"name": "resnet8", "dataset": "cifar100"}', "could not read the sidecar .*'sha256'"),
    "foreign": (lambda text: text.replace("cifar100", "digits"), "is the sidecar of teacher resnet8 for digits"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_half_a_teacher_is_an_error_that_publishing_mends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    entry, _ = published(tmp_path, network().state_dict())
    good, _ = published(tmp_path, network().state_dict(), name="vgg8")
    change, said = FAULTS[fault]
    text = change(entry.sidecar.read_text())
    entry.sidecar.unlink()
    if text is not None:
        entry.sidecar.write_text(text)
    with pytest.raises(EdkdError, match=said) as caught:
        teacher_store.find(tmp_path, "cifar100", "resnet8")
    assert "`edkd teachers import NAME FILE --dataset KEY`" in str(caught.value)
    assert "\n" not in str(caught.value)

    with caplog.at_level(logging.WARNING, "edkd.teachers.store"):
        assert teacher_store.listing(tmp_path) == [good]
    assert caplog.messages == [str(caught.value)]

    kept = entry.path.read_bytes() if entry.path.exists() else None
    again, new = published(tmp_path, network().state_dict())
    assert new
    assert teacher_store.find(tmp_path, "cifar100", "resnet8") == again
    backup = entry.path.with_name("resnet8.pt.bak")
    assert (backup.read_bytes() if backup.exists() else None) == kept
    assert teacher_store.listing(tmp_path) == [again, good]


@pytest.mark.parametrize("change", ["cut", "bit", "other", "gone"])
def test_a_changed_file_is_not_used(tmp_path: Path, change: str) -> None:
    entry, _ = published(tmp_path, network().state_dict())
    data = entry.path.read_bytes()
    entry.path.unlink()
    if change == "cut":
        entry.path.write_bytes(data[:-1])
    elif change == "bit":
        entry.path.write_bytes(data[:300] + bytes([data[300] ^ 1]) + data[301:])
    elif change == "other":
        checkpoint.save_weights(network().state_dict(), entry.path)
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    changed = r"resnet8.pt does not match its sidecar resnet8.json \(SHA-256\); restore it, or remove it"
    expected = "could not read .*resnet8.pt: No such file" if change == "gone" else changed
    with pytest.raises(EdkdError, match=expected):
        teacher_store.load(entry, model)
    assert same(model.state_dict(), before)
    if change == "gone":  # as a user does who wants it trained again, or a kill while publishing
        assert teacher_store.find(tmp_path, "cifar100", "resnet8") is None
        assert teacher_store.listing(tmp_path) == []
    again, new = published(tmp_path, network().state_dict())  # by the same run: it mends what it finds
    assert new
    teacher_store.verify(again)
    assert teacher_store.find(tmp_path, "cifar100", "resnet8") == again


def test_a_weights_file_that_lies_in_the_store_can_be_published_in_place(tmp_path: Path) -> None:
    file = tmp_path / "cifar100" / "resnet8.pt"
    file.parent.mkdir()
    torch.save(network().state_dict(), file)
    data = file.read_bytes()
    entry, new = published(tmp_path, file)
    assert new
    assert teacher_store.find(tmp_path, "cifar100", "resnet8") == entry
    assert file.with_name("resnet8.pt.bak").read_bytes() == data


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def foreign(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "could not read .*file.pth: No such file"),
        (b"", "file.pth is damaged or no file of PyTorch"),
        (foreign(network().state_dict())[:-100], "file.pth is damaged or no file of PyTorch"),
        (foreign({"model": Hostile()}), "file.pth is refused: holds Python objects"),
        (foreign({"epoch": 3}), "file.pth holds no network weights"),
    ],
)
def test_a_file_that_cannot_be_used_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file.pth"
    if data is not None:
        file.write_bytes(data)
    store = tmp_path / "store"
    with pytest.raises(EdkdError, match=message) as caught:
        published(store, file, replace=True)
    assert "\n" not in str(caught.value)
    assert not store.exists()
    assert not (tmp_path / "executed").exists()


def test_accuracy_is_recorded_once_for_each_data(tmp_path: Path) -> None:
    entry, _ = published(tmp_path, network().state_dict())
    teacher_store.record_accuracy(entry, TEST, "d")
    teacher_store.record_accuracy(entry, {"top1": 1.0, "top5": 5.0, "loss": float("inf")}, "e")
    measured = {"d": TEST, "e": {"top1": 1.0, "top5": 5.0, "loss": None}}
    found = teacher_store.find(tmp_path, "cifar100", "resnet8")
    assert found == dataclasses.replace(entry, measured=measured)
    teacher_store.verify(found)


def test_accuracy_that_cannot_be_recorded_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, _ = published(tmp_path, network().state_dict())
    new, _ = published(tmp_path, network().state_dict(), id="run:bb", replace=True)
    with caplog.at_level(logging.WARNING, "edkd.teachers.store"):
        teacher_store.record_accuracy(old, TEST, "d")  # of a network that was replaced
        (new.path.parent / ".lock").unlink(missing_ok=True)
        (new.path.parent / ".lock").mkdir()  # root may write anywhere, but not open a folder
        teacher_store.record_accuracy(new, TEST, "d")
    said = "the accuracy of teacher resnet8 was not recorded: "
    assert [message.startswith(said) for message in caplog.messages] == [True, True]
    assert "could not lock the teacher store" in caplog.messages[1]
    assert teacher_store.find(tmp_path, "cifar100", "resnet8") == new
    with pytest.raises(EdkdError, match="could not lock the teacher store"):
        published(tmp_path, network().state_dict())


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-x", "naïve", "x\n"])
def test_names_stay_inside_the_store(tmp_path: Path, name: str) -> None:
    with pytest.raises(EdkdError, match="is no teacher name; allowed are up to 100 letters, digits"):
        teacher_store.find(tmp_path, "cifar100", name)
    with pytest.raises(EdkdError, match="is no data set key; allowed are up to 100 letters, digits"):
        published(tmp_path, network().state_dict(), dataset=name)
    assert list(tmp_path.iterdir()) == []


def test_listing_is_sorted(tmp_path: Path) -> None:
    assert teacher_store.listing(tmp_path / "missing") == []
    state = network().state_dict()
    for dataset, name in (("digits-16", "vgg8"), ("cifar100", "wrn_40_2"), ("cifar100", "resnet8")):
        published(tmp_path, state, dataset=dataset, name=name)
    (tmp_path / "cifar100" / "notes.txt").write_text("mine")
    found = [(entry.dataset, entry.name) for entry in teacher_store.listing(tmp_path)]
    assert found == [("cifar100", "resnet8"), ("cifar100", "wrn_40_2"), ("digits-16", "vgg8")]


PUBLISHER = """
import sys, torch
from pathlib import Path
from edkd.teachers.store import find, publish
me, store = int(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for turn in range(20):
    state = {"weight": torch.full((20_000,), float(me * 100 + turn))}
    values = dict(source="x", epochs=1, recipe=None, test=None, num_classes=2)
    once, new = publish(store, "digits", f"once{turn}", state, id=f"run:{me}", replace=False, **values)
    print(f"once{turn}" if new else "kept", once.id)
    publish(store, "digits", "often", state, id=f"run:{me}.{turn}", replace=True, **values)
    assert find(store, "digits", "often") is not None
"""


def test_concurrent_publishers(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(teacher_store.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(number), str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in (1, 2, 3)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    lines = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        lines += process.communicate(timeout=60)[0].splitlines()
        assert process.returncode == 0
    owners = dict(line.split() for line in lines if line.startswith("once"))
    assert len(owners) == 20
    assert sum(line.startswith("once") for line in lines) == 20  # each was published by exactly one
    entries = teacher_store.listing(tmp_path)
    assert len(entries) == 21
    for entry in entries:
        teacher_store.verify(entry)
        number, _, turn = entry.id.removeprefix("run:").partition(".")
        turn = turn or entry.name.removeprefix("once")
        weight = checkpoint.load_weights(entry.path)["weight"]
        assert torch.equal(weight, torch.full((20_000,), float(int(number) * 100 + int(turn))))
        assert owners.get(entry.name, entry.id) == entry.id
