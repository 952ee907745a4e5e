"""The runs of a family, and the commands that are left to train them."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edkd import journal, plan, teachers
from edkd.compose import compose_values
from edkd.engine import cores
from edkd.journal import RunState
from edkd.plan import Job
from edkd.wording import counted

FAMILIES = {  # teacher: students, each a pair of conf/pair
    "vgg13": ("vgg8", "mobilenetv2"),
    "wrn_40_2": ("wrn_16_2", "wrn_40_1"),
    "resnet32x4": ("resnet8x4", "mobilenetv2", "shufflenetv2"),
    "resnet50": ("mobilenetv2",),
}
METHODS = ("vanilla", "kd", "dkd", "edkd")


@dataclass(frozen=True)
class Step:
    """A command of the way."""

    kind: Literal["teacher", "cache", "students"]
    title: str
    shown: str  # as a person would give it
    command: list[str]


class Family:
    """The runs of a teacher and of its students with some overrides, each once, in their order; `jobs` at a time."""

    def __init__(self, name: str, overrides: Sequence[str], jobs: int) -> None:
        self.name, self.jobs = name, jobs
        seeds = [word.removeprefix("seed=") for word in overrides if word.startswith("seed=")]
        self.seeds = list(dict.fromkeys(seeds[-1].split(","))) if seeds else ["0"]
        self.elsewhere: set[str] = set()  # runs that count as finished, for a plan
        self.overrides = [word for word in overrides if not word.startswith("seed=")]
        if not any(word.startswith("tracking=") for word in self.overrides):
            self.overrides.append("tracking=journal")
        alone = ["distiller=vanilla", f"student={self.name}"]
        teacher_seed = compose_values([*self.overrides, *alone])["teacher_seed"]
        self.alone = [*alone, f"seed={teacher_seed}"]
        self.teacher = plan.make_job(compose_values([*self.overrides, *self.alone]), "vanilla", None)
        self.given = self.teacher.settings
        self.output = Path(self.given.output)
        entry = self.entry()
        taught_by = f"run:{self.teacher.run}" if entry is None else entry.id
        self.students = list({job.run: job for job in self._students(taught_by)}.values())

    def _students(self, taught_by: str) -> Iterator[Job]:
        for seed in self.seeds:
            for student in FAMILIES[self.name]:
                for method in METHODS:
                    chosen = [f"seed={seed}", f"pair={self.name}-{student}", f"distiller={method}"]
                    yield plan.make_job(compose_values([*self.overrides, *chosen]), method, taught_by)

    def entry(self) -> teachers.Entry | None:
        """The teacher, None if the store lacks it."""
        return teachers.find(self.output / "teachers", self.given.dataset.key, self.name)

    def states(self) -> dict[str, RunState]:
        """Of all runs, by run; the teacher's is finished once the store has the teacher, wherever it was trained."""
        found = {job.run: journal.tail_state(job.directory) for job in (self.teacher, *self.students)}
        for run, state in found.items():
            if state.status == "new" and run in self.elsewhere:
                found[run] = RunState("finished")
        if self.entry() is not None:
            found[self.teacher.run] = RunState("finished")
        return found

    @property
    def threads(self) -> int:
        """Of each of the students side by side; the cache of a CPU's teacher depends on it."""
        return max(1, cores() // self.jobs)

    def steps(self) -> list[Step]:
        """The commands that are left."""
        states = self.states()
        left = [job for job in self.students if states[job.run].status != "finished"]
        threads = [] if any(word.startswith("engine.threads=") for word in self.overrides) else [self.threads]
        common = [*self.overrides, *(f"engine.threads={count}" for count in threads)]
        steps = []
        if self.entry() is None:
            epochs = self.given.schedule.epochs
            steps.append(
                _launch(
                    "teacher",
                    f"train the teacher {self.name}, {counted(epochs, 'epoch')}",
                    [*self.alone, *self.overrides],
                )
            )
        if any(job.settings.needs_teacher for job in left) and self.given.engine.teacher_cache:
            steps.append(self._cache(common))
        if left:
            pairs = ",".join(f"{self.name}-{student}" for student in FAMILIES[self.name])
            asked = [f"seed={','.join(self.seeds)}", f"pair={pairs}", f"distiller={','.join(METHODS)}"]
            if self.jobs > 1:
                asked += ["hydra/launcher=local", f"hydra.launcher.n_jobs={self.jobs}"]
            steps.append(
                _launch(
                    "students", f"train {counted(len(left), 'student')}, {self.jobs} at a time", ["-m", *asked, *common]
                )
            )
        return steps

    def _cache(self, common: Sequence[str]) -> Step:
        dataset = [word.partition("=")[2] for word in common if word.startswith("dataset=")]
        words = ["teachers", "cache", self.name, "--seeds", *self.seeds]
        words += [part for name in dataset for part in ("--dataset", name)]
        words += [word for word in common if not word.startswith("dataset=")]
        epochs = counted(self.given.schedule.epochs, "epoch")
        title = f"compute the teacher's logits for {epochs} of seed {', '.join(self.seeds)}"
        return Step("cache", title, shlex.join(["edkd", *words]), [sys.executable, "-m", "edkd.cli", *words])


def _launch(kind: Literal["teacher", "students"], title: str, words: Sequence[str]) -> Step:
    shown = shlex.join(["python", "launch.py", *words])
    return Step(kind, title, shown, [sys.executable, "-c", "from edkd.app import main; main()", *words])
