"""Makes the job that ``attention_gpu.py`` measures: sites of models, masks of vision transformers, block-sparse ones.

    python -m benchmarks.attention_gpu_job OUT [MODEL]... [--target sm_90] [--dtype fp16] [--cache DIR]

Each mask is there three times: as it is planned, and by fixed 64x64 and 128x128 tiles of the same kernel, where every
tile with a needed pair is computed. Needs no GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import numpy as np

from benchmarks.planner_masks import longformer, neighbourhood, site_of
from onnxopt.discover.attention_site import AttentionSite, KeyLists
from onnxopt.kernel_plans import KernelPlanner
from onnxopt.kernels.compiler import architecture_for
from onnxopt.measure.job.build import Request, build_job
from onnxopt.measure.site_requests import site_request, site_requests
from onnxopt.plan.schedule import AttentionSchedule, PatternSchedule
from onnxopt.plan.strips import Strip
from onnxopt.plan.tables import attention_tables
from onnxopt.target import load_target
from onnxopt.target.variant import AttentionVariant, Element

# The fixed tiles: four warps with 16 or 32 rows each.
_TILES = {64: AttentionVariant("mma", 64, 64, 4, 2), 128: AttentionVariant("mma", 128, 128, 4, 2)}


def masks() -> Iterator[AttentionSite]:
    """Sites without a model: windows and chunks at 224 to 1,024 pixels, block-sparse ones of 16k and 32k tokens."""
    for size, chunk in ((56, 7), (96, 7), (64, 8)):
        yield longformer(size, chunk)
    for size, window in ((56, 7), (64, 13)):
        yield neighbourhood(size, window)
    for tokens, share in ((16384, 0.05), (16384, 0.25), (16384, 0.5), (32768, 0.05)):
        yield block_sparse(tokens, 128, share)


def block_sparse(tokens: int, block: int, share: float) -> AttentionSite:
    """Aligned square blocks, of each row of blocks the same share at random places, two heads of 128 channels."""
    rng = np.random.default_rng(tokens)
    blocks = tokens // block
    chosen = [np.sort(rng.permutation(blocks)[: max(1, round(share * blocks))]) for _ in range(blocks)]
    keys = [(own[:, None] * block + np.arange(block)).ravel() for own in chosen]
    offsets = np.cumsum([0] + [len(own) for own in keys]).astype(np.int64)
    row_list = np.repeat(np.arange(blocks), block).astype(np.int32)
    lists = KeyLists(row_list, offsets, np.concatenate(keys).astype(np.int32))
    return site_of(f"block-sparse {tokens} tokens, {share:.0%}", lists, tokens, heads=2, width=128)


def fixed_tiles(site: AttentionSite, planned: AttentionSchedule, size: int) -> AttentionSchedule:
    """The model's own rows and keys in square tiles, of which those with a needed pair are computed."""
    lists = site.lists[0]
    strips = []
    for first in range(0, site.rows, size):
        rows = np.arange(first, min(first + size, site.rows))
        own = np.unique(lists.row_list[rows])
        tiles = np.unique(np.concatenate([lists.keys[lists.offsets[i] : lists.offsets[i + 1]] for i in own]) // size)
        keys = (tiles[:, None] * size + np.arange(size)).ravel()
        keys = keys[keys < len(site.key_tokens)]
        full = all(lists.offsets[i + 1] - lists.offsets[i] == len(keys) for i in own)
        strips.append(Strip(rows, keys, full))
    strips.sort(key=lambda strip: -len(strip.keys))
    heads = tuple(range(site.heads))
    part = PatternSchedule(heads, 0, "as is", tuple(strips), (0,) * len(strips))
    jobs = np.array([(0, strip, head) for strip in range(len(strips)) for head in heads], np.int32)
    computed = sum(-(-len(s.rows) // 16) * 16 * -(-len(s.keys) // 16) * 16 for s in strips) * site.heads
    variants = (_TILES[size],)
    return replace(planned, variants=variants, resident=1, parts=(part,), jobs=jobs, split_keys=0, computed=computed)


def requests_of(site: AttentionSite, planner: KernelPlanner) -> list[Request]:
    """A mask as it is planned, and by fixed tiles."""
    planned = planner.attention(site)[0]
    result = [site_request(f"{site.id}/planned", planned, attention_tables(site, planned), 1)]
    for size in _TILES:
        schedule = fixed_tiles(site, planned, size)
        result.append(site_request(f"{site.id}/fixed {size}x{size}", schedule, attention_tables(site, schedule), 1))
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the job; prints what was left out."""
    parser = argparse.ArgumentParser(prog="attention_gpu_job", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", help="a new folder")
    parser.add_argument("models", nargs="*", help="models whose sites are measured too")
    parser.add_argument("--target", default="sm_90")
    parser.add_argument("--dtype", default="fp16", choices=get_args(Element))
    parser.add_argument("--cache", help="folder for plans and compiled kernels")
    parser.add_argument("--only", default="", help="masks whose name contains this text")
    options = parser.parse_args(arguments)
    gpu = load_target(options.target).need_gpu_profile()
    cache = Path(options.cache) if options.cache else None
    planner = replace(KernelPlanner.at(gpu, "time", cache), element=cast(Element, options.dtype))
    chosen = [site for site in masks() if options.only in site.id]
    requests = [request for site in chosen for request in requests_of(site, planner)]
    of_models, left_out = site_requests([Path(model) for model in options.models], planner)
    for name, reason in left_out:
        print(f"left out: {name}: {reason}")
    job = build_job(Path(options.out), [*requests, *of_models], [architecture_for(gpu.architecture)], cache=cache)
    print(f"{options.out}: {len(job.entries)} operators")
    return 0


if __name__ == "__main__":
    sys.exit(main())
