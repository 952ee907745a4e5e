"""A checkpoint survives what machines do to files; a stranger's file is read without being believed."""

import gc
import hashlib
import io
import logging
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edkd.errors import EdkdError
from edkd.rundir import checkpoint

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(checkpoint.__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def listing(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# Checkpoints


def test_a_checkpoint_comes_back_exactly(tmp_path: Path) -> None:
    model = network()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model(torch.randn(4, 3)).sum().backward()
    optimiser.step()
    state = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "epoch": 7,
        "best": {"top1": 1.5},
        "x": None,
    }
    path = tmp_path / "new" / "checkpoint.pt"
    assert checkpoint.load(path) is None
    checkpoint.save(state, path)
    found = checkpoint.load(path)
    assert found is not None
    assert found[1] == path
    assert same(found[0]["model"], model.state_dict())
    momentum = found[0]["optimiser"]["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, optimiser.state_dict()["state"][0]["momentum_buffer"])
    assert (found[0]["epoch"], found[0]["best"], found[0]["x"]) == (7, {"top1": 1.5}, None)
    assert listing(path.parent) == ["checkpoint.pt"]


def test_one_previous_checkpoint_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    for epoch in (1, 2, 3):
        checkpoint.save({"epoch": epoch}, path)
    assert checkpoint.load(path) == ({"epoch": 3}, path)
    assert checkpoint.load(checkpoint.previous(path)) == ({"epoch": 2}, tmp_path / "checkpoint.prev.pt")
    assert listing(tmp_path) == ["checkpoint.prev.pt", "checkpoint.pt"]


def test_no_interrupt_is_lost_while_a_state_is_pickled() -> None:
    state = {f"state {i}": OrderedDict() for i in range(2000)}  # as of networks; each tensor's pickle has one
    came = raised = 0

    def interrupt(number: int, frame: Any) -> None:
        nonlocal came
        came += 1
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    gc.disable()  # Python ignores what is raised in a callback of its collector, such as hypothesis's
    try:
        for moment in range(400):
            try:
                signal.setitimer(signal.ITIMER_REAL, (moment + 1) * 2e-5)
                while came == moment:
                    pickle.dumps(state)
            except KeyboardInterrupt:
                raised += 1
    finally:
        gc.enable()
        signal.signal(signal.SIGALRM, before)
    assert raised == came == 400


def test_a_missing_checkpoint_is_replaced_by_the_previous(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save({"epoch": 1}, path)
    path.rename(checkpoint.previous(path))  # what a kill between the two renames leaves
    with caplog.at_level(logging.WARNING, "edkd.rundir.checkpoint"):
        assert checkpoint.load(path) == ({"epoch": 1}, checkpoint.previous(path))
    assert caplog.messages == [f"{path} is missing; continuing from {checkpoint.previous(path)}"]
    checkpoint.save({"epoch": 2}, path)
    assert checkpoint.load(path) == ({"epoch": 2}, path)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "header alone": lambda data: data[:20],
    "half": lambda data: data[: len(data) // 2],
    "a byte short": lambda data: data[:-1],
    "a byte long": lambda data: data + b"x",
    "one bit": lambda data: data[:900] + bytes([data[900] ^ 1]) + data[901:],
    "zeros": lambda data: bytes(len(data)),
    "foreign": lambda data: b"<html>not found</html>",
    "plain torch file": lambda data: saved({"epoch": 9}),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_replaced_by_the_previous(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    path = tmp_path / "checkpoint.pt"
    for epoch in (1, 2):
        checkpoint.save({"epoch": epoch, "weights": torch.ones(100)}, path)
    path.write_bytes(DAMAGES[kind](path.read_bytes()))
    with caplog.at_level(logging.WARNING, "edkd.rundir.checkpoint"):
        found = checkpoint.load(path)
    assert found is not None
    assert (found[0]["epoch"], found[1]) == (1, checkpoint.previous(path))
    (message,) = caplog.messages
    assert message.startswith(f"{path} is damaged (")
    assert message.endswith(f"; continuing from {checkpoint.previous(path)}")


def test_two_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"")
    with pytest.raises(EdkdError, match=r"no usable checkpoint: .*checkpoint.pt is damaged.*; delete"):
        checkpoint.load(path)
    checkpoint.previous(path).write_bytes(b"x" * 1000)
    with pytest.raises(EdkdError, match=r"no usable checkpoint: .*checkpoint.pt is .*checkpoint.prev.pt is damaged"):
        checkpoint.load(path)


def test_a_true_header_does_not_make_a_pickle_harmless(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    payload = saved({"model": Hostile(tmp_path / "executed")})
    path.write_bytes(
        checkpoint._HEADER.pack(checkpoint.MAGIC, len(payload), hashlib.sha256(payload).digest()) + payload
    )
    with pytest.raises(EdkdError, match="is refused: holds Python objects"):
        checkpoint.load(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_torchscript_program_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "exported.pt"
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(path)
    with pytest.raises(EdkdError, match="exported.pt is a TorchScript program"):
        checkpoint.load_weights(path)


SAVE_TWICE = """
import sys, torch
from pathlib import Path
from edkd.rundir import checkpoint
from edkd.errors import EdkdError
path = Path(sys.argv[1])
for epoch in (1, 2):
    checkpoint.save({"epoch": epoch, "weights": torch.zeros(1000)}, path)
before = {entry.name: entry.read_bytes() for entry in path.parent.iterdir()}
%s
for write in (checkpoint.save, lambda state, path: checkpoint.save_weights(state, path.with_name("last.pt"))):
    try:
        write({"epoch": torch.tensor(3), "weights": torch.zeros(1_000_000)}, path)
    except EdkdError as error:
        print(error)
assert {entry.name: entry.read_bytes() for entry in path.parent.iterdir()} == before
assert checkpoint.load(path)[0]["epoch"] == 2
"""


@pytest.mark.parametrize("reason", ["No space left on device", "File too large"])
def test_a_disk_that_takes_no_more_leaves_the_old_checkpoints(tmp_path: Path, reason: str) -> None:
    path, command, limit = tmp_path / "checkpoint.pt", [sys.executable], ""
    if reason == "File too large":
        limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    else:
        script = 'm=$1; shift; mount -t tmpfs -o size=1m tmpfs "$m" && exec "$@"'
        small = ["unshare", "-rm", "sh", "-c", script, "sh", str(tmp_path)]
        if shutil.which("unshare") is None or subprocess.run([*small, "true"], capture_output=True).returncode != 0:
            pytest.skip("no small disk can be mounted here")
        command = [*small, sys.executable]
    command += ["-c", SAVE_TWICE % limit, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith(f"could not save {path}: {reason}")
    assert second.startswith(f"could not save {tmp_path / 'last.pt'}: {reason}")
    assert ("MiB free on that disk" in first) == (reason == "No space left on device")


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_any_failing_step_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save({"epoch": 1}, path)

    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(*{"fsync": (os, "fsync", fail), "rename": (Path, "replace", fail)}[step])
        with pytest.raises(EdkdError, match=r"could not save .*checkpoint.pt: Input/output error$"):
            checkpoint.save({"epoch": 2}, path)
    assert listing(tmp_path) == ["checkpoint.pt"]
    assert checkpoint.load(path) == ({"epoch": 1}, path)


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """A process that saves without a pause is killed at random moments; what it had saved is never lost."""
    path = tmp_path / "checkpoint.pt"
    program = (
        "import sys, torch; from pathlib import Path; from edkd.rundir import checkpoint\n"
        "path = Path(sys.argv[1]); found = checkpoint.load(path); epoch = found[0]['epoch'] if found else 0\n"
        "while True:\n"
        "    epoch += 1\n"
        "    checkpoint.save({'epoch': epoch, 'weights': torch.full((200_000,), float(epoch))}, path)\n"
        "    print(epoch, flush=True)\n"
    )
    chance = random.Random(0)
    said = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        assert process.stdout is not None
        said = max(said, int(process.stdout.readline()))
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        said = max([said, *(int(line) for line in process.communicate(timeout=20)[0].splitlines())])
        found = checkpoint.load(path)
        assert found is not None
        assert found[0]["epoch"] in (said, said + 1)
        assert torch.equal(found[0]["weights"], torch.full((200_000,), float(found[0]["epoch"])))
        said = found[0]["epoch"]
    assert set(listing(tmp_path)) <= {"checkpoint.pt", "checkpoint.prev.pt", ".checkpoint.pt.tmp"}


# Weights files


def test_our_weights_files_are_plain_torch_files(tmp_path: Path) -> None:
    model = network()
    path = tmp_path / "best.pt"
    checkpoint.save_weights(model.state_dict(), path, epoch=3, top1=70.5)
    plain = torch.load(path, weights_only=True)
    assert same(plain["model"], model.state_dict())
    assert (plain["epoch"], plain["top1"]) == (3, 70.5)
    assert same(checkpoint.load_weights(path), model.state_dict())
    checkpoint.save_weights(model.state_dict(), path)
    assert listing(tmp_path) == ["best.pt"]


def test_weights_of_our_checkpoints(tmp_path: Path) -> None:
    model = network()
    state = {"epoch": 3, "best": None, "student": model.state_dict(), "distiller": {}, "optimizer": {"state": {}}}
    checkpoint.save(state, tmp_path / "checkpoint.pt")
    assert same(checkpoint.load_weights(tmp_path / "checkpoint.pt"), model.state_dict())
    data = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(data[:-10])
    with pytest.raises(EdkdError, match=r"checkpoint.pt is damaged \(\d+ bytes of \d+\)"):
        checkpoint.load_weights(tmp_path / "checkpoint.pt")


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


OWN = network().state_dict()
OTHER = {"module.teacher.0.weight": torch.zeros(9), "module.connector.weight": torch.zeros(1)}


@pytest.mark.parametrize(
    "content",
    [
        OWN,
        {"model": OWN, "epoch": 240, "best_acc": 71.5},
        {"state_dict": OWN},
        {"state_dict": prefixed(OWN, "module.module.")},
        {"net": OWN, "acc": 71.5, "epoch": 240},
        {"model_state_dict": OWN, "optimizer_state_dict": {"state": {}, "param_groups": []}},
        {"model": prefixed(OWN, "_orig_mod.")},
        prefixed(OWN, "module._orig_mod.module."),
        {"model": prefixed(OWN, "module.student.") | OTHER},
        {"model": prefixed(OWN, "student.") | {"teacher.0.weight": torch.zeros(9)}},
        prefixed(OWN, "student.module."),
        {
            "model": OWN,
            "best_acc": np.float64(71.5),
            "epoch": np.int64(240),
            "done": np.bool_(True),
            "lr": np.float32(1),
        },
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_the_fields_files(tmp_path: Path, content: Any, zipped: bool) -> None:
    path = tmp_path / "student_best"
    path.write_bytes(saved(content, _use_new_zipfile_serialization=zipped))
    assert same(checkpoint.load_weights(path), OWN)


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numbers_of_numpy_1_and_2_are_read_exactly(tmp_path: Path, module: bytes) -> None:
    numbers = [np.float64(71.53), np.float32(0.1), np.int64(-240), np.uint8(200), np.bool_(True), np.float64("nan")]
    source = zipfile.ZipFile(io.BytesIO(saved({"model": OWN, "numbers": numbers})))
    path = tmp_path / "resnet.pth"
    with zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            for written in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
                data = data.replace(written, b"MODULE")
            target.writestr(name, data.replace(b"MODULE", module))
    assert module in zipfile.ZipFile(path).read(source.namelist()[0])
    assert same(checkpoint.load_weights(path), OWN)
    read = checkpoint._deserialise(path, path.read_bytes())["numbers"]
    assert read[:5] == [71.53, float(np.float32(0.1)), -240, 200, True]
    assert read[5] != read[5]
    assert [type(number) for number in read[:5]] == [float, float, int, int, bool]


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("way", ["zip", "legacy", 0, 2, 4, 5])
def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path: Path, way: str | int) -> None:
    content = {"model": OWN, "extra": Hostile(tmp_path / "executed")}
    path = tmp_path / "teacher.pth"
    if isinstance(way, int):
        path.write_bytes(pickle.dumps(content["extra"], protocol=way))
    else:
        path.write_bytes(saved(content, _use_new_zipfile_serialization=way == "zip"))
    with pytest.raises(EdkdError) as caught:
        checkpoint.load_weights(path)
    assert not (tmp_path / "executed").exists()
    refused = rf"is refused: holds Python objects, not only tensors \({os.system.__module__}.system\)"
    assert re.search("no file of PyTorch" if way in (4, 5) else refused, str(caught.value))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (network(), "torch.nn.modules.container.Sequential"),
        ({"model": OWN, "path": Path("x")}, "pathlib"),
        ({"model": OWN, "history": np.zeros(3)}, "_reconstruct"),
        ({"model": OWN, "dtype": np.dtype("O")}, "numpy type 'O8'"),
    ],
)
def test_python_objects_are_refused(tmp_path: Path, content: Any, named: str) -> None:
    path = tmp_path / "teacher.pth"
    path.write_bytes(saved(content))
    with pytest.raises(EdkdError, match=rf"is refused: holds Python objects, not only tensors \(.*{named}"):
        checkpoint.load_weights(path)


@pytest.mark.parametrize(
    "content",
    [{}, [], OWN["0.weight"], {"a": 1}, {"model": {}}, {"model": {"a": 1}}, {"model": None}, {3: OWN["0.bias"]}],
)
def test_files_without_weights(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "teacher.pth"
    path.write_bytes(saved(content))
    with pytest.raises(
        EdkdError, match=r"teacher.pth holds no network weights; allowed are a state_dict, or a dictionary"
    ):
        checkpoint.load_weights(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_whatever_happened_to_a_file_the_error_is_one_line(tmp_path: Path, zipped: bool) -> None:
    whole = saved({"model": OWN}, _use_new_zipfile_serialization=zipped)
    chance = random.Random(1)
    files = [whole[:size] for size in (0, 1, 2, 3, 10, 100, len(whole) // 2, len(whole) - 1)]
    files += [b"hello\n", b"PK\x03\x04", b"\x80", b"\x80\x02", b"\x00" * 100]
    failed = 0
    for _ in range(200):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        files.append(bytes(data))
    for position, data in enumerate(files):
        path = tmp_path / f"{position}.pt"
        path.write_bytes(data)
        try:
            checkpoint.load_weights(path)
        except EdkdError as error:
            failed += 1
            assert "\n" not in str(error)
    assert failed >= 13


# Into a network


def test_weights_of_before_batches_were_counted() -> None:
    model = nn.Sequential(network(), network())
    old = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    other = nn.Sequential(network(), network())
    checkpoint.load_into(other, old, "teacher x")
    assert same(other.state_dict(), model.state_dict())
    some = old | {"0.1.num_batches_tracked": torch.tensor(3)}
    with pytest.raises(EdkdError, match=r"of 14 entries 1 missing \(1.1.num_batches_tracked\)"):
        checkpoint.load_into(other, some, "teacher x")


def test_weights_that_do_not_fit_change_nothing_and_say_what_differs() -> None:
    model, other = network(), network().state_dict()
    checkpoint.load_into(model, other, "teacher x")
    assert same(model.state_dict(), other)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = network().state_dict() | {"0.weight": torch.zeros(5, 3), "fc.bias": torch.zeros(1)}
    for key in ("1.weight", "1.bias", "1.running_mean", "1.running_var"):
        del state[key]
    with pytest.raises(EdkdError) as caught:
        checkpoint.load_into(model, state, "teacher x (x.pt)")
    assert str(caught.value) == (
        "teacher x (x.pt) does not fit the architecture Sequential: of 7 entries 4 missing "
        "(1.weight, 1.bias, 1.running_mean, …), 1 unexpected (fc.bias), 1 of another shape (0.weight (5, 3) for (2, 3))"
    )
    assert same(model.state_dict(), before)
