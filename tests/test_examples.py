# SPDX-License-Identifier: MIT
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
#: What each example must print.
EXPECTED = {
    "upsample_numpy.py": [
        r"8000 Hz -> 48000 Hz: 8000 -> 48000 samples",
        r"largest error of a 1 kHz sine: \d\.\de-0[5-9]",
        r"largest error at the old instants: \d\.\de-0[5-9]",
        r"strongest image: -(99|1\d\d) dB",
        r"stereo: \(8000, 2\) -> \(48000, 2\)",
    ],
    "vocoder_layer.py": [
        r"\(1, 80, 32\) -> \(1, 1, 8192\): 0\.37 s of sound",
        r"ConvTranspose1d\(128, 64, kernel_size=\(16,\), stride=\(8,\), padding=\(4,\)\)",
        r"runs \w+/\w+: predicted",
    ],
    "cupy_pipeline.py": [
        r"(numpy|cupy): \(1, 129, 60\) -> \(1, 4032\), largest error inside \d\.\de-0[5-9]",
        r"upsampled: \(1, 12096\), still (numpy|cupy)",
    ],
    "choose_method.py": [
        r"vocoder: here (direct|gemm|fft), on an H200 (direct|gemm|fft)",
        r"  direct  measured +\d+\.\d\d ms",
        r"on H200: ",
    ],
}


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_example(name):
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])},
    )
    assert (done.returncode, done.stderr) == (0, "")
    for pattern in EXPECTED[name]:
        assert re.search(pattern, done.stdout), f"{pattern!r} not in:\n{done.stdout}"
    assert len((EXAMPLES / name).read_text().splitlines()) <= 60


def test_the_speech_clip_is_unmodified_and_has_its_licence_beside_it():
    clip = (EXAMPLES / "audio" / "speech_8k.wav").read_bytes()
    assert hashlib.sha256(clip).hexdigest() == "caf363c87bc30abf2f3e52e1c183a4a2e771cf16f6faa2cfcec3cd1d94403e66"
    licence = (EXAMPLES / "audio" / "LICENSE.txt").read_text()
    for words in ("speech_8k.wav", "Allison Smith", "CC BY-SA 3.0", "unmodified"):
        assert words in licence
