"""One sweep under faults that are drawn from a seed, and what is wrong with what becomes of it.

plan = draw(seed=7, number=3)   # which runs, and which fault when
sweep = DisturbedSweep(lab, cluster, plan, output="chaos-3")
sweep.run()                     # sweep.wrong is empty, or says what is wrong; sweep.log has times and faults
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edkd.rundir import journal, lock
from tests.integration.cluster import Cluster
from tests.integration.evidence import Row, hold_against
from tests.integration.lab import COMMAND_PATIENCE, Command, Lab
from tests.integration.processes import PATIENCE
from tests.integration.runs import find, finished, repeated

SWEEPS: tuple[tuple[tuple[str, ...], int, str], ...] = (  # arguments, runs in all, family of the undisturbed runs
    (("distiller=kd,dkd", "seed=0,1"), 4, "seeds"),
    (("distiller=kd,dkd,brittle", "seed=0,1"), 6, "seeds"),
    (("distiller=kd,dkd", "seed=0,1,2,3"), 8, "seeds"),
    (("distiller=kd,dkd,edkd", "teacher=resnet14,resnet20"), 8, "pairs"),  # trains both teachers
    (
        ("distiller=kd,dkd,brittle", "seed=0,1", "hydra.launcher.runs_per_job=2", "hydra.launcher.gpus_per_node=2",
         "hydra.launcher.cpus_per_task=2"), 6, "seeds",
    ),
)  # fmt: skip
WEIGHTS = {
    "SIGKILL of a run": 3, "scancel": 3, "requeue": 3, "warning": 2, "preemption": 2, "node down": 2,
    "controller down": 2, "command killed": 3, "second command": 2,
}  # fmt: skip
LONGEST = {"preemption": 8.0, "node down": 40.0, "controller down": 25.0}  # seconds; SLURM misses a node after 25 to 30
SUMMARY = 60.0  # seconds that a command on a busy machine may take from its last look at the runs to its summary
CHANCE = 30.0  # seconds in which a fault must find something to hit
HELD = ("launch failed requeued held", "job requeued in held state", "JobHeldAdmin")


@dataclass(frozen=True)
class Fault:
    """One fault of a plan."""

    kind: str
    pause: float  # seconds after the one before
    choice: float  # in [0, 1): which of the runs, jobs, nodes or commands
    lasts: float  # seconds until what is taken away comes back


@dataclass(frozen=True)
class Plan:
    """A sweep and its faults."""

    arguments: tuple[str, ...]
    runs: int
    family: str
    twins: bool  # whether two commands are started at once
    faults: list[Fault]


def draw(*, seed: int, number: int) -> Plan:
    """The plan of a sweep, the same for the same seed and number."""
    rng = random.Random(f"{seed}/{number}")
    arguments, runs, family = rng.choice(SWEEPS)
    twins = rng.random() < 0.25
    kinds = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=rng.randint(6, 12))
    faults = [Fault(kind, rng.uniform(0, 8), rng.random(), rng.uniform(0, LONGEST.get(kind, 0))) for kind in kinds]
    return Plan(arguments, runs, family, twins, faults)


@dataclass
class Launched:
    """A launching command."""

    command: Command
    alone: bool = True  # whether no other was there at any time
    blind: bool = False  # whether the controller was away at any time


class DisturbedSweep:
    """A sweep in an output of its own; `run` does to it what `plan` says."""

    def __init__(self, lab: Lab, cluster: Cluster, plan: Plan, output: str) -> None:
        self.lab, self.cluster, self.plan, self.name = lab, cluster, plan, output
        self.output = lab.give_teachers(output) if plan.family == "seeds" else lab.folder / output
        self.wrong: list[str] = []
        self.done: Counter[str] = Counter()  # faults by kind
        self.row = Row("", "")
        self.log = [f"{' '.join(plan.arguments)}{', two commands at once' if plan.twins else ''}"]
        self._began = time.monotonic()
        self._going: list[Launched] = []
        self._commands, self._code = 0, -1
        self._back: dict[str, tuple[float, Callable[[], None]]] = {}  # what is down, and when and how it comes back
        self._packed = any("runs_per_job" in each for each in plan.arguments)
        self._scripts: dict[str, list[str]] = {}  # by the comment of their jobs: the directories of their runs
        self._jobs: dict[str, list[str]] = {}  # by run directory: those in the queue, as last seen
        self._faults: dict[str, Callable[[Fault], bool]] = {
            "SIGKILL of a run": self._sigkill, "scancel": self._scancel, "requeue": self._requeue,
            "warning": self._warning, "preemption": self._preempt, "node down": self._node,
            "controller down": self._controller, "command killed": self._kill_command,
            "second command": self._second_command,
        }  # fmt: skip

    def run(self) -> None:
        """Start the sweep, do the faults, and see to it that the same command brings it to its end."""
        try:
            for _ in range(1 + self.plan.twins):
                self._launch()
            for fault in self.plan.faults:
                self._disturb(fault)
            self._settle()
            self._compare()
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            self._wrong(f"{type(error).__name__}: {error}")
        finally:
            for going in self._going:
                going.command.kill()
            for _, (_, back) in sorted(self._back.items()):
                back()
            self.cluster.run("scancel", "--partition=main,urgent", check=False)

    def _note(self, what: str) -> None:
        self.log.append(f"{time.monotonic() - self._began:6.1f} s  {what}")

    def _wrong(self, what: str) -> None:
        if what not in self.wrong:  # the queue is looked at all the time
            self._note(f"WRONG: {what}")
            self.wrong.append(what)

    def _launch(self) -> None:
        self._commands += 1
        command = self.lab.launch(
            f"{self.name}-{self._commands}", self.cluster.crew, *self.plan.arguments, output=self.name
        )
        self._going.append(Launched(command))
        if len(self._going) > 1:
            for going in self._going:
                going.alone = False
        self._note(f"command {self._commands}")

    def _disturb(self, fault: Fault) -> None:
        """Wait for the fault's time, then for something that it can hit."""
        due = time.monotonic() + fault.pause
        while not (hit := time.monotonic() >= due and self._faults[fault.kind](fault)):
            if self._over() or time.monotonic() > due + CHANCE:
                self._note(f"nothing there for {fault.kind}")
                return
            self._step()
            if not self._going:
                self._launch()
        self.done[fault.kind] += hit

    def _settle(self) -> None:
        """Wait for the end. After the last fault a command may find a run that dies of it, the next may not."""
        for more in (2, 1, 0):
            deadline = time.monotonic() + COMMAND_PATIENCE
            while self._going or self._back:
                self._step()
                assert time.monotonic() < deadline, f"a command does not end: {self._going[0].command.said()}"
            if self._code == 0:
                break
            assert more, "the second command after the last fault has not finished the sweep either"
            self._launch()
        # A job whose end SLURM has missed it queues again, a minute later; that finds the run finished.
        deadline = time.monotonic() + PATIENCE
        while self._jobs:
            self._step()
            assert time.monotonic() < deadline, f"jobs are left in the queue: {self._jobs}"

    def _step(self) -> None:
        """Bring back what is due, look at the commands that have ended, and at the queue."""
        time.sleep(0.2)
        for name, (due, back) in sorted(self._back.items()):  # the controller first: nodes come up only with it
            if time.monotonic() >= due and (name == "controller" or not self._blind):
                del self._back[name]
                back()
                self._note(f"{name} up")
        for going in list(self._going):
            going.blind |= self._blind
            if going.command.process.poll() is not None:
                self._going.remove(going)
                self._judge(going)
        if not self._blind:
            self._look()

    @property
    def _blind(self) -> bool:
        return "controller" in self._back

    def _over(self) -> bool:
        return sum(finished(run) for run in find(self.output).values()) == self.plan.runs

    def _look(self) -> None:
        """Which jobs each run has in the queue, of which there may be one. A held one is released."""
        for path in (self.output / "sweeps" / "slurm").glob("*_submission.sh"):
            with contextlib.suppress(FileNotFoundError):  # it has just got its name from the job
                text = path.read_text()
                (about,) = re.findall(r"--comment=.*?(\w+)'?$", text, re.MULTILINE)
                self._scripts[about] = re.findall(r"^'?[0-9a-f]+:(/.*)/config\.yaml'?$", text, re.MULTILINE)
        self._jobs = {}
        queue = self.cluster.run("timeout", "5", "squeue", "-h", "-r", "-p", "main", "-o", "%i|%r|%k", check=False)
        for line in queue.splitlines():
            job, reason, comment = line.split("|")
            task = int(job.partition("_")[2] or 0)
            size = 2 if self._packed else 1
            for run in self._scripts.get(comment.split()[-1], [])[task * size : (task + 1) * size]:
                self._jobs.setdefault(run, []).append(job)
            if reason in HELD:
                self.cluster.run("scontrol", "release", job, check=False)
                self._note(f"{job} released: {reason}")
        if not self._packed:  # a job of several runs does without one that another has taken
            for run, jobs in self._jobs.items():
                if len(jobs) > 1:
                    self._wrong(f"{Path(run).name} has the jobs {sorted(jobs)} at a time")

    def _judge(self, going: Launched) -> None:
        """The exit code of a command, held against the runs and the queue."""
        code, out, err = going.command.ended()
        self._code = code
        count = re.search(r"(\d+) of (\d+) runs finished", out)
        self._note(f"exit code {code}: {count[0] if count else err.strip()[-300:]}")
        if code == 0:
            right = self._over() and count is not None and count[1] == count[2]
        elif count is None:
            right = code == 1 and going.blind and "SLURM does not answer" in err
        else:
            right = code == 1 and count[1] != count[2]
            self._check_lost(going, out)
        if not right:
            self._wrong(f"exit code {code}:\n{out}{err}")

    def _check_lost(self, going: Launched, out: str) -> None:
        """No run that a summary gives up was finished by then, or has a job."""
        if not self._blind:
            self._look()
        sure = going.alone and not self._blind and not self._packed  # else another may have gone on with it since
        printed = going.command.files[0].stat().st_mtime
        for name in re.findall(r"^  (digits-\S+) (?!.*: its teacher)", out, re.MULTILINE):
            run = self.output / "runs" / name
            end = journal.state(run).end
            if (end is not None and end["time"] < printed - SUMMARY) or (sure and self._jobs.get(str(run))):
                self._wrong(f"{name} is given up, and lives or is done: {self._jobs.get(str(run))}\n{out}")

    def _compare(self) -> None:
        """Each run against the undisturbed one, in the journal, the weights and, after `edkd sync`, MLflow."""
        synced = self.lab.python(
            f"{self.name}-sync", "-m", "edkd.cli.main", "sync",
            f"--output={self.output}", f"--uri={self.lab.store}", f"--experiment={self.name}",
        ).ended()  # fmt: skip
        assert synced.code == 0, synced
        self.lab.reference(self.plan.family)
        runs = find(self.output)
        assert len(runs) == self.plan.runs
        hold_against(self.row, runs, self.lab.peace, uri=self.lab.store, experiment=self.name)
        again = {name: repeated(run) for name, run in runs.items()}
        assert all(count <= 1 for counts in again.values() for count in counts), f"epochs computed again: {again}"

    def _pick(self, found: list[str], fault: Fault) -> str | None:
        return sorted(found)[int(fault.choice * len(found))] if found else None

    def _sigkill(self, fault: Fault) -> bool:
        held = {name: holder for name, run in find(self.output).items() if (holder := lock.is_held(run))}
        name = self._pick(list(held), fault)
        if name is not None:
            self._note(f"SIGKILL of {name}")
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(int(held[name]["pid"]), signal.SIGKILL)
        return name is not None

    def _order(self, fault: Fault, *command: str, states: str) -> bool:
        """Give an order about one of the jobs in such a state."""
        if self._blind:
            return False
        found = self.cluster.run("squeue", "-h", "-r", "-p", "main", "-t", states, "-o", "%i", check=False).split()
        job = self._pick(found, fault)
        if job is not None:
            self._note(f"{' '.join(command)} {job}")
            self.cluster.run("timeout", "5", *command, job, check=False)
        return job is not None

    def _scancel(self, fault: Fault) -> bool:
        return self._order(fault, "scancel", states="PENDING,RUNNING")

    def _requeue(self, fault: Fault) -> bool:
        return self._order(fault, "scontrol", "requeue", states="RUNNING")

    def _warning(self, fault: Fault) -> bool:
        return self._order(fault, "scancel", "--signal=USR2", states="RUNNING")

    def _preempt(self, fault: Fault) -> bool:
        if self._blind or not self._jobs:
            return False
        nodes = str(1 + int(2 * fault.choice))
        self._note(f"preemption on {nodes} of 2 nodes, {fault.lasts:.1f} s")
        urgent = ("sbatch", "-p", "urgent", "--exclusive", "--no-requeue", "-N", nodes, "-o", "/dev/null")
        self.cluster.run("timeout", "5", *urgent, "--wrap", f"sleep {fault.lasts:.1f}", check=False)
        return True

    def _node(self, fault: Fault) -> bool:
        name = self._pick([node for node in self.cluster.nodes if node not in self._back], fault)
        if name is None or not self._jobs:
            return False
        self._note(f"{name} down, {fault.lasts:.1f} s")
        self.cluster.kill_node(name)
        self._back[name] = time.monotonic() + fault.lasts, lambda: self.cluster.start_node(name)
        return True

    def _controller(self, fault: Fault) -> bool:
        if self._blind:
            return False
        self._note(f"controller down, {fault.lasts:.1f} s")
        self.cluster.kill_controller()
        self._back["controller"] = time.monotonic() + fault.lasts, self.cluster.start_controller
        return True

    def _kill_command(self, fault: Fault) -> bool:
        if not self._going:
            return False
        going = self._going.pop(int(fault.choice * len(self._going)))
        self._note("SIGKILL of a command")
        going.command.kill()
        self._code = -1
        return True

    def _second_command(self, fault: Fault) -> bool:
        self._launch()
        return True
