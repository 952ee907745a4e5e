"""Distillation losses as pure tensor functions: on logits, on features, on relations between samples."""

from edkd.losses.distributions import dist, ttm, wttm
from edkd.losses.features import hint, nce
from edkd.losses.logits import (
    WEIGHTINGS,
    Decoupled,
    Weighting,
    cross_entropy,
    decouple,
    dkd,
    edkd,
    edkd_beta,
    edkd_combine,
    edkd_confidence,
    kd,
    kd_per_sample,
)
from edkd.losses.logits_scaled import normkd, normkd_dkd, standardise
from edkd.losses.logits_selected import nckd_among_top, nkd, rld
from edkd.losses.multilevel import batch_correlation, class_correlation

__all__ = [
    "WEIGHTINGS",
    "Decoupled",
    "Weighting",
    "batch_correlation",
    "class_correlation",
    "cross_entropy",
    "decouple",
    "dist",
    "dkd",
    "edkd",
    "edkd_beta",
    "edkd_combine",
    "edkd_confidence",
    "hint",
    "kd",
    "kd_per_sample",
    "nce",
    "nckd_among_top",
    "nkd",
    "normkd",
    "normkd_dkd",
    "rld",
    "standardise",
    "ttm",
    "wttm",
]
