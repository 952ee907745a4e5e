"""Which code computed: the commit, and what the tree had besides."""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edkd.config.job import freeze
from edkd.rundir import journal, provenance
from edkd.runs import run


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit that holds the code."""
    file = tmp_path / "checkout" / "edkd" / "code.py"
    file.parent.mkdir(parents=True)
    file.write_text("one\n")
    git(file.parents[1], "init", "-q")
    git(file.parents[1], "add", ".")
    git(file.parents[1], "commit", "-q", "-m", "one")
    monkeypatch.setattr(provenance, "__file__", str(file))
    return file


def test_the_commit_of_the_code_and_what_the_tree_had_besides(checkout: Path, tmp_path: Path) -> None:
    commit = git(checkout.parent, "rev-parse", "HEAD")
    assert provenance.read().version == {"git_commit": commit, "git_dirty": "false"}
    provenance.keep_changes(provenance.read(), tmp_path)
    assert not (tmp_path / "code.diff").exists()
    checkout.write_text("two\n")
    (checkout.parent / "new.py").write_text("mine\nlast")
    (checkout.parents[1] / "notes.txt").write_text("not kept")
    (checkout.parents[1] / "mse.py").write_text("of my own\n")
    planned = provenance.read()
    assert planned.version == {"git_commit": commit, "git_dirty": "true"}
    for _ in range(2):
        provenance.keep_changes(planned, tmp_path)
    saved = (tmp_path / "code.diff").read_text()
    new = "\n+++ b/edkd/new.py\n@@ -0,0 +1,2 @@\n+mine\n+last\n\\ No newline"
    for part in (f"# changes to {commit}\n", "\n-one\n+two\n", new, "\n+of my own\n", "# not in git: notes.txt\n"):
        assert part in saved
    assert "# not in git: edkd/new.py" not in saved and "not kept" not in saved
    git(checkout.parent, "stash", "-q", "--include-untracked")
    git(checkout.parents[1], "apply", str(tmp_path / "code.diff"))
    assert checkout.read_text() == "two\n"
    assert (checkout.parent / "new.py").read_text() == "mine\nlast"
    checkout.write_text("three\n")
    provenance.keep_changes(provenance.read(), tmp_path)
    assert (tmp_path / "code.diff").read_text() == saved
    (other,) = tmp_path.glob("code.????????.diff")
    assert "+three" in other.read_text()


def test_a_diff_that_ends_in_an_empty_line_can_be_applied(checkout: Path, tmp_path: Path) -> None:
    checkout.write_text("one\n\n")
    git(checkout.parent, "commit", "-q", "-a", "-m", "two")
    checkout.write_text("three\n\n")
    provenance.keep_changes(provenance.read(), tmp_path)
    git(checkout.parent, "checkout", "-q", ".")
    git(checkout.parents[1], "apply", str(tmp_path / "code.diff"))
    assert checkout.read_text() == "three\n\n"


def test_a_huge_diff_is_cut_off(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "LARGEST", 100)
    checkout.write_text("x" * 1000)
    assert "# cut off: the whole diff has" in provenance.read().changes
    assert len(provenance.read().changes) < 300


def test_code_that_git_does_not_know_has_no_version(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A package installed into an environment that lies inside somebody else's repository.
    (checkout.parent / "installed.py").write_text("")
    monkeypatch.setattr(provenance, "__file__", str(checkout.parent / "installed.py"))
    assert provenance.read().version == {}
    # Outside of any repository, and without git.
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "code.py"))
    assert provenance.read().version == {}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.read().version == {}


def test_a_run_says_which_code_planned_it_if_that_was_another(make_job: Any) -> None:
    job = make_job("vanilla")
    planned = provenance.Code({"git_commit": "aaaa", "git_dirty": "true"}, "# changes to aaaa\n")
    freeze(job, sweep=None, threads=None, planned_with=planned)
    assert (job.directory / "code.diff").read_text() == planned.changes
    run.execute(job, sweep=None, show=False)
    (start,) = [record for record in journal.read(job.directory) if record["event"] == "start"]
    assert start["planned_with"] == planned.version
    assert {name: start["tags"].get(name) for name in planned.version} != planned.version
    other = make_job("vanilla", "seed=1")
    run.execute(other, sweep=None, show=False)
    (start,) = [record for record in journal.read(other.directory) if record["event"] == "start"]
    assert start["planned_with"] is None


def test_the_users_own_classes_are_known_by_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    given = {
        "distiller": {"_target_": "myown_loss.Mine"},
        "dataset": {"source": {"_target_": "yaml.YAMLObject"}},
        "optimizer": {"_target_": "myown_loss.Steps"},
        "tracking": {"_target_": "myown_loss.Other"},
    }
    (tmp_path / "myown_loss.py").write_text(source := "class Mine: ...\nclass Steps: ...\n")
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    assert provenance.own_code(given) == {"myown_loss.Mine": digest, "myown_loss.Steps": digest}
    assert provenance.own_code({"distiller": {"_target_": "nowhere.at.All"}}) == {}


def test_classes_of_the_checkout_are_known_by_their_files_unless_git_holds_them(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = checkout.parent / "ours"
    package.mkdir()
    monkeypatch.syspath_prepend(checkout.parent)
    (package / "__init__.py").write_text("from ours.net import Net\n")
    (package / "net.py").write_text("class Net: ...\n")
    given = {"student": {"name": "net", "model": {"_target_": "ours.Net"}}}
    first = {"ours.Net": hashlib.sha256(b"class Net: ...\n").hexdigest()[:16]}
    assert provenance.own_code(given) == first  # git does not know the folder
    (checkout.parents[1] / ".gitignore").write_text("ours\n")
    assert provenance.own_code(given) == first  # git is not to know it
    git(checkout.parent, "add", "--force", "ours")
    assert provenance.own_code(given) == first
    git(checkout.parent, "commit", "-q", "-m", "two")
    assert provenance.own_code(given) == {}
    assert provenance.differing(first, {}) == []  # the code that is committed now
    (package / "net.py").write_text("class Net: 1\n")
    changed = provenance.own_code(given)
    assert changed.keys() == first.keys() and changed != first
    assert provenance.differing(first, changed) == provenance.differing({}, changed) == ["ours.Net"]
    git(checkout.parent, "commit", "-q", "-a", "-m", "three")
    assert provenance.differing(first, {}) == ["ours.Net"]
    (package / "net.py").write_text("class Net: 2\n")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(checkout.parents[1].parent))
    (checkout.parents[1] / ".git").rename(checkout.parents[1] / "gone")
    assert provenance.own_code(given) == {}


def test_the_source_of_a_part_is_that_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rundir/provenance.py", "models/base.py", "data/views.py", "data/other.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "rundir" / "provenance.py"))

    def source() -> str:
        provenance.source.cache_clear()
        return provenance.source(("models/*.py", "data/views.py"))

    found = [source()]
    for name in ("data/other.py", "models/base.py", "data/views.py", "models/new.py"):
        (tmp_path / name).write_text("changed")
        found.append(source())
    assert found[0] == found[1] and len(set(found)) == 4
    provenance.source.cache_clear()
