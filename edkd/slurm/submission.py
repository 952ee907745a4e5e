"""The record, in a run's directory, of the SLURM job that was submitted for the run: `slurm.json`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from edkd.errors import EdkdError
from edkd.rundir import files
from edkd.rundir.paths import RunDir


class UnwrittenError(EdkdError):
    """SLURM has a job whose submission could not be written."""


@dataclass(frozen=True)
class Submission:
    """A SLURM job that was submitted for a run."""

    job_id: str  # as squeue prints it
    submitted: float  # unix seconds
    sweep: str
    log: str
    journal_size: int = 0  # bytes in the journal at submission: this job writes what follows
    several: bool = False  # whether the job has other runs too, and goes on when this one has failed

    @classmethod
    def read(cls, run_dir: Path) -> "Submission | None":
        """The last submission of a run; None where there is none."""
        try:
            return cls(**json.loads(RunDir(run_dir).submission.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, run_dir: Path) -> None:
        """Write it into a run's directory. If that fails, raises UnwrittenError naming the job, which SLURM has."""
        path = RunDir(run_dir).submission
        try:
            files.write_text(path, json.dumps(asdict(self)) + "\n")
        except OSError as error:
            raise UnwrittenError(
                f"cannot write {path}: {error.strerror}; SLURM has job {self.job_id} for this run: "
                "`scancel` it, or let it run, before the same command is given again"
            ) from error
