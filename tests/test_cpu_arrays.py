# SPDX-License-Identifier: MIT
"""Conversions between real dtypes, and copies of short runs."""

import ml_dtypes
import numpy as np
import pytest

from cupy_convt.engines.cpu_arrays import convert, copy_runs, copy_runs_between


def test_half_conversions_are_exact() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    half = bits.view(ml_dtypes.bfloat16)
    wide = np.empty(1 << 16, np.float32)
    convert(half, wide)
    np.testing.assert_array_equal(wide.view(np.uint32)[~np.isnan(wide)] >> 16, bits[~np.isnan(wide)])
    rng = np.random.default_rng(0)
    for values in (rng.integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32).view(np.float32), wide):
        out = np.empty(values.shape, ml_dtypes.bfloat16)
        convert(values, out)
        nans, raw = np.isnan(values), values.view(np.uint32).astype(np.uint64)
        assert np.isnan(out[nans].astype(np.float32)).all()
        nearest_even = (raw + 0x7FFF + (raw >> 16 & 1)) >> 16
        np.testing.assert_array_equal(out.view(np.uint16)[~nans], nearest_even[~nans])


def test_runs_are_copied_as_items_without_change() -> None:
    source = np.arange(6 * 5 * 12, dtype=np.float32).reshape(6, 5, 12)
    source[0, 0, 0] = np.nan
    for begin, end in ((0, 5), (3, 4), (2, 12)):
        home = np.zeros((6, 5, 14), np.float32)
        copy_runs(source[..., begin:end], home[..., 1 : 1 + end - begin])
        np.testing.assert_array_equal(home[..., 1 : 1 + end - begin], source[..., begin:end])
        assert not home[..., 0].any() and not home[..., 1 + end - begin :].any()


@pytest.mark.parametrize("length", [1, 2, 7, 128, 129])
def test_runs_are_copied_between_places(length: int) -> None:
    source = np.arange(3 * 400, dtype=np.float32).reshape(3, 400)
    home = np.zeros((3, 2, 200), np.float32)
    copy_runs_between(((3, 2), length), (source, 4 * 5, (4 * 400, 4 * 9)), (home, 4 * 3, (4 * 400, 4 * 200)))
    for row in range(3):
        for run in range(2):
            there = 5 + 9 * run
            expected = np.pad(source[row, there : there + length], (3, 197 - length))
            np.testing.assert_array_equal(home[row, run], expected)
