# SPDX-License-Identifier: MIT
"""What every launch of every plan has to obey, read from the kernels' own text."""

from __future__ import annotations

import re
from functools import cache

from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.launch import F32, F64, GRID_LIMIT, I32, I64, At, Fft, Gemm, Launch, Plan, Stride
from cupy_convt.engines.source import kernel_directory

_SCALARS = {"int": I32, "i64": I64, "float": F32, "double": F64}


@cache
def source(kernel: str) -> str:
    """Text of a .cu file, without its includes."""
    return (kernel_directory() / f"{kernel}.cu").read_text()


@cache
def wanted_defines(kernel: str) -> set[str]:
    """The defines that the kernel refuses to compile without."""
    return set(re.findall(r'#error "(CONVT_\w+):', source(kernel)))


@cache
def parameters(kernel: str) -> list[str]:
    """Kind of each parameter: "pointer", or the C type of a scalar."""
    shared = (kernel_directory() / "implicit.cuh").read_text().replace("\\\n", "")
    code = source(kernel)
    for name, listed in re.findall(r"#define (CT_\w+_PARAMETERS)(?:\(T\))? +(.*)", shared):
        code = re.sub(rf"{name}(\(T\))?", listed, code)
    text = re.search(rf"\b{kernel}\((.*?)\)\s*{{", code, re.S)
    assert text, kernel
    kinds = []
    for parameter in text[1].split(","):
        kinds.append("pointer" if "*" in parameter else parameter.split()[-2])
    return kinds


@cache
def block_limit(kernel: str) -> int:
    """The first argument of __launch_bounds__."""
    found = re.search(r"__launch_bounds__\((\d+)", source(kernel))
    assert found, kernel
    return int(found[1])


def check_launch(launch: Launch, device: DeviceSpec) -> None:
    """Defines, arguments, grid, block and shared memory of one launch."""
    assert {name for name, _ in launch.defines} == wanted_defines(launch.kernel)
    assert 1 <= launch.grid <= GRID_LIMIT
    assert 32 <= launch.block <= block_limit(launch.kernel)
    assert launch.block % 32 == 0
    assert 0 <= launch.shared_bytes <= device.shared_bytes
    kinds = parameters(launch.kernel)
    assert len(kinds) == len(launch.arguments), launch.kernel
    for kind, argument in zip(kinds, launch.arguments, strict=True):
        if kind == "pointer":
            assert isinstance(argument, str | At)
        elif isinstance(argument, Stride):
            assert kind == "i64"
        else:
            assert isinstance(argument, _SCALARS[kind]), (launch.kernel, kind, argument)


def check_launches(plan: Plan, device: DeviceSpec) -> None:
    """Every launch of a plan, and that each named buffer is one of the caller's or of the plan's."""
    buffers = {w.name for w in plan.workspaces + plan.packing_workspaces + plan.packed}
    assert not buffers & {"x", "weight", "bias", "out"}
    for step in plan.packing_steps + plan.steps:
        if isinstance(step, Launch):
            check_launch(step, device)
            names = {
                a.buffer if isinstance(a, At | Stride) else a
                for a in step.arguments
                if isinstance(a, str | At | Stride)
            }
        elif isinstance(step, Fft):
            names = {step.source.buffer, step.destination.buffer}
        else:
            assert isinstance(step, Gemm)
            names = {step.left.buffer, step.right.buffer, step.out.buffer}
        assert names <= buffers | {"x", "weight", "bias", "out"}
