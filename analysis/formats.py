"""The benchmark table as Markdown, LaTeX and HTML, and the files on disk."""

import html
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from analysis.report import Report
from analysis.tables import Entry, Grid
from edkd.rundir import files

_TEX = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "→": r"$\to$",
    "¹": r"\textsuperscript{1}",
}
_FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"  # no wider than the text


def markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown."""
    parts = [f"# {report.title}", "\n".join(f"- {fact}" for fact in report.facts)]
    parts += [f"Made by:\n\n    {report.command}"]
    for grid in report.grids:
        parts += [f"## {grid.title}", *([f"{grid.remark}."] if grid.remark else []), _markdown_grid(grid, report)]
    if report.left_out:
        parts += ["## Not in the table", "\n".join(f"- {line}" for line in report.left_out)]
    parts += ["## Notes", "\n".join(f"{i}. {note}" for i, note in enumerate(report.notes, 1))]
    return "\n\n".join(parts) + "\n"


def _markdown_grid(grid: Grid, report: Report) -> str:
    rows = [["teacher", *(pair.teacher for pair in grid.columns)]]
    rows += [["---", *(":-:" for _ in grid.columns)]]
    rows += [["**student**", *(f"**{report.student(pair)}**" for pair in grid.columns)]]
    rows += [[name, *(_markdown_entry(entry) for entry in entries)] for name, entries in grid.rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _markdown_entry(entry: Entry) -> str:
    unbroken = entry.text.replace(" ± ", "\u00a0±\u00a0")
    return "<br>".join([f"**{unbroken}**" if entry.bold else unbroken, *(f"<sub>{line}</sub>" for line in entry.below)])


def latex(report: Report) -> str:
    """A floating table for each block, with the rules of the package booktabs, and the notes as a list below."""
    head = [report.title, *report.facts, report.command, r"Needs \usepackage{booktabs} and \usepackage{graphicx}."]
    parts = ["\n".join(f"% {line}" for line in head)]
    for grid in report.grids:
        caption = _tex(". ".join(text for text in (grid.title, grid.remark) if text))
        rows = [["Teacher", *(_tex(pair.teacher) for pair in grid.columns)]]
        rows += [["Student", *(_tex(report.student(pair)) for pair in grid.columns)]]
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{caption}.}}"]
        lines += [
            _FITTED,
            rf"\begin{{tabular}}{{l{'c' * len(grid.columns)}}}",
            r"\toprule",
            *map(_tex_row, rows),
            r"\midrule",
        ]
        for name, entries in grid.rows:
            lines += [_tex_row([_tex(name), *(_tex_number(entry) for entry in entries)])]
            for below in range(max(len(entry.below) for entry in entries)):
                small = [
                    rf"\scriptsize {_tex(entry.below[below])}" if below < len(entry.below) else "" for entry in entries
                ]
                lines += [_tex_row(["", *small])]
        parts += ["\n".join([*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table}"])]
    if report.left_out:
        parts += ["\n".join(f"% not in the table: {line}" for line in report.left_out)]
    notes = [r"\item " + _marked_up(_tex(note), r"\\textbf{\1}", r"\\texttt{\1}") for note in report.notes]
    parts += ["\n".join([r"\begin{enumerate}", *notes, r"\end{enumerate}"])]
    return "\n\n".join(parts) + "\n"


def _tex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _tex_number(entry: Entry) -> str:
    return rf"\textbf{{{_tex(entry.text)}}}" if entry.bold else _tex(entry.text)


def _tex(text: str) -> str:
    return "".join(_TEX.get(char, char) for char in text)


def page(report: Report) -> str:
    """The report as one HTML page of plain tables, without style sheets or scripts."""
    return "\n".join(_page(report)) + "\n"


def _page(report: Report) -> Iterator[str]:
    title = html.escape(report.title)
    yield f'<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n<h1>{title}</h1>'
    yield from _list("ul", report.facts)
    yield f"<pre>{html.escape(report.command)}</pre>"
    for grid in report.grids:
        caption = ". ".join(text for text in (grid.title, grid.remark) if text)
        yield f"<table>\n<caption>{html.escape(caption)}</caption>\n<thead>"
        yield _html_row("th", "teacher", [html.escape(pair.teacher) for pair in grid.columns])
        yield _html_row("th", "student", [html.escape(report.student(pair)) for pair in grid.columns])
        yield "</thead>\n<tbody>"
        for name, entries in grid.rows:
            yield _html_row("td", html.escape(name), [_html_entry(entry) for entry in entries])
        yield "</tbody>\n</table>"
    if report.left_out:
        yield "<h2>Not in the table</h2>"
        yield from _list("ul", report.left_out)
    yield "<h2>Notes</h2>"
    yield from _list("ol", report.notes)
    yield "</html>"


def _list(tag: str, lines: Sequence[str]) -> Iterator[str]:
    yield f"<{tag}>"
    for line in lines:
        yield f"<li>{marked_up(line)}</li>"
    yield f"</{tag}>"


def _html_row(tag: str, name: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join([f"<th>{name}</th>", *(f"<{tag}>{cell}</{tag}>" for cell in cells)]) + "</tr>"


def _html_entry(entry: Entry) -> str:
    text = html.escape(entry.text)
    return "<br>".join(
        [f"<b>{text}</b>" if entry.bold else text, *(f"<small>{html.escape(line)}</small>" for line in entry.below)]
    )


def marked_up(note: str) -> str:
    """A note as HTML."""
    return _marked_up(html.escape(note), r"<b>\1</b>", r"<code>\1</code>")


def _marked_up(text: str, bold: str, code: str) -> str:
    """A note with its Markdown for bold and code replaced by these patterns."""
    return re.sub("`(.+?)`", code, re.sub(r"\*\*(.+?)\*\*", bold, text))


def csv(report: Report) -> str:
    """Every number of the table, a row each."""
    return report.long.to_csv(index=False, float_format="%.4f")


FORMATS: dict[str, tuple[str, Callable[[Report], str]]] = {
    "markdown": ("table.md", markdown),
    "csv": ("table.csv", csv),
    "latex": ("table.tex", latex),
    "html": ("table.html", page),
}


def write(report: Report, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write the table into `folder` in each of `formats`, and renew files of other formats, so that none is outdated.

    Each file is replaced atomically. Raises EdkdError.
    """
    texts = {
        folder / name: render(report)
        for each, (name, render) in FORMATS.items()
        if each in formats or (folder / name).exists()
    }
    for path, text in texts.items():
        files.write_bytes(path, text.encode())
    return list(texts)
