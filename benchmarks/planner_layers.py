"""The layers that the planner is measured on: every different one of the corpus, and made-up ones."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.portable_cpu import Case, make_model
from onnxopt.discover.attention_site import AttentionSite
from onnxopt.discover.conv_site import BoolArray, ConvSite
from onnxopt.discover.convolution import find_convolutions
from onnxopt.model.graph import Graph, view
from onnxopt.plan.attention import filled_rows
from onnxopt.plan.conv_baselines import Parts, written_groups
from onnxopt.sites import discover

# Bytes of an fp16 number.
_BYTES = 2


@dataclass(frozen=True)
class AttentionLayer:
    """An attention; ``models`` are those of the corpus that have such a layer."""

    name: str
    site: AttentionSite = field(repr=False)
    models: tuple[str, ...] = ()

    @property
    def needed(self) -> int:
        """Pairs of query and key over all heads."""
        rows = filled_rows(self.site)
        return sum(int(self.site.lists_of(head).lengths[rows].sum()) for head in range(self.site.heads))


@dataclass(frozen=True)
class ConvLayer:
    """A convolution with connections ``links``; ``groups`` are the parts as they are written."""

    name: str
    site: ConvSite = field(repr=False)
    links: BoolArray = field(repr=False)
    groups: Parts = field(repr=False)
    taps: int
    positions: int
    moved_bytes: float
    models: tuple[str, ...] = ()

    @property
    def needed(self) -> int:
        """Connections of an output and an input channel."""
        return int(self.links.sum())


Layer = AttentionLayer | ConvLayer


def corpus_tags(corpus: Path) -> list[str]:
    """The models of a corpus."""
    return sorted(json.loads((corpus / "manifest.json").read_text())["models"])


def corpus_layers(corpus: Path, tags: Sequence[str]) -> list[Layer]:
    """Every different attention, and every different convolution that is not dense, of some models."""
    known: dict[str, tuple[Layer, list[str]]] = {}
    for tag in tags:
        with tempfile.TemporaryDirectory(prefix="onnxopt-bench-") as folder:
            model = onnx.load(make_model(Case(tag, "corpus", str(corpus)), Path(folder)))
        for signature, layer in layers_of(tag, model):
            known.setdefault(signature, (layer, []))[1].append(tag)
    return [_with_models(layer, tuple(dict.fromkeys(models))) for layer, models in known.values()]


def layers_of(tag: str, model: onnx.ModelProto) -> Iterator[tuple[str, Layer]]:
    """The layers of one model with what tells different ones apart."""
    findings = discover(model)
    for site in findings.attention:
        rows = filled_rows(site)
        if len(rows) and any(len(lists.keys) for lists in site.lists):
            yield _attention_signature(site), AttentionLayer(f"{tag} {site.id}", site)
    for number, conv in enumerate(findings.convolutions):
        if conv.pattern != "dense":
            layer = conv_layer(f"{tag} conv-{number}", conv, findings.graph)
            if layer is not None:
                key = (layer.taps, layer.positions, layer.moved_bytes, layer.links.shape)
                yield _hashed(layer.links, layer.groups.outputs, layer.groups.inputs, key), layer


def conv_layer(name: str, site: ConvSite, graph: Graph) -> ConvLayer | None:
    """The layer of a site; None where the graph does not say how many positions it has, or all weights are zero."""
    out, given = graph.shape(site.output), graph.shape(site.input)
    links = site.links()
    if out is None or given is None or not links.any():
        return None
    batch, taps = out[0], prod(site.kernel)
    read = batch * int(links.any(axis=0).sum()) * prod(given[2:])
    moved = read + prod(out) + int(links.sum()) * taps
    return ConvLayer(name, site, links, written_groups(site), taps, batch * prod(out[2:]), float(_BYTES * moved))


def made_conv_layer(name: str, links: BoolArray, side: int = 28) -> ConvLayer:
    """A convolution of 1x1 on ``side`` x ``side`` positions with given connections."""
    weights = numpy_helper.from_array(links.astype(np.float32)[:, :, None, None], "w")
    ends = [
        helper.make_tensor_value_info(end, TensorProto.FLOAT, [1, channels, side, side])
        for end, channels in (("x", links.shape[1]), ("y", links.shape[0]))
    ]
    node = helper.make_node("Conv", ["x", "w"], ["y"], name=name, kernel_shape=[1, 1])
    model = helper.make_model(
        helper.make_graph([node], "made", ends[:1], ends[1:], [weights]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    graph = view(model)
    layer = conv_layer(name, find_convolutions(graph)[0][0], graph)
    assert layer is not None
    return layer


def _with_models(layer: Layer, models: tuple[str, ...]) -> Layer:
    return type(layer)(**{**{name: getattr(layer, name) for name in layer.__dataclass_fields__}, "models": models})


def _attention_signature(site: AttentionSite) -> str:
    arrays = [array for lists in site.lists for array in (lists.row_list, lists.offsets, lists.keys)]
    vectors = (site.query_vectors, site.key_vectors, site.value_vectors)
    used = tuple(len(np.unique(own)) for own in vectors)
    widths = (site.heads, site.head_dim, site.v.width, used, site.empty_kind)
    tokens = (site.query_tokens, site.key_tokens)
    return _hashed(*arrays, *tokens, site.head_lists, site.head_bias >= 0, site.empty, widths)


def _hashed(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.hexdigest()
