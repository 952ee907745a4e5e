"""The benchmark table for people: what it says beside its numbers, and the terminal."""

from dataclasses import dataclass

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis import literature
from analysis.tables import Entry, Grid, Pair

READING = (
    "A cell is the mean over seeds ± their standard deviation (n runs); one run alone has no ±. Teachers are measured "
    "once. A difference is the mean over the seeds that both methods have: runs of one seed share initial weights, "
    "order and augmentation.",
)
BOLD = (
    "A number in bold is better than that of every other method of its column: each paired difference is significant "
    "at the 5 % level after Holm's correction over all pairs of methods on all columns of the block.",
)
BESIDE = (
    "`published 73.33` was measured as that block is; `published [73.33]`, in brackets, at another epoch (KD: the "
    "last; DKD, EDKD: the best on the test set), so compare it in the other block. `authors` is the number of DKD's "
    "authors; `published` beside it is the EDKD table's rerun. Which epoch the published networks alone were taken "
    "at is not recorded here.",
)
_SHOWN = 10  # runs that are left out, on the terminal; the file lists them all


@dataclass(frozen=True)
class Report:
    """All that the table says: `facts` are one line each, `long` the CSV's rows, `used` the runs in its numbers."""

    title: str
    facts: tuple[str, ...]
    grids: tuple[Grid, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    command: str
    long: pd.DataFrame
    used: pd.DataFrame

    def student(self, pair: Pair) -> str:
        """The student of a column, with the column's setting; a footnote mark stands only where its note does."""
        mark = "¹" if pair.mislabelled and self.notes[0] == literature.NOTES[0] else ""
        return f"{pair.student}{mark} {pair.setting}".rstrip()


def title(dataset: str, runs: pd.DataFrame) -> str:
    """What the table is of; says REDUCED for anything on CIFAR-100 that is less than all of it for 240 epochs."""
    epochs = "/".join(str(int(e)) for e in sorted(runs["last_epoch"].dropna().unique())) or "?"
    trained = f"{epochs} epoch{'' if epochs == '1' else 's'}"
    full = literature.FULL_EPOCHS
    if literature.comparable(runs):
        return f"CIFAR-100, {trained}: students' top-1 accuracy"
    if dataset == literature.FULL_DATASET:
        return f"REDUCED: CIFAR-100, only {epochs} of {full} epochs: students' top-1 accuracy"
    if dataset.startswith(f"{literature.FULL_DATASET}-"):
        return f"REDUCED: part of CIFAR-100 ({dataset}), {trained}: students' top-1 accuracy"
    return f"{dataset} (not CIFAR-100), {trained}: students' top-1 accuracy"


def show(report: Report, console: Console) -> None:
    """Print the report, a line for each pair."""
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
    title = f"{grid.title}, {grid.remark}" if grid.remark else grid.title
    table = Table(title=title, title_justify="left", title_style="bold", show_lines=True)
    table.add_column("teacher\nstudent", no_wrap=True)
    for name, _ in grid.rows:
        table.add_column(name.replace(" ", "\n", 1), justify="center")
    for i, pair in enumerate(grid.columns):
        entries = (row[i]._replace(text=row[i].text.replace(" (", "\n(")) for _, row in grid.rows)
        table.add_row(
            f"{pair.teacher}\n{pair.student} {pair.setting}".rstrip(), *(_terminal_entry(entry) for entry in entries)
        )
    return table


def _terminal_entry(entry: Entry) -> str:
    text = f"[bold]{escape(entry.text)}[/]" if entry.bold else escape(entry.text)
    return "\n".join([text, *(f"[dim]{escape(line)}[/]" for line in entry.below)])
