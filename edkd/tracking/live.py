"""Tracking beside the training: a thread syncs whenever it is notified, and never blocks the training."""

import logging
import threading
import time
from pathlib import Path

from edkd.tracking.sync import sync_run
from edkd.tracking.uri import redacted, sync_command

PAUSE = 60.0  # seconds before the next try after a failure

log = logging.getLogger(__name__)


class LiveTracker:
    """Keeps MLflow up to date with the journal in a run's directory while the run trains.

    A daemon thread starts at once. It logs only its first failure, as a warning. After a failure it tries again at a
    later epoch, once `PAUSE` seconds have passed, or at `close`. The journal keeps everything for ``edkd sync``.
    """

    def __init__(self, run_dir: Path, *, uri: str, experiment: str, artifacts: str | None) -> None:
        self._run_dir = Path(run_dir)
        self._uri, self._experiment, self._artifacts = uri, experiment, artifacts
        self._news = threading.Event()
        self._closing = threading.Event()
        self._up_to_date = False
        self._warned = False
        self._news.set()  # importing MLflow takes seconds: begin at once
        self._thread = threading.Thread(target=self._work, name="edkd-tracking", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Signal that the journal has grown. Returns at once."""
        self._news.set()

    def close(self, timeout: float = 60.0) -> bool:
        """Sync a last time and stop; return True if MLflow is up to date. Takes at most ``timeout`` seconds.

        On an ordinary store this takes milliseconds; a run of a few seconds waits here for MLflow's import.
        """
        self._closing.set()
        self._news.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._warn(f"not done after {timeout:g} s")
            return False
        return self._up_to_date

    def _work(self) -> None:
        resting_until = 0.0
        while True:
            self._news.wait()
            self._news.clear()
            closing = self._closing.is_set()  # after clear(): a later close() wakes the thread again
            if closing or time.monotonic() >= resting_until:
                try:
                    sync_run(self._run_dir, uri=self._uri, experiment=self._experiment, artifacts=self._artifacts)
                    self._up_to_date = True
                except Exception as error:  # tracking must not fail a run, whatever happens to it
                    self._up_to_date = False
                    self._warn(redacted(" ".join(str(error).split())) or type(error).__name__)
                    resting_until = time.monotonic() + PAUSE
            if closing:
                return

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            command = sync_command(self._uri, self._experiment)
            log.warning("tracking failed: %s; training goes on; `%s` will bring MLflow up to date", reason, command)
