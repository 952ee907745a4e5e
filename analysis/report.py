"""The benchmark table for people: its notes, and its form on the terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis import literature, numbers
from analysis.tables import Entry, Grid, Pair
from edkd.console import counted
from edkd.rundir.settings import setting

READING = (
    "A cell is the mean over seeds ± their standard deviation (n runs); one run alone has no ±. Teachers are measured "
    "once.",
    "A difference is of two methods, or of a method and the student alone: the mean over the seeds that both have, "
    "because runs of one seed share initial weights, order and augmentation. Its 95 % interval is in brackets (by "
    "Student's t; none without a spread between runs), and not corrected for the number of differences; `p_holm` in "
    "`table.csv` is.",
    "`last` is after the last epoch, `best` the epoch that is best on the test set itself, which flatters, and "
    "`selected` the one that held-out training images chose.",
)
BOLD = (
    "A number in bold is better than that of every other method of its column: each paired difference is significant "
    "at the 5 % level after Holm's correction over all pairs of methods on all columns of the block.",
)
BESIDE = (
    "`published 73.33 (+0.12)` was measured as that block is, and the number in brackets is ours − published. "
    "`published [73.33]` is of another epoch (KD: the last; DKD, EDKD: the best on the test set), so compare it in the "
    "other block; one whose source names no epoch is in brackets in both.",
)
PUBLISHED = (
    "`authors` is the number of a method's authors; `published` beside it is the EDKD table's rerun. Which epoch the "
    "published networks alone were taken at is not recorded here.",
)
IMPORTED = (
    "A name of another code base in brackets, such as (mdistiller), marks imported results: of runs that were trained "
    "by that code. Their seeds and their teacher's weights are not known, so they are compared with no other run; a "
    "running number stands where ours have a seed.",
)
SAME_SEED = (
    "in each epoch such a student saw the views on which its teacher was trained in that epoch, and a teacher's "
    "predictions for these differ from those for other views (see Seeds in docs/results.md)"
)
_ACROSS = 8  # the most methods that have a column each on the terminal
_SHOWN = 10  # the most left-out runs that the terminal lists; the file lists them all


@dataclass(frozen=True)
class Report:
    """The table's content: `facts` are one line each, `long` the CSV's rows, `used` the runs in its numbers."""

    title: str
    facts: tuple[str, ...]
    grids: tuple[Grid, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    command: str
    long: pd.DataFrame
    used: pd.DataFrame

    def student(self, pair: Pair) -> str:
        """The student of a column and the column's setting, with a footnote mark if the notes have its footnote."""
        mark = "¹" if pair.mislabelled and self.notes[0] == literature.NOTES[0] else ""
        return f"{pair.student}{mark} {pair.setting}".rstrip()


def title(dataset: str, runs: pd.DataFrame) -> str:
    """The title; REDUCED marks runs on CIFAR-100 with fewer images or fewer epochs than 240."""
    epochs = "/".join(str(int(e)) for e in sorted(runs["last_epoch"].dropna().unique())) or "?"
    trained = f"{epochs} epoch{'' if epochs == '1' else 's'}"
    full = literature.FULL_EPOCHS
    if literature.comparable(runs):
        return f"CIFAR-100, {trained}: students' top-1 accuracy"
    if dataset == literature.FULL_DATASET:
        if runs["last_epoch"].max() < full:
            return f"REDUCED: CIFAR-100, only {epochs} of {full} epochs: students' top-1 accuracy"
        return f"CIFAR-100, {trained}, another recipe than the field's: students' top-1 accuracy"
    if dataset.startswith(f"{literature.FULL_DATASET}-"):
        return f"REDUCED: part of CIFAR-100 ({dataset}), {trained}: students' top-1 accuracy"
    return f"{dataset} (not CIFAR-100), {trained}: students' top-1 accuracy"


def facts(used: pd.DataFrame, dataset: str, recipe: str) -> tuple[str, ...]:
    """Lines on the table's data set and recipe, its runs and seeds, and its git commits."""
    distilled = used[~used["alone"]]
    ours = used[used["imported"] == ""]
    teachers = ours[~ours["alone"]].groupby(["pair", "method"], sort=False)["taught_by"].nunique()
    mixed = [f"{method} on {pair}" for pair, method in teachers.index[teachers > 1]]
    seeds, alone = (sorted(each["seed"].unique()) for each in (ours[~ours["alone"]], ours[ours["alone"]]))
    without = len(used) - len(distilled)
    overlap = int((ours["seed"] == ours["teacher_seed"]).sum())
    counts = f"{counted(len(distilled), 'distilled student')}, {counted(without, 'student')} alone"
    if used["packed"].any():
        counts += f"; {used['packed'].sum()} of them from packed journals"
    for origin, group in used[used["imported"] != ""].groupby("imported"):
        counts += f"; {len(group)} of them imported from {origin}"
    return (
        f"data set: {dataset}, recipe: {recipe}",
        f"runs: {counts}; seeds: {', '.join(map(str, seeds)) or 'none'}"
        + (f" (alone: {', '.join(map(str, alone))})" if set(alone) - set(seeds) else ""),
        f"git commits: {', '.join(sorted(set(numbers.commits(used).dropna()))) or 'none'}",
        *([f"means over runs of several teachers: {', '.join(mixed)}"] if mixed else []),
        *([f"distilled students with the seed of their teacher: {overlap}; {SAME_SEED}"] if overlap else []),
        *(f"not the defaults: {line}" for line in sorted(set(_changed(used)))),
    )


