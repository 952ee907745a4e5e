"""Figures of a benchmark: pure functions from DataFrames to `matplotlib.figure.Figure`, and `save`.

They draw what `analysis.statistics` has computed. Themselves they only subtract runs, and average the lines and bars
that are labelled as means. No method is known by name: every figure takes `titles`, a mapping from the name of a method
in the frame to its title, and draws only the methods of that mapping, in its order. Pairs keep the frame's order.
Accuracies are in percent, differences of them in points. A figure without anything to draw raises a ValueError that
says what is missing.
"""

from analysis.figures.agreement import teacher_agreement
from analysis.figures.by_class import by_class
from analysis.figures.costs import costs
from analysis.figures.curves import training_curves
from analysis.figures.forest import forest
from analysis.figures.matrix import matrix
from analysis.figures.published import against_published
from analysis.figures.representations import correlation, embedding
from analysis.figures.rows import accuracies, best_last_gaps
from analysis.figures.style import WIDTH, save

__all__ = [
    "WIDTH",
    "accuracies",
    "against_published",
    "best_last_gaps",
    "by_class",
    "correlation",
    "costs",
    "embedding",
    "forest",
    "matrix",
    "save",
    "teacher_agreement",
    "training_curves",
]
