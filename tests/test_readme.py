"""What the README and docs/ show is true: commands compose or parse, targets, files and headings exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from edkd.cli import main
from tests.commandline import REPOSITORY, launch

PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((REPOSITORY / "docs").glob("*.md"))
READERS = ("analysis/results", "conf/hydra/launcher/mine.yaml")  # what a command or the reader makes


def commands(program: str) -> list[str]:
    """The commands of a program in all indented blocks of all pages, each once."""
    found = {}
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for block in re.findall(r"^(?: {4}.*\n)+", text, re.MULTILINE):
            for line in re.split(r"\n|&&", block.replace("\\\n", " ")):
                command = line.strip().removeprefix("timeout -s INT 25m ")
                if command.startswith(f"{program} ") or command == program:
                    found[shlex.join(shlex.split(command, comments=True)[1:])] = None
    assert found
    return list(found)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", commands("python"))
def test_a_launch_command_composes(command: str) -> None:
    script, *words = shlex.split(re.sub(r"pair=(all|field)\b", "pair=vgg13-vgg8", command))  # others plan all pairs
    assert script == "launch.py"
    done = launch(*words, *([] if {"--help", "+dry_run=true"} & set(words) else ["+dry_run=true"]))
    assert done.code == 0 or done.err.startswith("edkd: no teacher resnet32x4 "), done  # composed, then looked for


@pytest.mark.parametrize("command", commands("edkd"))
def test_an_edkd_command_parses(command: str) -> None:
    words = shlex.split(command.partition(" '|' ")[0])
    args, surplus = main._parser().parse_known_args(words)
    assert not surplus or "overrides" in args
    assert all("=" in word and not word.startswith("-") for word in surplus)


@pytest.mark.parametrize("command", commands("make"))
def test_a_target_exists(command: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert shlex.split(command)[0] in targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text()
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        linked = page.parent / target if target else page
        assert linked.is_file(), target
        assert not anchor or anchor in headings(linked), anchor
    for path in re.findall(r"(?<![\w/.~-])(?:edkd|conf|analysis|docs|tests|hydra_plugins)/[\w./-]*\w", text):
        assert (REPOSITORY / path).exists() or path.startswith(READERS), path


def headings(page: Path) -> Iterator[str]:
    """The anchors of a page, as GitHub makes them."""
    for heading in re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE):
        yield re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_the_readme_is_short_and_its_code_fits() -> None:
    lines = (REPOSITORY / "README.md").read_text().splitlines()
    assert len(lines) <= 200
    wide = [line for page in PAGES for line in page.read_text().splitlines() if re.match(r" {4}.{97}", line)]
    assert not wide
