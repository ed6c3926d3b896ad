"""What a sample's sites must compute, in float64 NumPy from the ground truth alone, and a look at their
tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from samples.attention_bigbird import PENALTY
from samples.attention_runtime import POLICY_EPSILON
from samples.truth import AttentionTruth, ConvTruth, FloatArray, IntArray, Projection, Sample, Wiring


def run(model: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]], names: Sequence[str]) -> list[FloatArray]:
    """The named tensors of a model, also inner ones, as ONNX Runtime computes them on one CPU thread."""
    import onnxruntime

    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    known = {output.name for output in opened.graph.output}
    for name in dict.fromkeys(names):
        if name not in known:
            opened.graph.output.append(helper.make_empty_tensor_value_info(name))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(opened.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value, np.float64) for value in session.run(list(names), dict(feeds))]


def initializers(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def token_rows(tensor: FloatArray, wiring: Wiring, batch: int) -> FloatArray:
    """A source or output tensor as (batch, tokens, channels); its first dimension may fold tokens into
    the batch."""
    if wiring.channels_first:
        return tensor.reshape(batch, tensor.shape[1], -1).transpose(0, 2, 1)
    return tensor.reshape(batch, -1, tensor.shape[-1])


def _linear(rows: FloatArray, layer: Projection, arrays: Mapping[str, NDArray[Any]]) -> FloatArray:
    weight = arrays[layer.weight].astype(np.float64)
    if weight.ndim > 2:
        weight = weight.reshape(weight.shape[:2]).T
    columns = slice(layer.start, layer.stop)
    result: FloatArray = rows @ weight[:, columns] + arrays[layer.bias][columns].astype(np.float64)
    return result


def _heads(rows: FloatArray, heads: int) -> FloatArray:
    """(batch, tokens, heads * d) to (batch, heads, tokens, d)."""
    return rows.reshape(*rows.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def attention(
    truth: AttentionTruth,
    arrays: Mapping[str, NDArray[Any]],
    query_tokens: FloatArray,
    key_tokens: FloatArray,
    runtime: FloatArray | None = None,
) -> FloatArray:
    """The rows (batch, queries, channels) of an attention behind its output projection.

    `query_tokens` and `key_tokens` are what the projections read, (batch, tokens, channels). `runtime` is the
    policy or mask (batch, keys), where the truth asks for one.
    """
    wiring, links = truth.wiring, truth.links.astype(np.float64)[None]
    phantoms = truth.links.shape[2] - truth.keys
    queries = query_tokens[:, wiring.query_rows]
    # A phantom token is a zero row in front of the projection.
    keys = np.pad(key_tokens, ((0, 0), (0, phantoms), (0, 0)))
    q = _heads(_linear(queries, wiring.query, arrays), truth.heads)
    k, v = (_heads(_linear(keys, layer, arrays), truth.heads) for layer in (wiring.key, wiring.value))
    if truth.cosine:
        q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    scores = q @ k.transpose(0, 1, 3, 2) * np.array(truth.scale)[:, None, None]
    if truth.bias is not None:
        scores = scores + truth.bias
    if truth.runtime == "penalty" and runtime is not None:
        scores = scores + (1.0 - runtime)[:, None, None, :] * PENALTY
    mixed = _weights(truth, scores, links, runtime) @ v
    batch, _, count, _ = mixed.shape
    return _linear(mixed.transpose(0, 2, 1, 3).reshape(batch, count, -1), wiring.projection, arrays)


def _weights(truth: AttentionTruth, scores: FloatArray, links: FloatArray, runtime: FloatArray | None) -> FloatArray:
    links = np.broadcast_to(links, scores.shape)
    empty = ~links.any(-1, keepdims=True)
    if truth.empty_support is not None:
        links = np.where(empty, truth.empty_support, links)
    if truth.empty_result == "uniform":
        scores = np.where(empty, 0.0, scores)
    if truth.runtime == "policy" and runtime is not None:
        columns = runtime[:, None, None, :]
        peak = scores.max(-1, keepdims=True)
        powers = np.exp(scores - peak) * (columns + (1.0 - columns) * np.eye(scores.shape[-1]))
        weights: FloatArray = powers / (powers.sum(-1, keepdims=True) + POLICY_EPSILON)
        return weights
    seen = np.where(links > 0, scores, -np.inf)
    peak = seen.max(-1, keepdims=True)
    powers = np.exp(seen - np.where(np.isfinite(peak), peak, 0.0)) * links
    total = powers.sum(-1, keepdims=True)
    rest = np.nan if truth.empty_result == "nan" else 0.0
    result: FloatArray = np.where(total > 0, powers / np.where(total > 0, total, 1.0), rest)
    return result


def attention_error(sample: Sample, truth: AttentionTruth, seed: int = 0, batch: int = 2) -> float:
    """Largest difference between the model's own tensor and the reference, as a part of the largest value.

    NaN has to be in the same places; otherwise the answer is infinite.
    """
    feeds = sample.draw(seed, batch)
    wiring, size = truth.wiring, len(next(iter(feeds.values())))
    tensors = run(sample.model, feeds, [wiring.query_source, wiring.key_source, wiring.output])
    query_tokens, key_tokens, output = (token_rows(tensor, wiring, size) for tensor in tensors)
    runtime = None
    if truth.runtime_input:
        runtime = feeds[truth.runtime_input].astype(np.float64).reshape(query_tokens.shape[0], -1)
    wanted = attention(truth, initializers(sample.model), query_tokens, key_tokens, runtime)
    got = output[:, wiring.output_rows]
    if not np.array_equal(np.isnan(got), np.isnan(wanted)):
        return float("inf")
    return float(np.nanmax(np.abs(got - wanted)) / np.nanmax(np.abs(wanted)))


def counting_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with weights that count: live weight slices become 1 in their middle, biases and means 0.

    Then, for channels that are 0 or 6 everywhere (where Relu and HardSwish change nothing), every path
    from an input channel to an output channel adds 6 to that output.
    """
    arrays = initializers(model)
    for node in model.graph.node:
        if node.op_type == "Conv":
            arrays[node.input[1]] = _middle_ones(arrays[node.input[1]])
            for name in node.input[2:]:
                arrays[name] = np.zeros_like(arrays[name])
        elif node.op_type == "BatchNormalization":
            for name, value in zip(node.input[1:], (1.0, 0.0, 0.0, 1.0), strict=True):
                arrays[name] = np.full_like(arrays[name], value)
    counting = onnx.ModelProto()
    counting.CopyFrom(model)
    del counting.graph.initializer[:]
    counting.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return counting


