# SPDX-License-Identifier: MIT
"""How long the transforms of the FFT method are, and which samples of their results are kept.

Class p of the taps is a filter of J = ceil(K c / s) taps on x itself, d/c apart, so it spans `span` = (J - 1) d/c
inputs; its plane is u -> F[(u - shift)*s + r] for u in [0, L_in + span). A block of M samples yields M - span new ones
of each plane: its first `lead` = span samples are wrapped around. When one block holds the whole response nothing
wraps, and the lead is only the inputs before the crop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import log2

from cupy_convt.core.interleave import q_count
from cupy_convt.core.lengths import length_class
from cupy_convt.core.problem import Problem, ceil_div, is_complex

#: Elements of one buffer: the library counts a batch of transforms with 32-bit integers.
MOST_ELEMENTS = 2**30
#: Longest transform that the library keeps on chip, so that it reads and writes its data once.
ONE_PASS = 8192


@dataclass(frozen=True)
class Blocks:
    """Transforms of `length` samples, `bins` frequencies, of which the samples [lead, lead + step) are kept."""

    length: int
    bins: int
    step: int
    lead: int
    whole: bool


def reach(problem: Problem, q: int, count: int) -> tuple[int, int]:
    """(first u, number of u) of the planes that outputs t in [q*s, (q + count)*s) read; u = q + shift of the class."""
    p_q, p_r = divmod(problem.p_left, problem.stride)
    # residue rho of the output with rho + p_r = residue, or residue + s, of the full response
    shifts = [p_q + phase.offset + (phase.residue < p_r) for phase in problem.phases.active]
    first = max(0, q + min(shifts))
    last = min(problem.l_in + problem.phases.span - 1, q + count - 1 + max(shifts))
    return (first, last - first + 1) if first <= last else (0, 0)


def passes(length: int) -> int:
    """How often a transform of that length reads and writes its data."""
    return 1 if length <= ONE_PASS else 2


@lru_cache(maxsize=4096)
def good_length(least: int) -> int:
    """Smallest even 7-smooth number that is at least `least`."""
    best = 1 << max(1, (least - 1).bit_length())
    for p7 in _powers(7, best):
        for p5 in _powers(5, best // p7):
            for p3 in _powers(3, best // (p7 * p5)):
                odd = p7 * p5 * p3
                length = odd * (1 << max(1, (ceil_div(least, odd) - 1).bit_length()))
                best = min(best, length)
    return best


def _powers(base: int, most: int) -> Iterator[int]:
    value = 1
    while value <= most:
        yield value
        value *= base


@lru_cache(maxsize=1024)
def choose_blocks(problem: Problem) -> Blocks:
    """The transform length that moves least: passes over blocks x length, with a term for the arithmetic."""
    span = problem.phases.span
    u_first, u_count = reach(problem, 0, q_count(problem))
    u_count = max(1, u_count)
    lead = min(span, u_first)
    inputs = max(1, min(problem.l_in, u_first + u_count) - (u_first - lead))
    options = []
    whole = length_class(max(lead + u_count, inputs + span - lead))
    if whole <= MOST_ELEMENTS:
        options.append((whole * _weight(whole), whole, True))
    for i in range(1, 9):
        length = good_length(max(2 * (span + 1) * 2**i // 2, 64))
        if length < whole:
            options.append((ceil_div(u_count, length - span) * length * _weight(length), length, False))
    _, length, single = min(options)
    bins = length if is_complex(problem.out_dtype) else length // 2 + 1
    return Blocks(length, bins, length - lead if single else length - span, lead if single else span, single)


def _weight(length: int) -> float:
    return 2 * passes(length) + 2 + log2(length) / 8
