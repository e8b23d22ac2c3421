# SPDX-License-Identifier: MIT
"""Arguments of the command line that describe a layer."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

METHODS = ("auto", "direct", "gemm", "fft")


def whole(text: str) -> int:
    """An int."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an int, got {text!r}") from None


def whole_positive(text: str) -> int:
    """An int >= 1."""
    number = whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected an int >= 1, got {number}")
    return number


def sizes(counts: tuple[int, ...], names: str) -> Callable[[str], tuple[int, ...]]:
    """Parser of integers between commas, as many as one of `counts`."""

    def parse(text: str) -> tuple[int, ...]:
        parts = text.split(",")
        try:
            numbers = tuple(int(part) for part in parts)
        except ValueError:
            numbers = ()
        if len(numbers) not in counts:
            raise argparse.ArgumentTypeError(f"expected {names}, got {text!r}")
        return numbers

    return parse


def device(text: str) -> str:
    """The name of a device that is at hand."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got {text!r}")
    return text


def _padding(text: str) -> int | str:
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else text


def _activation(text: str) -> Any:
    name, colon, slope = text.partition(":")
    try:
        return (name, float(slope)) if colon else name
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected NAME or leaky_relu:SLOPE, got {text!r}") from None


def add_layer(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """The arguments of one layer."""
    x = sizes((2, 3), "N,C_in,L or C_in,L")
    parser.add_argument("--x", metavar="N,C_IN,L", type=x, required=required)
    weight = sizes((3,), "C_in,C_out/groups,K")
    parser.add_argument("--weight", metavar="C_IN,C_OUT/g,K", type=weight, required=required)
    for name, usual in (("stride", 1), ("output-padding", 0), ("groups", 1), ("dilation", 1)):
        parser.add_argument(f"--{name}", metavar="INT", type=whole, default=usual, help=f"default: {usual}")
    parser.add_argument(
        "--padding", metavar="INT|NAME", type=_padding, default=0, help="int, same, same_lower, valid, causal"
    )
    parser.add_argument("--output-size", metavar="INT", type=whole)
    parser.add_argument("--crop", metavar="LEFT,RIGHT", type=sizes((2,), "LEFT,RIGHT"), default=(0, 0))
    parser.add_argument("--method", choices=METHODS, default="auto")
    parser.add_argument("--precision", metavar="NAME", choices=("ieee", "tf32"), help="ieee or tf32")
    parser.add_argument(
        "--activation", metavar="NAME", type=_activation, help="relu, leaky_relu, leaky_relu:SLOPE, tanh"
    )
    parser.add_argument("--beta", metavar="NUMBER", type=float, default=0.0, help="of what the result held, is added")
    parser.add_argument("--batch-invariant", action="store_true", help="items whose bits do not depend on the batch")
    parser.add_argument("--dtype", default="float32", help="dtype of x and weight (float32)")
    parser.add_argument("--weight-dtype", metavar="DTYPE", help="dtype of weight, where it is another")


def layer(options: argparse.Namespace) -> dict[str, Any]:
    """The layer as arguments of `explain`."""
    names = ("stride", "padding", "output_padding", "groups", "dilation", "output_size", "crop", "method", "precision")
    more = ("activation", "batch_invariant", "beta", "dtype", "weight_dtype")
    arguments = {name: getattr(options, name) for name in (*names, *more)}
    return {"x_shape": options.x, "weight_shape": options.weight, **arguments}
