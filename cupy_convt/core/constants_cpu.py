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
PROVENANCE = "cpu-plans.json, sweep-cpu.json of 2026-11-23: AMD EPYC, 2 cores, numpy 2.4.6, scipy 1.17.1"


@dataclass(frozen=True)
class Constants:
    """Fitted seconds (for a call, an element, an inner loop) and rates (flop/s), with half-speed sizes of products."""

    convert: float = 1.2e-09
    wake: float = 0.00029
    cold_byte: float = 5.66e-11
    direct_call: float = 7.45e-06
    direct_tile: float = 1.06e-05
    direct_element: float = 1.1e-10
    direct_loop: float = 1.97e-09
    direct_pass: float = 1.85e-06
    direct_store: float = 6.32e-11
    dense_call: float = 1.29e-05
    dense_tile: float = 1.75e-05
    dense_rate: float = 1.83e+11
    dense_half_channels: float = 2.57
    dense_half_width: float = 0.387
    dense_operand: float = 3.76e-10
    columns_element: float = 2.48e-10
    rows_element: float = 9.71e-10
    rows_loop: float = 1.64e-10
    phases_call: float = 2.93e-05
    phases_tile: float = 5.46e-05
    phases_rate: float = 1.88e+11
    phases_half_depth: float = 3.11
    phases_half_width: float = 0.93
    phases_operand: float = 4.69e-10
    phases_input: float = 2.61e-11
    phases_result: float = 6.28e-10
    winograd_call: float = 0.000128
    winograd_tile: float = 4.57e-05
    winograd_rate: float = 1.8e+11
    winograd_half_depth: float = 1.87
    winograd_half_width: float = 1.44
    winograd_operand: float = 2.93e-10
    winograd_input: float = 1.86e-10
    winograd_result: float = 1.11e-09
    phases_pack: float = 8.54e-10
    subpixel_call: float = 2e-05
    subpixel_rate: float = 1.92e+11
    subpixel_half_rate: float = 4.51e+11
    subpixel_half_depth: float = 3.96
    subpixel_half_width: float = 3.35
    subpixel_input: float = 7.82e-11
    subpixel_cold: float = 3.18e-09
    subpixel_result: float = 1.8e-09
    subpixel_weight: float = 1.18e-10
    subpixel_compile: float = 0.0471
    subpixel_pack: float = 4.23e-10
    im2col_input: float = 3.26e-10
    im2col_weight: float = 3.6e-10
    toeplitz_call: float = 1.07e-05
    toeplitz_tile: float = 3.84e-05
    toeplitz_product: float = 2.02e-08
    toeplitz_rate: float = 1.58e+11
    toeplitz_right: float = 4.13e-11
    toeplitz_run: float = 2.65e-09
    toeplitz_copy: float = 1.71e-10
    toeplitz_output: float = 4.36e-11
    toeplitz_pack: float = 1.19e-10
    fft_call: float = 1.79e-05
    fft_point: float = 1.56e-10
    fft_product: float = 1.76e-10
    fft_output: float = 5.67e-10
    fft_store: float = 6.44e-11
    fft_fill: float = 8.38e-10
    fft_pack: float = 1.45e-09
    fft_tile: float = 6.33e-05
    fft_loop: float = 4.32e-08
    fft_alone: float = 1.92
    fft_split: float = 1.02
    fft_convert: float = 7.02e-10
    fft_matrix_rate: float = 1.9e+12
    fft_half_channels: float = 1.38e+03
    fft_turn: float = 1.21e-10


FITTED = Constants()
