"""The operators of a whole-model program over an array backend, and the interpreter that runs them one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.whole_model_program import LAUNCH, TABLE, Node, Program, last_uses
from onnxopt.errors import InputError

Function = Callable[..., Any]


def _binary(compute: Callable[[Any, Any], Any]) -> Function:
    return lambda b, a, x, y: compute(x, y)


def _method(name: str) -> Function:
    return lambda b, a, x: getattr(b, name)(x)


def _shared(name: str) -> Function:
    """A function that both array modules name alike."""
    return lambda b, a, *values: getattr(b.xp, name)(*values)


def _reduce(kind: str) -> Function:
    return lambda b, a, x: b.reduce(kind, x, a["axes"], a["keep"])


def _slice(b: Any, a: Mapping[str, Any], x: Any) -> Any:
    places = [slice(None)] * len(x.shape)
    for axis, start, stop, step in a["ranges"]:
        places[axis] = slice(start, stop, step)
    return x[tuple(places)]


def _select(b: Any, a: Mapping[str, Any], x: Any) -> Any:
    return x[(slice(None),) * a["axis"] + (a["index"],)]


def _lines(index: Any) -> tuple[Any, ...]:
    """The last axis of an index tensor as one index for each axis of the data."""
    return tuple(index[..., i] for i in range(index.shape[-1]))


def _gemm(b: Any, a: Mapping[str, Any], x: Any, y: Any, c: Any = None) -> Any:
    x = b.permute(x, (1, 0)) if a["turn_a"] else x
    y = b.permute(y, (1, 0)) if a["turn_b"] else y
    return b.gemm(x, y, c, a["alpha"], a["beta"])


def _borrow(b: Any, a: Mapping[str, Any], x: Any) -> Any:
    """As many elements of a tensor as a shape takes, the tensor repeated where it has fewer: a view if it can be."""
    flat = x.reshape(-1)
    if a["repeat"] > 1:
        flat = b.concat([flat] * a["repeat"], 0)
    return flat[: a["elements"]].reshape(a["shape"])


OPERATORS: dict[str, Function] = {
    "Identity": lambda b, a, x: x,
    "Reshape": lambda b, a, x: x.reshape(a["shape"]),
    "Transpose": lambda b, a, x: b.permute(x, a["order"]),
    "Slice": _slice,
    "Select": _select,
    "Expand": lambda b, a, x: b.xp.broadcast_to(x, tuple(a["shape"])),
    "Concat": lambda b, a, *parts: b.concat(parts, a["axis"]),
    "Pad": lambda b, a, x: b.pad(x, a["pads"], a["value"]),
    "Tile": lambda b, a, x: b.xp.tile(x, tuple(a["repeats"])),
    "Gather": lambda b, a, x, index: b.take(x, index, a["axis"]),
    "GatherND": lambda b, a, x, index: x[_lines(index)],
    "ScatterND": lambda b, a, x, index, updates: b.put(x, _lines(index), updates),
    "ScatterElements": lambda b, a, x, index, updates: b.scatter(x, index, updates, a["axis"]),
    "Cast": lambda b, a, x: b.cast(x, a["to"]),
    "Add": _binary(lambda x, y: x + y),
    "Sub": _binary(lambda x, y: x - y),
    "Mul": _binary(lambda x, y: x * y),
    "Div": _binary(lambda x, y: x / y),
    "Pow": _binary(lambda x, y: x**y),
    "Equal": _binary(lambda x, y: x == y),
    "Less": _binary(lambda x, y: x < y),
    "Greater": _binary(lambda x, y: x > y),
    "And": _binary(lambda x, y: x & y),
    "Or": _binary(lambda x, y: x | y),
    "Max": _shared("maximum"),
    "Min": _shared("minimum"),
    "Where": _shared("where"),
    "Not": lambda b, a, x: ~x,
    "Neg": lambda b, a, x: -x,
    "Reciprocal": lambda b, a, x: 1 / x,
    "Exp": _shared("exp"),
    "Log": _shared("log"),
    "Sqrt": _shared("sqrt"),
    "Abs": _shared("abs"),
    "Tanh": _shared("tanh"),
    "IsNaN": _shared("isnan"),
    "Erf": _method("erf"),
    "Relu": _method("relu"),
    "Sigmoid": _method("sigmoid"),
    "HardSigmoid": lambda b, a, x: b.clip(x * a["alpha"] + a["beta"], 0.0, 1.0),
    "HardSwish": lambda b, a, x: x * b.clip(x / 6 + 0.5, 0.0, 1.0),
    "Clip": lambda b, a, x: b.clip(x, a["low"], a["high"]),
    "ReduceMean": _reduce("mean"),
    "ReduceSum": _reduce("sum"),
    "ReduceMax": _reduce("max"),
    "ReduceMin": _reduce("min"),
    "Softmax": lambda b, a, x: b.softmax(x, a["axis"]),
    "LogSoftmax": lambda b, a, x: b.log_softmax(x, a["axis"]),
    "TopK": lambda b, a, x: b.top_k(x, a["k"], a["axis"], a["largest"]),
    "MatMul": _shared("matmul"),
    "Gemm": _gemm,
    "Einsum": lambda b, a, *parts: b.einsum(a["equation"], *parts),
    "LayerNormalization": lambda b, a, x, scale, bias=None: b.layer_norm(x, a["axis"], scale, bias, a["epsilon"]),
    "BatchNormalization": lambda b, a, *values: b.batch_norm(*values, a["epsilon"]),
    "Conv": lambda b, a, x, w, bias=None: b.conv(x, w, bias, **a),
    "MaxPool": lambda b, a, x: b.max_pool(x, **a),
    "AveragePool": lambda b, a, x: b.average_pool(x, **a),
    "Attention": lambda b, a, q, k, v, mask: b.attention(q, k, v, mask, a["scale"]),
    "Borrow": _borrow,
}
"""What each operator computes: (backend, attributes, inputs) -> its output, or a tuple of several."""


class Interpreter:
    """A program with its constants on a backend; calling it runs every node and gives the outputs in order.

    ``launcher`` runs kernels of our own; without one, a program that has any is refused.
    """

    def __init__(self, program: Program, backend: Any, launcher: Any = None) -> None:
        unknown = sorted({node.op for node in program.nodes} - {*OPERATORS, LAUNCH})
        if unknown:
            raise InputError(f"operators {', '.join(unknown)} are unknown here; make the job with this version")
        if launcher is None and any(node.op == LAUNCH for node in program.nodes):
            raise InputError("the program launches kernels, and nothing here runs them; give a launcher")
        self.program, self.backend, self.launcher = program, backend, launcher
        self.constants = {
            name: backend.tensor(array, exact=name.startswith(TABLE)) for name, array in program.constants.items()
        }
        self._forgotten = last_uses(program.nodes, (*program.inputs, *program.outputs, *program.constants))

    def __call__(self, inputs: Mapping[str, Any]) -> list[Any]:
        """``inputs`` are tensors of the backend by name."""
        known = {**self.constants, **inputs}
        for number, node in enumerate(self.program.nodes):
            known.update(zip(node.outputs, self._run(node, known), strict=False))
            for name in self._forgotten.get(number, ()):
                known.pop(name, None)
        return [known[name] for name in self.program.outputs]

    def _run(self, node: Node, known: Mapping[str, Any]) -> Sequence[Any]:
        values = [known[name] if name else None for name in node.inputs]
        if node.op == LAUNCH:
            tables = {name: known[tensor] for name, tensor in node.attributes["tables"].items()}
            operands = dict(zip(node.attributes["operands"], values, strict=True))
            made: Sequence[Any] = self.launcher(self.backend, node.attributes, operands, tables)
            return made
        wide = [None if value is None else self.backend.widen(value) for value in values]
        try:
            result = OPERATORS[node.op](self.backend, node.attributes, *wide)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            shapes = ", ".join("none" if v is None else str(tuple(v.shape)) for v in values)
            raise InputError(f"node {node.name!r} ({node.op} of {shapes}): {error}; make the job again") from error
        results = result if isinstance(result, tuple) else (result,)
        return [self.backend.narrow(value) for value in results]
