# SPDX-License-Identifier: MIT
"""Constants of the CPU's cost model, fitted by least squares on the logarithm of the times.

The times are what `python -m benchmarks.run --all-methods` measures over the 81 real layers, on two cores of an AMD
EPYC (Zen 4) with AVX-512 and OpenBLAS; for sub-pixel convolutions, of OpenVINO 2026.4 on the layers that it takes, with
the weight kept (`subpixel`) or not (`im2col`). Element-wise constants are seconds on one core; the rates of products
are for two cores.
"""

from __future__ import annotations

from dataclasses import dataclass

#: The peak (flop/s, float32) of the machine that the constants below are from.
FITTED_PEAK = 205e9
#: What the defaults of Constants were fitted to; `python -m benchmarks.fit_cost --write` writes both.
PROVENANCE = "cpu-plans.json, sweep-cpu.json of 2026-11-22: AMD EPYC, 2 cores, numpy 2.4.6, scipy 1.17.1"


@dataclass(frozen=True)
class Constants:
    """Fitted seconds (for a call, an element, an inner loop) and rates (flop/s), with half-speed sizes of products."""

    convert: float = 1.26e-09
    wake: float = 0.000473
    cold_byte: float = 2.18e-11
    direct_call: float = 1.29e-05
    direct_tile: float = 1.31e-05
    direct_element: float = 1.26e-10
    direct_loop: float = 5.95e-09
    direct_pass: float = 2.13e-06
    direct_store: float = 1.26e-10
    dense_call: float = 2.79e-05
    dense_tile: float = 9.15e-05
    dense_rate: float = 1.99e11
    dense_half_channels: float = 4.16
    dense_half_width: float = 0.519
    dense_operand: float = 5.05e-10
    columns_element: float = 6.88e-10
    rows_element: float = 1.12e-09
    rows_loop: float = 8.45e-10
    phases_call: float = 2.84e-05
    phases_tile: float = 2.25e-05
    phases_rate: float = 1.92e11
    phases_half_depth: float = 3.94
    phases_half_width: float = 0.985
    phases_operand: float = 4.36e-10
    phases_input: float = 2.83e-11
    phases_result: float = 1.16e-09
    winograd_call: float = 0.000145
    winograd_tile: float = 0.000106
    winograd_rate: float = 1.77e11
    winograd_half_depth: float = 2.2
    winograd_half_width: float = 1.74
    winograd_operand: float = 2.28e-10
    winograd_input: float = 5.5e-10
    winograd_result: float = 1.88e-09
    phases_pack: float = 1.21e-09
    subpixel_call: float = 3.71e-05
    subpixel_rate: float = 1.62e11
    subpixel_half_rate: float = 3.55e11
    subpixel_half_depth: float = 4.09
    subpixel_half_width: float = 30.9
    subpixel_input: float = 8.73e-11
    subpixel_cold: float = 2.18e-10
    subpixel_result: float = 2.04e-09
    subpixel_weight: float = 9.74e-11
    subpixel_compile: float = 0.03
    subpixel_pack: float = 1.1e-09
    im2col_input: float = 3.03e-10
    im2col_weight: float = 9.56e-10
    toeplitz_call: float = 2.3e-05
    toeplitz_tile: float = 6.69e-05
    toeplitz_product: float = 4.71e-09
    toeplitz_rate: float = 1.63e11
    toeplitz_right: float = 6.12e-11
    toeplitz_run: float = 1.07e-09
    toeplitz_copy: float = 3.5e-10
    toeplitz_output: float = 3.57e-10
    toeplitz_pack: float = 5.63e-10
    fft_call: float = 1.75e-05
    fft_point: float = 1.04e-10
    fft_product: float = 4.22e-10
    fft_output: float = 1.33e-09
    fft_store: float = 4.07e-11
    fft_fill: float = 1.08e-09
    fft_pack: float = 3.26e-09
    fft_tile: float = 0.000133
    fft_loop: float = 3.89e-08
    fft_alone: float = 3.17
    fft_split: float = 1.47
    fft_convert: float = 9.57e-10
    fft_matrix_rate: float = 1.63e12
    fft_half_channels: float = 1.26e03
    fft_turn: float = 1.52e-10


FITTED = Constants()
