"""What a model takes and gives: names, types and shapes, and whether two models agree on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxopt.errors import InputError, VerificationError

FLOAT_TYPES = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
)
INTEGER_TYPES = frozenset(
    {
        onnx.TensorProto.INT8,
        onnx.TensorProto.INT16,
        onnx.TensorProto.INT32,
        onnx.TensorProto.INT64,
        onnx.TensorProto.UINT8,
        onnx.TensorProto.UINT16,
        onnx.TensorProto.UINT32,
        onnx.TensorProto.UINT64,
    }
)


@dataclass(frozen=True)
class TensorSpec:
    """A graph input or output: its ONNX element type and its shape.

    In `shape` a number is a fixed size, a string the name of a symbolic one, and "" a size that is not given.
    `shape` is None where the model gives no shape at all.
    """

    name: str
    elem_type: int
    shape: tuple[int | str, ...] | None

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The NumPy type of the elements (bfloat16 is the one of ml_dtypes)."""
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.elem_type))

    def describe(self) -> str:
        """For messages, e.g. `float32[1, 3, ?]`."""
        kind = onnx.TensorProto.DataType.Name(self.elem_type).lower() if self.elem_type else "not a tensor"
        if self.shape is None:
            return f"{kind}[no shape]"
        return f"{kind}[{', '.join(str(size) if size != '' else '?' for size in self.shape)}]"


def tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    """Reads one value; sequences, optionals and maps give element type 0."""
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return TensorSpec(value.name, onnx.TensorProto.UNDEFINED, None)
    if not tensor.HasField("shape"):
        return TensorSpec(value.name, tensor.elem_type, None)
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim)
    return TensorSpec(value.name, tensor.elem_type, shape)


def input_specs(model: onnx.ModelProto) -> list[TensorSpec]:
    """The inputs that a caller must give; initializers that old files also list as inputs are left out."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [tensor_spec(value) for value in model.graph.input if value.name not in stored]


def output_specs(model: onnx.ModelProto) -> list[TensorSpec]:
    """The outputs, in the order of the graph."""
    return [tensor_spec(value) for value in model.graph.output]


def has_dynamic_batch(specs: Sequence[TensorSpec]) -> bool:
    """Whether some input's first dimension is symbolic."""
    return any(spec.shape is not None and len(spec.shape) > 0 and isinstance(spec.shape[0], str) for spec in specs)


def concrete_shape(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    """The shape of `spec` with `batch` in place of a symbolic first dimension.

    Raises InputError where there is no shape, where a later dimension is symbolic, or where `batch` is
    below 1.
    """
    if batch < 1:
        raise InputError(f"batch {batch} is not possible: give 1 or more")
    if spec.shape is None:
        raise InputError(
            f"input '{spec.name}' ({spec.describe()}) has no shape, so no values can be drawn for it: "
            "give arrays in an .npz file (--inputs), or export the model with fixed shapes"
        )
    shape: list[int] = []
    for axis, size in enumerate(spec.shape):
        if isinstance(size, int):
            shape.append(size)
        elif axis == 0:
            shape.append(batch)
        else:
            raise InputError(
                f"input '{spec.name}' ({spec.describe()}) has a symbolic size at axis {axis}; only the "
                f"first axis may be "
                "symbolic: export the model with fixed sizes, or give arrays in an .npz file (--inputs)"
            )
    return tuple(shape)


def _difference(first: TensorSpec, second: TensorSpec, any_float: bool) -> bool:
    both_float = first.elem_type in FLOAT_TYPES and second.elem_type in FLOAT_TYPES
    if first.elem_type != second.elem_type and not (any_float and both_float):
        return True
    if first.shape is None or second.shape is None:
        return False
    if len(first.shape) != len(second.shape):
        return True
    # A symbol's name is the exporter's whim: two symbols are the same size as far as a caller can tell.
    return any(
        a != b and (isinstance(a, int) or isinstance(b, int)) for a, b in zip(first.shape, second.shape, strict=True)
    )


def check_interfaces(
    original: onnx.ModelProto,
    candidate: onnx.ModelProto,
    *,
    any_float: bool = False,
    names: tuple[str, str] = ("original", "candidate"),
) -> None:
    """Raises VerificationError, naming every input and output that the two models do not share.

    Names and types must be equal, and so must input shapes up to the names of symbolic sizes. Output shapes
    are compared on real data, since many exporters leave them out. With `any_float` one floating type may
    stand for another (a model in reduced precision).
    """
    problems: list[str] = []
    sides = (("input", input_specs, False), ("output", output_specs, True))
    for role, specs_of, types_only in sides:
        first = {spec.name: spec for spec in specs_of(original)}
        second = {spec.name: spec for spec in specs_of(candidate)}
        problems += [f"{role} '{name}' is missing from the {names[1]}" for name in first if name not in second]
        problems += [f"{role} '{name}' is only in the {names[1]}" for name in second if name not in first]
        for name in first.keys() & second.keys():
            one, two = first[name], second[name]
            if types_only:
                one, two = (TensorSpec(spec.name, spec.elem_type, None) for spec in (one, two))
            if _difference(one, two, any_float):
                problems.append(
                    f"{role} '{name}' is {first[name].describe()} in the {names[0]} "
                    f"and {second[name].describe()} in the {names[1]}"
                )
    if problems:
        raise VerificationError(
            f"the models cannot be compared, their inputs or outputs differ: {'; '.join(sorted(problems))}"
        )
