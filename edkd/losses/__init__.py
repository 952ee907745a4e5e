"""Distillation losses as pure tensor functions: on logits, on features, on relations between samples."""

from edkd.losses.distributions import dist, ttm, wttm
from edkd.losses.features import at, catkd, class_maps, hcl, hint, nce, nst, ofd, ofd_margin, pool, to_smaller, vid
from edkd.losses.logits import (
    Decoupled,
    Weighting,
    cross_entropy,
    decouple,
    dkd,
    edkd,
    kd,
    kd_per_sample,
)
from edkd.losses.logits_scaled import normkd, normkd_dkd, standardise
from edkd.losses.logits_selected import nckd_among_top, nkd, nkd_per_sample, rld
from edkd.losses.multilevel import batch_correlation, class_correlation
from edkd.losses.regions import RowLoss, regional_logits, regional_weights, sdd
from edkd.losses.relations import cc, pkt, rkd, sp

__all__ = [
    "Decoupled",
    "RowLoss",
    "Weighting",
    "at",
    "batch_correlation",
    "catkd",
    "cc",
    "class_correlation",
    "class_maps",
    "cross_entropy",
    "decouple",
    "dist",
    "dkd",
    "edkd",
    "hcl",
    "hint",
    "kd",
    "kd_per_sample",
    "nce",
    "nckd_among_top",
    "nkd",
    "nkd_per_sample",
    "normkd",
    "normkd_dkd",
    "nst",
    "ofd",
    "ofd_margin",
    "pkt",
    "pool",
    "regional_logits",
    "regional_weights",
    "rkd",
    "rld",
    "sdd",
    "sp",
    "standardise",
    "to_smaller",
    "ttm",
    "vid",
    "wttm",
]
