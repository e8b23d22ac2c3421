# SPDX-License-Identifier: MIT
"""How arrays lie in memory, judged by NumPy."""

import itertools

import numpy as np
import pytest

from cupy_convt.engines.layout import Layout


def views() -> list[np.ndarray]:
    whole = np.zeros((3, 4, 6), "float32")
    slices = (slice(None), slice(1, None), slice(None, None, 2), slice(0, 1), slice(0, 0), slice(None, None, -1))
    found = [whole[a, b, c] for a, b, c in itertools.product(slices, repeat=3)]
    return [*found, whole.transpose(2, 0, 1), np.broadcast_to(whole[:1], whole.shape), whole.view("int8")[:, :, 1:]]


def test_dense_is_what_numpy_calls_contiguous() -> None:
    for view in views():
        assert Layout.of(view).is_dense == view.flags.c_contiguous, (view.shape, view.strides)
        made = np.empty(view.shape, view.dtype)
        if view.size:
            assert Layout.dense(view.shape, view.itemsize) == Layout.of(made)


def test_plain_rows_are_those_whose_samples_follow_each_other() -> None:
    for view in views():
        follows = view.flags.c_contiguous or view.shape[-1] <= 1 or view.strides[-1] == view.itemsize
        assert Layout.of(view).has_plain_rows == follows, (view.shape, view.strides)
    odd = np.zeros(100, "int8")
    assert not Layout.of(np.ndarray((2, 3), "int16", odd, strides=(7, 2))).has_plain_rows


@pytest.mark.parametrize(
    ("strides", "matrix"), [((400, 40, 4), True), ((400, 36, 4), False), ((400, 0, 4), False), ((0, 2**33, 4), False)]
)
def test_blas_wants_rows_that_do_not_overlap(strides: tuple[int, ...], matrix: bool) -> None:
    assert Layout((2, 3, 10), strides, 4).is_library_matrix == matrix
    assert Layout((2, 1, 10), strides, 4).is_library_matrix


def test_rows_without_a_batch_are_a_batch_of_one() -> None:
    assert Layout((3, 10), (40, 4), 4).batched() == Layout((1, 3, 10), (0, 40, 4), 4)
    assert Layout((3, 10), (40, 4), 4).item() == Layout((1, 3, 10), (0, 40, 4), 4)
    assert Layout((5, 3, 10), (120, 40, 4), 4).item() == Layout((1, 3, 10), (120, 40, 4), 4)
