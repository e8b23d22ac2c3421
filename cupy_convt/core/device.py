# SPDX-License-Identifier: MIT
"""What a plan needs to know of a device, and presets for devices that are not at hand.

Rates are what a well-written kernel reaches, not the sum of the data sheet: copy bandwidth, dense peaks without
sparsity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: Shared memory that a block has without asking for more.
DEFAULT_SHARED_BYTES = 48 << 10
#: What a copy reaches of the bandwidth that clock and bus width promise.
_COPY_SHARE = 0.84
#: FMA lanes, double lanes, TF32 and half multiply-adds of one multiprocessor in one clock, by architecture.
_RATES = {
    75: (64, 2, 0, 512),
    80: (64, 32, 512, 1024),
    86: (128, 2, 256, 512),
    87: (128, 2, 256, 512),
    89: (128, 2, 256, 512),
    90: (128, 64, 1024, 2048),
    100: (128, 64, 2048, 4096),
    120: (128, 2, 512, 1024),
}


@dataclass(frozen=True)
class DeviceSpec:
    """A device as the cost model and the planners see it. Bandwidth in bytes/s, peaks in flop/s, overheads in s."""

    name: str
    kind: str
    architecture: int
    multiprocessors: int
    shared_bytes: int
    bandwidth: float
    fp32: float
    fp64: float
    tf32: float = 0.0
    fp16: float = 0.0
    launch_seconds: float = 4e-6
    library_seconds: float = 8e-6
    cache_bytes: int = 4 << 20
    #: Whether the error of three TF32 products has been measured on such a device to stay within the float32 bound.
    three_tf32: bool = False
    #: Whether the CUDA compiler at hand takes the name of the architecture's own instructions, of sm_90: sm_90a.
    own_instructions: bool = True
    #: Whether there is a library that compiles convolutions for such a CPU; with products of bfloat16 where fp16 > 0.
    convolutions: bool = False

    @property
    def is_cpu(self) -> bool:
        """Whether plans are for the CPU engine."""
        return self.kind == "cpu"

    def peak(self, accumulator: str) -> float:
        """Multiply-add rate without tensor cores of an accumulator dtype."""
        return self.fp64 if accumulator in ("float64", "complex128") else self.fp32


def _gpu(
    name: str, architecture: int, sms: int, shared_kib: int, bandwidth: float, *rates: float, l2: int
) -> DeviceSpec:
    fp32, fp64, tf32, fp16 = (rate * 1e12 for rate in rates)
    return DeviceSpec(
        name, "cuda", architecture, sms, shared_kib << 10, bandwidth * 1e9, fp32, fp64, tf32, fp16, cache_bytes=l2 << 20
    )


PRESETS: dict[str, DeviceSpec] = {
    "t4": _gpu("Tesla T4", 75, 40, 64, 260, 8.1, 0.25, 0, 65, l2=4),
    "rtx3060": _gpu("GeForce RTX 3060", 86, 28, 99, 330, 12.7, 0.2, 25, 51, l2=3),
    "a100": _gpu("A100", 80, 108, 163, 1700, 19.5, 9.7, 156, 312, l2=40),
    "h100": _gpu("H100", 90, 132, 227, 2900, 67, 34, 495, 990, l2=50),
    "h200": _gpu("H200", 90, 132, 227, 4300, 67, 34, 395, 790, l2=60),
    "cpu": DeviceSpec(
        name="2-core x86-64 CPU",
        kind="cpu",
        architecture=0,
        multiprocessors=2,
        shared_bytes=0,
        bandwidth=20e9,
        fp32=205e9,
        fp64=102e9,
        launch_seconds=5e-6,
        library_seconds=5e-6,
        cache_bytes=1 << 20,
    ),
}


def preset(name: str) -> DeviceSpec:
    """The preset of that name.

    Raises:
        ValueError: no preset has that name.
    """
    try:
        return PRESETS[name.lower()]
    except KeyError:
        raise ValueError(f"device: expected one of {', '.join(sorted(PRESETS))}, got {name!r}") from None


def spec_of(name: str, architecture: int, attributes: Mapping[str, int]) -> DeviceSpec:
    """The preset of that name and size, else rates from CUDA's attributes: clocks, bus width and multiprocessors."""
    for known in PRESETS.values():
        same_size = attributes["MultiProcessorCount"] == known.multiprocessors
        if not known.is_cpu and same_size and name.replace("NVIDIA ", "").startswith(known.name):
            return known
    rates = _RATES.get(architecture) or _RATES[max(a for a in _RATES if a <= max(architecture, 75))]
    multiprocessors = attributes["MultiProcessorCount"]
    clock = attributes.get("ClockRate", 1_400_000) * 1e3
    fp32, fp64, tf32, fp16 = (2.0 * rate * multiprocessors * clock for rate in rates)
    bus_bytes = attributes.get("GlobalMemoryBusWidth", 256) / 8
    return DeviceSpec(
        name=name,
        kind="cuda",
        architecture=architecture,
        multiprocessors=multiprocessors,
        shared_bytes=attributes.get("MaxSharedMemoryPerBlockOptin", DEFAULT_SHARED_BYTES),
        bandwidth=_COPY_SHARE * 2 * attributes.get("MemoryClockRate", 7_000_000) * 1e3 * bus_bytes,
        fp32=fp32,
        fp64=fp64,
        tf32=tf32,
        fp16=fp16,
        cache_bytes=attributes.get("L2CacheSize", 4 << 20),
    )
