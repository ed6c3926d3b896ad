"""Pictures of a site and its plan: the matrix as the model has it, in the plan's order, and as it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxopt.discover.attention_site import AttentionSite
from onnxopt.discover.conv_site import BoolArray, ConvSite, IntArray
from onnxopt.plan.attention import AttentionPlan, HeadPlan, filled_rows
from onnxopt.plan.convolution import ConvPlan
from onnxopt.plan.schedule import AttentionSchedule, ConvSchedule, PatternSchedule
from onnxopt.plan.strips import Strip
from onnxopt.report.blocks import Block, first_use, needed_places, placed_outlines, stacked_outlines
from onnxopt.report.picture import Kind, Picture, no_tiles
from onnxopt.report.raster import (
    MAX_CELLS,
    Axis,
    Classes,
    classes_of_lists,
    classes_of_matrix,
    classes_of_parts,
    count_cells,
    density_levels,
)

# Sites whose heads all differ are shown by their first patterns.
MAX_PATTERNS = 6


@dataclass(frozen=True, eq=False)
class _Matrix:
    """What is drawn: who needs what, the number of columns, and the order in which the model has both."""

    kind: Kind
    pattern: str
    order: str
    classes: Classes
    columns: int
    before: tuple[IntArray, IntArray]


def attention_pictures(site: AttentionSite, schedule: AttentionSchedule) -> list[Picture]:
    """Pictures of a schedule for one kernel: three for each of the first ``MAX_PATTERNS`` head patterns."""
    result = []
    for part in schedule.parts[:MAX_PATTERNS]:
        biased = _biased(site, part.heads)
        blocks = []
        for strip, number in zip(part.strips, part.variants, strict=True):
            variant = schedule.variants[number]
            height = _rounded(len(strip.rows), variant.row_granule)
            width = _rounded(len(strip.keys), variant.key_granule)
            blocks.append(_strip_block(strip, height, width, variant.keys, biased))
        result += _draw(_attention_matrix(site, part), blocks)
    return result


def portable_pictures(site: AttentionSite, plan: AttentionPlan) -> list[Picture]:
    """Pictures of a schedule in standard operators, whose strips are padded to their bucket's shape."""
    result = []
    for part in plan.parts[:MAX_PATTERNS]:
        biased = _biased(site, part.heads)
        padded = {number: bucket for bucket in part.buckets for number in bucket.strips}
        blocks = []
        for number, strip in enumerate(part.strips):
            bucket = padded[number]
            blocks.append(_strip_block(strip, bucket.rows, bucket.keys, bucket.keys, biased))
        result += _draw(_attention_matrix(site, part), blocks)
    return result


def conv_pictures(site: ConvSite, schedule: ConvSchedule, links: BoolArray | None = None) -> list[Picture]:
    """Pictures of a convolution's parts for one kernel: outputs x inputs, with the convolution's own numbers.

    ``links`` are its connections where outputs have been added up; the rows are then the sums.
    """
    blocks = []
    for part in schedule.parts:
        variant = schedule.variants[part.variant]
        height = _rounded(len(part.outputs), variant.output_granule)
        width = _rounded(len(part.inputs), variant.input_granule)
        blocks.append(Block(part.outputs, part.inputs, height, width, max(1, width)))
    classes = classes_of_parts(site.out_channels, site.parts) if links is None else classes_of_matrix(links)
    return _draw(_conv_matrix(classes, site.in_channels, schedule.order), blocks)


def layout_pictures(site: ConvSite, plan: ConvPlan) -> list[Picture]:
    """Pictures of a convolution written in standard operators; of the site alone where it is kept.

    Where the movement behind the convolution adds channels up, the rows are the sums.
    """
    classes = classes_of_parts(site.out_channels, site.parts)
    if plan.tail.mix is not None:
        classes = classes_of_matrix((plan.tail.mix @ site.links().astype(np.int64)) > 0)
    blocks = []
    if plan.layout is not None:
        height, width = plan.layout.outputs.shape[1], plan.layout.inputs.shape[1]
        for outputs, inputs in zip(plan.layout.outputs, plan.layout.inputs, strict=True):
            blocks.append(Block(outputs[outputs >= 0], inputs[inputs >= 0], height, width, max(1, width)))
    return _draw(_conv_matrix(classes, site.in_channels, "groups"), blocks)


def _strip_block(strip: Strip, height: int, width: int, tile: int, biased: bool) -> Block:
    return Block(strip.rows.astype(np.int64), strip.keys.astype(np.int64), height, width, max(1, tile), biased)


def _biased(site: AttentionSite, heads: Sequence[int]) -> bool:
    return site.bias_kind != "none" and any(int(site.head_bias[head]) >= 0 for head in heads)


