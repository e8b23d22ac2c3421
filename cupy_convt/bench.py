# SPDX-License-Identifier: MIT
"""A few layers of well-known models, timed on this device beside what else is installed.

PyTorch and SciPy are rivals where they are there and can do the row. All calls of a row take turns; times are medians
of what the device took, on a warm cache. The project's own benchmark, with more rows and more care, is in benchmarks/.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import metadata
from typing import Any

import numpy as np

from cupy_convt import api
from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.version import __version__
from cupy_convt.explain import format_seconds
from cupy_convt.tunefile import identity
from cupy_convt.tuning import interleaved, on_device

HEAD = f"{'layer':24s} {'runs':26s} {'call':>9s} {'prepared':>9s} {'PyTorch':>9s} {'SciPy':>9s} {'ratio':>6s}"
Call = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """A layer: x (N, C_in, L), weight (C_in, C_out/g, K), and its geometry in PyTorch's words."""

    name: str
    x: tuple[int, int, int]
    weight: tuple[int, int, int]
    stride: int
    padding: int = 0
    groups: int = 1

    @property
    def geometry(self) -> dict[str, Any]:
        """Keyword arguments of the operator, ours and PyTorch's."""
        return {"stride": self.stride, "padding": self.padding, "groups": self.groups}


ROWS = (
    Row("vocoder, first layer", (1, 512, 87), (512, 256, 16), 8, 4),
    Row("vocoder, last layer", (1, 64, 11008), (64, 32, 4), 2, 1),
    Row("codec, 16 items", (16, 256, 150), (256, 128, 10), 5, 3),
    Row("overlap-add, 1024/256", (1, 513, 345), (513, 1, 1024), 256),
    Row("depthwise x2", (1, 512, 4000), (512, 1, 12), 2, 5, 512),
    Row("resampler x4", (1, 1, 480000), (1, 1, 81), 4, 40),
    Row("long filter", (1, 1, 48000), (1, 1, 8192), 2, 4096),
)


def rows(pattern: str) -> list[Row]:
    """The rows whose names match."""
    return [row for row in ROWS if fnmatchcase(row.name, pattern)]


def time_row(row: Row, device: str = "cpu", seconds: float = 0.5) -> dict[str, Any]:
    """What runs, and the median seconds of every call that can be made."""
    with on_device(device) as engine:
        random = np.random.default_rng(0)
        x, weight = (engine.asarray(random.standard_normal(shape, dtype=np.float32)) for shape in (row.x, row.weight))
        operator = api.prepare(weight, **row.geometry)
        calls: dict[str, Call] = {
            "call": lambda: api.conv_transpose1d(x, weight, **row.geometry),
            "prepared": lambda: operator(x),
        }
        calls |= {name: call for name, call in _rivals(row, x, weight).items() if call is not None}
        times = interleaved(calls, engine.seconds, seconds)
        chosen = operator.explain(row.x)
    return {"name": row.name, "runs": f"{chosen.method}/{chosen.variant}", "seconds": times}


def _rivals(row: Row, x: Any, weight: Any) -> dict[str, Call | None]:
    return {"PyTorch": _torch(row, x, weight), "SciPy": _scipy(row, x, weight)}


def _torch(row: Row, x: Any, weight: Any) -> Call | None:
    """PyTorch on tensors that share the memory of our arrays; none without it, or without its CUDA for CuPy arrays."""
    try:
        import torch

        tensors = [torch.from_dlpack(array) for array in (x, weight)]
    except (ImportError, RuntimeError, TypeError):
        return None

    def call() -> Any:
        with torch.inference_mode():
            return torch.nn.functional.conv_transpose1d(*tensors, **row.geometry)

    return call


def _scipy(row: Row, x: Any, weight: Any) -> Call | None:
    """scipy.signal.upfirdn, for one channel of NumPy arrays."""
    if not isinstance(x, np.ndarray) or row.x[1] != 1 or row.weight[1] != 1:
        return None
    from scipy.signal import upfirdn

    return lambda: upfirdn(weight[0, 0], x, up=row.stride)


def line(result: dict[str, Any]) -> str:
    """A row of the table; the ratio is the fastest rival's time over that of our call."""
    times = result["seconds"]
    cells = [format_seconds(times[name]) if name in times else "-" for name in ("call", "prepared", "PyTorch", "SciPy")]
    rivals = [times[name] for name in ("PyTorch", "SciPy") if name in times]
    ratio = f"{min(rivals) / times['call']:.2f}" if rivals else "-"
    return f"{result['name']:24s} {result['runs']:26s} " + " ".join(f"{cell:>9s}" for cell in cells) + f" {ratio:>6s}"


def environment(spec: DeviceSpec) -> dict[str, Any]:
    """What the times depend on."""
    found = {d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"]}
    known = ("numpy", "scipy", "torch", "cupy", "cupy-cuda12x", "cupy-cuda13x")
    return {
        "device": identity(spec)["name"],
        "multiprocessors": spec.multiprocessors,
        "python": platform.python_version(),
        "versions": {"cupy_convt": __version__, **{name: found[name] for name in known if name in found}},
        "date": datetime.date.today().isoformat(),
    }
