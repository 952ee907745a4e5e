"""Several runs in one SLURM job, for clusters that give whole nodes, and small networks that leave a large GPU idle.

Each run is a separate process with one of the job's GPUs, its own threads and its own log. When a run ends, the next
waiting run of the stage starts, even one of another job. The locks on the runs' directories decide which job runs it.
"""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edkd.errors import EdkdError
from edkd.rundir import journal
from edkd.rundir.paths import RunDir
from edkd.slurm.submission import Submission

STOPPED = 3  # exit code of a process whose run has stopped on SLURM's warning
HELD = 4  # exit code of a process whose run another process holds
PAUSE = 0.5  # seconds between two looks at the processes
LOOK = 10.0  # seconds until the next search for waiting runs if none was found


class Pack:
    """The runs of a stage, `HASH:CONFIG` each; this job's own are the `size` runs from index `first` on."""

    def __init__(self, runs: Sequence[str], *, first: int, size: int, options: Sequence[str], job: str) -> None:
        self.own = list(runs[first : first + size])
        self.runs = [*runs[first:], *runs[:first]]
        self.size, self.options, self.job = size, options, job
        self.gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
        self.processes: dict[int, _Process] = {}  # running processes by place, from 0 to size - 1
        self.ended: dict[str, int] = {}  # exit codes by run; 0 if another process has finished it
        self.next_look = 0.0  # when to search for waiting runs, by the clock of `time.monotonic`

    @property
    def stopped(self) -> list[str]:
        """The runs that are to be continued when the job is queued again."""
        return [run for run, code in self.ended.items() if code == STOPPED]

    @property
    def over(self) -> bool:
        """Whether none of this job's own runs waits or is held by another process, which may still die."""
        return not any(self._state(run) in ("waits", "held") for run in self.own)

    def start_next(self) -> None:
        """Start waiting runs in the free places."""
        if time.monotonic() < self.next_look:
            return
        for place in range(self.size):
            if place in self.processes:
                continue
            run = next((each for each in self.runs if self._state(each) == "waits"), None)
            if run is None:
                self.next_look = time.monotonic() + LOOK
                return
            self.processes[place] = self._started(run, place)

    def collect(self) -> None:
        """Record the exit codes of ended processes, and journal those that were killed or exited unexpectedly."""
        for place, (run, submission, process) in list(self.processes.items()):
            code = process.poll()
            if code is None:
                continue
            del self.processes[place]
            self.next_look = 0.0
            if code == HELD:  # another process began the run at the same moment
                submission.write(_directory(run))
                continue
            self.ended[run] = code
            if code not in (0, 1, STOPPED):
                how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
                journal.Journal(_directory(run)).append({"event": "failure", "error": f"its process {how}"})

    def _state(self, run: str) -> str:
        """The state of a run: `waits`, `held` by another process, or `ended`, well or not, or started by this job."""
        if run in self.ended or any(run == each.run for each in self.processes.values()):
            return "ended"
        try:
            status = journal.state(_directory(run)).status
        except EdkdError:  # damaged
            return "ended"
        submission = Submission.read(_directory(run))
        if status in ("failed", "pruned") and submission is not None and _array(submission.job_id) == _array(self.job):
            grown = RunDir(_directory(run)).journal_size > submission.journal_size
            return "ended" if grown else "waits"
        if status == "finished":
            self.ended[run] = 0
            return "ended"
        return "held" if status == "running" else "waits"

    def _started(self, run: str, place: int) -> "_Process":
        directory, environment = _directory(run), dict(os.environ)
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[place % len(self.gpus)]
        submission = Submission.read(directory) or Submission(self.job, time.time(), "", "")
        logs = Path(submission.log).parent if submission.log else directory
        log = logs / f"{self.job}_{run[:8]}_log.err"
        dataclasses.replace(submission, job_id=self.job, log=str(log), several=True).write(directory)
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", "edkd.slurm.job", *self.options, "--one-of-several", run],
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment,
            )  # fmt: skip
        return _Process(run, submission, process)


class _Process(NamedTuple):
    run: str
    submission: Submission  # before this job took the run
    process: "subprocess.Popen[bytes]"


def _directory(run: str) -> Path:
    return Path(run.partition(":")[2]).parent


def _array(job_id: str) -> str:
    return job_id.partition("_")[0]
