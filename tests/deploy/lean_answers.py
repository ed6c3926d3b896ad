"""What the answers of NVIDIA's plugin objects are held against: the description of each operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto, helper

from onnxopt.deploy.engine_operators import EngineOperator
from onnxopt.deploy.module_text import parameter_names
from onnxopt.deploy.plugin_module import kernel_name
from onnxopt.lower.rewrite import is_plugin_node
from onnxopt.model.graph import view
from tests.deploy.lean_packages import DATA_TYPES, cases_of, code_of


def check_answer(operator: EngineOperator, said: Mapping[str, Any], folder: Path, batches: Sequence[int]) -> None:
    """Shapes, types, formats, tactics, launches, extra arguments and kernels of one operator, all of them."""
    assert "error" not in said, said["error"]
    own = cases_of(operator, batches)[1]
    assert (said["fields"], said["inputs"]) == ([], list(parameter_names(operator)))
    types = [DATA_TYPES[port.type] for port in (*operator.inputs, *operator.outputs)]
    assert said["output_types"] == types[len(operator.inputs) :]
    assert said["output_shapes"] == [[list(output.sizes(batch)) for output in operator.outputs] for batch in own]
    assert said["formats"] == [[kind, "LINEAR"] for kind in types]
    assert said["numbers"] == list(range(1, len(operator.tactics) + 1))
    for number, (tactic, told) in enumerate(zip(operator.tactics, said["tactics"], strict=True)):
        assert told["entry"] == tactic.entry
        assert told["extras"] == [[["INT32", batch]] for batch in own]
        assert told["launches"] == [
            {
                "grid_x": tactic.grid.blocks(batch),
                "grid_y": 1,
                "grid_z": 1,
                "block_x": tactic.threads,
                "block_y": 1,
                "block_z": 1,
                "shared_mem": tactic.shared_bytes,
            }
            for batch in own
        ]
        assert code_of(told) == (folder / "kernels" / f"{kernel_name(operator, number)}.ptx").read_bytes()


_KINDS = {
    TensorProto.FLOAT16: "HALF",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.FLOAT: "FLOAT",
    TensorProto.INT32: "INT32",
}


def check_nodes(
    model: ModelProto, plugin: ModelProto, operators: Sequence[EngineOperator], said: Mapping[str, Any]
) -> int:
    """Every plugin node of the model for TensorRT against what was registered; how many there are.

    That is: its operator, its attributes, the number of its inputs and outputs and the type of each, the shape of each
    table, and how many elements each output has for two batches. Without bodies nothing can be inferred of tensors, so
    types and sizes are those of the same tensors in the ``plugin`` form.
    """
    known = {operator.name: operator for operator in operators}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    assert not [function for function in model.functions if function.domain == "onnxopt"]
    graphs = [view(plugin, batch=batch) for batch in (2, 3)]
    nodes = [node for node in model.graph.node if is_plugin_node(node)]
    for node in nodes:
        operator, answer = known[node.op_type], said[node.op_type]
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        assert attributes == {"plugin_namespace": b"onnxopt", "plugin_version": b"1", "aot": 1}
        assert len(node.input) == len(answer["inputs"])
        assert len(node.output) == len(answer["output_types"])
        types = [
            constants[name].data_type if name in constants else graphs[0].element_type(name)
            for name in (*node.input, *node.output)
        ]
        kinds = [_KINDS[kind] for kind in types]
        assert [[kind, "LINEAR"] for kind in kinds] == answer["formats"]
        own = node.input[len(operator.operands) :]
        assert [tuple(constants[name].dims) for name in own] == [port.shape for port in operator.tables]
        for graph in graphs:
            batch, rest = divmod(prod(graph.shape(node.input[0]) or ()), operator.batch_elements)
            assert not rest
            assert [prod(graph.shape(name) or ()) for name in node.output] == [
                batch * output.elements for output in operator.outputs
            ]
    assert {node.op_type for node in nodes} == set(known)
    return len(nodes)
