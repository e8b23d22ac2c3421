# SPDX-License-Identifier: MIT
"""Devices: presets, and those that are none."""

import pytest

from cupy_convt.core.device import PRESETS, spec_of


def test_a_device_that_is_no_preset_gets_rates_from_its_clocks() -> None:
    assert spec_of("NVIDIA H200", 90, {"MultiProcessorCount": 132}) is PRESETS["h200"]
    assert spec_of("NVIDIA GeForce RTX 3060 Ti", 86, {"MultiProcessorCount": 38}).name.endswith("Ti")
    attributes = {
        "MultiProcessorCount": 128,
        "ClockRate": 2_520_000,
        "MemoryClockRate": 10_501_000,
        "GlobalMemoryBusWidth": 384,
        "MaxSharedMemoryPerBlockOptin": 101376,
        "L2CacheSize": 72 << 20,
    }
    spec = spec_of("NVIDIA GeForce RTX 4090", 89, attributes)
    assert spec.fp32 == pytest.approx(82.6e12, rel=0.01)
    assert spec.bandwidth == pytest.approx(0.84 * 1008e9, rel=0.01)
    assert (spec.multiprocessors, spec.shared_bytes, spec.cache_bytes) == (128, 101376, 72 << 20)
    assert spec_of("Unknown", 121, attributes).fp32 > 0
