"""Statistics over seeds and pairs, as pure functions over a tidy frame. Accuracies and differences are in percent.

A tidy frame has one row per finished run and protocol: `pair`, `method`, `seed`, `teacher` (the identity of its
weights), `protocol` ("last", "best": chosen on the test set, "selected": chosen on held-out images) and `value`.
"""

from analysis.statistics.paired import LEVEL, cells, comparisons, holm
from analysis.statistics.pooled import Pooled, over_pairs
from analysis.statistics.power import detectable, needed
from analysis.statistics.sentences import permits, verdict

__all__ = [
    "LEVEL",
    "Pooled",
    "cells",
    "comparisons",
    "detectable",
    "holm",
    "needed",
    "over_pairs",
    "permits",
    "verdict",
]
