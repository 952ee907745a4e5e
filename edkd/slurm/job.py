"""The program of a SLURM job: it executes a frozen run, stops on SLURM's warning, and resumes when started again.

    python -m edkd.slurm.job --signal-delay 120 --timeout-min 240 --max-timeouts 1000 --folder DIR HASH:CONFIG

SLURM warns all processes of a job with SIGUSR2: `signal_delay_s` seconds before the walltime ends, and before a
preemption where the cluster is set up so. The signal is recorded. At the next safe point the run stops, closes its
files and releases its directory. Only then is SLURM asked to queue the job again.

A run over several nodes has one task on each node, which starts the run's processes there. Only the first task locks
the run's directory and calls SLURM; all tasks compute.
"""

import argparse
import contextlib
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from edkd.console import counted
from edkd.errors import EdkdError
from edkd.rundir import journal, lock
from edkd.rundir.paths import RunDir
from edkd.runs.preemption import Ended, Stopped
from edkd.slurm import pack, queue
from edkd.slurm.warning import Warned, warnings_noted

if TYPE_CHECKING:
    from edkd.config.job import Job

_OPTIONS = ("folder", "signal-delay", "timeout-min", "max-timeouts")
_NO_GPU = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES in a job without a GPU; SLURM sets the last
EARLY = 90.0  # seconds allowed for an early warning of SLURM and for a job's set-up
PORTS = range(12000, 32000)  # where processes of several nodes meet; the kernel's ephemeral ports start above
PATIENCE = 2.0  # seconds between two tries to lock a run directory, and between two requests to SLURM


