# SPDX-License-Identifier: MIT
"""Device names, dtypes and foreign arrays as arguments."""

from typing import Any

import numpy as np
import pytest
import torch

from cupy_convt import api
from cupy_convt.core.device import PRESETS
from cupy_convt.devices import parse_cuda
from tests.emulated import to_device


def test_presets_and_this_cpu() -> None:
    assert api.device_spec("H200") is PRESETS["h200"]
    assert api.device_spec(PRESETS["t4"]) is PRESETS["t4"]
    assert api.device_spec(None) == api.device_spec("cpu")
    assert api.device_spec(None).is_cpu
    with pytest.raises(TypeError, match="device: expected None, a string or a DeviceSpec, got int"):
        api.device_spec(3)


@pytest.mark.parametrize(("name", "ordinal"), [("cuda", None), ("cuda:0", 0), ("cuda:11", 11)])
def test_cuda_names(name: str, ordinal: int | None) -> None:
    assert parse_cuda(name) == ordinal


@pytest.mark.parametrize("name", ["cuda:", "cuda:-1", "cuda:one", "gpu"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="device: expected 'cpu', 'cuda', 'cuda:N'"):
        parse_cuda(name)


@pytest.mark.parametrize("dtype", ["float32", np.float32, np.dtype("float32"), float])
def test_dtypes(dtype: Any) -> None:
    assert api.to_dtype(dtype) == np.dtype(dtype)


def test_bfloat16_is_the_one_of_ml_dtypes() -> None:
    import ml_dtypes

    assert api.to_dtype("bfloat16") == api.to_dtype(ml_dtypes.bfloat16) == np.dtype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("dtype", ["int8", bool, object, "longdouble"])
def test_unsupported_dtypes(dtype: Any) -> None:
    with pytest.raises(TypeError, match="dtype: expected one of float16, bfloat16, float32"):
        api.to_dtype(dtype)


def test_to_numpy() -> None:
    array = np.ones(3, "float32")
    assert api.to_numpy(array) is array
    parameter = torch.nn.Parameter(torch.ones(3))
    np.testing.assert_array_equal(api.to_numpy(parameter), array)
    half = api.to_numpy(torch.ones(3, dtype=torch.bfloat16))
    assert half.dtype == np.float32
    with pytest.raises(TypeError, match="expected a NumPy array, a CuPy array or a torch tensor, got list"):
        api.to_numpy([1.0])


def test_weight_like_follows_kind_and_precision() -> None:
    taps = np.ones((1, 1, 3))
    for dtype, real in (("float16", "float16"), ("complex64", "float32"), ("complex128", "float64")):
        assert api.weight_like(np.ones(2, dtype), taps).dtype == real
    device = to_device(np.ones(2, "float32"))
    assert type(api.weight_like(device, taps)) is type(device)
