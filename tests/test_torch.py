# SPDX-License-Identifier: MIT
"""Values and lengths against PyTorch's CPU operator and scipy.signal.upfirdn on random geometries."""

from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import cupy_convt as ct

METHODS = ("direct", "gemm", "fft")


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(st.integers(1, 3))
    stride, dilation = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    return {
        "n": draw(st.integers(1, 3)),
        "c_in": groups * draw(st.integers(1, 3)),
        "c_out": groups * draw(st.integers(1, 3)),
        "l_in": draw(st.integers(1, 40)),
        "k": draw(st.integers(1, 13)),
        "groups": groups,
        "stride": stride,
        "dilation": dilation,
        "padding": draw(st.integers(0, 9)),
        "output_padding": draw(st.integers(0, max(stride, dilation) - 1)),
        "bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31)),
    }


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@given(geometry=geometries())
@settings(max_examples=150, deadline=None)
def test_agrees_with_pytorch(dtype: str, geometry: dict[str, Any]) -> None:
    g = dict(geometry)
    rng = np.random.default_rng(g.pop("seed"))
    n, c_in, c_out, l_in, k, has_bias = (g.pop(name) for name in ("n", "c_in", "c_out", "l_in", "k", "bias"))
    length = (l_in - 1) * g["stride"] - 2 * g["padding"] + g["dilation"] * (k - 1) + g["output_padding"] + 1
    assume(length >= 1)

    def values(*shape: int) -> Any:
        data = rng.standard_normal(shape)
        return (data + 1j * rng.standard_normal(shape) if dtype == "complex128" else data).astype(dtype)

    x, w, b = values(n, c_in, l_in), values(c_in, c_out // g["groups"], k), values(c_out) if has_bias else None
    want = torch.nn.functional.conv_transpose1d(
        torch.from_numpy(x), torch.from_numpy(w), None if b is None else torch.from_numpy(b), **g
    ).numpy()
    for method in METHODS:
        y = ct.conv_transpose1d(x, w, b, method=method, **g)
        assert y.shape == want.shape
        np.testing.assert_allclose(y, want, rtol=1e-11, atol=1e-12 * k * c_in)


@given(l_in=st.integers(1, 200), k=st.integers(1, 60), up=st.integers(1, 9), seed=st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_one_channel_is_upfirdn(l_in: int, k: int, up: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, h = rng.standard_normal(l_in), rng.standard_normal(k)
    want = scipy.signal.upfirdn(h, x, up=up)
    for method in METHODS:
        y = ct.conv_transpose1d(x[None, None], h[None, None], stride=up, method=method)[0, 0]
        # upfirdn leaves out the trailing zeros that a filter shorter than the stride leaves behind
        assert y.size == (l_in - 1) * up + k
        np.testing.assert_allclose(y[: want.size], want[: y.size], rtol=1e-11, atol=1e-12 * k)
