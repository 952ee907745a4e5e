"""A teachers' archive: what becomes a teacher, and what is refused."""

import io
import tarfile
from pathlib import Path

import pytest
import torch

from edkd import models
from edkd.errors import EdkdError
from edkd.importers import archive
from edkd.importers.archive import Teacher
from edkd.teachers import store
from tests.commandline import DIGITS, edkd, error

KEY = "digits-8-20perclass-test10"
OPTIONS = ["-d", "digits", *DIGITS]


def checkpoint() -> bytes:
    """A resnet8 as it is drawn: of ten classes it knows none."""
    torch.manual_seed(0)
    buffer = io.BytesIO()
    torch.save({"epoch": 240, "model": models.resnet8(num_classes=10).state_dict()}, buffer)
    return buffer.getvalue()


def member(name: str, *, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


def pack(path: Path, members: dict[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for each, data in members.items():
            each.size = len(data)
            tar.addfile(each, io.BytesIO(data))
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_what_is_read_and_what_is_refused(here: Path) -> None:
    inner = "cifar_teachers/{}_vanilla/ckpt_epoch_240.pth"
    tar = pack(
        here / "cifar_teachers.tar",
        {
            member(inner.format("resnet8")): b"weights",
            member("cifar_teachers/ResNet50_vanilla", kind=tarfile.DIRTYPE): b"",
            member("ResNet50_vanilla/ckpt_epoch_240.pth"): b"others",
            member(inner.format("resnet9")): b"",
            member("cifar_teachers/README.txt"): b"",
            member("../resnet14_vanilla/ckpt_epoch_240.pth"): b"",
            member("/tmp/resnet14_vanilla/ckpt_epoch_240.pth"): b"",
            member(inner.format("vgg8"), kind=tarfile.SYMTYPE, target="/etc/passwd"): b"",
            member(inner.format("vgg13"), kind=tarfile.LNKTYPE, target=inner.format("resnet8")): b"",
            member(inner.format("vgg16"), kind=tarfile.FIFOTYPE): b"",
        },
    )
    folder = here / "copies"
    folder.mkdir()
    read, refused = {}, []
    for _, found in archive.unpack(tar, folder):
        if isinstance(found, Teacher):
            read[found.name] = found.file.read_bytes()
        else:
            refused.append(str(found))
    assert read == {"resnet8": b"weights", "resnet50": b"others"}
    assert [reason.partition(" (")[0] for reason in refused] == [
        "'resnet9' is no network known here",
        "not known: not named NETWORK_vanilla/ckpt_epoch_240.pth",
        *["refused: its name leads out of the archive"] * 2,
        *["refused: a link or a device, no plain file"] * 3,
    ]
    assert {path.name for path in here.parent.rglob("*")} == {"here", "cifar_teachers.tar", "copies"}


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_what_is_no_archive(here: Path, content: bytes) -> None:
    (here / "some.tar").write_bytes(content)
    with pytest.raises(EdkdError, match=r"some.tar is no tar archive$"):
        list(archive.unpack(here / "some.tar", here))


@pytest.mark.parametrize("kind", ["xz", "bz2"])
def test_a_damaged_archive_is_one_line(here: Path, kind: str) -> None:
    file = here / f"damaged.tar.{kind}"
    with tarfile.open(file, f"w:{kind}") as tar:
        content = " ".join(map(str, range(500_000))).encode()
        large = member("vgg13_vanilla/ckpt_epoch_240.pth")
        large.size = len(content)
        tar.addfile(large, io.BytesIO(content))
    data = bytearray(file.read_bytes())
    middle = slice(len(data) * 6 // 10, len(data) * 6 // 10 + 50)
    data[middle] = bytes(255 - byte for byte in data[middle])
    file.write_bytes(data)
    with pytest.raises(EdkdError, match=f"damaged.tar.{kind} could not be read as a tar archive: "):
        list(archive.unpack(file, here))


def test_the_command_measures_each(here: Path) -> None:
    name = "cifar_teachers/{}_vanilla/ckpt_epoch_240.pth"
    members = {member(name.format("resnet8")): checkpoint(), member(name.format("vgg8")): checkpoint()}
    pack(here / "cifar_teachers.tar", {**members, member("cifar_teachers/notes.txt"): b""})
    refused = edkd("teachers", "import", "cifar_teachers.tar", *OPTIONS)
    assert (refused.code, refused.err) == (1, "edkd: cifar_teachers.tar has no checkpoint that became a teacher\n")
    lines = refused.out.splitlines()
    assert lines[0].startswith(f"left out: {name.format('resnet8')}: cifar_teachers.tar/resnet8.pth has top-1 ")
    assert "; --force makes it a teacher" in lines[0]
    assert lines[1].startswith(f"left out: {name.format('vgg8')}: cifar_teachers.tar/vgg8.pth does not fit the archi")
    assert lines[2].startswith("left out: cifar_teachers/notes.txt: not known")

    for _ in range(2):  # the second import finds the same network and adds nothing
        done = edkd("teachers", "import", "cifar_teachers.tar", DIGITS[0], "--force", "-d", "digits", *DIGITS[1:])
        assert done.code == 0, done
        (entry,) = store.listing(Path("outputs/teachers"))
        assert entry.test is not None
        assert f"resnet8 of {KEY}: top-1 {entry.test['top1']:.2f} %, {entry.id}\n" in done.out
        assert entry.source == f"{here / 'cifar_teachers.tar'}:{name.format('resnet8')}"


def test_a_name_alone_is_no_archive(here: Path) -> None:
    message = error(edkd("teachers", "import", "vgg13", *OPTIONS))
    assert message == "vgg13 is no file: name an archive alone, or a network and its checkpoint (NAME FILE)"
