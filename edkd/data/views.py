"""Views: what an epoch does to each image, as one integer.

Zero-padding by p, cropping to the original size and perhaps flipping has (2p+1)·(2p+1)·2 outcomes. They are numbered
`view = (dy·(2p+1) + dx)·2 + flip` (without flips: `dy·(2p+1) + dx`), where (dy, dx) is the crop's corner in the padded
image, in pixels from the top left. A network in eval mode is therefore a function of (image, view).

Random draws are pure functions of a seed, a stream and a counter. Only the raw output of Philox (Salmon et al., SC
2011), keyed by a `SeedSequence`, is used: numpy keeps both the same on every platform and in every version, but
does not promise that for distributions built on top of them (NEP 19).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # preparing data needs the draws, but not torch
    from torch import Tensor

# One number for each use, so that no two uses share their draws. Changing one changes every result after it.
ORDER = 1
VIEWS = 2
SUBSET = 3
HOLD_OUT = 4
TRANSFORMS = 5
STRONG = 6


def draw(n: int, *, seed: int, stream: int, counter: int) -> npt.NDArray[np.uint64]:
    """`n` uniform 64-bit integers, shape [n]; the first k of them do not depend on `n`."""
    key = np.random.SeedSequence(seed, spawn_key=(stream, counter))
    return np.random.Philox(key).random_raw(n)


def n_views(padding: int, flip: bool) -> int:
    """The number of views: 162 for padding 4 with flips, 1 for neither."""
    return (2 * padding + 1) ** 2 * (2 if flip else 1)


def decode(view: Tensor, padding: int, flip: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Split views into (dy, dx, flip), each an int64 tensor of the shape of `view`; flip is 0 or 1.

    Values outside [0, n_views) are not checked, because that would wait for the device.
    """
    corner = view // 2 if flip else view
    flipped = view % 2 if flip else view.new_zeros(()).expand_as(view)
    side = 2 * padding + 1
    return corner // side, corner % side, flipped


def epoch_order(seed: int, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """The order in which epoch `epoch` visits `n` images: a permutation of range(n), shape [n]."""
    keys = draw(n, seed=seed, stream=ORDER, counter=epoch)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


def epoch_views(seed: int, epoch: int, n: int, count: int) -> npt.NDArray[np.int64]:
    """The view, in [0, count), that each image has in epoch `epoch`: shape [n], entry i belongs to image i.

    It depends neither on the order of the epoch nor on `n`, so two data sets that begin alike share their views.
    The remainder's bias is below count / 2^64.
    """
    return (draw(n, seed=seed, stream=VIEWS, counter=epoch) % np.uint64(count)).astype(np.int64)
