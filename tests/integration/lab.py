"""Sweeps of runs that take seconds: launched, disturbed, and compared with the same runs left in peace."""

import itertools
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from edkd.rundir import journal
from tests.commandline import REPOSITORY, Ended
from tests.integration.processes import Crew, wait_for

SHORT, LONG = 3.5, 70.0  # seconds that a run takes alone: long enough to be disturbed, or to outlive its walltime
COMMAND_PATIENCE = 400.0
BRITTLE = '''
"""KD that breaks when told to: by a file named after its process."""

import os
import pathlib

from edkd.distillers.kd import KD


class Brittle(KD):
    """See above."""

    def forward(self, student, teacher, batch):
        if (pathlib.Path(__file__).parent / f"break-{os.getpid()}").exists():
            raise RuntimeError("told to break")
        return super().forward(student, teacher, batch)
'''
BRITTLE_YAML = "_target_: brittle.Brittle\ntemperature: 4.0\nce_weight: 0.1\nkd_weight: 0.9\n"


class Command:
    """A command that runs beside the test."""

    def __init__(self, arguments: list[str], folder: Path, name: str, environment: Mapping[str, str]) -> None:
        self.files = folder / f"{name}.out", folder / f"{name}.err"
        with self.files[0].open("w") as out, self.files[1].open("w") as err:
            self.process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=folder, env={**environment}
            )

    def ended(self, patience: float = COMMAND_PATIENCE) -> Ended:
        """Wait for its end."""
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"not done after {patience:g} s: {self.said()}") from None
        return Ended(self.process.returncode, *(file.read_text() for file in self.files))

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def said(self) -> str:
        """What it has printed so far."""
        return "\n".join(file.read_text() for file in self.files)


class Lab:
    """A folder for outputs, a family of runs whose length suits this machine, and their undisturbed results."""

    def __init__(self) -> None:
        self.crew = Crew("lab")
        self.folder = self.crew.folder
        self.crew.environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        (self.folder / "tmp").mkdir()
        self.crew.environment["TMPDIR"] = str(self.folder / "tmp")
        self.crew.environment["PYTHONPATH"] = f"{self.folder / 'code'}:{REPOSITORY}"
        (self.folder / "code").mkdir()
        (self.folder / "code" / "brittle.py").write_text(BRITTLE)
        (self.folder / "conf" / "distiller").mkdir(parents=True)
        (self.folder / "conf" / "distiller" / "brittle.yaml").write_text(BRITTLE_YAML)
        self.soft = self.folder / "conf" / "distiller" / "soft.yaml"
        shutil.copy(REPOSITORY / "conf" / "distiller" / "kd.yaml", self.soft)
        self.peace = self.folder / "undisturbed"
        self.store = f"sqlite:///{self.folder}/mlflow.db"
        self.epochs, self.long = 0, 0
        self.commands: list[Command] = []
        self._pool = ThreadPoolExecutor(1)  # one after the other: the tests need the other core
        self._calibrated: Future[None] = self._pool.submit(self._calibrate)
        self._families = {name: self._pool.submit(self._undisturbed, name) for name in ("pairs", "seeds", "long")}

    def base(self, *, long: bool = False) -> list[str]:
        """The overrides that all runs have in common."""
        self._calibrated.result(COMMAND_PATIENCE)
        return self._base(self.long if long else self.epochs)

    def python(self, name: str, *arguments: str, cluster: Crew | None = None) -> Command:
        """Start Python in the lab's folder, as a user of this cluster."""
        environment = {**self.crew.environment}
        if cluster is not None:
            environment |= {k: v for k, v in cluster.environment.items() if k.startswith(("SLURM", "EDKD"))}
        self.commands.append(Command([sys.executable, *arguments], self.folder, name, environment))
        return self.commands[-1]

    def launch(self, name: str, cluster: Crew, *arguments: str, output: str, long: bool = False) -> Command:
        """Start `launch.py -m` with `hydra/launcher=slurm`, with the runs below the folder `output`."""
        common = self.base(long=long)
        return self.python(
            name, str(REPOSITORY / "launch.py"), "-m", "--config-dir", str(self.folder / "conf"), *common,
            f"output={self.folder / output}", f"tracking.uri={self.store}", f"tracking.experiment={output}",
            "hydra/launcher=slurm", "hydra.launcher.poll_s=1", "hydra.launcher.cpus_per_task=1",
            "hydra.launcher.mem_gb=1", "hydra.launcher.timeout_min=60", *arguments, cluster=cluster,
        )  # fmt: skip

    def local(self, name: str, base: list[str], output: Path, *arguments: str) -> None:
        """Run a command without SLURM to its end, in peace."""
        done = self.python(
            f"undisturbed-{name}", str(REPOSITORY / "launch.py"), "-m", "--config-dir", str(self.folder / "conf"),
            *base, f"output={output}", f"tracking.uri={self.store}", "tracking.experiment=undisturbed", *arguments,
        ).ended()  # fmt: skip
        assert done.code == 0, done

    def give_teachers(self, name: str) -> Path:
        """The output folder of that name, with the teachers that the undisturbed runs trained."""
        # The file of the weights is written last.
        wait_for("two teachers", lambda: len(list(self.peace.glob("teachers/*/*.pt"))) == 2)
        output = self.folder / name
        unfinished = shutil.ignore_patterns("*.lock", "*.new", ".*")
        shutil.copytree(self.peace / "teachers", output / "teachers", ignore=unfinished)
        return output

    def reference(self, family: str) -> None:
        """Wait for a family of undisturbed runs."""
        self._families[family].result(COMMAND_PATIENCE)

    def break_run(self, pid: int) -> None:
        """Let the process of a run with the brittle distiller raise an error."""
        (self.folder / "code" / f"break-{pid}").touch()

    def close(self) -> None:
        """Stop everything and remove the folder."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for command in self.commands:
            command.kill()
        self.crew.dismiss()

    def _base(self, epochs: int) -> list[str]:
        return [
            "dataset=digits", "dataset.image_size=8", "dataset.train_per_class=12", "dataset.test_per_class=5",
            "teacher=resnet14", "student=resnet8", "teacher_seed=0", "schedule=short", f"schedule.epochs={epochs}",
            "schedule.milestones=[20,40]", "engine.device=cpu", "engine.threads=1", "allow_weak_teacher=true",
        ]  # fmt: skip

    def _calibrate(self) -> None:
        """Choose the numbers of epochs by this machine's pace."""
        output = self.folder / "calibration"
        self.local("calibration", self._base(40), output, "distiller=vanilla", "student=resnet8")
        (book,) = output.glob("runs/*/*/*/journal.jsonl")
        times = [record["time"] for record in journal.read(book.parent) if record["event"] == "epoch"]
        # That of the fastest epochs: what disturbs this machine now may be gone when it matters.
        pace = statistics.quantiles((later - before for before, later in itertools.pairwise(times[5:])), n=5)[0]
        self.epochs = min(max(round(SHORT / pace), 45), 1000)
        self.long = min(max(round(LONG / pace), 400), 15000)

    def _undisturbed(self, family: str) -> None:
        self._calibrated.result()
        runs = {
            "pairs": ["distiller=kd,dkd,edkd", "teacher=resnet14,resnet20"],
            "seeds": ["distiller=kd,dkd,brittle,soft", "seed=0,1"],
            "long": ["distiller=kd"],
        }[family]
        epochs = self.long if family == "long" else self.epochs
        self.local(family, self._base(epochs), self.peace, *runs)
        if family == "seeds":
            self.local("more", self._base(epochs), self.peace, "distiller=kd,dkd", "seed=2,3")
