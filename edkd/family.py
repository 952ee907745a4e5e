"""A family of the benchmark, complete in itself: its teacher, that teacher's cache, all its pairs with every method.

    teacher, if the store lacks it -> compare it with the published one -> cache -> students -> pack the journals

Each step is a command of its own, which a time limit stops as Ctrl-C would, and which continues when called again.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edkd import results
from edkd.budget import Budget, stopping_kindly
from edkd.data.views import n_views
from edkd.engine import cores
from edkd.errors import EdkdError
from edkd.estimate import Estimate, duration, estimate
from edkd.family_plan import FAMILIES, Family
from edkd.journal import RunState
from edkd.timing import passes_of

PUBLISHED_ON = "cifar100"  # all of it
TOLERANCE = 1.0  # points that a teacher may be off
UNFINISHED = 3  # exit code
NO_ESTIMATE = "no estimate: not timed on this device yet, --measure times some steps"

_OURS = ("pair", "teacher", "student", "distiller", "tweak", "hydra")  # what a family chooses itself


@dataclass(frozen=True)
class Options:
    """What a user asks for."""

    name: str
    overrides: list[str]
    minutes: float | None
    jobs: int
    dry_run: bool
    measure: bool
    accept_teacher: bool
    pack: Path | None

    def __post_init__(self) -> None:
        if self.name not in FAMILIES:
            raise EdkdError(f"no family {self.name}; there are: {', '.join(FAMILIES)}")
        if self.minutes is not None and not self.minutes > 0:
            raise EdkdError(f"--minutes {self.minutes:g}: must be above 0")
        if self.jobs < 1:
            raise EdkdError(f"--jobs {self.jobs}: must be 1 or more")
        if self.measure and not self.dry_run:
            raise EdkdError("--measure times steps for --dry-run, and trains nothing: add that")
        for word in self.overrides:
            if word.lstrip("+~").partition("=")[0].partition("/")[0].partition(".")[0] in _OURS:
                raise EdkdError(f"{word}: a family is trained as it is; --jobs says how many runs side by side")


def run(options: Options) -> int:
    """Do what is left of a family within the time; the exit code: 0 all done, 1 a run failed, 3 unfinished.

    Raises EdkdError for what makes no sense, a step that failed, and a teacher that is not as good as the published.
    """
    budget = Budget(options.minutes)
    family = Family(options.name, options.overrides, options.jobs)
    if options.dry_run:
        if options.pack is not None:  # which the command itself would take over
            family.elsewhere = results.finished(options.pack) - _missing(family)
        _show(family, measure=options.measure)
        return 0
    with stopping_kindly():
        _unpack(family, options)
        try:
            failed = _work(family, options, budget)
        finally:
            _pack(family, options)
    left = _tell(family)
    return 1 if left and failed else left


def _work(family: Family, options: Options, budget: Budget) -> bool:
    """Take the steps; whether the last one failed."""
    if family.entry() is not None:
        _compare(family, accept=options.accept_teacher)
    steps = family.steps()
    for number, step in enumerate(steps, 1):
        print(f"[{number}/{len(steps)}] {step.title}\n{step.shown}", flush=True)
        code = budget.run(step.command)
        if code is None:
            print(f"the {options.minutes:g} minutes are over", flush=True)
            return False
        if code and step.kind == "students":
            return True
        if code:
            raise EdkdError(f"that step failed with exit code {code}, see above; the same command continues")
        if step.kind == "teacher":
            _compare(family, accept=options.accept_teacher)
    return False


def _unpack(family: Family, options: Options) -> None:
    """Take what was packed elsewhere as done; not the teacher's own run, if its weights are not here."""
    if options.pack is None:
        return
    count = results.unpack(options.pack, family.output, without=_missing(family))
    if count:
        print(f"{count} finished runs taken over from {options.pack}", flush=True)


def _missing(family: Family) -> set[str]:
    """The teacher's own run, if its weights are not here: a packed journal brings none."""
    return {family.teacher.run} if family.entry() is None else set()


