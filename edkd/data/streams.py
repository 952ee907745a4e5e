"""Random draws as pure functions of a seed, a stream and a counter.

Only the raw output of Philox (Salmon et al., SC 2011), keyed by a `SeedSequence`, is used: numpy keeps both the same
on every platform and in every version, and promises that for no distribution built on top of them (NEP 19).
"""

import numpy as np
import numpy.typing as npt

from edkd.errors import EdkdError

# One number for each use, so that no two uses share their draws. Changing one changes every result after it.
ORDER = 1
VIEWS = 2
SUBSET = 3
HOLD_OUT = 4
TRANSFORMS = 5
STRONG = 6


def draw(n: int, *, seed: int, stream: int, counter: int) -> npt.NDArray[np.uint64]:
    """`n` uniform 64-bit integers, shape [n]; the first k of them do not depend on `n`.

    Raises EdkdError for a negative seed.
    """
    if seed < 0:
        raise EdkdError(f"the seed is {seed}; allowed: 0 or more")
    key = np.random.SeedSequence(seed, spawn_key=(stream, counter))
    return np.random.Philox(key).random_raw(n)
