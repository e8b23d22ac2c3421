# SPDX-License-Identifier: MIT
"""Products of bfloat16 matrices summed in float32, by OpenVINO where a CPU has instructions for them (AVX512_BF16).

NumPy's BLAS knows no bfloat16; converted to float32, products run at half the rate that such a CPU has for them. The
extra `openvino` brings OpenVINO, whose kernels use it. The instructions round to nearest even and take subnormal
numbers for zero. OpenVINO's threads do not survive a fork: a child of a process that has used them multiplies by BLAS.
"""

from __future__ import annotations

import importlib
import os
import threading
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cupy_convt.engines.cpu_threads import Array, cores

_CPU = Path("/proc/cpuinfo")


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether there are such products: the library is installed and the CPU has the instructions. Imports nothing."""
    try:
        return find_spec("openvino") is not None and "avx512_bf16" in _CPU.read_text(encoding="utf-8").split()
    except OSError:  # not a Linux kernel
        return False


class _Product(threading.local):
    """The compiled product a^T b of any sizes, and each thread's own request to run it."""

    def __init__(self) -> None:
        self.openvino, compiled = _compiled()
        self.request = compiled.create_infer_request()


@lru_cache(maxsize=1)
def _compiled() -> tuple[Any, Any]:
    openvino = importlib.import_module("openvino")
    operators = importlib.import_module("openvino.opset8")
    a, b = (operators.parameter([-1, -1], openvino.Type.bf16) for _ in range(2))
    # sums leave as float32 only where the operands are said to be float32; the hint keeps them bfloat16
    wide = (operators.convert(operand, "f32") for operand in (a, b))
    model = openvino.Model([operators.matmul(*wide, True, False)], [a, b])
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16",
        "INFERENCE_NUM_THREADS": cores(),
        "NUM_STREAMS": cores(),
        "ENABLE_CPU_PINNING": False,
    }
    return openvino, openvino.Core().compile_model(model, "CPU", settings)


@lru_cache(maxsize=1)
def _product() -> _Product:
    return _Product()


class _Fork:
    """Whether this process is the child of one whose threads it would wait for in vain."""

    lost = False

    @classmethod
    def in_child(cls) -> None:
        cls.lost = cls.lost or _compiled.cache_info().currsize > 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Fork.in_child)


def multiply(a: Array, b: Array, out: Array) -> None:
    """out (m, n) = a^T b of a (k, m), b (k, n), the bits of bfloat16 as uint16, all contiguous; out is float32."""
    if _Fork.lost:
        np.matmul(_wide(a).T, _wide(b), out=out)
        return
    product = _product()
    tensor, kind = product.openvino.Tensor, product.openvino.Type.bf16
    for place, operand in enumerate((a, b)):
        product.request.set_input_tensor(place, tensor(operand, list(operand.shape), kind))
    product.request.set_output_tensor(0, tensor(out, shared_memory=True))
    product.request.infer()


def _wide(bits: Array) -> Array:
    """The float32 numbers whose upper halves these are."""
    return np.left_shift(bits, 16, dtype=np.uint32).view(np.float32)