def _rounded(count: int, granule: int) -> int:
    return -(-count // granule) * granule


def _attention_matrix(site: AttentionSite, part: PatternSchedule | HeadPlan) -> _Matrix:
    places = _token_places(site.query_tokens), _token_places(site.key_tokens)
    classes = classes_of_lists(site.lists[part.lists], filled_rows(site))
    pattern = describe_heads(part.heads, site.heads)
    return _Matrix("attention", pattern, part.order, classes, len(site.key_tokens), places)


def _conv_matrix(classes: Classes, inputs: int, order: str) -> _Matrix:
    before = np.arange(len(classes.row_class)), np.arange(inputs)
    return _Matrix("conv", "", order, classes, inputs, before)


def _token_places(tokens: IntArray) -> IntArray:
    """Where rows stand in the order of their tokens, so that no exporter's movement shows; phantoms come last."""
    result = np.empty(len(tokens), np.int64)
    result[np.lexsort((tokens, tokens < 0))] = np.arange(len(tokens))
    return result


def describe_heads(heads: Sequence[int], total: int) -> str:
    """``all 12 heads``, ``head 3``, ``heads 0 to 3, 7``, shortened where it gets long."""
    if len(heads) == total:
        return f"all {total} heads" if total > 1 else "its only head"
    runs: list[list[int]] = []
    for head in sorted(heads):
        if runs and head == runs[-1][-1] + 1:
            runs[-1].append(head)
        else:
            runs.append([head])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    shown = ", ".join(texts[:8]) + (", ..." if len(texts) > 8 else "")
    return f"{'head' if len(heads) == 1 else 'heads'} {shown}"


def _draw(matrix: _Matrix, blocks: Sequence[Block]) -> list[Picture]:
    result = [_before(matrix)]
    if not blocks:
        return result
    result.append(_after(matrix, blocks))
    # A single block without padding would look the same once more.
    if len(blocks) > 1 or blocks[0].height * blocks[0].width > len(matrix.classes.row_class) * matrix.columns:
        result.append(_stacked(matrix, blocks))
    return result


def _before(matrix: _Matrix) -> Picture:
    classes = matrix.classes
    rows, columns = Axis.of(len(classes.row_class)), Axis.of(matrix.columns)
    levels = density_levels(count_cells(classes, *matrix.before, rows, columns), rows, columns)
    needed = classes.pairs
    return Picture(matrix.kind, "before", matrix.pattern, "", rows, columns, needed, 0, levels, None, no_tiles())


def _after(matrix: _Matrix, blocks: Sequence[Block]) -> Picture:
    classes = matrix.classes
    rows, columns = Axis.of(len(classes.row_class)), Axis.of(matrix.columns)
    places = first_use(blocks, rows.size, columns.size)
    needed = density_levels(count_cells(classes, *places, rows, columns), rows, columns)
    covered, row_place = _covered(blocks, places[0])
    computed = density_levels(count_cells(covered, row_place, places[1], rows, columns), rows, columns)
    return Picture(
        matrix.kind,
        "after",
        matrix.pattern,
        matrix.order,
        rows,
        columns,
        classes.pairs,
        sum(block.height * block.width for block in blocks),
        needed,
        np.maximum(needed, computed),
        placed_outlines(blocks, classes, places, rows, columns),
        len(blocks),
    )


def _covered(blocks: Sequence[Block], row_place: IntArray) -> tuple[Classes, IntArray]:
    """The pairs that blocks compute, apart from padding: every row of a block is a row, every block a class."""
    heights = np.array([len(block.rows) for block in blocks])
    lengths = np.array([len(block.columns) for block in blocks])
    rows = np.concatenate([block.rows for block in blocks])
    classes = Classes(
        np.repeat(np.arange(len(blocks)), heights),
        lengths,
        lambda start, stop: np.concatenate([block.columns for block in blocks[start:stop]]),
    )
    return classes, row_place[rows]


def _stacked(matrix: _Matrix, blocks: Sequence[Block]) -> Picture:
    first, shown = _sample(blocks)
    rows = Axis.of(sum(block.height for block in shown))
    columns = Axis.of(max(block.width for block in shown))
    needed = np.zeros((rows.cells, columns.cells), np.int64)
    computed = np.zeros((rows.cells, columns.cells), np.int64)
    top = 0
    for block in shown:
        owners = matrix.classes.row_class[block.rows]
        lines = {
            owner: np.bincount(needed_places(block, matrix.classes, owner) // columns.step, minlength=columns.cells)
            for owner in np.unique(owners).tolist()
        }
        for number, owner in enumerate(owners.tolist()):
            needed[(top + number) // rows.step] += lines[owner]
        full = np.bincount(np.arange(block.width) // columns.step, minlength=columns.cells)
        np.add.at(computed, np.arange(top, top + block.height) // rows.step, full)
        top += block.height
    return Picture(
        matrix.kind,
        "blocks",
        matrix.pattern,
        matrix.order,
        rows,
        columns,
        int(needed.sum()),
        int(computed.sum()),
        density_levels(needed, rows, columns),
        density_levels(computed, rows, columns),
        stacked_outlines(shown, matrix.classes, rows, columns),
        len(blocks),
        first,
        len(shown),
    )


def _sample(blocks: Sequence[Block]) -> tuple[int, Sequence[Block]]:
    """Neighbouring blocks that fit a picture at one cell a row, from the middle where not all of them do."""
    if sum(block.height for block in blocks) <= MAX_CELLS:
        return 0, blocks
    first = len(blocks) // 2
    last, height = first + 1, blocks[first].height
    while last < len(blocks) and height + blocks[last].height <= MAX_CELLS:
        height += blocks[last].height
        last += 1
    return first, blocks[first:last]
