"""Keys of tuning records: equal work has equal keys, and nothing else does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.measure.environment import Environment
from onnxopt.measure.fingerprint import record_key, region_fingerprint

ENVIRONMENT = Environment("machine", "1.0", 0)


def gathered(
    *,
    prefix: str = "",
    weight: float = 1.0,
    rows: tuple[int, ...] = (0, 1),
    scale: float = 2.0,
    axis: int = 1,
) -> onnx.ModelProto:
    x, g, m, y, w, r, s = (prefix + name for name in ("x", "g", "m", "y", "w", "r", "s"))
    graph = helper.make_graph(
        [
            helper.make_node("Gather", [x, r], [g], prefix + "gather", axis=axis),
            helper.make_node("MatMul", [g, w], [m], prefix + "matmul", doc_string=prefix),
            helper.make_node("Mul", [m, s], [y]),
        ],
        prefix + "graph",
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, 4, 16])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, 2, 16])],
        [
            numpy_helper.from_array(np.full((16, 16), weight, np.float32), w),
            numpy_helper.from_array(np.array(rows, np.int64), r),
            numpy_helper.from_array(np.array(scale, np.float32), s),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_names_documentation_and_weights_do_not_count() -> None:
    assert region_fingerprint(gathered()) == region_fingerprint(gathered(prefix="layer7/", weight=3.0))


def test_order_of_stored_constants_does_not_count() -> None:
    model = gathered()
    stored = list(model.graph.initializer)
    del model.graph.initializer[:]
    model.graph.initializer.extend(reversed(stored))
    assert region_fingerprint(model) == region_fingerprint(gathered())


@pytest.mark.parametrize("change", [{"rows": (0, 3)}, {"rows": (0, 1, 2)}, {"scale": 4.0}, {"axis": 2}])
def test_tables_shapes_and_attributes_count(change: dict[str, object]) -> None:
    assert region_fingerprint(gathered(**change)) != region_fingerprint(gathered())  # type: ignore[arg-type]


def test_wiring_counts() -> None:
    model = gathered()
    model.graph.node[2].input[0] = "g"
    assert region_fingerprint(model) != region_fingerprint(gathered())


def test_key_covers_both_models_and_the_environment() -> None:
    a, b = gathered(), gathered(rows=(1, 0))
    keys = {
        record_key(a, b, ENVIRONMENT),
        record_key(b, a, ENVIRONMENT),
        record_key(a, a, ENVIRONMENT),
        record_key(a, b, replace(ENVIRONMENT, machine="other")),
        record_key(a, b, replace(ENVIRONMENT, onnxruntime="2.0")),
        record_key(a, b, replace(ENVIRONMENT, threads=1)),
    }
    assert len(keys) == 6
    assert all(len(key) == 64 for key in keys)
    assert record_key(a, b, ENVIRONMENT) == record_key(gathered(prefix="p"), b, ENVIRONMENT)
