# SPDX-License-Identifier: MIT
"""Size classes: close, smooth, and few."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cupy_convt.core.lengths import count_class, length_class


@given(st.integers(1, 1 << 24))
@settings(max_examples=300, deadline=None)
def test_size_classes_are_close_even_and_smooth(least: int) -> None:
    length = length_class(least)
    assert least <= length <= max(64, least * 1.126) and length % 2 == 0
    for prime in (2, 3, 5):
        while length % prime == 0:
            length //= prime
    assert length == 1


def test_an_octave_has_seven_size_classes() -> None:
    assert len({length_class(n) for n in range(4097, 8193)}) == 7


@given(st.integers(1, 1 << 24))
def test_counts_are_close_and_few(least: int) -> None:
    count = count_class(least)
    assert least <= count <= least * 1.125 and (least > 16 or count == least)
    assert count_class(count) == count
    assert len({count_class(n) for n in range(1024, 2048)}) == 9
