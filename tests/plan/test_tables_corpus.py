"""Tables of exported models say exactly what their sites do, under schedules of any strips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxopt.lower.convolution import site_weights
from onnxopt.model.read import read_model
from onnxopt.plan.tables import attention_tables, conv_tables, conv_work
from onnxopt.sites import discover
from onnxopt.validate import (
    validate_attention_contents,
    validate_attention_launch,
    validate_attention_schedule,
    validate_conv_contents,
    validate_conv_launch,
    validate_conv_schedule,
)
from tests.plan import conv_schedules
from tests.plan.conv_schedules import conv_scheduled, links_of
from tests.plan.schedules import GROUPED, TALL, VARIANTS, scheduled

ATTENTION = [
    "swin_tiny_224.dynamo.op18",
    "vil_tiny_224_exact.dynamo.op18",
    "regionvit_tiny_448.dynamo.op18",
    "nat_3layer.dynamo.op18",
    "vit_mask_plain.dynamo.op18",
    "dyvit_s_policy.dynamo.op18",
]
CONVOLUTIONS = [
    "shufflenet1_g3_megvii.dynamo.op18",
    "condensenet74_g4_train.dynamo.op18",
    "condensenet_c10_g4_conv.dynamo.op18",
    "cdnv2a_conv.dynamo.op18",
]


@pytest.mark.corpus
@pytest.mark.parametrize("tag", ATTENTION)
def test_tables_of_attention(tag: str, corpus_model: Callable[[str], Path]) -> None:
    found = discover(read_model(corpus_model(tag)))
    seen = set()
    for site in found.attention:
        kind = (site.rows, site.heads, site.key_vectors.shape[1], int(site.lists[0].offsets[-1]))
        if kind in seen:
            continue
        seen.add(kind)
        shapes = {name: found.graph.shape(name) or () for name in site.inputs}
        split = 512 if site.rows < 512 and site.weights is None else 0
        for schedule in (
            scheduled(site, (TALL, GROUPED), split_keys=split, element="fp16"),
            scheduled(site, VARIANTS, seed=1),
        ):
            validate_attention_schedule(site, schedule)
            tables = attention_tables(site, schedule, shapes=shapes)
            merge = None if tables.merge is None else (tables.merge.configuration()["kernel"], tables.merge.arrays())
            validate_attention_launch(tables.configuration()["kernel"], tables.arrays(), merge)
            validate_attention_contents(site, tables, shapes)


@pytest.mark.corpus
@pytest.mark.parametrize("tag", CONVOLUTIONS)
def test_tables_of_convolutions(tag: str, corpus_model: Callable[[str], Path]) -> None:
    found = discover(read_model(corpus_model(tag)))
    seen = set()
    for site in found.convolutions:
        kind = (site.out_channels, site.in_channels, site.kernel, site.connections)
        if kind in seen:
            continue
        seen.add(kind)
        weights, bias = site_weights(site, found.graph)
        size = (found.graph.shape(site.input) or ())[2:]
        lead = None if site.before.steps or site.before.mix is not None else site.before
        work = conv_work(site, weights, bias, size, lead, None if site.after.steps else site.after)
        schedule = conv_scheduled(work, conv_schedules.VARIANTS, seed=0, pieces=1 + len(seen) % 2)
        validate_conv_schedule(links_of(work), schedule, pixels=int(np.prod(work.output_size)))
        tables = conv_tables(work, schedule)
        after = None if tables.sum is None else (tables.sum.configuration()["kernel"], tables.sum.arrays())
        validate_conv_launch(tables.configuration()["kernel"], tables.arrays(), after)
        validate_conv_contents(work, tables)
