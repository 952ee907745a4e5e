"""What runs in a SLURM job: one frozen run, which makes way when SLURM asks, and continues when it is started again.

SLURM warns all processes of a job with SIGUSR2: `signal_delay_s` seconds before the walltime ends, and before a
preemption where the cluster is set up so. Submitit's handler for it rewrites files, asks SLURM to queue the job again
and exits, wherever the process just is, and in forked children as well. Here the signal is noted, the run stops at the
next safe point with its files closed and its directory free, and only then submitit's handler runs.
"""

import contextlib
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from edkd.errors import EdkdError
from edkd.rundir import journal, lock
from edkd.rundir.paths import RunDir
from edkd.runs.preemption import Stopped

WARNING = signal.SIGUSR2
FINISH_EPOCH = 0.5  # part of the time between the warning and the end in which an epoch may still be finished
LAST_MOMENT = 0.75  # part of that time after which a run that has met no safe point is broken off where it is
_NO_GPU = ("", "-1", "NoDevFiles")  # CUDA_VISIBLE_DEVICES of a job without; the last is SLURM's
PATIENCE = 2.0  # seconds between two looks at a run directory that another process holds


class FrozenRun:
    """Executes the run that a frozen configuration describes; submitit pickles this and calls it in the job."""

    def __init__(self, config: Path, *, signal_delay_s: float) -> None:
        self.config = Path(config).absolute()
        self.folder = Path.cwd()  # relative paths in the configuration begin here
        self.signal_delay_s = signal_delay_s

    def __call__(self) -> None:
        """Run to the end, or until SLURM asks for the place: the job is then queued again.

        A run that fails ends the process with a non-zero code, so that SLURM's tools show the job as failed too.
        """
        os.chdir(self.folder)
        run_dir = RunDir(self.config.parent)
        size = run_dir.journal_size

        def note(error: str) -> None:  # unless the run itself could do so
            if run_dir.journal_size == size:
                journal.Journal(run_dir.path).append({"event": "failure", "error": error})

        with warnings_noted(self.signal_delay_s) as warned:
            try:
                self._execute(warned)
                return
            except Stopped:
                print("stopped on SLURM's warning; asking SLURM to queue the job again", file=sys.stderr)
            except EdkdError as error:
                note(str(error))
                print(f"edkd: {error}", file=sys.stderr)
                raise SystemExit(1) from None
            except Exception as error:
                note(f"{type(error).__name__}: {error}")
                raise
            warned.disarm()
            try:
                warned.pass_on()
            except Exception as error:  # submitit's and scontrol's: the job will not be started again
                reason = " ".join(str(error).split())
                message = (
                    f"stopped by SLURM and not queued again ({reason}); run the same command again to continue, "
                    "with a larger hydra.launcher.timeout_min or max_num_timeout if it ran out of time"
                )
                journal.Journal(run_dir.path).append({"event": "failure", "error": message})
                print(f"edkd: {message}", file=sys.stderr)
                raise SystemExit(1) from None

    def checkpoint(self) -> Any:
        """Submitit's protocol: what the job that is queued again runs. All progress is in the run's directory."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)

    def _execute(self, warned: "Warned") -> None:
        from edkd.config.job import thaw
        from edkd.runs.run import execute

        job, sweep = thaw(self.config)
        if job.settings.engine.device == "auto":
            _check_gpu()
        said = False
        while True:
            try:
                execute(job, sweep=sweep, show=True, stop_asked=warned.stop_asked)
                return
            except lock.HeldError as error:
                # SLURM starts a job a second time if it loses sight of a node on which the first one lives. The run
                # needs but one of them; should that die after all, this one continues.
                if not said:
                    print(f"waiting: {error}", file=sys.stderr)
                said = True
            if warned.at is not None:
                raise Stopped
            time.sleep(PATIENCE)


def _check_gpu() -> None:
    """Raise EdkdError where SLURM gave the job a GPU that torch does not find: on the CPU it would take days."""
    import torch

    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if gpus not in _NO_GPU and not torch.cuda.is_available():
        raise EdkdError(
            f"SLURM gave this job a GPU (CUDA_VISIBLE_DEVICES={gpus}), but torch {torch.__version__} finds none on "
            f"{platform.node()}: a build of torch without CUDA, or a driver that is too old or away? "
            "hydra.launcher.gpus_per_node=0 engine.device=cpu computes on CPUs"
        )


class Warned:
    """Whether and when SLURM's warning came."""

    def __init__(self, delay: float, handler: Any) -> None:
        self.delay, self.handler = delay, handler
        self.at: float | None = None

    def note(self) -> None:
        """The warning has come; further ones change nothing."""
        if self.at is None:
            self.at = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, max(0.001, LAST_MOMENT * self.delay))

    def stop_asked(self, left: float) -> bool:
        """At a safe point: whether to stop there, with `left` seconds to the end of the epoch."""
        if self.at is None:
            return False
        return left <= 0 or time.monotonic() - self.at + left > FINISH_EPOCH * self.delay

    def disarm(self) -> None:
        """From here on nothing is broken off."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def pass_on(self) -> None:
        """Call the handler that was there before: submitit's, which requeues the job and exits."""
        if callable(self.handler):
            self.handler(WARNING, None)


@contextlib.contextmanager
def warnings_noted(delay: float) -> Iterator[Warned]:
    """Note SLURM's warning instead of acting on it; `delay` seconds later SLURM ends the job.

    The signal is blocked rather than handled: children, forked or started, inherit that and are not disturbed, while
    a thread waits for it. The handler is for threads that were there before, to which the kernel may give the signal.
    """
    before = signal.getsignal(WARNING), signal.getsignal(signal.SIGALRM)
    warned = Warned(delay, before[0])
    done = threading.Event()

    def noted(number: int, frame: FrameType | None) -> None:
        warned.note()

    def break_off(number: int, frame: FrameType | None) -> None:
        raise Stopped

    def wait() -> None:
        while signal.sigwait({WARNING}) and not done.is_set():
            warned.note()

    signal.signal(WARNING, noted)
    signal.signal(signal.SIGALRM, break_off)
    signal.pthread_sigmask(signal.SIG_BLOCK, {WARNING})
    waiting = threading.Thread(target=wait, name="edkd-warning", daemon=True)
    waiting.start()
    try:
        yield warned
    finally:
        warned.disarm()
        done.set()
        signal.pthread_kill(waiting.ident or 0, WARNING)
        waiting.join()
        signal.signal(WARNING, before[0])
        signal.signal(signal.SIGALRM, before[1])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {WARNING})
