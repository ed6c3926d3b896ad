"""A process of its own in which tensorrt-lean stands for TensorRT: what its plugin code says of generated modules.

    python lean_child.py REQUEST.json > ANSWER.json

tensorrt-lean has TensorRT's plugin registry and NVIDIA's decorators, checks and plugin objects, but neither a builder
nor a parser. What only a builder has is stood in for here: expressions of sizes, and descriptions of tensors.
A request is {"task": NAME, ...}; the tasks are the functions of :data:`TASKS`.
"""

from __future__ import annotations

import base64
import enum
import importlib.util
import json
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorrt_lean as trt
from lean_driver import Driver

Sizes = Mapping[tuple[int, int], int]

_OPERATIONS = {
    "SUM": lambda a, b: a + b,
    "PROD": lambda a, b: a * b,
    "SUB": lambda a, b: a - b,
    "FLOOR_DIV": lambda a, b: a // b,
    "CEIL_DIV": lambda a, b: -(-a // b),
}


class Dimension:
    """An expression of sizes, such as a builder hands to plugins; ``at`` is its value for sizes of the inputs."""

    def __init__(self, at: Callable[[Sizes], int], constant: bool) -> None:
        self.at, self._constant = at, constant

    def is_constant(self) -> bool:
        return self._constant

    def get_constant_value(self) -> int:
        if not self._constant:
            raise RuntimeError("the size is only known when the engine runs")
        return self.at({})

    def is_size_tensor(self) -> bool:
        return False


class Expressions:
    """The builder of expressions."""

    def constant(self, value: int) -> Dimension:
        return Dimension(lambda _: value, True)

    def operation(self, operation: Any, first: Dimension, second: Dimension) -> Dimension:
        compute = _OPERATIONS[operation.name]
        constant = first.is_constant() and second.is_constant()
        return Dimension(lambda sizes: compute(first.at(sizes), second.at(sizes)), constant)


class Description:
    """A tensor's type, sizes and format."""

    def __init__(self, kind: Any = None, dims: Sequence[int] = ()) -> None:
        self.type, self.dims, self.format, self.scale = kind, tuple(dims), Format.LINEAR, 1.0


class DynamicDescription:
    """The same with the range of its sizes."""

    def __init__(self, desc: Description | None = None) -> None:
        self.desc = desc or Description()
        self.min = self.max = self.opt = self.desc.dims


class Format(enum.IntEnum):
    LINEAR = 0
    HWC = 8


class SymbolicArgument:
    """An expression with the type that a kernel takes it in."""

    def __init__(self) -> None:
        self.type = self.dtype = self.expr = None


class Launch:
    """What the object fills in: sizes of grid and block, and shared memory."""


class Extras:
    """The arguments between inputs and outputs."""

    def __init__(self) -> None:
        self.nbSymExprs = 0
        self.values: dict[int, Any] = {}

    def __setitem__(self, place: int, value: Any) -> None:
        self.values[place] = value


def alias() -> None:
    """Let tensorrt-lean be ``tensorrt``, with the names that only a builder's package has."""
    stand_ins = {
        "TensorFormat": Format,
        "ITensor": type("ITensor", (), {}),
        "IDimensionExpr": Dimension,
        "ISymExpr": SymbolicArgument,
        "DimsExprs": lambda length: [None] * length,
        "PluginTensorDesc": Description,
        "DynamicPluginTensorDesc": DynamicDescription,
    }
    for name, value in stand_ins.items():
        setattr(trt, name, value)
    sys.modules["tensorrt"] = trt
    import tensorrt_lean.plugin

    sys.modules["tensorrt.plugin"] = tensorrt_lean.plugin


def load(path: str) -> types.ModuleType:
    """A generated module, imported under a name of its own."""
    name = f"plugins_{len(sys.modules)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.dont_write_bytecode = True
    spec.loader.exec_module(module)
    return module


def created(name: str, kind: str, fields: Sequence[Any] = ()) -> Any:
    """The plugin object that TensorRT's registry makes of a registered operator."""
    creator = trt.get_plugin_registry().get_creator(name, "1", "onnxopt")
    if creator is None:
        raise KeyError(f"no creator is registered for {name}")
    request = getattr(trt.QuickPluginCreationRequest, kind)
    collection = trt.PluginFieldCollection(list(fields))
    return creator.create_plugin(name, "onnxopt", collection, trt.TensorRTPhase.BUILD, request)


def answers(request: dict[str, Any]) -> dict[str, Any]:
    """What the objects of all operators of a module say, for every batch of the request; ``form`` is that of code."""
    module = load(request["module"])
    if request["form"]:
        module.CODE_FORM = request["form"]
    return {each["name"]: _answer_or_error(each) for each in request["operators"]}


def _answer_or_error(asked: dict[str, Any]) -> dict[str, Any]:
    try:
        return _answer(asked)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    """``asked`` has the types and shapes of inputs, sizes that are open being null, and what these are in each case."""
    plugin = created(asked["name"], "STRICT_AOT")
    creator = trt.get_plugin_registry().get_creator(asked["name"], "1", "onnxopt")
    kinds = [getattr(trt.DataType, kind) for kind in asked["types"]]
    made = plugin.get_output_data_types(kinds, [len(shape) for shape in asked["shapes"]])
    inputs = [
        [_dimension(tensor, axis, size) for axis, size in enumerate(shape)]
        for tensor, shape in enumerate(asked["shapes"])
    ]
    cases = [
        {(tensor, axis): size for tensor, shape in enumerate(case) for axis, size in enumerate(shape)}
        for case in asked["cases"]
    ]
    builder = Expressions()
    shapes = plugin.get_output_shapes(inputs, [], builder)
    dynamic = [
        DynamicDescription(Description(kind, [-1 if size is None else size for size in shape]))
        for kind, shape in zip(kinds, asked["shapes"], strict=True)
    ]
    dynamic += [
        DynamicDescription(Description(kind, [-1] * len(shape))) for kind, shape in zip(made, shapes, strict=True)
    ]
    supported = plugin.get_supported_format_combinations(dynamic, len(kinds))
    plugin.configure_plugin(dynamic[: len(kinds)], dynamic[len(kinds) :])
    numbers = sorted(plugin.get_valid_tactics())
    return {
        "fields": [field.name for field in creator.field_names],
        "inputs": list(getattr(trt.plugin.op.onnxopt, asked["name"]).input_tensor_names),
        "output_types": [kind.name for kind in made],
        "output_shapes": [[[size.at(case) for size in shape] for shape in shapes] for case in cases],
        "formats": [[each.type.name, each.format.name] for each in supported],
        "tactics": [_tactic(plugin, number, (inputs, dynamic, builder), cases) for number in numbers],
        "numbers": numbers,
    }


def _dimension(tensor: int, axis: int, size: int | None) -> Dimension:
    if size is None:
        return Dimension(lambda sizes: sizes[tensor, axis], False)
    return Dimension(lambda _: size, True)


def _tactic(plugin: Any, number: int, given: tuple[Any, Any, Any], cases: Sequence[Sizes]) -> dict[str, Any]:
    inputs, dynamic, builder = given
    launch, extras = Launch(), Extras()
    plugin.set_tactic(number)
    plugin.get_launch_params(inputs, dynamic, len(inputs), launch, extras, builder)
    flat = [each.desc for each in dynamic]
    entry, code = plugin.get_kernel(flat[: len(inputs)], flat[len(inputs) :])
    arguments = [extras.values[place] for place in range(extras.nbSymExprs)]
    names = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")
    return {
        "entry": entry,
        "code": base64.b64encode(code).decode(),
        "launches": [{name: getattr(launch, name).expr.at(case) for name in names} for case in cases],
        "extras": [[[each.dtype.name, each.expr.at(case)] for each in arguments] for case in cases],
    }


def imports(request: dict[str, Any]) -> list[str]:
    """For each module the error of importing it, empty where there is none; ``versions`` stand for TensorRT's own."""
    own, found = trt.__version__, []
    for path, version in zip(request["modules"], request["versions"], strict=True):
        trt.__version__ = version or own
        try:
            load(path)
            found.append("")
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def refusals(request: dict[str, Any]) -> list[str]:
    """What happens when the creator of an operator gets a field that it does not have."""
    load(request["module"])
    found = []
    for name in request["names"]:
        field = trt.PluginField(request["field"], b"1", trt.PluginFieldType.CHAR)
        try:
            created(name, "STRICT_AOT", [field])
            found.append("")
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def runs(request: dict[str, Any]) -> list[dict[str, Any]]:
    """For each case what the object that runs just in time asks of the driver, twice, and its error if there is one."""
    bindings = types.ModuleType("cuda.bindings")
    sys.modules["cuda.bindings"] = bindings
    module = load(request["module"])
    found = []
    for case in request["cases"]:
        module._functions.clear()
        driver = Driver(case["capability"], case["failing"])
        sys.modules["cuda.bindings.driver"] = bindings.driver = driver  # type: ignore[attr-defined]
        found.append({"error": _error_of(case), "calls": driver.calls})
    return found


def _error_of(case: dict[str, Any]) -> str:
    plugin = created(case["name"], "STRICT_JIT")
    plugin.set_tactic(case["tactic"])
    plugin.aliased_map = dict.fromkeys(range(len(case["outputs"])), -1)
    kinds = [getattr(trt.DataType, kind) for kind in case["types"]]
    inputs = [Description(kind, shape) for kind, shape in zip(kinds, case["inputs"], strict=False)]
    outputs = [Description(kind, shape) for kind, shape in zip(kinds[len(inputs) :], case["outputs"], strict=True)]
    pointers = [1000 + place for place in range(len(kinds))]
    strides = [(1,)] * len(kinds)
    try:
        for _ in range(2):
            plugin.enqueue(inputs, outputs, pointers[: len(inputs)], pointers[len(inputs) :], strides, strides, 77)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


TASKS: Mapping[str, Callable[[dict[str, Any]], Any]] = {
    "answers": answers,
    "imports": imports,
    "refusals": refusals,
    "runs": runs,
}


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    alias()
    Path(sys.argv[2]).write_text(json.dumps(TASKS[asked["task"]](asked)))
