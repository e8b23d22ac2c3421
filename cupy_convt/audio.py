# SPDX-License-Identifier: MIT
"""Sound files in, sound files out: up-sampling in blocks, in constant memory.

Each block is filtered together with the `half_width` samples on both sides that its results depend on, so the blocks
put together are the one-shot result. The result is written to a temporary file beside its destination and renamed when
it is complete.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cupy_convt import api, signal
from cupy_convt.soundfiles import (
    AudioError,
    UsageError,
    check_destinations,
    new_sound,
    open_sound,
    read_samples,
    target_format,
    write_samples,
)

#: Samples of a block's result, all channels together: large enough to hide the cost of a call, some tens of MiB.
BLOCK_SAMPLES = 1 << 21
#: Sample formats that hold more than float32 can keep through a filter.
_WIDE = ("PCM_24", "PCM_32", "DOUBLE")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Result:
    """What :func:`upsample_file` did.

    `frames` counts input samples per channel, `clipped` output samples that left the range of an integer format,
    `elapsed` is in seconds.
    """

    rate_in: int
    rate_out: int
    factor: int
    channels: int
    frames: int
    subtype_in: str
    subtype_out: str
    reason: str
    clipped: int
    elapsed: float

    @property
    def duration(self) -> float:
        """Length of the sound in seconds."""
        return self.frames / self.rate_in


def pick_factor(rate_in: int, factor: int | None, rate: int | None) -> int:
    """The up-sampling factor, from itself or from a target rate in Hz.

    Raises:
        UsageError: neither or both are given, or the rate is not a multiple of the input's.
    """
    if (factor is None) == (rate is None):
        raise UsageError(f"expected either a factor or a rate, got factor {factor} and rate {rate}")
    if factor is not None:
        if factor < 1:
            raise UsageError(f"factor: expected an int >= 1, got {factor}")
        return factor
    assert rate is not None
    if rate < rate_in or rate % rate_in:
        below = max(rate // rate_in, 1) * rate_in
        nearest = f"{below}" if rate < rate_in else f"{below} and {below + rate_in}"
        raise UsageError(f"rate: expected a multiple of the input's {rate_in} Hz (nearest: {nearest}), got {rate}")
    return rate // rate_in


class _Blocks:
    """Fixed-size blocks (channels, half_width + size + half_width) of a sound file, zeros beyond both of its ends.

    Every block is the same array, filled anew.
    """

    def __init__(self, source: Any, path: Path, size: int, half_width: int, dtype: Any) -> None:
        self._source, self._path, self._size, self._reach = source, path, size, half_width
        self._buffer = np.zeros((source.channels, size + 2 * half_width), dtype)

    def _read(self, start: int) -> int:
        """Fill the buffer from `start` on; the number of samples that came."""
        samples = read_samples(self._source, self._path, self._buffer.shape[1] - start, self._buffer.dtype.name)
        self._buffer[:, start : start + len(samples)] = samples.T
        self._buffer[:, start + len(samples) :] = 0
        return len(samples)

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        """(block, number of samples between its margins that belong to the file)."""
        known = self._read(self._reach)
        while known > 0:
            yield self._buffer, min(known, self._size)
            keep = 2 * self._reach
            self._buffer[:, :keep] = self._buffer[:, self._size :].copy()
            known += self._read(keep) - self._size


@contextmanager
def _device(name: str) -> Iterator[Callable[[Any], Any]]:
    """What makes a NumPy array an array on the device, which is the current one inside the block."""
    if name == "cpu":
        yield lambda block: block
        return
    try:
        arrays, ordinal = api.cuda_arrays(name)
    except (ImportError, RuntimeError, ValueError) as error:
        raise AudioError(f"device: cannot use {name!r}: {error}") from error
    with arrays.cuda.Device(ordinal):
        yield arrays.asarray


def upsample_file(
    source: Path,
    target: Path,
    *,
    factor: int | None = None,
    rate: int | None = None,
    method: str = "auto",
    device: str = "cpu",
    half_width: int = 64,
    overwrite: bool = False,
    progress: Progress | None = None,
    block_samples: int = BLOCK_SAMPLES,
) -> Result:
    """Up-sample a sound file by an integer, channel by channel, with :func:`cupy_convt.upsample`.

    The sample format (PCM_16, FLOAT, ...) is kept when the file format of `target` can hold it. Samples of up to 16
    bits and float32 ones are filtered in float32, the others in float64.

    Args:
        source: a file that libsndfile reads.
        target: where to; the extension names the format.
        factor: an int >= 1, or None when `rate` is given.
        rate: the result's rate in Hz, a multiple of the source's, or None when `factor` is given.
        method: as conv_transpose1d.
        device: "cpu", "cuda" or "cuda:N".
        half_width: reach of the filter to each side, in input samples.
        overwrite: whether an existing target may be replaced.
        progress: called after each block with the input samples done and their total.
        block_samples: samples of a block's result, all channels together.

    Raises:
        AudioError: a file cannot be read or written, or is empty; soundfile is not installed.
        ValueError: the method or the device cannot do it.
    """
    check_destinations(source, [("OUT", target)], overwrite)
    with open_sound(source) as reader, _device(device) as place:
        start = time.perf_counter()
        factor = pick_factor(reader.samplerate, factor, rate)
        formats = target_format(target, reader)
        rate_out = reader.samplerate * factor
        with new_sound(target, rate_out, reader.channels, reader.frames * factor, formats) as writer:
            size = max(block_samples // (factor * reader.channels), half_width, 1)
            if 0 < reader.frames < size:
                size = reader.frames
            dtype = np.float64 if reader.subtype in _WIDE else np.float32
            frames = clipped = 0
            for block, count in _Blocks(reader, source, size, half_width, dtype):
                x = place(block)
                if not frames:  # one plan for the whole file, the one that is reported
                    operator = signal.upsampling_operator(x, factor, half_width=half_width, method=method)
                    explained = operator.explain((x.shape[0], 1, x.shape[1]))
                    method = explained.method
                y = api.to_numpy(signal.upsample(x, factor, half_width=half_width, method=method))
                clipped += write_samples(writer, y[:, half_width * factor : (half_width + count) * factor].T)
                frames += count
                if progress is not None:
                    progress(frames, max(reader.frames, frames))
            if not frames:
                raise AudioError(f"IN: expected at least one sample, got an empty file: {str(source)!r}")
        return Result(
            rate_in=reader.samplerate,
            rate_out=rate_out,
            factor=factor,
            channels=reader.channels,
            frames=frames,
            subtype_in=reader.subtype,
            subtype_out=formats[1],
            reason=explained.reason if factor > 1 else "copied: factor 1 leaves every sample as it is",
            clipped=clipped,
            elapsed=time.perf_counter() - start,
        )