def main(arguments: Sequence[str] | None = None) -> None:
    """Execute the run to its end, or until SLURM's warning, after which the job is queued again.

    If the run does not end well, the exit code is not zero, so that SLURM's tools show the job as failed.
    """
    args = _parser().parse_args(arguments)
    os.chdir(args.folder)  # relative paths in the configuration begin here
    # SIGTERM only announces SIGKILL: SLURM has decided already whether the job goes back into the queue.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    if args.runs_per_job > 1 and not args.one_of_several:
        raise SystemExit(run_several(args))
    run, _, config = args.runs[0].partition(":")
    run_dir = RunDir(Path(config).parent)
    size = run_dir.journal_size

    def note(error: str) -> None:  # unless the run has written to its journal already
        if _first_task() and run_dir.journal_size == size:
            journal.Journal(run_dir.path).append({"event": "failure", "error": error})

    with warnings_noted(args.signal_delay) as warned:
        try:
            _execute(run_dir, run, warned, wait=not args.one_of_several)
            return
        except Ended:
            print("edkd: SLURM has ended the tasks of this job, or one of them is gone", file=sys.stderr)
            raise SystemExit(1) from None
        except Stopped:
            warned.disarm()
            if not _first_task():
                return
            if args.one_of_several:
                raise SystemExit(pack.STOPPED) from None
            print("stopped on SLURM's warning; asking SLURM to queue the job again", file=sys.stderr, flush=True)
        except lock.HeldError:
            raise SystemExit(pack.HELD) from None
        except EdkdError as error:
            note(str(error))
            print(f"edkd: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        except Exception as error:
            note(f"{type(error).__name__}: {error}")
            raise
        refused = _timed_out_too_often(args, warned) or queue_again(warned.deadline)
    if refused:
        _note_refusal([run_dir.path], refused)
    raise SystemExit(1)


def run_several(args: argparse.Namespace) -> int:
    """Execute several of the stage's runs at a time until none waits, or until SLURM's warning.

    Returns the exit code: 1 if a run failed in this job or is to be continued.
    """
    options = [f"--{name}={getattr(args, name.replace('-', '_'))}" for name in _OPTIONS]
    with warnings_noted(args.signal_delay) as warned:
        from edkd.training.hardware import slurm_job  # loads torch: only after `warnings_noted` has begun

        several = pack.Pack(args.runs, first=args.first, size=args.runs_per_job, options=options, job=slurm_job() or "")
        while True:
            if warned.at is None:
                several.start_next()
            else:
                warned.disarm()  # each process has the warning itself
            if not several.processes and (warned.at is not None or several.over):
                break
            time.sleep(pack.PAUSE)
            several.collect()
        if warned.at is not None and (several.stopped or not several.over):
            refused = _timed_out_too_often(args, warned) or queue_again(warned.deadline)
            if refused:
                _note_refusal([Path(run.partition(":")[2]).parent for run in several.stopped], refused)
            return 1
    return int(any(several.ended.values()))


def _note_refusal(directories: Sequence[Path], refused: str) -> None:
    message = (
        f"stopped by SLURM and not queued again ({refused}); run the same command again to continue, "
        "with a larger hydra.launcher.timeout_min or max_num_timeout if it ran out of time"
    )
    for directory in directories:
        journal.Journal(directory).append({"event": "failure", "error": message})
    print(f"edkd: {message}", file=sys.stderr)


def queue_again(deadline: float) -> str:
    """Ask SLURM to put this job back into its queue; returns why it does not, or an empty string.

    After a refusal the queue is checked: SLURM may have queued the job itself, as in a preemption. If SLURM refuses or
    does not answer, it is asked again until `deadline`, by the clock of `time.monotonic`.
    """
    from edkd.training.hardware import slurm_job  # loads torch: only after `warnings_noted` has begun

    job = slurm_job()
    assert job is not None
    while True:
        done = queue.ask(["scontrol", "requeue", job], time.monotonic() + queue.PATIENCE)
        if done is not None and done.returncode == 0:
            return ""
        known = queue.look_up([job])
        if known is not None and (job not in known or known[job].state != "RUNNING"):
            return ""  # it waits already, or is being ended
        if time.monotonic() + PATIENCE > deadline:
            said = " ".join(done.stderr.split()) if done is not None else ""
            return said or "SLURM does not answer"
        time.sleep(PATIENCE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m edkd.slurm.job")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--signal-delay", type=float, required=True)
    parser.add_argument("--timeout-min", type=float, required=True)
    parser.add_argument("--max-timeouts", type=int, required=True)
    parser.add_argument("--runs-per-job", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="where in the list the runs of this job begin")
    parser.add_argument("--one-of-several", action="store_true", help="a process of a job with several runs")
    parser.add_argument("runs", metavar="HASH:CONFIG", nargs="+")
    return parser


def _timed_out_too_often(args: argparse.Namespace, warned: Warned) -> str:
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    ran, walltime = warned.ran, 60 * args.timeout_min
    if restarts < args.max_timeouts or ran + args.signal_delay + EARLY < walltime:
        return ""
    return f"out of walltime, after {counted(restarts, 'restart')}"


def _first_task() -> bool:
    return os.environ.get("SLURM_PROCID", "0") == "0"


def _execute(run_dir: RunDir, run: str, warned: Warned, *, wait: bool) -> None:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch logs pages about a closed connection
    from edkd.config.job import thaw

    job, sweep = thaw(run_dir.config)
    if job.run != run:  # whoever can write there may have put in classes of their own
        raise EdkdError(f"{run_dir.config} is not what was submitted: it now describes run {job.run}, not {run}")
    if job.settings.engine.device == "auto":
        _check_gpu()
    with _ended_by_sigterm() if job.settings.engine.devices > 1 else contextlib.nullcontext():
        _compute(job, sweep, warned, wait=wait)


def _compute(job: "Job", sweep: str | None, warned: Warned, *, wait: bool) -> None:
    from edkd.runs.processes import Nodes, failed
    from edkd.runs.run import assist, execute

    nodes, count = None, int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    if count > 1:
        port = PORTS[int(os.environ["SLURM_JOB_ID"]) % len(PORTS)]
        # srun, which starts the tasks, runs on the first node.
        meeting = f"{os.environ['SLURM_LAUNCH_NODE_IPADDR']}:{port}"
        nodes = Nodes(count, int(os.environ["SLURM_PROCID"]), meeting)
        if nodes.number > 0:
            try:
                assist(job, nodes, warned.stop_asked)
            except EdkdError as error:
                failed(nodes.store, str(error))
                raise
            return
    said = False
    while True:
        try:
            execute(job, sweep=sweep, show=True, stop_asked=warned.stop_asked, nodes=nodes)
            return
        except lock.HeldError as error:
            # SLURM starts a job a second time if it loses contact with a node, where the first one may still run.
            # The run needs only one of them. If the first one dies after all, this one resumes the run.
            if not wait:
                raise
            if not said:
                print(f"waiting: {error}", file=sys.stderr, flush=True)
            said = True
        if warned.at is not None:
            raise Stopped
        time.sleep(PATIENCE)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Raise `Ended` on SIGTERM: SLURM sends it to all processes of a job, and those that compute end on it."""
    before = signal.getsignal(signal.SIGTERM)

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)
        raise Ended

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_gpu() -> None:
    """Raise EdkdError if torch does not find the GPU that SLURM gave the job: the run would take days on the CPU."""
    import torch

    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if gpus not in _NO_GPU and not torch.cuda.is_available():
        raise EdkdError(
            f"SLURM gave this job a GPU (CUDA_VISIBLE_DEVICES={gpus}), but torch {torch.__version__} finds none on "
            f"{platform.node()}: a build of torch without CUDA, or a driver that is too old or missing? "
            "hydra.launcher.gpus_per_node=0 engine.device=cpu computes on CPUs"
        )


if __name__ == "__main__":
    main()
