# SPDX-License-Identifier: MIT
"""One pipeline, two kinds of arrays: CuPy arrays on a GPU where there is one, NumPy arrays elsewhere."""

import numpy as np

import cupy_convt as ct


def array_module():
    """CuPy where it is installed and finds a device, else NumPy."""
    try:
        import cupy

        cupy.cuda.Device().compute_capability  # noqa: B018, raises where there is no device
        return cupy
    except Exception:
        return np


def decode(xp, spectrum, window, hop):
    """Inverse short-time Fourier transform: frames by an inverse FFT, overlap-add by a transposed convolution.

    The weight is the window on the diagonal of an identity, which adds frame t, windowed, at sample t * hop.
    """
    frames = xp.fft.irfft(spectrum, axis=1).astype(xp.float32)  # (N, n_fft, T)
    weight = xp.eye(window.size, dtype=xp.float32)[:, None] * window  # (n_fft, 1, n_fft)
    signal = ct.conv_transpose1d(frames, weight, stride=hop)  # (N, 1, (T - 1) hop + n_fft)
    ones = xp.ones((1, 1, frames.shape[2]), dtype=xp.float32)
    envelope = ct.conv_transpose1d(ones, (window**2)[None, None], stride=hop)
    return (signal / xp.maximum(envelope, 1e-6))[:, 0]


def main() -> None:
    """Analyse a sound, rebuild it, up-sample it; all on one device."""
    xp = array_module()
    n_fft, hop, frames = 256, 64, 60
    window = xp.hanning(n_fft + 1)[:-1].astype(xp.float32)
    length = (frames - 1) * hop + n_fft
    sound = xp.sin(xp.arange(length) * 0.1).astype(xp.float32)[None]

    index = xp.arange(n_fft)[:, None] + hop * xp.arange(frames)
    spectrum = xp.fft.rfft(sound[:, index] * window[:, None], axis=1)
    rebuilt = decode(xp, spectrum, window, hop)
    error = float(xp.abs(rebuilt - sound)[:, n_fft:-n_fft].max())
    print(f"{xp.__name__}: {spectrum.shape} -> {rebuilt.shape}, largest error inside {error:.1e}")

    louder = ct.upsample(rebuilt, 3)
    print(f"upsampled: {louder.shape}, still {type(louder).__module__.partition('.')[0]}")


if __name__ == "__main__":
    main()
