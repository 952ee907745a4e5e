"""Distillation methods, one file each; `base` says what a method is. Configuration names a class by `_target_`."""

from edkd.distillers.base import Batch, Distiller, Outcome, Shapes, Spec

__all__ = ["Batch", "Distiller", "Outcome", "Shapes", "Spec"]
