"""Distillation losses as pure tensor functions: on logits, on features, on relations between samples."""

from edkd.losses.features import at, catkd, class_maps, hcl, hint, nce, nst, ofd, ofd_margin, pool, to_smaller, vid
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
from edkd.losses.regions import RowLoss, nkd_per_sample, regional_logits, regional_weights, sdd
from edkd.losses.relations import cc, pkt, rkd, sp
from edkd.losses.singular import KDSVD_EXTRA, channel_directions, kdsvd

__all__ = [
    "KDSVD_EXTRA",
    "WEIGHTINGS",
    "Decoupled",
    "RowLoss",
    "Weighting",
    "at",
    "catkd",
    "cc",
    "channel_directions",
    "class_maps",
    "cross_entropy",
    "decouple",
    "dkd",
    "edkd",
    "edkd_beta",
    "edkd_combine",
    "edkd_confidence",
    "hcl",
    "hint",
    "kd",
    "kd_per_sample",
    "kdsvd",
    "nce",
    "nkd_per_sample",
    "nst",
    "ofd",
    "ofd_margin",
    "pkt",
    "pool",
    "regional_logits",
    "regional_weights",
    "rkd",
    "sdd",
    "sp",
    "to_smaller",
    "vid",
]
