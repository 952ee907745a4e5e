"""The command that makes the table, on runs that a test gives."""

import pandas as pd
import pytest

from analysis import load
from analysis.__main__ import main


@pytest.fixture(autouse=True)
def _no_packed_results(monkeypatch, tmp_path):
    """Tables here are of these tests' own runs, whatever results the repository holds."""
    monkeypatch.setattr(load, "RESULTS", tmp_path / "no results")


@pytest.fixture
def analyse(monkeypatch, tmp_path, capsys):
    """Run the command on the given runs: (exit code, table.md, table.csv as a frame, standard error)."""

    def call(runs, *arguments):
        for old in tmp_path.glob("out/*"):
            old.unlink()
        monkeypatch.setattr(load, "load_runs", lambda uri, experiment: runs)
        code = main(["--uri", "http://127.0.0.1:1", "--output", str(tmp_path / "out"), *arguments])
        text, csv = tmp_path / "out/table.md", tmp_path / "out/table.csv"
        assert text.exists() == csv.exists() == (code == 0), "both files or none"
        found = (text.read_text(encoding="utf-8").replace("\u00a0", " "), pd.read_csv(csv)) if code == 0 else ("", None)
        made = ["report.html"] * ("--report" in arguments) + ["table.csv", "table.md"]
        assert sorted(p.name for p in tmp_path.glob("out/*")) == (made if code == 0 else [])
        return code, *found, capsys.readouterr().err

    return call
