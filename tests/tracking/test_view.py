"""MLflow's pages, as people see them: in a real browser."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import __main__ as table
from edkd import tracking
from tests.tracking import browser
from tests.tracking.records import END, TAGS, epochs, start, write

ROOT = Path(__file__).parents[2]


@pytest.fixture
def output(tmp_path):
    """The output folder of a sweep of two methods, with its table and report."""
    for number, (method, top1) in enumerate((("kd", 61.234), ("edkd", 67.891))):
        run = f"{number}" * 16
        tags = {**TAGS, "distiller": method, "title": method.upper(), "seed": "0", "config_hash": run}
        tags |= {"cell": run, "recipe": "3ep", "git_commit": "a" * 40, "git_dirty": "false"}
        last = {**END, "last": {**END["last"], "top1": top1}}
        name = f"{TAGS['dataset']}/{TAGS['pair']}/{method}-s0-{run[:8]}"
        write(tmp_path / "runs" / name, start(run=run, name=name, tags=tags), *epochs(3), last)
    place = {"uri": f"sqlite:///{tmp_path}/mlflow.db", "experiment": "edkd", "artifacts": str(tmp_path / "mlartifacts")}
    tracking.sync_all(tmp_path / "runs", **place)
    arguments = ["--uri", place["uri"], "--results", str(tmp_path), "--output", str(tmp_path)]
    assert table.main([*arguments, "--report"]) == 0
    return tmp_path


async def look(link, sweep, pictures, profile):
    """What is seen on the way from the printed link to a run's curves and the sweep's table and report."""
    server = link.partition("#")[0]
    async with browser.browse(profile) as page:
        runs = await page.show(link, "EDKD vgg13→vgg8 s0", "67.89", "matching runs")
        await page.save(pictures / "runs.png")
        (run,) = await page.value(
            "[...document.querySelectorAll('a')].filter(a => a.innerText.startsWith('EDKD')).map(a => a.href)"
        )
        await page.show(f"{run}/model-metrics", "best")
        bars = await page.until("document.querySelectorAll('.barlayer .point').length")
        # Charts are drawn when they are scrolled to.
        await page.until(
            "[...document.querySelectorAll('*')].filter(e => !e.children.length && e.innerText === 'train')"
            ".map(e => e.scrollIntoView()).length"
        )
        lines = await page.until("document.querySelectorAll('.scatterlayer .js-line').length")
        await page.save(pictures / "curves.png")
        seen = {}
        for name in ("table.html", "report.html"):
            await page.show(f"{server}#/experiments/1/runs/{sweep}/artifacts/{name}", "table.csv", name)
            seen[name] = await page.framed("EDKD")
            await page.save(pictures / f"{name}.png")
        await page.show(f"{server}#/experiments/1/runs/{sweep}", "mean top-1 after the last epoch")
        await page.save(pictures / "sweep.png")
    return runs, bars, lines, seen


@pytest.mark.skipif(browser.PROGRAM is None, reason="no chromium or google-chrome here")
@pytest.mark.timeout(600)
def test_the_printed_link_leads_to_accuracies_curves_table_and_report(output, tmp_path):
    """EDKD_SCREENSHOTS names a folder to keep the pictures in."""
    pictures = Path(os.environ.get("EDKD_SCREENSHOTS", tmp_path / "pictures"))
    pictures.mkdir(exist_ok=True)
    (sweep,) = {
        run["tags"]["mlflow.parentRunId"] for run in tracking.load_runs(f"sqlite:///{output}/mlflow.db", "edkd")
    }
    port = browser.free_port()
    command = [sys.executable, "-m", "edkd.cli.main", "ui", "--output", str(output), "--port", str(port)]
    with (output / "ui.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
    try:
        browser.wait_until_served(port)
        said = (output / "ui.log").read_text()
        assert f"ssh -N -L {port}:127.0.0.1:{port} " in said
        link = re.search(r"http://\S+", said)[0]
        listed, bars, lines, seen = asyncio.run(look(link, sweep, pictures, tmp_path / "profile"))
    finally:
        os.killpg(server.pid, signal.SIGINT)  # as Ctrl-C does
        server.wait(60)
    assert server.returncode == 0 and "Traceback" not in (output / "ui.log").read_text()
    assert listed.index("67.89") < listed.index("61.23")  # the best first
    assert "sweep nightly" not in listed
    assert bars >= 3 and lines >= 1
    assert all("KD" in text for text in seen.values())
    assert all((pictures / name).stat().st_size > 20_000 for name in ("runs.png", "table.html.png", "report.html.png"))
