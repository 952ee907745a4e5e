"""The benchmark of table, statistics and report, on a store of a few runs."""

import pytest

from analysis import bench


def test_every_part_reads_the_store(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "_PAIRS", bench._PAIRS[:2])
    monkeypatch.setattr(bench, "_METHODS", bench._METHODS[:3])
    assert bench.build(tmp_path) == 2 * 3 * 3
    for part in bench._PARTS:
        assert bench.main([part, "--output", str(tmp_path)]) == 0
        seconds, kilobytes = map(float, capsys.readouterr().out.split()[-2:])
        assert seconds > 0 and kilobytes > 10_000  # of this whole test process: no bound above holds everywhere
    assert "18 distilled students" in (tmp_path / "table.md").read_text()
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") >= 9 and f"<h1>CIFAR-100, {bench._EPOCHS} epochs" in page
    with pytest.raises(SystemExit):
        bench.main(["figures"])
