"""Waits for runs in SLURM until each is done, pruned, failed or vanished."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from edkd.console import LOG, console, counted
from edkd.slurm import queue
from edkd.slurm.queue import Entry
from edkd.status.state import RunStatus, look

SILENCE = 20.0  # seconds for which a run must look vanished before it counts as vanished
_FEW = 8  # jobs in a line
NEWS = 90.0  # the same for a job that is COMPLETED in SLURM: a network file system may show new files this late


def wait(run_dirs: Iterable[Path], poll_s: float) -> dict[Path, RunStatus]:
    """Look at runs every `poll_s` seconds until all have ended; returns the final status of each, by directory."""
    waiting = set(run_dirs)
    silent: dict[Path, float] = {}
    ended: dict[Path, RunStatus] = {}
    reasons: set[str] = set()
    away = False

    def ask(job_ids: Iterable[str]) -> Mapping[str, Entry] | None:
        nonlocal away
        known = queue.look_up(job_ids)
        if (known is None) != away:
            away = known is None
            LOG.warning("SLURM does not answer; waiting for it" if away else "SLURM answers again")
        return known

    while True:
        now = time.monotonic()
        statuses = look(waiting, ask=ask)
        reasons |= show_reasons(statuses, reasons)
        for status in statuses:
            if status.state != "vanished":
                silent.pop(status.directory, None)
                if status.state in ("done", "pruned", "failed"):
                    ended[status.directory] = status
                continue
            patience = NEWS if status.entry is not None and status.entry.state == "COMPLETED" else SILENCE
            if now - silent.setdefault(status.directory, now) >= patience:
                ended[status.directory] = status
                console.print(f"{status.name}: vanished: {status.why_vanished}", markup=False, soft_wrap=True)
        waiting -= ended.keys()
        if not waiting:
            return ended
        time.sleep(poll_s)


def show_reasons(statuses: Iterable[RunStatus], shown: set[str]) -> set[str]:
    """Print why runs wait, unless `shown` has all of the reasons; returns the reasons."""
    jobs = _by_reason(statuses)
    reasons = Counter({reason: len(each) for reason, each in jobs.items()})
    if not reasons.keys() <= shown:
        each = ", ".join(f"{why} ({count})" if len(reasons) > 1 else why for why, count in reasons.most_common())
        verb = "waits" if reasons.total() == 1 else "wait"
        console.print(f"SLURM: {counted(reasons.total(), 'run')} {verb}: {each}", markup=False, soft_wrap=True)
        _show_cures({reason: each for reason, each in jobs.items() if reason not in shown})
    return set(reasons)


def show_cures(statuses: Iterable[RunStatus]) -> None:
    """Print, once for each reason, what helps runs whose reason to wait does not end by itself."""
    _show_cures(_by_reason(statuses))


def _show_cures(jobs: Mapping[str, list[str]]) -> None:
    for reason, (first, *more) in jobs.items():
        helps = queue.cure(reason, ",".join([first, *more[: _FEW - 1]]) + (",…" if len(more) >= _FEW else ""))
        if helps:
            console.print(f"SLURM: {reason} does not end by itself: {helps}", markup=False, soft_wrap=True)


def _by_reason(statuses: Iterable[RunStatus]) -> dict[str, list[str]]:
    """The jobs in the queue that do not run, by the reason that SLURM gives."""
    found: dict[str, list[str]] = {}
    for status in statuses:
        entry = status.entry
        if status.state == "waiting" and entry is not None and entry.state in queue.QUEUED and entry.where:
            found.setdefault(entry.where, []).append(str(status.job))
    return found
