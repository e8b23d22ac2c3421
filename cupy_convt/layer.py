# SPDX-License-Identifier: MIT
"""ConvTranspose1d as a layer that owns its weight, with torch's attribute names, repr and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np

from cupy_convt import api

_NAMES = ("weight", "bias")
#: Spellings of weight norm in checkpoints: (g, v) of torch.nn.utils.weight_norm and of its parametrization.
_WEIGHT_NORM = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))


class ConvTranspose1d:
    """Transposed 1-D convolution with a weight of its own, torch.nn.ConvTranspose1d's arguments.

    >>> import numpy as np, cupy_convt as ct
    >>> layer = ct.ConvTranspose1d(4, 8, 16, stride=8, padding=4)
    >>> layer
    ConvTranspose1d(4, 8, kernel_size=(16,), stride=(8,), padding=(4,))
    >>> layer(np.zeros((1, 4, 10), dtype=np.float32)).shape
    (1, 8, 80)

    Args:
        in_channels, out_channels, kernel_size: C_in, C_out, K, ints >= 1.
        stride, padding, output_padding, groups, dilation: as :func:`cupy_convt.conv_transpose1d`.
        bias: whether a bias is added.
        padding_mode: "zeros", the only one there is.
        device: None or "cpu", NumPy arrays; "cuda" or "cuda:N", CuPy arrays.
        dtype: a dtype or its name; None is float32.
        batch_invariant: as :func:`cupy_convt.conv_transpose1d`.

    Attributes:
        weight: (in_channels, out_channels // groups, kernel_size).
        bias: (out_channels,) or None.

    Both start as U(-b, b) with b = 1 / sqrt(out_channels / groups * kernel_size), as in torch. The layer keeps packed
    forms of the weight: assign a new array to change it. NumPy weights are read-only for that reason; a CuPy weight
    must not be modified in place.

    Raises:
        TypeError: a size is not an int.
        ValueError: a size or geometry argument is out of range.
    """

    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: Any = 1,
        bias: bool = True,
        dilation: Any = 1,
        padding_mode: str = "zeros",
        device: str | None = None,
        dtype: Any = None,
        *,
        batch_invariant: bool = False,
    ) -> None:
        sizes = [("in_channels", in_channels), ("out_channels", out_channels), ("kernel_size", kernel_size)]
        self.in_channels, self.out_channels, taps = (api.positive(name, value) for name, value in sizes)
        geometry = api.make_geometry(stride, padding, output_padding, groups, dilation, batch_invariant=batch_invariant)
        if geometry.output_padding >= max(geometry.stride, geometry.dilation):
            raise ValueError(
                f"output_padding: expected smaller than either stride = {geometry.stride} or "
                f"dilation = {geometry.dilation}, got {geometry.output_padding}"
            )
        for name, channels in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
            if channels % geometry.groups:
                raise ValueError(f"{name}: expected a multiple of groups = {geometry.groups}, got {channels}")
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode: expected 'zeros', got {padding_mode!r}")
        self.kernel_size = (taps,)
        self.stride, self.dilation = (geometry.stride,), (geometry.dilation,)
        self.padding: tuple[int] | str = geometry.padding if isinstance(geometry.padding, str) else (geometry.padding,)
        self.output_padding, self.groups = (geometry.output_padding,), geometry.groups
        self.padding_mode, self.batch_invariant = padding_mode, geometry.batch_invariant
        self._operator: api.Operator | None = None
        self._place(device)
        self._initialise(bool(bias), api.to_dtype("float32" if dtype is None else dtype))

    def _place(self, device: str | None) -> None:
        self._ordinal = None
        self._arrays: Any = np
        if device not in (None, "cpu"):
            self._arrays, self._ordinal = api.cuda_arrays(device)
        self.device = "cpu" if self._ordinal is None else f"cuda:{self._ordinal}"

    def _initialise(self, bias: bool, dtype: Any) -> None:
        bound = 1 / sqrt(self.out_channels // self.groups * self.kernel_size[0])
        generator = np.random.default_rng()

        def uniform(shape: tuple[int, ...]) -> Any:
            values: Any = generator.uniform(-bound, bound, shape)
            if dtype.kind == "c":
                values = values + 1j * generator.uniform(-bound, bound, shape)
            return values.astype(dtype)

        shape = (self.in_channels, self.out_channels // self.groups, self.kernel_size[0])
        self._weight = self._own(uniform(shape))
        self._bias = self._own(uniform((self.out_channels,))) if bias else None

    def _own(self, array: Any) -> Any:
        """A contiguous copy on the layer's device; NumPy copies are read-only."""
        if self._arrays is not np:
            with self._arrays.cuda.Device(self._ordinal):
                return self._arrays.array(array, order="C")
        owned = np.array(api.to_numpy(array), order="C")
        owned.flags.writeable = False
        return owned

    @property
    def weight(self) -> Any:
        """(in_channels, out_channels // groups, kernel_size); assign a new array to change it."""
        return self._weight

    @weight.setter
    def weight(self, value: Any) -> None:
        self._assign({"weight": value})

    @property
    def bias(self) -> Any:
        """(out_channels,) or None; assign a new array or None to change it."""
        return self._bias

    @bias.setter
    def bias(self, value: Any) -> None:
        self._assign({"bias": value})

    def _assign(self, values: Mapping[str, Any]) -> None:
        """Take over arrays after all of them have been found to fit: shape, and one precision."""
        shapes = {"weight": self._weight.shape, "bias": (self.out_channels,)}
        for name, value in values.items():
            if value is None and name == "bias":
                continue
            operand = api.array_operand(name, value)
            if operand.shape != shapes[name]:
                raise ValueError(f"{name}: expected shape {shapes[name]}, got {operand.shape}")
        owned = {name: None if value is None else self._own(value) for name, value in values.items()}
        for name, value in owned.items():
            setattr(self, f"_{name}", value)
        self._operator = None

    def __call__(self, x: Any, output_size: Any = None) -> Any:
        """The layer's output.

        Shape:
            x: (N, C_in, L_in) or (C_in, L_in).
            result: (N, C_out, L_out) or (C_out, L_out).

        Raises:
            TypeError, ValueError: as :func:`cupy_convt.conv_transpose1d`.
        """
        if self._operator is None:
            names = ("stride", "padding", "output_padding", "groups", "dilation", "batch_invariant")
            self._operator = api.prepare(self._weight, self._bias, **{name: getattr(self, name) for name in names})
        return self._operator(x, output_size=output_size)

    def state_dict(self) -> dict[str, Any]:
        """{"weight": ..., "bias": ...}, the layer's own arrays."""
        return {name: getattr(self, name) for name in _NAMES if getattr(self, name) is not None}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take weight and bias from a checkpoint: NumPy, CuPy, or torch tensors.

        Weight-norm checkpoints are folded, weight = g * v / ||v|| with the norm over dims (1, 2), in both spellings
        (weight_g, weight_v; parametrizations.weight.original0, original1).

        Raises:
            KeyError: an entry is missing or unknown; nothing is loaded then.
            ValueError: a shape differs; nothing is loaded then.
        """
        state = {name: api.to_numpy(value) for name, value in state_dict.items()}
        for g_name, v_name in _WEIGHT_NORM:
            if g_name in state and v_name in state:
                state["weight"] = fold_weight_norm(state.pop(g_name), state.pop(v_name))
        expected = set(self.state_dict())
        if set(state) != expected:
            missing, unknown = sorted(expected - set(state)), sorted(set(state) - expected)
            raise KeyError(f"state_dict: expected {sorted(expected)}, missing {missing}, unknown {unknown}")
        dtype = self._weight.dtype
        for name, value in state.items():
            if value.dtype.kind == "c" and dtype.kind != "c":
                raise ValueError(f"{name}: expected real values for a layer of dtype {dtype}, got {value.dtype}")
        self._assign({name: value.astype(dtype) for name, value in state.items()})

    def to(self, device: str) -> ConvTranspose1d:
        """Move the layer to "cpu", "cuda" or "cuda:N" and return it.

        Raises:
            ValueError: not a device.
        """
        state = {name: api.to_numpy(value) for name, value in self.state_dict().items()}
        self._place(device)
        self._assign(state)
        return self

    def __repr__(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        for name, usual in (("padding", (0,)), ("dilation", (1,)), ("output_padding", (0,)), ("groups", 1)):
            value = getattr(self, name)
            text += f", {name}={value!r}" if value != usual else ""
        text += "" if self._bias is not None else ", bias=False"
        text += ", batch_invariant=True" if self.batch_invariant else ""
        return f"ConvTranspose1d({text})"


def fold_weight_norm(g: Any, v: Any) -> Any:
    """g * v / ||v||, norm over dims (1, 2) for each input channel, as torch.nn.utils.weight_norm with dim=0.

    Shape:
        g: (C_in, 1, 1). v and result: (C_in, C_out // groups, K).
    """
    wide = v.astype(np.complex128 if v.dtype.kind == "c" else np.float64)
    norm = np.sqrt((np.abs(wide) ** 2).sum(axis=(1, 2), keepdims=True))
    return (g.astype(np.float64) * wide / norm).astype(v.dtype)
