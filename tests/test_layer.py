# SPDX-License-Identifier: MIT
"""The layer: torch's constructor, attributes, repr and checkpoints; refusals in the constructor."""

from typing import Any

import numpy as np
import pytest
import torch

import cupy_convt as ct

ARGUMENTS: dict[str, Any] = {
    "plain": {"in_channels": 4, "out_channels": 6, "kernel_size": 5},
    "full": {
        "in_channels": 4,
        "out_channels": 6,
        "kernel_size": (7,),
        "stride": 3,
        "padding": 2,
        "output_padding": 1,
        "groups": 2,
        "bias": False,
        "dilation": (2,),
    },
}


def pair(name: str) -> tuple[ct.ConvTranspose1d, torch.nn.ConvTranspose1d]:
    theirs = torch.nn.ConvTranspose1d(**ARGUMENTS[name])
    ours = ct.ConvTranspose1d(**ARGUMENTS[name])
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("name", ARGUMENTS)
def test_attributes_and_repr_are_torchs(name: str) -> None:
    ours, theirs = pair(name)
    assert repr(ours) == repr(theirs)
    for attribute in (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "output_padding",
        "groups",
        "dilation",
        "padding_mode",
        "transposed",
    ):
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    assert ours.weight.shape == tuple(theirs.weight.shape)
    assert (ours.bias is None) == (theirs.bias is None)


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("shape", [(2, 4, 19), (4, 19), (0, 4, 19)])
def test_values_are_torchs(name: str, shape: tuple[int, ...]) -> None:
    ours, theirs = pair(name)
    x = np.random.default_rng(1).standard_normal(shape).astype("float32")
    with torch.no_grad():
        want = theirs(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [33, [33], (2, 4, 33), [34], [35]])
