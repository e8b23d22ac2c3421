# SPDX-License-Identifier: MIT
"""Cutting a problem into tiles that fit a limit, one axis after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from cupy_convt.core.problem import ceil_div

T = TypeVar("T")


def shrink(layout: T, axes: Sequence[tuple[str, int]], fits: Callable[[T], bool]) -> T:
    """`layout`, a dataclass of tile sizes, with its axes shrunk in turn until it fits.

    Each of `axes` is (field, least size). The largest size that fits is then evened out, so that the number of tiles,
    and with it the time, grows by one at a time as the problem grows. If nothing fits, all axes are at their least.
    """
    for name, least in axes:
        if fits(layout):
            break
        most = int(getattr(layout, name))
        low, high = min(least, most), most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(_with(layout, name, middle)) else (low, middle - 1)
        layout = _with(layout, name, max(min(least, most), ceil_div(most, ceil_div(most, low))))
    return layout


def _with(layout: T, name: str, size: int) -> T:
    changed: T = replace(layout, **{name: size})  # type: ignore[type-var]
    return changed
