# SPDX-License-Identifier: MIT
"""Up-sample a NumPy signal by an integer and measure what the filter did: level, alignment, images."""

import numpy as np

import cupy_convt as ct

RATE, FACTOR = 8_000, 6  # Hz in, times as many out


def main() -> None:
    """Up-sample a sine and print what can be measured."""
    time_in = np.arange(RATE) / RATE
    time_out = np.arange(RATE * FACTOR) / (RATE * FACTOR)
    y = ct.upsample(np.sin(2 * np.pi * 1_000 * time_in), FACTOR)
    print(f"{RATE} Hz -> {RATE * FACTOR} Hz: {time_in.size} -> {y.size} samples")

    # Away from the ends, where the signal is cut off, the result is the same sine at the new instants.
    inside = slice(100 * FACTOR, -100 * FACTOR)
    error = np.abs(y - np.sin(2 * np.pi * 1_000 * time_out))[inside].max()
    print(f"largest error of a 1 kHz sine: {error:.1e}")

    # Sample i * FACTOR of the result lies at the time of sample i.
    aligned = np.abs(y[::FACTOR] - np.sin(2 * np.pi * 1_000 * time_in))[100:-100].max()
    print(f"largest error at the old instants: {aligned:.1e}")

    # Zero-stuffing repeats the spectrum at 8 kHz, 16 kHz, ...; the filter removes the copies.
    spectrum = np.abs(np.fft.rfft(y[inside] * np.blackman(y[inside].size)))
    frequency = np.fft.rfftfreq(y[inside].size, 1 / (RATE * FACTOR))
    images = spectrum[frequency > RATE / 2].max() / spectrum.max()
    print(f"strongest image: {20 * np.log10(images):.0f} dB")

    # Any axis, any number of signals, real or complex.
    stereo = np.stack([np.sin(2 * np.pi * f * time_in) for f in (440, 550)], axis=1).astype(np.float32)
    print(f"stereo: {stereo.shape} -> {ct.upsample(stereo, FACTOR, axis=0).shape}")


if __name__ == "__main__":
    main()
