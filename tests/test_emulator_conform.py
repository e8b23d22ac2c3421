# SPDX-License-Identifier: MIT
"""Every instruction wrapper, in both builds of the emulator, against an independent NumPy model of its layouts."""

from functools import cache

import numpy as np
import pytest

from tests.emulator import conform
from tests.emulator.make_wgmma_header import TARGET, header


@cache
def emulator(mode: str) -> conform.Emulator:
    return conform.Emulator(mode)


@pytest.mark.parametrize("mode", ["fast", "check"])
@pytest.mark.parametrize("case", [pytest.param(c, id=c.label) for c in conform.cases()])
def test_wrapper(case: conform.Case, mode: str):
    np.testing.assert_array_equal(emulator(mode)(case).reshape(-1), case.want.reshape(-1))


def test_generated_header_is_up_to_date():
    assert TARGET.read_text() == header()


def test_command_line_counts_failures(capsys):
    assert conform.main([]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(conform.cases())
