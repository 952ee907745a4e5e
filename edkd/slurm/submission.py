"""What a run's directory keeps of the SLURM job that was submitted for it: `slurm.json`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from edkd.errors import EdkdError
from edkd.rundir import files
from edkd.rundir.paths import RunDir


@dataclass(frozen=True)
class Submission:
    """A job that was handed to SLURM for a run."""

    job_id: str  # as squeue prints it
    submitted: float  # unix seconds
    sweep: str
    log: str
    journal_size: int = 0  # bytes in the journal at submission: what is written after them is this job's
    several: bool = False  # whether the job has other runs too, and goes on when this one has failed

    @classmethod
    def read(cls, run_dir: Path) -> "Submission | None":
        """The last submission of a run; None where there is none."""
        try:
            return cls(**json.loads(RunDir(run_dir).submission.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, run_dir: Path) -> None:
        """Put it into a run's directory. Raises EdkdError that names the job, which SLURM has all the same."""
        path = RunDir(run_dir).submission
        try:
            files.write_text(path, json.dumps(asdict(self)) + "\n")
        except OSError as error:
            raise EdkdError(
                f"cannot write {path}: {error.strerror}; SLURM has job {self.job_id} for this run: "
                "`scancel` it, or let it run, before the same command is given again"
            ) from error
