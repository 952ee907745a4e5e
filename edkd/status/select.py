"""Selects runs by sweep, data set, pair, distiller, seed and state, or one run by hash, name or folder."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edkd.errors import EdkdError
from edkd.rundir.paths import RunDir, find_runs, recorded_sweeps, runs_of_sweep
from edkd.status.state import RunStatus, look

_FEW = 8  # names in an error message


@dataclass(frozen=True)
class Selection:
    """Which runs are asked for; an empty field means all."""

    output: Path
    sweep: str | None = None
    state: Sequence[str] = ()
    dataset: Sequence[str] = ()
    pair: Sequence[str] = ()
    distiller: Sequence[str] = ()
    seed: Sequence[str] = ()

    def look(self) -> list[RunStatus]:
        """The selected runs, sorted by name, with their present states.

        Raises EdkdError for a folder without runs, an unknown sweep, and a pair, method, ... that no run has.
        """
        views = self._of_sweep(look(find_runs(self.output)))
        for what in ("dataset", "pair", "distiller", "seed"):
            wanted, present = getattr(self, what), {str(getattr(view, what)) for view in views}
            unknown = sorted(set(wanted) - present)
            if unknown and views:
                raise EdkdError(f"no run has {what} {unknown[0]}; there are: {_listed(present)}")
            views = [view for view in views if not wanted or str(getattr(view, what)) in wanted]
        return [view for view in views if not self.state or view.state in self.state]

    def _of_sweep(self, views: list[RunStatus]) -> list[RunStatus]:
        if self.sweep is None:
            return views
        recorded = set(runs_of_sweep(self.output, self.sweep))
        chosen = [view for view in views if view.name in recorded or view.sweep == self.sweep]
        if not chosen:
            ids = recorded_sweeps(self.output) | {view.sweep for view in views if view.sweep is not None}
            raise EdkdError(f"no sweep {self.sweep} in {self.output}; it has: {_listed(ids) or 'none'}")
        return chosen


def find_run(output: Path, wanted: str) -> Path:
    """The directory of a run, found by its hash (or its beginning), its name (or its end), or its folder.

    The end of a name may leave out its hash: ``vgg13-vgg8/kd-s0``. Raises EdkdError if no run matches, or several.
    """
    folder = Path(wanted)
    if RunDir(folder).config.is_file() or RunDir(folder).journal.is_file():
        return folder.resolve()
    runs = find_runs(output)
    root = Path(output) / "runs"
    names = {run: f"/{run.relative_to(root).as_posix()}" for run in runs}
    rules: tuple[Callable[[str], bool], ...] = (
        lambda name: name.endswith(f"/{wanted.strip('/')}"),
        lambda name: name.rpartition("-")[0].endswith(f"/{wanted.strip('/')}"),
        lambda name: len(wanted) > 0 and name.rpartition("-")[2].startswith(wanted[:8]),
    )
    for rule in rules:
        found = [run for run, name in names.items() if rule(name)]
        if len(found) > 1:
            several = _listed(names[run][1:] for run in found)
            raise EdkdError(f"{wanted} names {len(found)} runs: {several}; give more of a name, or its hash")
        if found:
            return found[0]
    raise EdkdError(
        f"no run {wanted} in {root}; give a hash or its beginning, a name, or a directory "
        "(`edkd status` lists the runs)"
    )


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f", … and {len(ordered) - _FEW} more" if len(ordered) > _FEW else ""
    return ", ".join(ordered[:_FEW]) + more
