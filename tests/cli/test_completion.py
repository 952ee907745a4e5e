"""What the shell offers after Tab."""

from pathlib import Path

import pytest

from tests.commandline import python


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output folder with the directories of two runs and the record of their sweep."""
    for name in ("vgg13-vgg8/kd-s0-0123abcd", "vgg13/vanilla-s0-4567cdef"):
        (tmp_path / "outputs/runs/digits-8" / name).mkdir(parents=True)
    (tmp_path / "outputs/sweeps").mkdir()
    (tmp_path / "outputs/sweeps/nightly.json").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("edkd sta", {"status"}),
        ("edkd teachers im", {"import"}),
        ("edkd retry --dr", {"--dry-run"}),
        ("edkd retry ni", {"nightly"}),
        ("edkd status --state fa", {"failed"}),
        ("edkd status --pair ", {"vgg13", "vgg13-vgg8"}),
        ("edkd status --dataset d", {"digits-8"}),
        ("edkd logs vgg13-", {"vgg13-vgg8/kd-s0-0123abcd"}),
        ("edkd logs --output elsewhere v", set()),
        ("edkd evaluate -m vgg1", {"vgg11", "vgg13", "vgg16", "vgg19"}),
        ("edkd results unpack out", {"outputs/"}),
    ],
)
def test_completions_do_without_torch(output: Path, line: str, expected: set[str]) -> None:
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": "offered", "_ARGCOMPLETE_IFS": "\n"}
    where = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    done = python("-X", "importtime", "-m", "edkd.cli.main", **asked, **where)
    assert {word.strip() for word in Path("offered").read_text().split()} == expected
    imported = {each.rpartition("|")[2].strip() for each in done.err.splitlines()}
    assert "argcomplete" in imported and not {"torch", "mlflow"} & imported
