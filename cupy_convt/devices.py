# SPDX-License-Identifier: MIT
"""Arguments that are not the operator's own: device names, dtypes, foreign arrays."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from cupy_convt.core.arguments import integer
from cupy_convt.core.device import PRESETS, DeviceSpec, preset
from cupy_convt.core.geometry import Operand
from cupy_convt.core.problem import DTYPES, real_dtype
from cupy_convt.engines import engine_of
from cupy_convt.engines.dtypes import named_dtype
from cupy_convt.prepared import array_kind, operand_of


def device_spec(device: str | DeviceSpec | None) -> DeviceSpec:
    """A DeviceSpec from None or "cpu" (this CPU), "cuda" or "cuda:N" (that device), or the name of a preset.

    Raises:
        ValueError: the name is not known.
    """
    if isinstance(device, DeviceSpec):
        return device
    if device is None or device == "cpu":
        return engine_of("numpy").device()
    if isinstance(device, str) and device.partition(":")[0] == "cuda":
        ordinal = parse_cuda(device)
        from cupy_convt.engines import gpu

        return gpu.probe(ordinal)
    if not isinstance(device, str):
        raise TypeError(f"device: expected None, a string or a DeviceSpec, got {type(device).__name__}")
    return preset(device)


def parse_cuda(device: str) -> int | None:
    """Ordinal in "cuda:N", None in "cuda".

    Raises:
        ValueError: neither.
    """
    head, colon, ordinal = device.partition(":")
    if head != "cuda" or (colon and not ordinal.isdigit()):
        raise ValueError(
            f"device: expected 'cpu', 'cuda', 'cuda:N' or one of {', '.join(sorted(PRESETS))}, got {device!r}"
        )
    return int(ordinal) if colon else None


def cuda_arrays(device: Any) -> tuple[Any, int]:
    """CuPy and the ordinal of a device "cuda" or "cuda:N".

    Raises:
        ValueError: not such a name, or the device does not exist.
    """
    if not isinstance(device, str):
        raise TypeError(f"device: expected None or a string, got {type(device).__name__}")
    ordinal = parse_cuda(device)
    from cupy_convt.engines import gpu

    return gpu.array_module(ordinal)


def positive(name: str, value: Any) -> int:
    """An int >= 1, or a sequence of one, as a size of a layer.

    Raises:
        TypeError: not an int.
        ValueError: below 1, or a sequence of another length.
    """
    if isinstance(value, (tuple, list)):
        if len(value) != 1:
            raise ValueError(f"{name}: expected an int or a sequence of one int, got {value!r}")
        value = value[0]
    number = integer(name, value)
    if number < 1:
        raise ValueError(f"{name}: expected an int >= 1, got {number}")
    return number


def to_dtype(dtype: Any) -> np.dtype[Any]:
    """The NumPy dtype behind a dtype, type or name; "bfloat16" needs the package ml_dtypes.

    Raises:
        TypeError: not one of the supported dtypes.
    """
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    if name not in DTYPES:
        raise TypeError(f"dtype: expected one of {', '.join(DTYPES)}, got {name}")
    try:
        return named_dtype(name)
    except ImportError as error:
        raise TypeError("dtype: bfloat16 needs the package ml_dtypes (extra bfloat16)") from error


def array_operand(name: str, array: Any) -> Operand:
    """Shape and dtype name of an array argument of a supported dtype.

    Raises:
        TypeError: not an array, or of another dtype.
    """
    array_kind(name, array)
    operand: Operand = operand_of(array)
    if operand.dtype not in DTYPES:
        raise TypeError(f"{name}: expected a dtype among {', '.join(DTYPES)}, got {operand.dtype}")
    return operand


def weight_like(array: Any, values: Any) -> Any:
    """Real NumPy values as a weight for `array`: of its kind, on its device, of the real dtype of its precision.

    Raises:
        TypeError: `array` is not an array, or of an unsupported dtype.
    """
    operand = array_operand("array", array)
    weight = values.astype(to_dtype(real_dtype(operand.dtype)))
    kind = array_kind("array", array)
    return weight if kind == "numpy" else engine_of(kind).asarray(weight)


def to_numpy(array: Any) -> Any:
    """A NumPy array of a NumPy array, a CuPy array or a torch tensor (bfloat16 tensors become float32)."""
    if isinstance(array, np.ndarray):
        return array
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        tensor = array.detach().cpu().resolve_conj()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    if hasattr(array, "get"):
        return array.get()
    raise TypeError(f"expected a NumPy array, a CuPy array or a torch tensor, got {type(array).__name__}")
