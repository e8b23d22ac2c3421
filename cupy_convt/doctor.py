# SPDX-License-Identifier: MIT
"""What is installed, which devices there are, and every method checked against the definition."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from math import log2
from pathlib import Path
from typing import Any

import numpy as np

from cupy_convt import api

METHODS = ("direct", "gemm", "fft")
#: Optional packages and what they are for.
_EXTRAS = {
    "ml_dtypes": "bfloat16",
    "openvino": "kept weights as convolutions, bfloat16 products of CPUs with AVX512_BF16",
    "soundfile": "sound files",
    "matplotlib": "spectrograms",
    "torch": "autograd",
    "dask": "arrays in chunks",
}
_EPSILON = {
    "float16": 2.0**-10,
    "float32": 2.0**-23,
    "float64": 2.0**-52,
    "complex64": 2.0**-23,
    "complex128": 2.0**-52,
}
#: Units of the accumulator's rounding that a sum of products may be off, as a share of the sum of absolute products.
_UNITS = 8.0

Write = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    """A geometry of the self-check."""

    name: str
    x_shape: tuple[int, int, int]
    weight_shape: tuple[int, int, int]
    dtype: str
    geometry: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("vocoder layer", (2, 8, 33), (8, 6, 16), "float32", {"stride": 8, "padding": 4}),
    Case(
        "groups, dilation",
        (2, 6, 20),
        (6, 2, 5),
        "float64",
        {"stride": 3, "dilation": 2, "groups": 3, "padding": 2, "output_padding": 1},
    ),
    Case("depthwise", (1, 12, 41), (12, 1, 6), "float32", {"stride": 3, "groups": 12, "padding": "same"}),
    Case("long filter", (1, 1, 200), (1, 1, 257), "float32", {"stride": 4, "padding": 128, "output_padding": 3}),
    Case("complex", (1, 2, 50), (2, 3, 7), "complex64", {"stride": 2}),
    Case("half", (2, 4, 31), (4, 4, 9), "float16", {"stride": 5, "padding": "causal"}),
)


def examine(write: Write, version: str) -> bool:
    """Write the report line by line; whether everything that can be checked is right. `version` is the package's."""
    write(f"{'cupy_convt':14s}{version}")
    for line in _versions():
        write(line)
    arrays, lines = _cuda()
    for line in lines:
        write(line)
    try:
        directory = api.kernel_directory()
        write(f"{'kernels':14s}{directory} ({len(list(directory.glob('*.cu')))} sources)")
        sound = True
    except FileNotFoundError as error:
        write(f"{'kernels':14s}FAILED: {error}")
        sound = False
    write(f"{'NumPy arrays':14s}run on the CPU engine")
    write(f"{'CuPy arrays':14s}" + ("run on the GPU engine" if arrays is not None else "cannot be made here"))
    for name, module in (("CPU", np), ("GPU", arrays)):
        if module is not None:
            sound = _check_engine(name, module, write) and sound
    write("everything that could be checked is right" if sound else "something is wrong: see FAILED above")
    return sound


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> Iterator[str]:
    yield f"{'Python':14s}{platform.python_version()} on {platform.system()} {platform.machine()}"
    for package in ("numpy", "scipy"):
        yield f"{package:14s}{_version(package) or 'FAILED: not installed'}"
    names = sorted({d.metadata["Name"] for d in metadata.distributions() if _is_cupy(d.metadata["Name"])})
    found = [f"{_version(name)} ({name})" for name in names]
    yield f"{'cupy':14s}{', '.join(found) or 'not installed (GPU arrays; extras cuda12, cuda13)'}"
    if len(found) > 1:
        yield f"{'':14s}several builds of CuPy overwrite each other: keep one"
    for package, purpose in _EXTRAS.items():
        yield f"{package:14s}{_version(package) or f'not installed ({purpose})'}"
    cores = _cores()
    yield f"{'CPU':14s}{cores} core{'s' if cores > 1 else ''}"


