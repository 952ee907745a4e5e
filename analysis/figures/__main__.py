"""`python -m analysis.figures KIND FILE.npz`: draw what `edkd figures KIND` has computed, beside the file."""

import argparse
from pathlib import Path

import numpy as np

from analysis.figures import correlation, embedding, save


def main() -> None:
    """Write the figure as PNG and SVG, and print their paths."""
    parser = argparse.ArgumentParser(prog="python -m analysis.figures", description=__doc__)
    parser.add_argument("kind", choices=("tsne", "correlation"))
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    with np.load(options.file) as held:
        title, student, teacher = str(held["title"]), held["student"], held["teacher"]
        if options.kind == "tsne":
            names = str(held["names"][0]), str(held["names"][1])
            figure = embedding(student, teacher, held["target"], names=names, title=title)
        else:
            figure = correlation(student, teacher, title=title)
    for path in save(figure, options.file.parent, options.file.stem):
        print(path)


if __name__ == "__main__":
    main()
