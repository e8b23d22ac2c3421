# SPDX-License-Identifier: MIT
"""An ONNX model of one ConvTranspose node, written as bytes, so that ONNX Runtime is all the benchmark needs.

Protocol buffers are fields of (number << 3 | wire type) followed by a varint (type 0) or by a length and bytes
(type 2); field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Sequence

#: TensorProto.DataType and AttributeProto.AttributeType.
_FLOAT, _INT, _INTS = 1, 2, 7
_IR_VERSION, _OPSET = 8, 11


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _attribute(name: str, value: int | Sequence[int]) -> bytes:
    """AttributeProto: name 1, i 3, ints 8, type 20."""
    if isinstance(value, int):
        return _bytes(1, name) + _number(3, value) + _number(20, _INT)
    return _bytes(1, name) + b"".join(_number(8, v) for v in value) + _number(20, _INTS)


def _value(name: str, rank: int) -> bytes:
    """ValueInfoProto: name 1, type 2 { tensor_type 1 { elem_type 1, shape 2 { dim 1 { dim_param 2 } } } }."""
    dims = b"".join(_bytes(1, _bytes(2, f"{name}{axis}")) for axis in range(rank))
    return _bytes(1, name) + _bytes(2, _bytes(1, _number(1, _FLOAT) + _bytes(2, dims)))


def conv_transpose(stride: int, padding: int, output_padding: int, groups: int, dilation: int, taps: int) -> bytes:
    """The serialised model: inputs x, weight and bias, output y, all float32."""
    attributes: dict[str, int | list[int]] = {
        "dilations": [dilation],
        "group": groups,
        "kernel_shape": [taps],
        "output_padding": [output_padding],
        "pads": [padding, padding],
        "strides": [stride],
    }
    # NodeProto: input 1, output 2, op_type 4, attribute 5
    node = b"".join(_bytes(1, name) for name in ("x", "weight", "bias")) + _bytes(2, "y") + _bytes(4, "ConvTranspose")
    node += b"".join(_bytes(5, _attribute(name, value)) for name, value in attributes.items())
    # GraphProto: node 1, name 2, input 11, output 12
    graph = _bytes(1, node) + _bytes(2, "layer")
    graph += b"".join(_bytes(11, _value(name, rank)) for name, rank in (("x", 3), ("weight", 3), ("bias", 1)))
    graph += _bytes(12, _value("y", 3))
    # ModelProto: ir_version 1, graph 7, opset_import 8 { version 2 }
    return _number(1, _IR_VERSION) + _bytes(7, graph) + _bytes(8, _number(2, _OPSET))