def _is_cupy(name: str | None) -> bool:
    return name is not None and (name == "cupy" or name.startswith(("cupy-cuda", "cupy_cuda", "cupy-rocm")))


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cuda() -> tuple[Any, list[str]]:
    """CuPy when a device answers, else None; and lines about the driver and the devices."""
    driver = Path("/proc/driver/nvidia/version")
    text = driver.read_text(encoding="utf-8").splitlines()[0].strip() if driver.is_file() else "none found"
    lines = [f"{'NVIDIA driver':14s}{text}"]
    try:
        arrays, _ = api.cuda_arrays("cuda")
        runtime = arrays.cuda.runtime
        version = runtime.driverGetVersion()
        lines.append(f"{'CUDA':14s}driver supports {version // 1000}.{version % 1000 // 10}")
        for ordinal in range(runtime.getDeviceCount()):
            with arrays.cuda.Device(ordinal):
                spec = api.device_spec(f"cuda:{ordinal}")
                free, total = runtime.memGetInfo()
            lines.append(
                f"{f'cuda:{ordinal}':14s}{spec.name}, sm_{spec.architecture}, {spec.multiprocessors} multiprocessors, "
                f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
            )
        return arrays, lines
    except Exception as error:  # a missing or broken installation fails in ways that only CuPy knows
        reason = " ".join(str(error).split()) or type(error).__name__
        return None, [*lines, f"{'CUDA devices':14s}none: {reason[:300]}"]


def _values(generator: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
    values: Any = generator.uniform(-1, 1, shape)
    if dtype.startswith("complex"):
        values = values + 1j * generator.uniform(-1, 1, shape)
    return values.astype(dtype)


def tolerance(case: Case, x: Any, weight: Any, expected: Any) -> float:
    """Largest error that rounding explains, from sum |x| |w|, the accumulator's and the result's precision."""
    products = float(np.abs(api.reference(np.abs(x), np.abs(weight), **case.geometry)).max())
    accumulator = "float32" if case.dtype == "float16" else case.dtype
    transforms = log2(expected.shape[-1] + weight.shape[-1])
    bound = _UNITS * _EPSILON[accumulator] * products * max(transforms / 4, 1)
    return float(bound + (_EPSILON[case.dtype] * np.abs(expected).max() if accumulator != case.dtype else 0))


def _check_engine(name: str, arrays: Any, write: Write) -> bool:
    """Every method on every case, on one kind of arrays."""
    write(f"self-check of the {name} engine against the definition:")
    write(f"  {'case':18s} {'dtype':10s} {'method':7s} {'error':>9s} {'allowed':>9s}")
    sound = True
    for case in CASES:
        generator = np.random.default_rng(1)
        x, weight = (_values(generator, shape, case.dtype) for shape in (case.x_shape, case.weight_shape))
        expected = api.reference(x, weight, **case.geometry)
        allowed = tolerance(case, x, weight, expected)
        for method in METHODS:
            row = f"  {case.name:18s} {case.dtype:10s} {method:7s}"
            try:
                refusal = _refusal(case, method, "cpu" if arrays is np else "cuda")
                if refusal:
                    write(f"{row} {'-':>9s} {'-':>9s}  not for this case: {refusal}")
                    continue
                given = (arrays.asarray(values) for values in (x, weight))
                y = api.to_numpy(api.conv_transpose1d(*given, method=method, **case.geometry))
                error = float(np.abs(y.astype(expected.dtype) - expected).max())
            except Exception as failure:  # whatever it is, it is what the report is for
                write(f"{row} FAILED: {type(failure).__name__}: {' '.join(str(failure).split())[:300]}")
                sound = False
                continue
            right = error <= allowed
            sound = sound and right
            write(f"{row} {error:9.1e} {allowed:9.1e}  {'ok' if right else 'FAILED'}")
    return sound


def _refusal(case: Case, method: str, device: str) -> str:
    """Why a method cannot take a case, or nothing when it can."""
    ranking = api.explain(case.x_shape, case.weight_shape, dtype=case.dtype, device=device, **case.geometry).candidates
    rows = [row for row in ranking if row.method == method]
    return "" if any(row.plan is not None for row in rows) else "; ".join(row.reason for row in rows)
