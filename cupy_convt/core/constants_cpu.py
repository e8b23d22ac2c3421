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

    convert: float = 6.96e-10
    wake: float = 0.000496
    cold_byte: float = 4.56e-11
    direct_call: float = 1.53e-05
    direct_tile: float = 3.64e-05
    direct_element: float = 1.5e-10
    direct_loop: float = 8.44e-09
    direct_pass: float = 3.23e-06
    direct_store: float = 8.39e-11
    dense_call: float = 2.48e-05
    dense_tile: float = 0.000109
    dense_rate: float = 1.81e11
    dense_half_channels: float = 3.72
    dense_half_width: float = 0.472
    dense_operand: float = 6.6e-10
    columns_element: float = 7.47e-10
    rows_element: float = 1.27e-09
    rows_loop: float = 1.22e-09
    phases_call: float = 3.6e-05
    phases_tile: float = 0.00014
    phases_rate: float = 1.74e11
    phases_half_depth: float = 3.52
    phases_half_width: float = 0.956
    phases_operand: float = 5.35e-10
    phases_input: float = 2.75e-11
    phases_result: float = 9.38e-10
    winograd_call: float = 0.000198
    winograd_tile: float = 7.64e-05
    winograd_rate: float = 1.73e11
    winograd_half_depth: float = 2.17
    winograd_half_width: float = 1.68
    winograd_operand: float = 5.02e-10
    winograd_input: float = 5.56e-10
    winograd_result: float = 1.5e-09
    phases_pack: float = 1.6e-09
    subpixel_call: float = 2.99e-05
    subpixel_rate: float = 1.8e11
    subpixel_half_rate: float = 4.71e11
    subpixel_half_depth: float = 4.08
    subpixel_half_width: float = 7.17
    subpixel_input: float = 8.53e-11
    subpixel_cold: float = 3.61e-09
    subpixel_result: float = 2.75e-09
    subpixel_weight: float = 3.78e-10
    subpixel_compile: float = 0.0603
    subpixel_pack: float = 5.41e-10
    im2col_input: float = 3.12e-10
    im2col_weight: float = 8.5e-10
    toeplitz_call: float = 1.83e-05
    toeplitz_tile: float = 9.85e-05
    toeplitz_product: float = 4.69e-09
    toeplitz_rate: float = 1.37e11
    toeplitz_right: float = 1e-10
    toeplitz_run: float = 3.32e-09
    toeplitz_copy: float = 2.15e-10
    toeplitz_output: float = 3.22e-10
    toeplitz_pack: float = 8.8e-10
    fft_call: float = 1.45e-05
    fft_point: float = 1.55e-10
    fft_product: float = 3.65e-10
    fft_output: float = 8.82e-10
    fft_store: float = 4.55e-11
    fft_fill: float = 1.24e-09
    fft_pack: float = 3.66e-09
    fft_tile: float = 0.000149
    fft_loop: float = 5.03e-08
    fft_alone: float = 1.64
    fft_split: float = 1.15
    fft_convert: float = 7.4e-10
    fft_matrix_rate: float = 1.56e12
    fft_half_channels: float = 1.51e03
    fft_turn: float = 1.35e-10


FITTED = Constants()
