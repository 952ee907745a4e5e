"""hydra-submitit-launcher's SLURM launcher for sweeps that are handed to the queue as a whole; see `edkd.slurm.submit`.

What it submits is not Hydra's composition, repeated on the node, but the configuration that the plan froze.
"""

import contextlib
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

from hydra_plugins.edkd_slurm import EdkdSlurmConf

ROOT = Path(__file__).parents[2]
_LEAST = {
    "timeout_min": 1,
    "signal_delay_s": 1,
    "poll_s": 0.1,
    "array_parallelism": 1,
    "max_num_timeout": 0,
    "cpus_per_task": 1,
    "gpus_per_node": 0,
    "mem_gb": 1,
}


class EdkdSlurmLauncher(SlurmLauncher):
    """Takes all parameters of SlurmLauncher. `detached`: do not wait for the jobs; `poll_s`: how often to ask SLURM.

    `python` is the command that starts Python in a job, by default the interpreter that runs here.
    """

    def __init__(self, *, detached: bool, poll_s: float, python: str | None, **params: Any) -> None:
        super().__init__(**params)
        self.detached, self.poll_s, self.python = detached, poll_s, python

    def check(self) -> None:
        """Raise EdkdError for a key that there is not or a value that makes no sense, before anything is submitted."""
        from edkd.errors import EdkdError

        known = {field.name for field in fields(EdkdSlurmConf)} - {"_target_"}
        params = {**self.params, "poll_s": self.poll_s}
        for name in params:
            if name not in known:
                raise EdkdError(f"hydra.launcher.{name}: no such key; allowed: {', '.join(sorted(known))}")
        for name, least in _LEAST.items():
            value = params.get(name)
            if value is not None and not value >= least:
                raise EdkdError(f"hydra.launcher.{name}={value}: must be at least {least:g}")
        if not params["name"]:
            raise EdkdError("hydra.launcher.name is empty: a job needs a name, such as edkd")
        if params["nodes"] * params["tasks_per_node"] != 1:
            raise EdkdError("hydra.launcher: a run is one process: nodes and tasks_per_node must be 1")
        delay, walltime = params["signal_delay_s"], 60 * params["timeout_min"]
        if delay >= walltime:
            raise EdkdError(
                f"hydra.launcher.signal_delay_s={delay}: SLURM would warn a job of {walltime} s (timeout_min="
                f"{params['timeout_min']}) as it starts, and it would stop again; choose a part of that"
            )

    @property
    def threads(self) -> int | None:
        """CPU threads of a job, as far as the launcher's parameters say."""
        count = self.params.get("cpus_per_task")
        return int(count) if count else None

    def submit(self, configs: Sequence[Path], after: str | None) -> Sequence[tuple[str, str]]:
        """See `edkd.slurm.submit.Queue.submit`."""
        import submitit

        from edkd.errors import EdkdError
        from edkd.slurm.job import FrozenRun

        runs = [FrozenRun(config, signal_delay_s=self.params["signal_delay_s"]) for config in configs]
        # What sbatch says on stderr is in submitit's exception too.
        with _environment(), contextlib.redirect_stderr(io.StringIO()):
            try:
                executor = self._executor(after)
                with executor.batch():
                    jobs = [executor.submit(run) for run in runs]
            except submitit.core.utils.FailedJobError as error:
                raise EdkdError(f"SLURM refused the jobs: {_reason(error)}; see hydra.launcher") from error
            except (RuntimeError, ValueError, AssertionError, OSError) as error:
                raise EdkdError(f"hydra.launcher: {_line(error)}") from error
        return [(job.job_id, str(job.paths.stderr)) for job in jobs]

    def _executor(self, after: str | None) -> Any:
        import submitit

        params = {name: value for name, value in self.params.items() if value is not None}
        params["additional_parameters"] = _options(params.get("additional_parameters") or {})
        executor = submitit.AutoExecutor(
            cluster="slurm",
            folder=Path(params.pop("submitit_folder")).absolute(),
            slurm_max_num_timeout=params.pop("max_num_timeout"),
            **({"slurm_python": self.python} if self.python else {}),
        )
        if self.threads:  # since SLURM 22.05 srun does not take this over from sbatch
            params["srun_args"] = [f"--cpus-per-task={self.threads}"]
        if after is not None:
            params["dependency"] = f"afterany:{after}"
        common = BaseQueueConf.__dataclass_fields__
        executor.update_parameters(**{n if n in common else f"slurm_{n}": value for n, value in params.items()})
        return executor


def _options(params: Mapping[str, Any]) -> dict[str, Any]:
    """Options of sbatch: true is a flag; false and null are none, but for `requeue`, whose opposite has a name."""
    made = {name: value for name, value in params.items() if value is not None and value is not False}
    return made if params.get("requeue") is not False else {**made, "no-requeue": True}


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """The environment that jobs inherit: they find edkd, and nothing of a job from which this may be called."""
    hidden = ["PYTHONPATH"]
    if "SLURM_JOB_ID" in os.environ:
        hidden += [n for n in os.environ if n.startswith(("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_"))]
    before = {name: os.environ.pop(name) for name in hidden if name in os.environ and name != "SLURM_CONF"}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [before.get("PYTHONPATH")])])
    try:
        yield
    finally:
        del os.environ["PYTHONPATH"]
        os.environ.update(before)


def _reason(error: Exception) -> str:
    """What sbatch said, out of submitit's report of it."""
    said = re.findall(r"^sbatch: error: (.*)$", str(error), re.MULTILINE)
    return "; ".join(line.removeprefix("Batch job submission failed: ") for line in said) or _line(error)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
