# SPDX-License-Identifier: MIT
"""The up-sampling layers of a HiFi-GAN-like vocoder: 80 mel bands at 86 Hz in, 22 kHz out, random weights."""

import time

import numpy as np

import cupy_convt as ct

MEL_BANDS, FRAMES, HOP = 80, 32, 256
#: (channels in, channels out, kernel size, stride) of the up-sampling layers; the strides multiply to HOP.
LAYERS = ((128, 64, 16, 8), (64, 32, 16, 8), (32, 16, 4, 2), (16, 8, 4, 2))


def leaky_relu(x: np.ndarray) -> np.ndarray:
    """Max(x, 0.1 x)."""
    return np.where(x > 0, x, np.float32(0.1) * x)


def main() -> None:
    """Run the stack once, then print what each layer runs and why, in full for the first."""
    generator = np.random.default_rng(0)
    mel = generator.standard_normal((1, MEL_BANDS, FRAMES)).astype(np.float32)
    entry = ct.ConvTranspose1d(MEL_BANDS, LAYERS[0][0], 7, padding=3)
    stack = [ct.ConvTranspose1d(c_in, c_out, k, stride=s, padding=(k - s) // 2) for c_in, c_out, k, s in LAYERS]
    leave = ct.ConvTranspose1d(LAYERS[-1][1], 1, 7, padding=3)

    def vocode(x: np.ndarray) -> np.ndarray:
        x = entry(x)
        for layer in stack:
            x = layer(leaky_relu(x))
        return np.tanh(leave(leaky_relu(x)))

    vocode(mel)  # packs the weights
    start = time.perf_counter()
    sound = vocode(mel)
    elapsed = time.perf_counter() - start
    assert sound.shape == (1, 1, FRAMES * HOP)
    seconds = FRAMES * HOP / 22_050
    print(f"{mel.shape} -> {sound.shape}: {seconds:.2f} s of sound in {elapsed * 1e3:.1f} ms")

    length = FRAMES
    for layer in stack:
        shape = (1, layer.in_channels, length)
        explanation = ct.explain(shape, layer.weight.shape, stride=layer.stride, padding=layer.padding)
        print(f"\n{layer}\n{explanation if layer is stack[0] else explanation.reason}")
        length *= layer.stride[0]


if __name__ == "__main__":
    main()
