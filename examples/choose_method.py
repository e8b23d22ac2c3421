# SPDX-License-Identifier: MIT
"""Which method wins depends on the geometry and on the device: ask, compare, override."""

import time

import numpy as np

import cupy_convt as ct

#: (what it is, shape of x, shape of weight, geometry)
LAYERS = (
    ("vocoder", (1, 128, 200), (128, 64, 16), {"stride": 8, "padding": 4}),
    ("depthwise", (4, 256, 400), (256, 1, 6), {"stride": 3, "groups": 256}),
    ("long filter", (1, 1, 20_000), (1, 1, 2_049), {"stride": 4, "padding": 1_024}),
)


def milliseconds(x: np.ndarray, weight: np.ndarray, method: str, geometry: dict) -> float:
    """Time of one call, the weight packed beforehand."""
    op = ct.prepare(weight, method=method, **geometry)
    op(x)
    start = time.perf_counter()
    for _ in range(3):
        op(x)
    return (time.perf_counter() - start) / 3 * 1e3


def main() -> None:
    """Ask which method wins, here and elsewhere, and time all of them here."""
    generator = np.random.default_rng(0)
    for name, x_shape, weight_shape, geometry in LAYERS:
        here = ct.explain(x_shape, weight_shape, **geometry)
        there = ct.explain(x_shape, weight_shape, device="h200", **geometry)
        print(f"{name}: here {here.method}, on an H200 {there.method}")
        print(f"  {here.reason}")
        x, weight = (generator.standard_normal(shape).astype(np.float32) for shape in (x_shape, weight_shape))
        for method in ("direct", "gemm", "fft"):
            if any(row.method == method and row.plan is not None for row in here.candidates):
                print(f"  {method:7s} measured {milliseconds(x, weight, method, geometry):8.2f} ms")
    print()
    print(ct.explain(*LAYERS[0][1:3], device="h200", **LAYERS[0][3]))


if __name__ == "__main__":
    main()
