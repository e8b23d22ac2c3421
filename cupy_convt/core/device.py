# SPDX-License-Identifier: MIT
"""What a plan needs to know of a device, and presets for devices that are not at hand.

Rates are what a well-written kernel reaches, not the sum of the data sheet: copy bandwidth, dense peaks without
sparsity.
"""

from __future__ import annotations

from dataclasses import dataclass


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
