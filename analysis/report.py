"""The benchmark table for people: Markdown, the terminal, and both files on disk."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis import literature
from analysis.tables import Entry, Grid, Pair
from edkd.rundir import files

READING = (
    "A cell is the mean over seeds ± their standard deviation (n runs); one run alone has no ±. Teachers are measured "
    "once. A difference is the mean over the seeds that both methods have: runs of one seed share initial weights, "
    "order and augmentation.",
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
    """All that the table says: `facts` are one line each, `long` the CSV's rows."""

    title: str
    facts: tuple[str, ...]
    grids: tuple[Grid, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    command: str
    long: pd.DataFrame


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


def markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown."""
    parts = [f"# {report.title}", "\n".join(f"- {fact}" for fact in report.facts)]
    parts += [f"Made by:\n\n    {report.command}"]
    for grid in report.grids:
        parts += [f"## {grid.title}", _markdown_grid(grid)]
    if report.left_out:
        parts += ["## Not in the table", "\n".join(f"- {line}" for line in report.left_out)]
    parts += ["## Notes", "\n".join(f"{i}. {note}" for i, note in enumerate(report.notes, 1))]
    return "\n\n".join(parts) + "\n"


def _markdown_grid(grid: Grid) -> str:
    rows = [["teacher", *(pair.teacher for pair in grid.columns)]]
    rows += [["---", *(":-:" for _ in grid.columns)]]
    rows += [["**student**", *(f"**{_student(pair)}**" for pair in grid.columns)]]
    rows += [[name, *(_markdown_entry(entry) for entry in entries)] for name, entries in grid.rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _markdown_entry(entry: Entry) -> str:
    unbroken = entry.text.replace(" ± ", "\u00a0±\u00a0")
    return "<br>".join([unbroken, *(f"<sub>{line}</sub>" for line in entry.below)])


def _student(pair: Pair) -> str:
    mark = "¹" if f"{pair.teacher}-{pair.student}" == literature.MISLABELLED else ""
    return " ".join([pair.student + mark, *([pair.setting] if pair.setting else [])])


def show(report: Report, console: Console) -> None:
    """Print the report, a line for each pair."""
    console.print(f"\n{report.title}", style="bold", highlight=False, markup=False)
    for fact in report.facts:
        console.print(fact, style="dim", highlight=False, markup=False)
    for grid in report.grids:
        console.print(_terminal_grid(grid))
    told = "Notes are in the file: the label of column ¹, the protocols of published numbers, the noise of seeds."
    console.print(told, style="dim", highlight=False)
    if report.left_out:
        console.print("Not in the table:", style="yellow")
        for line in report.left_out[:_SHOWN]:
            console.print(f"  {line}", highlight=False, markup=False)
        if len(report.left_out) > _SHOWN:
            console.print(f"  ... and {len(report.left_out) - _SHOWN} more, listed in the file", highlight=False)


def _terminal_grid(grid: Grid) -> Table:
    table = Table(title=grid.title, title_justify="left", title_style="bold", show_lines=True)
    table.add_column("teacher\nstudent", no_wrap=True)
    for name, _ in grid.rows:
        table.add_column(name.replace(" ", "\n", 1), justify="center")
    for i, pair in enumerate(grid.columns):
        entries = (row[i]._replace(text=row[i].text.replace(" (", "\n(")) for _, row in grid.rows)
        table.add_row(f"{pair.teacher}\n{_student(pair)}", *(_terminal_entry(entry) for entry in entries))
    return table


def _terminal_entry(entry: Entry) -> str:
    return "\n".join([escape(entry.text), *(f"[dim]{escape(line)}[/]" for line in entry.below)])


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write `table.md` and `table.csv` into `folder`, each in one piece; returns their paths. Raises EdkdError."""
    markdown_path, csv_path = folder / "table.md", folder / "table.csv"
    files.write_bytes(csv_path, report.long.to_csv(index=False, float_format="%.4f").encode())
    files.write_bytes(markdown_path, markdown(report).encode())
    return markdown_path, csv_path
