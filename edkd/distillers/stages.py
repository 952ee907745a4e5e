"""Which stages of two networks belong together."""

from collections.abc import Sequence
from typing import TypeVar

from edkd.errors import EdkdError

T = TypeVar("T")


def paired(student: Sequence[T], teacher: Sequence[T]) -> list[tuple[T, T]]:
    """The stages of student and teacher, shallow to deep, without their stems, which come first in both.

    Where one network has more stages (mobilenetv2 under resnet32x4 is the one pair of the field), the last ones are
    paired and its first is left out, as OFD does. Raises EdkdError where a network has no stage beside its stem.
    """
    stages = min(len(student), len(teacher)) - 1
    if stages < 1:
        raise EdkdError(
            f"the student has {len(student)} feature maps and the teacher {len(teacher)}: this method compares those "
            "after the first, which is the stem's; `feats` names more (docs/extending.md)"
        )
    return list(zip(student[-stages:], teacher[-stages:], strict=True))
