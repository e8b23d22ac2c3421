# SPDX-License-Identifier: MIT
"""Single arguments of a user as plain numbers, tuples and names, or refused by name."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from math import isfinite
from numbers import Real
from typing import Any

#: Slope of each activation when none is given; torch's default for leaky_relu.
ACTIVATIONS = {"relu": 0.0, "leaky_relu": 0.01, "tanh": 0.0}

Activation = str | tuple[str, float] | None


def integer(name: str, value: Any) -> int:
    """`value` as an int; floats, bools and strings are refused, NumPy integers pass."""
    if not isinstance(value, (bool, str)):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name}: expected an int, got {value!r} of type {type(value).__name__}")


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def integers(name: str, value: Any) -> int | tuple[int, ...]:
    """An int, or a tuple of ints from a sequence of any length (lengths are refused later)."""
    if _is_sequence(value):
        return tuple(integer(name, v) for v in value)
    return integer(name, value)


def one(name: str, value: int | tuple[int, ...]) -> int:
    """The int, also of a sequence of one."""
    if isinstance(value, tuple):
        if len(value) != 1:
            raise ValueError(f"{name}: expected an int or a sequence of one int, got {value}")
        return value[0]
    return value


def at_least(name: str, value: int, low: int) -> None:
    """Refuse what is smaller."""
    if value < low:
        raise ValueError(f"{name}: expected an int >= {low}, got {value}")


def activation_of(value: Activation) -> tuple[str, float] | None:
    """Name and slope of an activation."""
    if value is None:
        return None
    name: Any = value if isinstance(value, str) else None
    slope: Any = None
    if not isinstance(value, str) and _is_sequence(value) and len(value) == 2:
        name, slope = value
    unknown = not isinstance(name, str) or name not in ACTIVATIONS
    if unknown or (slope is not None and (name != "leaky_relu" or not isinstance(slope, Real))):
        expected = "None, 'relu', 'leaky_relu', ('leaky_relu', slope) or 'tanh'"
        raise ValueError(f"activation: expected {expected}, got {value!r}")
    return (name, ACTIVATIONS[name] if slope is None else float(slope))


def factor(name: str, value: Any) -> float:
    """`value` as a finite float; bools, strings and complex numbers are refused."""
    if isinstance(value, (bool, str)) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a real number, got {value!r} of type {type(value).__name__}")
    if not isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    return float(value)