def _changed(used: pd.DataFrame) -> Iterator[str]:
    """A line for each method and its runs' values that are neither the defaults of conf/ nor in its row's name."""
    for run in used.to_dict("records"):
        named = {str(each).lower() for each in run["row"]}
        words = [word for word in run["changed"] if str(setting(*word.lstrip("+").split("=", 1))).lower() not in named]
        if words:
            yield f"{run['method']}: {' '.join(words)}"


def recipe(runs: pd.DataFrame) -> str:
    """The recorded recipe of the distilled students as a sentence, with all values where runs differ."""
    distilled = runs[~runs["alone"]]
    names = sorted({name for params in distilled["params"] for name in params if name.startswith("schedule.")})
    values = {
        name.split(".")[-1]: sorted({params[name] for params in distilled["params"] if name in params})
        for name in (*names, "engine.precision")
    }
    listed = ", ".join(f"{name} {' or '.join(found)}" for name, found in values.items() if found)
    return f"Recipe `{runs['recipe'].iloc[0]}`: {listed or 'not recorded'}."


def notes(used: pd.DataFrame, columns: Sequence[Pair], reading: Sequence[str] = ()) -> tuple[str, ...]:
    """The notes on these runs: what is odd about the published numbers and where they are from, and the recipe.

    `reading` says how the numbers are to be read. Notes have Markdown's bold and code.
    """
    on_cifar100 = used["dataset"].iloc[0].split("-")[0] == literature.FULL_DATASET
    odd = literature.NOTES if any(pair.mislabelled for pair in columns) else literature.NOTES[1:]
    return (
        *(odd if on_cifar100 else ()),
        *reading,
        recipe(used),
        *((*PUBLISHED, *sources(used)) if literature.comparable(used) else ()),
        *(IMPORTED if (used["imported"] != "").any() else ()),
    )


def sources(runs: pd.DataFrame) -> list[str]:
    """A note with the sources of the published numbers that stand beside the numbers of these runs."""
    keys = runs[~runs["alone"] & (runs["changed"].map(len) == 0)].drop_duplicates(["pair", "distiller"])
    found = literature.sources(list(zip(keys["pair"], keys["distiller"])))
    entries = "; ".join(f"`{method}`: {', '.join(listed)}" for method, listed in sorted(found.items()))
    return [f"Sources of the published numbers, by method: {entries}."] if entries else []


def show(report: Report, console: Console) -> None:
    """Print the report, with at most `_SHOWN` of the left-out runs."""
    console.print(f"\n{report.title}", style="bold", highlight=False, markup=False)
    for fact in report.facts:
        console.print(fact, style="dim", highlight=False, markup=False)
    for grid in report.grids:
        console.print(_terminal_grid(grid))
    notes = "Notes are in the file: the labels of columns, the protocols of published numbers, the noise of seeds."
    console.print(notes, style="dim", highlight=False)
    if report.left_out:
        console.print("Not in the table:", style="yellow")
        for line in report.left_out[:_SHOWN]:
            console.print(f"  {line}", highlight=False, markup=False)
        if len(report.left_out) > _SHOWN:
            console.print(f"  ... and {len(report.left_out) - _SHOWN} more, listed in the file", highlight=False)


def _terminal_grid(grid: Grid) -> Table:
    """A row for each pair, or for each method if there are more than `_ACROSS`."""
    title = f"{grid.title}, {grid.remark}" if grid.remark else grid.title
    table = Table(title=title, title_justify="left", title_style="bold", show_lines=True)
    pairs = [f"{pair.teacher}\n{pair.student} {pair.setting}".rstrip() for pair in grid.columns]
    methods, cells = [name for name, _ in grid.rows], [entries for _, entries in grid.rows]
    if len(methods) <= _ACROSS:
        heads, lines = [name.replace(" ", "\n", 1) for name in methods], list(zip(pairs, zip(*cells)))
    else:
        heads, lines = pairs, list(zip(methods, cells))
    table.add_column("teacher\nstudent", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="center")
    for label, entries in lines:
        shown = (entry._replace(text=entry.text.replace(" (", "\n(")) for entry in entries)
        table.add_row(label, *map(_terminal_entry, shown))
    return table


def _terminal_entry(entry: Entry) -> str:
    text = f"[bold]{escape(entry.text)}[/]" if entry.bold else escape(entry.text)
    return "\n".join([text, *(f"[dim]{escape(line)}[/]" for line in entry.below)])
