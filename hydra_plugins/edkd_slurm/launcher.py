"""hydra-submitit-launcher's SLURM launcher for sweeps that are submitted as a whole; see `edkd.slurm.submit`.

It submits the configurations that the plan froze; Hydra does not compose them again on the node.
"""

import contextlib
import os
import re
import shlex
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

from hydra_plugins.edkd_slurm import EdkdSlurmConf

if TYPE_CHECKING:
    from edkd.config.job import Job

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
    "runs_per_job": 1,
    "nodes": 1,
}
# Errors of sbatch after which SLURM may still have the jobs; any other error is a refusal.
_AWAY = re.compile("contact slurm controller|timed out|connection (refused|failure)|zero bytes", re.IGNORECASE)


class EdkdSlurmLauncher(SlurmLauncher):
    """Takes all parameters of SlurmLauncher. `detached`: do not wait for the jobs; `poll_s`: how often to ask SLURM.

    `python` is the command that starts Python in a job, by default the interpreter that runs here.
    """

    def __init__(self, *, detached: bool, poll_s: float, python: str | None, runs_per_job: int, **params: Any) -> None:
        super().__init__(**params)
        self.detached, self.poll_s, self.python = detached, poll_s, python
        self.runs_per_job = runs_per_job
        self.parallel: int = (params["array_parallelism"] or 256) * runs_per_job  # submitit's default

    def check(self) -> None:
        """Raise EdkdError for an unknown key or an impossible value, before anything is submitted."""
        from edkd.errors import EdkdError

        known = {field.name for field in fields(EdkdSlurmConf)} - {"_target_"}
        params = {**self.params, "poll_s": self.poll_s, "runs_per_job": self.runs_per_job}
        for name in params:
            if name not in known:
                raise EdkdError(f"hydra.launcher.{name}: no such key; allowed: {', '.join(sorted(known))}")
        for name, least in _LEAST.items():
            value = params.get(name)
            if value is not None and not value >= least:
                raise EdkdError(f"hydra.launcher.{name}={value}: must be at least {least:g}")
        if params.get("stderr_to_stdout"):
            raise EdkdError("hydra.launcher.stderr_to_stdout=true: must be false, for a job's log is its error file")
        if not params["name"]:
            raise EdkdError("hydra.launcher.name is empty: a job needs a name, such as edkd")
        if params["tasks_per_node"] != 1:
            raise EdkdError(
                f"hydra.launcher.tasks_per_node={params['tasks_per_node']}: must be 1, a task that starts the processes"
                " of its node; engine.devices=N gives a run N of them, hydra.launcher.runs_per_job=N a job several runs"
            )
        if params["nodes"] > 1 and self.runs_per_job > 1:
            raise EdkdError(
                f"hydra.launcher.nodes={params['nodes']}: a job of several nodes has one run, not runs_per_job="
                f"{self.runs_per_job}"
            )
        delay, walltime = params["signal_delay_s"], 60 * params["timeout_min"]
        if delay >= walltime:
            raise EdkdError(
                f"hydra.launcher.signal_delay_s={delay}: SLURM would warn a job of {walltime} s (timeout_min="
                f"{params['timeout_min']}) as it starts, and it would stop again; choose a part of that"
            )

    def check_devices(self, jobs: Sequence["Job"]) -> None:
        """Raise EdkdError if a run's `engine.devices` does not fit its SLURM job; warn if GPUs would be idle."""
        from edkd.console import LOG, counted
        from edkd.errors import EdkdError

        nodes, gpus, runs = self.params["nodes"], self.params["gpus_per_node"] or 0, self.runs_per_job
        for devices, device in {(job.settings.engine.devices, job.settings.engine.device): 0 for job in jobs}:
            why, on_gpus = "", gpus > 0 and device != "cpu"
            if devices % nodes:
                why = f"not the same number on each of hydra.launcher.nodes={nodes}"
            elif on_gpus and devices > 1 and runs > 1:
                why = f"with hydra.launcher.runs_per_job={runs} each run has one GPU"
            elif on_gpus and (devices > nodes * gpus or (devices < nodes * gpus and nodes > 1)):
                why = f"hydra.launcher.nodes={nodes} with gpus_per_node={gpus}: {counted(nodes * gpus, 'GPU')}"
            if why:
                raise EdkdError(f"engine.devices={devices}: {why}")
            if gpus > runs * devices:
                LOG.warning(
                    "hydra.launcher.gpus_per_node=%d: a run uses %s; idle: %d; runs_per_job=%d uses all",
                    gpus, "one GPU" if devices == 1 else f"{devices} GPUs", gpus - runs * devices, gpus,
                )  # fmt: skip

    @property
    def threads(self) -> int | None:
        """CPU threads of a run on a node; None if the launcher's parameters do not set them."""
        count = self.params.get("cpus_per_task")
        return max(1, int(count) // max(1, self.runs_per_job)) if count else None

    @property
    def name(self) -> str:
        """The prefix of the jobs' names."""
        return "_".join(str(self.params["name"]).split())

    def submit(self, jobs: Sequence["Job"], after: str | None, comment: str) -> list[str]:
        """See `edkd.slurm.submit.Queue.submit`."""
        from edkd.errors import EdkdError
        from edkd.slurm.submit import AwayError, RefusedError, label, several

        folder, made = self._folder()
        tasks = -(-len(jobs) // self.runs_per_job)
        name = several([label(job) for job in jobs]) if tasks == 1 else comment.split()[0]
        try:
            script = self._script(jobs, folder, after, comment, f"{self.name}:{name}")
        except (RuntimeError, ValueError, AssertionError) as error:
            raise RefusedError(f"hydra.launcher: {_line(error)}") from error
        path = folder / f"{uuid.uuid4().hex}_submission.sh"
        try:
            path.write_text(script)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise EdkdError(f"cannot write {path}: {error.strerror}") from error
        with _environment():
            command = ["sbatch", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, close_fds=False)  # for `alone`
        number = re.search(r"job (\d+)", done.stdout)
        if number is None:
            path.unlink()
            if made:
                folder.rmdir()
            said = _reason(done.stderr or done.stdout)
            raise AwayError(said) if _AWAY.search(said) else RefusedError(f"{said}; see hydra.launcher")
        array = number[1]
        path.rename(folder / f"{array}_submission.sh")
        return [array if tasks == 1 else f"{array}_{each // self.runs_per_job}" for each in range(len(jobs))]

    def log(self, job_id: str) -> str:
        """See `edkd.slurm.submit.Queue.log`."""
        return str(Path(self.params["submitit_folder"]).absolute() / f"{job_id}_0_log.err")

    def _folder(self) -> tuple[Path, bool]:
        """The folder of the scripts and of SLURM's logs, and whether this call made it. SLURM does not make it.

        Other users may not write there, or put links there for SLURM to follow.
        """
        from edkd.errors import EdkdError

        folder = Path(self.params["submitit_folder"]).absolute()
        made = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if folder.stat().st_uid == os.geteuid():
                folder.chmod(0o700)
                return folder, made
        except OSError as error:
            raise EdkdError(f"cannot write {folder}: {error.strerror}") from error
        raise EdkdError(
            f"{folder} is another user's, who could write into your jobs' logs: "
            "hydra.launcher.submitit_folder=DIR names one of your own"
        )

    def _script(self, jobs: Sequence["Job"], folder: Path, after: str | None, comment: str, name: str) -> str:
        """The script for sbatch: submitit's script, with the runs of all tasks in it."""
        import submitit

        from edkd.rundir.paths import RunDir

        params = {name: value for name, value in self.params.items() if value is not None}
        del params["submitit_folder"]
        options = _options(params.get("additional_parameters") or {})
        options["comment"] = " ".join(filter(None, [params.pop("comment", None), options.get("comment"), comment]))
        values = {"signal-delay": params["signal_delay_s"], "timeout-min": params["timeout_min"]}
        values |= {"max-timeouts": params.pop("max_num_timeout"), "folder": shlex.quote(str(Path.cwd()))}
        runs = [shlex.quote(f"{job.run}:{RunDir(job.directory).config.absolute()}") for job in jobs]
        params |= {"name": name, "additional_parameters": options}
        params["setup"] = [*params.get("setup", []), "runs=(", *runs, ")"]
        if params.get("cpus_per_task"):  # since SLURM 22.05 srun does not inherit this from sbatch
            params["srun_args"] = [f"--cpus-per-task={params['cpus_per_task']}"]
        if params["nodes"] > 1:  # a task that fails ends the others
            params["srun_args"] = [*params.get("srun_args", []), "--kill-on-bad-exit=1"]
        if after is not None:
            params["dependency"] = f"afterany:{after}"
        executor = submitit.AutoExecutor(cluster="slurm", folder=folder)
        common = BaseQueueConf.__dataclass_fields__
        executor.update_parameters(**{n if n in common else f"slurm_{n}": value for n, value in params.items()})
        slurm: Any = executor._executor
        if len(jobs) > self.runs_per_job:
            slurm.parameters["map_count"] = -(-len(jobs) // self.runs_per_job)
        task, of_job = "${SLURM_ARRAY_TASK_ID:-0}", '"${runs[${SLURM_ARRAY_TASK_ID:-0}]}"'
        if self.runs_per_job > 1:
            values |= {"runs-per-job": self.runs_per_job, "first": f"$(({self.runs_per_job} * {task}))"}
            of_job = '"${runs[@]}"'
        given = " ".join(f"--{name} {value}" for name, value in values.items())
        # A warning before Python is ready for it would end the job, and SLURM would not queue the job again.
        ignoring = """bash -c 'trap "" USR2; exec "$0" "$@"'"""
        command = f"{ignoring} {self.python or slurm.python} -u -m edkd.slurm.job {given} {of_job}"
        return str(slurm._make_submission_file_text(command, ""))


def _options(params: Mapping[str, Any]) -> dict[str, Any]:
    """Options of sbatch: true is a flag; false and null omit the option, but requeue=false gives `no-requeue`."""
    made = {name: value for name, value in params.items() if value is not None and value is not False}
    return made if params.get("requeue") is not False else {**made, "no-requeue": True}


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Set the environment that jobs inherit: it has edkd's path, and no variables of a job around this process."""
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


def _reason(said: str) -> str:
    """The errors that sbatch reports, without its prefixes."""
    found = re.findall(r"^sbatch: error: (.*)$", said, re.MULTILINE)
    return "; ".join(line.removeprefix("Batch job submission failed: ") for line in found) or _line(said)


def _line(said: object) -> str:
    return " ".join(str(said).split())[:500]