def _pack(family: Family, options: Options) -> None:
    if options.pack is None or not (family.output / "runs").is_dir():
        return
    done = results.pack(family.output, options.pack, dataset=family.given.dataset.key, everything=False)
    for line in done.refused:
        print(f"not packed: {line}")
    print(done.line(options.pack), flush=True)


def published(name: str) -> float | None:
    """The published top-1 of a teacher on CIFAR-100, in percent; None if there is none."""
    with (Path(__file__).parents[1] / "analysis" / "published" / "networks.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if (row["role"], row["network"]) == ("teacher", name):
                return float(row["top1"])
    return None


def _compare(family: Family, *, accept: bool) -> None:
    """Raise EdkdError if the teacher is more than a point off the published one, and say how it compares."""
    entry, known = family.entry(), published(family.name)
    assert entry is not None
    found = (entry.test or {}).get("top1")
    have = "was never measured" if found is None else f"has {found:.2f} %"
    if family.given.dataset.key != PUBLISHED_ON or known is None:
        print(f"teacher {family.name} {have}; nothing is published for {family.given.dataset.key}", flush=True)
        return
    told = f"teacher {family.name} {have} after its last epoch, published are {known:.2f} %"
    if (found is None or abs(found - known) > TOLERANCE) and not accept:
        raise EdkdError(
            f"{told}: more than {TOLERANCE:g} point off means a fault to find before students are trained "
            f"({entry.path}); --accept-teacher goes on"
        )
    print(told, flush=True)


def _tell(family: Family) -> int:
    states = family.states()
    jobs = [family.teacher, *family.students]
    left = [job for job in jobs if states[job.run].status != "finished"]
    print(f"family {family.name}: {len(jobs) - len(left)} of {len(jobs)} runs finished")
    for job in left:
        state = states[job.run]
        failed = f", failed: {state.error}" if state.status == "failed" else ""
        print(f"  {job.name}: epoch {max(state.epochs, default=0)} of {job.settings.schedule.epochs}{failed}")
    if not left:
        return 0
    print("the same command continues")
    return 1 if any(states[job.run].status == "failed" for job in left) else UNFINISHED


def _show(family: Family, *, measure: bool) -> None:
    """Print the steps, and how long each will take as far as that is known."""
    states = family.states()
    finished = sum(state.status == "finished" for state in states.values())
    print(f"family {family.name} on {family.given.dataset.key}: {finished} of {len(states)} runs finished")
    steps = family.steps()
    told = _estimates(family, states, measure=measure) if steps else {}
    for number, step in enumerate(steps, 1):
        print(f"[{number}/{len(steps)}] {step.title}: {told[step.kind]}\n      {step.shown}")


def _estimates(family: Family, states: Mapping[str, RunState], *, measure: bool) -> dict[str, str]:
    """By kind of step. A teacher's answer costs about a third of what it cost to train it on that image."""
    whole = RunState(status="new")
    teacher = estimate(
        {"teacher": [family.teacher]},
        states,
        here=True, parallel=1, threads=cores(), measure=measure,
    )  # fmt: skip
    students = estimate(
        {"students": family.students}, states, here=True, parallel=family.jobs, threads=family.threads, measure=measure
    )
    again = {family.teacher.run: whole}
    epoch = estimate({"": [family.teacher]}, again, here=True, parallel=1, threads=cores(), measure=False)
    cache = NO_ESTIMATE
    if students.measured:
        cache = "its time is in that of the students"
    elif epoch.stages:
        dataset, epochs = family.given.dataset, family.given.schedule.epochs
        taught = [job for job in family.students if job.settings.needs_teacher]
        passes = passes_of(
            taught, dict.fromkeys((job.run for job in taught), epochs), n_views(dataset.padding, dataset.flip)
        )
        cache = f"about {duration(epoch.seconds / epochs * passes / 3)}, less what is there"
    return {"teacher": _told(teacher), "cache": cache, "students": _told(students)}


def _told(found: Estimate) -> str:
    if found.wall is None or not found.stages:
        return NO_ESTIMATE
    where = "measured here" if found.measured else f"as recorded on {', '.join(found.sources)}"
    return f"{'at least ' if found.unknown else 'about '}{duration(found.wall)}, {where}"
