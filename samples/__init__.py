"""Small models that repeat the patterns of published networks, each with its ground truth; no framework
needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from samples import (
    attention_bigbird,
    attention_longformer,
    attention_masked,
    attention_region,
    attention_runtime,
    attention_windowed,
    convolution_grouped,
    convolution_pruned,
)
from samples.truth import AttentionTruth, ConvTruth, Projection, Sample, Wiring

__all__ = ["SAMPLES", "AttentionTruth", "ConvTruth", "Projection", "Sample", "Wiring", "build"]

SAMPLES: dict[str, Callable[..., Sample]] = {
    "swin": attention_windowed.swin,
    "swin_traced": attention_windowed.swin_traced,
    "swin_fused": attention_windowed.swin_fused,
    "swin_v2": attention_windowed.swin_v2,
    "swin_padded": attention_windowed.swin_padded,
    "neighbourhood": attention_windowed.neighbourhood,
    "longformer2d": attention_longformer.longformer2d,
    "longformer2d_padded": partial(attention_longformer.longformer2d, size=14),
    "longformer2d_exact": partial(attention_longformer.longformer2d, mode="exact"),
    "longformer2d_cyclic": partial(attention_longformer.longformer2d, mode="cyclic"),
    "longformer2d_self": partial(attention_longformer.longformer2d, mode="self"),
    "regionvit": attention_region.regionvit,
    "regionvit_masked": partial(attention_region.regionvit, size=11),
    "dynamicvit": attention_runtime.dynamicvit,
    "dynamicvit_policy": attention_runtime.dynamicvit_policy,
    "bigbird": attention_bigbird.bigbird,
    "masked_vit": attention_masked.masked_vit,
    "per_head_masks": attention_masked.per_head_masks,
    "cross": attention_masked.cross,
    "onnx_attention": attention_masked.onnx_attention,
    "empty_uniform": partial(attention_masked.empty_rows, result="uniform"),
    "empty_unmasked": partial(attention_masked.empty_rows, result="unmasked"),
    "empty_zero": partial(attention_masked.empty_rows, result="zero"),
    "empty_nan": partial(attention_masked.empty_rows, result="nan"),
    "dense_masked": attention_masked.dense_masked,
    "shufflenet_v1": convolution_grouped.shufflenet_v1,
    "shufflenet_v1_late": partial(convolution_grouped.shufflenet_v1, shuffle_last=True),
    "shuffle_gather": partial(convolution_grouped.shufflenet_v1, spelling="gather"),
    "shuffle_einsum": partial(convolution_grouped.shufflenet_v1, spelling="einsum"),
    "shuffle_matmul": partial(convolution_grouped.shufflenet_v1, spelling="matmul"),
    "shufflenet_v2": convolution_grouped.shufflenet_v2,
    "resnext": convolution_grouped.resnext,
    "dense_cnn": convolution_grouped.dense_cnn,
    "grouped_conv1d": partial(convolution_grouped.grouped_nd, rank=1),
    "grouped_conv2d": partial(convolution_grouped.grouped_nd, rank=2),
    "grouped_conv3d": partial(convolution_grouped.grouped_nd, rank=3),
    "depthwise_multiplier": convolution_grouped.depthwise_multiplier,
    "split_convolutions": convolution_grouped.split_convolutions,
    "condensenet_train": convolution_pruned.condensenet_train,
    "condensenet_converted": convolution_pruned.condensenet_converted,
    "condensenet_v2": convolution_pruned.condensenet_v2,
    "pruned_random": convolution_pruned.pruned_random,
    "pruned_grouped": partial(convolution_pruned.pruned_random, groups=2, density=0.4),
    "pruned_3x3": partial(convolution_pruned.pruned_random, kernel=3),
}


def build(name: str, **options: object) -> Sample:
    """The sample called `name`, with builder options; raises KeyError for an unknown name."""
    return SAMPLES[name](**options).named(name)
