# SPDX-License-Identifier: MIT
"""Spectrograms of a sound before and after up-sampling, as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cupy_convt.soundfiles import AudioError, UsageError, open_sound, read_samples

#: Seconds of a sound that a picture shows, from its start.
SHOWN_SECONDS = 30.0
#: Length of the analysis window in seconds, the same for both sounds.
_WINDOW_SECONDS = 0.032
#: Decibels between the brightest and the darkest colour.
_RANGE_DB = 110.0
_COLUMNS = 1600


def check_plot(target: Path) -> None:
    """Refuse a picture that could not be drawn, before anything is computed.

    Raises:
        AudioError: matplotlib is not installed, or the extension is not .png.
    """
    if target.suffix.lower() != ".png":
        raise UsageError(f"--plot: expected a file name that ends in .png, got {target.name!r}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise AudioError(
            f"spectrograms need the package matplotlib (pip install 'cupy-convt[plot]'): {error}"
        ) from error


def power_db(samples: Any, rate: int) -> tuple[Any, Any, Any]:
    """Short-time spectrum in decibels relative to a full-scale sine, powers of the channels averaged.

    Shape:
        samples: (L, channels).
        result: times in s (T,), frequencies in kHz (F,), decibels (F, T).
    """
    from scipy.signal import ShortTimeFFT, get_window

    length = min(max(int(_WINDOW_SECONDS * rate), 16), max(len(samples), 2))
    window = get_window(("kaiser", 14.0), length)
    hop = max(length // 4, len(samples) // _COLUMNS, 1)
    transform = ShortTimeFFT(window, hop, rate, scale_to="magnitude")
    spectra = transform.stft(samples.T, p0=0, p1=max(-(-len(samples) // hop), 1))
    power = (4 * np.abs(spectra) ** 2).mean(axis=0)  # a sine of amplitude 1 has 1/2 at its frequency
    times = np.arange(power.shape[1]) * hop / rate
    return times, transform.f / 1e3, 10 * np.log10(np.maximum(power, 1e-20))


def _read(path: Path) -> tuple[Any, int, bool]:
    """Samples (L, channels), rate in Hz, and whether the file goes on."""
    with open_sound(path, "--plot") as reader:
        wanted = int(SHOWN_SECONDS * reader.samplerate)
        samples = read_samples(reader, path, min(wanted, reader.frames), "float32")
        return samples, reader.samplerate, reader.frames > wanted


def draw(before: Path, after: Path, target: Path) -> None:
    """Draw the spectrograms of two sound files, one above the other, into a PNG.

    Both have the same time axis and the same decibel scale; a line in the lower one marks the Nyquist frequency of the
    upper one. Of long files the first 30 s are shown.

    Raises:
        AudioError: a file cannot be read or written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.6))
    sounds = [_read(path) for path in (before, after)]
    spectra = [power_db(samples, rate) for samples, rate, _ in sounds]
    top = 5 * np.ceil(max(float(decibels.max()) for *_, decibels in spectra) / 5)
    for axis, (times, frequencies, decibels), (_, rate, cut), word in zip(
        axes, spectra, sounds, ("before", "after"), strict=True
    ):
        half = frequencies[1] / 2
        image = axis.imshow(
            decibels,
            extent=(0, times.size * times[1] if times.size > 1 else 1, -half, frequencies[-1] + half),
            vmin=top - _RANGE_DB,
            vmax=top,
            cmap="magma",
            origin="lower",
            aspect="auto",
        )
        axis.set(ylabel="frequency (kHz)", ylim=(0, rate / 2e3))
        axis.set_title(f"{word}: {rate / 1e3:g} kHz" + (f", first {SHOWN_SECONDS:g} s" if cut else ""), loc="left")
    nyquist = sounds[0][1] / 2e3
    if sounds[1][1] > sounds[0][1]:
        axes[1].axhline(nyquist, color="white", linestyle="--", linewidth=0.8)
        axes[1].annotate(
            f"Nyquist frequency before: {nyquist:g} kHz",
            (1, nyquist),
            xycoords=("axes fraction", "data"),
            xytext=(-6, 4),
            textcoords="offset points",
            horizontalalignment="right",
            color="white",
        )
    axes[1].set_xlabel("time (s)")
    figure.colorbar(image, ax=axes, label="level (dB relative to a full-scale sine)", pad=0.01)
    try:
        figure.savefig(target, format="png")
    except OSError as error:
        raise AudioError(f"--plot: cannot write {str(target)!r}: {error.strerror}") from error