def test_output_size_is_torchs(size: Any) -> None:
    theirs = torch.nn.ConvTranspose1d(4, 6, 5, stride=3, padding=1)
    ours = ct.ConvTranspose1d(4, 6, 5, stride=3, padding=1)
    ours.load_state_dict(theirs.state_dict())
    x = np.random.default_rng(2).standard_normal((2, 4, 11)).astype("float32")
    with torch.no_grad():
        want = theirs(torch.from_numpy(x), output_size=list(np.atleast_1d(size))).numpy()
    np.testing.assert_allclose(ours(x, output_size=size), want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="output_size: expected 33 to 35"):
        ours(x, output_size=36)
    with pytest.raises(TypeError, match="output_size: expected an int"):
        ours(x, output_size=33.0)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"in_channels": 4.0}, TypeError, "in_channels: expected an int"),
        ({"out_channels": 0}, ValueError, "out_channels: expected an int >= 1"),
        ({"kernel_size": 0}, ValueError, "kernel_size: expected an int >= 1"),
        ({"kernel_size": (3, 3)}, ValueError, "kernel_size: expected an int or a sequence of one int"),
        ({"stride": 0}, ValueError, "stride: expected an int >= 1"),
        ({"stride": 1.5}, TypeError, "stride: expected an int"),
        ({"padding": -1}, ValueError, "padding: expected an int >= 0"),
        ({"padding": "full"}, ValueError, "padding: expected an int or one of"),
        ({"output_padding": 1}, ValueError, "output_padding: expected smaller than either stride = 1 or dilation = 1"),
        ({"dilation": 0}, ValueError, "dilation: expected an int >= 1"),
        ({"groups": 0}, ValueError, "groups: expected an int >= 1"),
        ({"groups": 3}, ValueError, "in_channels: expected a multiple of groups = 3, got 4"),
        ({"groups": 4}, ValueError, "out_channels: expected a multiple of groups = 4, got 6"),
        ({"padding_mode": "reflect"}, ValueError, "padding_mode: expected 'zeros', got 'reflect'"),
        ({"dtype": "int8"}, TypeError, "dtype: expected one of"),
        ({"device": "tpu"}, ValueError, "device: expected"),
        ({"device": 0}, TypeError, "device: expected None or a string"),
    ],
)
def test_faults_raise_in_the_constructor(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ct.ConvTranspose1d(**(ARGUMENTS["plain"] | changes))


def test_initialisation_is_uniform_with_torchs_bound() -> None:
    layer = ct.ConvTranspose1d(64, 32, 16, groups=2)
    bound = 1 / np.sqrt(32 // 2 * 16)
    for values in (layer.weight, layer.bias):
        assert np.abs(values).max() <= bound
    assert np.abs(layer.weight).max() > 0.99 * bound
    assert abs(layer.weight.std() - bound / np.sqrt(3)) < 0.02 * bound
    theirs = torch.nn.ConvTranspose1d(64, 32, 16, groups=2)
    assert abs(float(theirs.weight.detach().abs().max()) - bound) < 0.01 * bound


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", np.float64, np.complex64, "complex128"])
def test_dtype(dtype: Any) -> None:
    layer = ct.ConvTranspose1d(2, 3, 4, stride=2, dtype=dtype)
    x = np.ones((1, 2, 5), layer.weight.dtype)
    assert layer(x).dtype == layer.weight.dtype == layer.bias.dtype


@pytest.mark.parametrize("spelling", ["old", "new"])
def test_weight_norm_is_folded(spelling: str) -> None:
    theirs = torch.nn.ConvTranspose1d(4, 6, 5, stride=2)
    if spelling == "new":
        theirs = torch.nn.utils.parametrizations.weight_norm(theirs)
        state = theirs.state_dict()
        state["parametrizations.weight.original0"] *= 1.7
    else:
        fresh = torch.nn.ConvTranspose1d(4, 6, 5, stride=2)
        v = fresh.weight.detach()
        g = 1.7 * v.norm(dim=(1, 2), keepdim=True)
        state = {"weight_g": g, "weight_v": v, "bias": fresh.bias.detach()}
        theirs.load_state_dict({"weight": 1.7 * v, "bias": fresh.bias.detach()})
    ours = ct.ConvTranspose1d(4, 6, 5, stride=2)
    ours.load_state_dict(state)
    if spelling == "new":
        theirs.load_state_dict(state)
    np.testing.assert_allclose(ours.weight, theirs.weight.detach().numpy(), rtol=1e-6)


def test_state_dict_round_trip_and_its_refusals() -> None:
    layer, other = ct.ConvTranspose1d(4, 6, 5), ct.ConvTranspose1d(4, 6, 5)
    other.load_state_dict(layer.state_dict())
    np.testing.assert_array_equal(other.weight, layer.weight)
    before = other.weight
    with pytest.raises(KeyError, match=r"missing \['bias'\], unknown \['gain'\]"):
        other.load_state_dict({"weight": layer.weight, "gain": layer.bias})
    with pytest.raises(ValueError, match=r"bias: expected shape \(6,\), got \(5,\)"):
        other.load_state_dict({"weight": np.zeros((4, 6, 5), "float32"), "bias": np.zeros(5, "float32")})
    with pytest.raises(ValueError, match="weight: expected real values"):
        other.load_state_dict({"weight": layer.weight.astype("complex64"), "bias": layer.bias})
    assert other.weight is before


def test_weights_change_by_assignment_only() -> None:
    layer = ct.ConvTranspose1d(1, 1, 4096, stride=2, bias=False)
    x = np.random.default_rng(3).standard_normal((1, 1, 20000)).astype("float32")
    first = layer(x)
    with pytest.raises(ValueError, match="read-only"):
        layer.weight[0] = 0
    layer.weight = 2 * layer.weight
    np.testing.assert_allclose(layer(x), 2 * first, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="weight: expected shape"):
        layer.weight = np.zeros((1, 1, 3), "float32")
    with pytest.raises(TypeError, match="weight: expected a NumPy or CuPy array"):
        layer.weight = None


def test_an_assigned_array_is_copied() -> None:
    layer = ct.ConvTranspose1d(2, 2, 3)
    mine = np.ones((2, 2, 3), "float32")
    layer.weight = mine
    mine[:] = 7
    assert (layer.weight == 1).all()


def test_to_cpu_keeps_everything() -> None:
    layer = ct.ConvTranspose1d(2, 2, 3)
    before = layer.weight
    assert layer.to("cpu") is layer
    np.testing.assert_array_equal(layer.weight, before)
    with pytest.raises(ValueError, match="device: expected"):
        layer.to("moon")
