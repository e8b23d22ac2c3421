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

    convert: float = 1.37e-09
    wake: float = 0.000294
    cold_byte: float = 5.87e-11
    direct_call: float = 6.14e-06
    direct_tile: float = 9.23e-06
    direct_element: float = 1.07e-10
    direct_loop: float = 8.01e-09
    direct_pass: float = 2.04e-06
    direct_store: float = 5.98e-11
    dense_call: float = 4.18e-06
    dense_tile: float = 5.31e-05
    dense_rate: float = 1.98e11
    dense_half_channels: float = 1.77
    dense_half_width: float = 0.186
    dense_operand: float = 3.35e-10
    columns_element: float = 3.66e-10
    rows_element: float = 1.05e-09
    rows_loop: float = 2.93e-11
    phases_call: float = 2.52e-05
    phases_tile: float = 4.33e-05
    phases_rate: float = 1.89e11
    phases_half_depth: float = 2.38
    phases_half_width: float = 0.874
    phases_operand: float = 4.89e-10
    phases_input: float = 2.31e-11
    phases_result: float = 6.66e-10
    winograd_call: float = 0.000211
    winograd_tile: float = 1.78e-05
    winograd_rate: float = 1.97e11
    winograd_half_depth: float = 1.1
    winograd_half_width: float = 0.874
    winograd_operand: float = 4.12e-10
    winograd_input: float = 5.11e-11
    winograd_result: float = 1.2e-09
    phases_pack: float = 8.34e-10
    subpixel_call: float = 9.26e-06
    subpixel_rate: float = 1.91e11
    subpixel_half_rate: float = 4.37e11
    subpixel_half_depth: float = 4.21
    subpixel_half_width: float = 1.1
    subpixel_input: float = 5.99e-11
    subpixel_cold: float = 3.35e-09
    subpixel_result: float = 1.76e-09
    subpixel_weight: float = 1.15e-10
    subpixel_compile: float = 0.047
    subpixel_pack: float = 3.98e-10
    im2col_input: float = 4.24e-10
    im2col_weight: float = 2.11e-10
    toeplitz_call: float = 3.39e-06
    toeplitz_tile: float = 4.74e-05
    toeplitz_product: float = 1.41e-08
    toeplitz_rate: float = 1.78e11
    toeplitz_operand: float = 7.09e-11
    toeplitz_run: float = 1.39e-09
    toeplitz_copy: float = 1.35e-10
    toeplitz_output: float = 3.49e-11
    toeplitz_pack: float = 8.26e-10
    fft_call: float = 4.04e-05
    fft_point: float = 1.64e-10
    fft_product: float = 8.05e-11
    fft_output: float = 6.16e-10
    fft_store: float = 5.74e-10
    fft_fill: float = 4.77e-10
    fft_pack: float = 1.32e-09
    fft_tile: float = 4.17e-05
    fft_loop: float = 4.64e-08
    fft_alone: float = 1.75
    fft_split: float = 0.986
    fft_convert: float = 5.68e-10
    fft_matrix_rate: float = 2.23e12
    fft_half_channels: float = 1.59e03
    fft_turn: float = 8.27e-11


FITTED = Constants()
