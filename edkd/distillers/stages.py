"""Which stages of two networks belong together."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def paired(student: Sequence[T], teacher: Sequence[T]) -> list[tuple[T, T]]:
    """The stages of student and teacher, shallow to deep, without their stems, which come first in both.

    Where one network has more stages (mobilenetv2 under resnet32x4 is the one pair of the field), the last ones are
    paired and its first is left out, as OFD does.
    """
    stages = min(len(student), len(teacher)) - 1
    return list(zip(student[-stages:], teacher[-stages:], strict=True))