def _middle_ones(weight: NDArray[Any]) -> NDArray[Any]:
    live = weight.any(axis=tuple(range(2, weight.ndim)))
    result = np.zeros_like(weight)
    middle = tuple(size // 2 for size in weight.shape[2:])
    result[(slice(None), slice(None), *middle)] = live
    return result


def measured_connectivity(sample: Sample, truth: ConvTruth) -> IntArray:
    """How often each channel of `truth.source` reaches each channel of `truth.output` in the model itself.

    The sample needs a symbolic batch: channel i is switched on in batch element i.
    """
    model = counting_model(sample.model)
    shape = run(sample.model, sample.draw(0, 1), [truth.source])[0].shape
    on = 6.0 * np.eye(shape[1], dtype=np.float32).reshape(shape[1], shape[1], *[1] * len(shape[2:]))
    feed = np.broadcast_to(on, (shape[1], shape[1], *shape[2:])).copy()
    if truth.source not in {value.name for value in model.graph.input}:
        kept = [node for node in model.graph.node if truth.source not in node.output]
        del model.graph.node[:]
        model.graph.node.extend(kept)
        dims = ["batch", *shape[1:]]
        model.graph.input.append(helper.make_tensor_value_info(truth.source, 1, dims))
    feeds = {value.name: feed for value in model.graph.input}
    feeds.update({name: array for name, array in sample.draw(0, shape[1]).items() if name != truth.source})
    output = run(model, feeds, [truth.output])[0]
    counts = output.reshape(*output.shape[:2], -1).max(-1) / 6.0
    result: IntArray = np.rint(counts).astype(np.int32).T
    return result
