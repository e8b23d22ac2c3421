# SPDX-License-Identifier: MIT
"""Size classes: a few lengths for every octave, so that new lengths meet transforms and spectra that are there already.

A transform may be longer than it has to be, up to an eighth; in return a prepared operator keeps seven sets of spectra
for an octave of lengths instead of hundreds, and a library as many plans.
"""

from __future__ import annotations

from functools import lru_cache

#: Lengths of an octave, in 32nds: products of 2, 3 and 5, which every library has fast steps for.
CLASSES = (32, 36, 40, 45, 48, 54, 60)
#: Shortest transform.
SHORTEST = 64


@lru_cache(maxsize=4096)
def length_class(least: int) -> int:
    """The shortest length of a class that is at least `least`."""
    least = max(least, SHORTEST)
    shift = (least - 1).bit_length() - 6
    return next(size << shift for size in (*CLASSES, 64) if size << shift >= least)


def count_class(least: int) -> int:
    """The smallest number of at most four significant bits that is at least `least`: for batches of transforms."""
    unit = 1 << max(least.bit_length() - 4, 0)
    return -(-least // unit) * unit
