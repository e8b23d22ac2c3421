# SPDX-License-Identifier: MIT
import re

import numpy as np
import pytest

import cupy_convt as ct
from cupy_convt import cli, doctor


def examine():
    lines = []
    return doctor.examine(lines.append, ct.__version__), lines


def rows(lines, engine="CPU"):
    """(case, dtype, method, verdict) of the self-check."""
    start = next(i for i, line in enumerate(lines) if line.startswith(f"self-check of the {engine} engine"))
    table = []
    for line in lines[start + 2 :]:
        if not line.startswith("  "):
            break
        match = re.fullmatch(r"  (.{18}) (\S+) +(direct|gemm|fft) +(.*)", line)
        table.append((match[1].strip(), match[2], match[3], match[4]))
    return table


@pytest.fixture
def no_cuda(monkeypatch):
    def fail(device):
        raise ImportError("No module named\n'cupy'")

    monkeypatch.setattr(doctor.api, "cuda_arrays", fail)


@pytest.mark.usefixtures("no_cuda")
class TestWithoutDevice:
    """What the report says where there is only a CPU."""

    def test_a_sound_installation(self):
        sound, lines = examine()
        assert sound
        text = "\n".join(lines)
        assert re.search(rf"^cupy_convt +{re.escape(ct.__version__)}$", text, re.MULTILINE)
        assert re.search(rf"^numpy +{re.escape(np.__version__)}$", text, re.MULTILINE)
        assert re.search(r"^CPU +\d+ cores?$", text, re.MULTILINE)
        assert re.search(r"^CUDA devices +none: No module named 'cupy'$", text, re.MULTILINE)
        assert re.search(r"^kernels +\S+ \([1-9]\d* sources\)$", text, re.MULTILINE)
        assert "FAILED" not in text
        assert lines[-1] == "everything that could be checked is right"

    def test_every_method_is_checked_on_every_case(self):
        table = rows(examine()[1])
        assert len(table) == 3 * len(doctor.CASES)
        for method in doctor.METHODS:
            verdicts = [verdict for _, _, name, verdict in table if name == method]
            checked = [v for v in verdicts if re.fullmatch(r"\d\.\de[+-]\d\d +\d\.\de[+-]\d\d  ok", v)]
            refused = [v for v in verdicts if re.fullmatch(r"- +-  not for this case: .+", v)]
            assert len(checked) + len(refused) == len(verdicts)
            assert len(checked) >= 4

    @pytest.mark.parametrize("method", doctor.METHODS)
    @pytest.mark.parametrize("fault", ["offset", "nan", "last sample", "raises"])
    def test_a_wrong_result_is_found(self, monkeypatch, method, fault):
        right = doctor.api.conv_transpose1d

        def wrong(x, weight, **options):
            y = right(x, weight, **options)
            if options["method"] == method:
                if fault == "raises":
                    raise RuntimeError("out of\nluck")
                index = (..., -1) if fault == "last sample" else ...
                y[index] = np.nan if fault == "nan" else y[index] + (5e-3 if y.dtype == np.float16 else 1e-4)
            return y

        monkeypatch.setattr(doctor.api, "conv_transpose1d", wrong)
        sound, lines = examine()
        assert not sound
        table = rows(lines)
        checked = [row for row in table if "not for this case" not in row[3]]
        assert {row[2] for row in checked if "FAILED" in row[3]} == {method}
        assert all("FAILED" in row[3] for row in checked if row[2] == method)
        if fault == "raises":
            assert any("FAILED: RuntimeError: out of luck" in row[3] for row in table)
        assert lines[-1].startswith("something is wrong")

    def test_missing_kernels_are_found(self, monkeypatch):
        def fail():
            raise FileNotFoundError("expected kernels/common.cuh in here")

        monkeypatch.setattr(doctor.api, "kernel_directory", fail)
        sound, lines = examine()
        assert not sound
        assert any(re.match(r"kernels +FAILED: expected kernels/common.cuh", line) for line in lines)

    def test_exit_codes(self, capsys, monkeypatch):
        assert cli.main(["doctor"]) == 0
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(doctor, "_UNITS", 0.0)
        assert cli.main(["doctor"]) == 1
        assert "FAILED" in capsys.readouterr().out

    def test_two_builds_of_cupy_are_pointed_out(self, monkeypatch):
        class Distribution:
            def __init__(self, name):
                self.metadata = {"Name": name}

        names = ["cupy-cuda12x", "numpy", "cupy-cuda13x", "cupy_convt"]
        monkeypatch.setattr(doctor.metadata, "distributions", lambda: map(Distribution, names))
        monkeypatch.setattr(doctor, "_version", lambda package: "1.0")
        lines = list(doctor._versions())
        assert any(re.match(r"cupy +1.0 \(cupy-cuda12x\), 1.0 \(cupy-cuda13x\)$", line) for line in lines)
        assert any("several builds of CuPy" in line for line in lines)


class Answers:
    """A stand-in for CuPy that has one device, whose arrays are NumPy's."""

    class cuda:
        class runtime:
            @staticmethod
            def driverGetVersion():
                return 12040

            @staticmethod
            def getDeviceCount():
                return 1

            @staticmethod
            def memGetInfo():
                return 3 << 30, 4 << 30

        class Device:
            def __init__(self, ordinal):
                self.ordinal = ordinal

            def __enter__(self):
                return self

            def __exit__(self, *details):
                return None

    asarray = staticmethod(np.asarray)


def test_devices_are_listed_and_checked(monkeypatch):
    spec = doctor.api.device_spec("a100")
    original = doctor.api.device_spec
    monkeypatch.setattr(doctor.api, "cuda_arrays", lambda device: (Answers, 0))
    monkeypatch.setattr(
        doctor.api, "device_spec", lambda device: spec if str(device).startswith("cuda") else original(device)
    )
    sound, lines = examine()
    assert sound
    text = "\n".join(lines)
    assert re.search(r"^CUDA +driver supports 12\.4$", text, re.MULTILINE)
    assert re.search(r"^cuda:0 +A100, sm_80, 108 multiprocessors, 3\.0 of 4\.0 GiB free$", text, re.MULTILINE)
    assert len(rows(lines, "GPU")) == 3 * len(doctor.CASES)


def test_this_machine_whatever_it_is():
    sound, lines = examine()
    assert sound, "\n".join(lines)
