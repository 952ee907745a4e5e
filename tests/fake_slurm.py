"""A SLURM of shell scripts on PATH, for what needs no real one: what is submitted, and what the queue says."""

import os
import stat
from pathlib import Path

import pytest

COMMANDS = {
    # Keeps the script as jobs/N.sh and runs nothing, unless `run` is there: then all jobs run, one after another,
    # and each leaves the queue at its end.
    "sbatch": """
        [ -e {folder}/refuse ] && cat {folder}/refuse >&2 && exit 1
        n=$(( $(ls {folder}/jobs | wc -l) + 1 ))
        cp "$1" {folder}/jobs/$n.sh
        [ -e {folder}/deaf ] && cat {folder}/deaf >&2 && exit 1
        echo "Submitted batch job $n"
        if [ -e {folder}/run ]; then {folder}/bin/run-job $n </dev/null >/dev/null 2>&1 & fi""",
    "run-job": """
        exec 9>{folder}/turn; flock 9
        trap "sed -i '/^$1[|_]/d' {folder}/queue" EXIT
        script={folder}/jobs/$1.sh
        last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' $script)
        export SLURM_JOB_ID=$1 SLURMD_NODENAME=n1
        if [ -z "$last" ]; then bash $script; exit; fi
        for task in $(seq 0 $last); do
            SLURM_ARRAY_JOB_ID=$1 SLURM_ARRAY_TASK_ID=$task bash $script
        done""",
    "srun": """
        while [ "${{1#-}}" != "$1" ]; do
            case $1 in --output|--error) shift;; esac
            shift
        done
        exec "$@" >>{folder}/srun.log 2>&1""",
    "squeue": """
        [ -e {folder}/away ] && echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2 && exit 1
        case "$*" in
            *%k*) grep -H -o -- '--comment=.*' {folder}/jobs/*.sh |
                sed -E "s|.*/([0-9]+).sh:--comment='?([^']*)'?|\\1 \\2|" |
                while read -r n comment; do sed -n -E "s/^($n(_[^|]*)?)\\|.*/\\1|$comment/p" {folder}/queue; done;;
            *) cat {folder}/queue;;
        esac""",
    "scontrol": """
        [ $# = 0 ] && cat >>{folder}/asked && exit
        echo "$*" >>{folder}/asked
        [ -e {folder}/slow ] && exec sleep 60
        [ -e {folder}/away ] && echo 'Unable to contact slurm controller' >&2 && exit 1
        [ "$1" = requeue ] && [ -e {folder}/no_requeue ] && echo 'Requested operation is disabled' >&2 && exit 1
        echo "MaxArraySize            = $(cat {folder}/max_array_size)" """,
}


class FakeSlurm:
    """The folder behind the scripts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "jobs").mkdir(parents=True)
        (folder / "bin").mkdir()
        (folder / "queue").touch()
        (folder / "max_array_size").write_text("1001\n")
        for name, text in COMMANDS.items():
            path = folder / "bin" / name
            path.write_text("#!/bin/bash\n" + text.format(folder=folder).strip() + "\n")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def scripts(self) -> list[str]:
        """What was submitted, oldest first."""
        return [path.read_text() for path in sorted((self.folder / "jobs").iterdir(), key=lambda path: int(path.stem))]

    def requeued(self) -> list[str]:
        """The jobs that were put back into the queue."""
        asked = self.folder / "asked"
        lines = asked.read_text().splitlines() if asked.exists() else []
        return [line.removeprefix("requeue ") for line in lines if line.startswith("requeue ")]

    def queue(self, **jobs: str) -> None:
        """Let the queue know these jobs, and no others: `queue(j1_0="RUNNING", j1_1="PENDING Priority")`."""
        words = {name.removeprefix("j"): [*state.split(), "None"][:2] for name, state in jobs.items()}
        lines = [f"{job}|{state}|{reason}|n1\n" for job, (state, reason) in words.items()]
        (self.folder / "queue").write_text("".join(lines))

    def set(self, name: str, text: str = "") -> None:
        """`refuse` or, after it has taken a job, `deaf` (with what sbatch says), `away`, `slow` (to scontrol), `run`,
        `no_requeue`, `max_array_size`.
        """
        (self.folder / name).write_text(text)

    def clear(self, name: str) -> None:
        """The opposite of `set`."""
        (self.folder / name).unlink()


@pytest.fixture
def fake_slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A SLURM whose commands come first on PATH."""
    made = FakeSlurm(tmp_path_factory.mktemp("slurm"))
    monkeypatch.setenv("PATH", f"{made.folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    return made
