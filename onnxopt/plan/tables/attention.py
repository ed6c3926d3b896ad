"""From a schedule of an attention to the tables that its kernel reads; ``docs/tables.md`` says what they mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxopt.discover.attention_site import AttentionSite, EmptyRow
from onnxopt.plan.schedule import AttentionSchedule, PatternSchedule
from onnxopt.plan.tables.addresses import Shapes, destinations, place_operand
from onnxopt.plan.tables.compute_type import compute_type
from onnxopt.plan.tables.marks import PartMarks, head_biases
from onnxopt.plan.tables.pieces import MOST_ENTRIES, NoTables, Pool
from onnxopt.plan.tables.slots import Slots
from onnxopt.plan.tables.tiles import TilePools
from onnxopt.plan.tables.types import JOB_COLUMNS, AttentionKernel, AttentionTables, RuntimeWeights
from onnxopt.plan.tables.weights import own_weights
from onnxopt.target.variant import AttentionVariant

_COLUMN = {name: index for index, name in enumerate(JOB_COLUMNS)}


def attention_tables(
    site: AttentionSite,
    schedule: AttentionSchedule,
    *,
    shapes: Shapes | None = None,
    weights: RuntimeWeights | None = None,
) -> AttentionTables:
    """The tables of a site by its schedule, which is taken to be valid.

    ``shapes`` has the shapes of the site's tensors that hold their channels first; ``weights`` are the run-time
    weights of its keys, those of the site itself if None. Raises :class:`NoTables` with the reason where the tables
    cannot describe the site: a mask that depends on the input and is not understood as weights, an operand in several
    tensors of which one has its channels first, or tensors beyond 31 bits.
    """
    weights = weights or own_weights(site)
    if weights is not None and schedule.split_keys:
        raise NoTables(f"{site.id}: run-time weights with split keys are not supported; plan it without a split")
    _check_variants(schedule)
    return _Builder(site, schedule, shapes or {}, weights).build()


def _check_variants(schedule: AttentionSchedule) -> None:
    for variant in schedule.variants:
        if variant.rows % variant.row_granule or variant.keys % variant.key_granule:
            raise NoTables(
                f"variant {variant.describe()!r} is no multiple of {variant.row_granule} rows x "
                f"{variant.key_granule} keys"
            )


@dataclass
class _Builder:
    site: AttentionSite
    schedule: AttentionSchedule
    shapes: Shapes
    weights: RuntimeWeights | None

    def __post_init__(self) -> None:
        site = self.site
        self.q = place_operand(site.q, _asked_queries(site), self.shapes)
        self.k = place_operand(site.k, site.key_vectors, self.shapes)
        self.v = place_operand(site.v, site.value_vectors, self.shapes)
        self.own_values = not np.array_equal(self.k.relative, self.v.relative)
        self.split = self.schedule.split_keys > 0
        self.computed = _computed(site, self.schedule)
        self.to = destinations(site, self.computed)
        self.biases = [head_biases(site, head) for head in range(site.heads)]
        self.slots = Slots(np.full(self.computed.shape, -1), np.zeros(self.computed.shape, np.int64))
        parallel = 1 if self.weights is not None else 0
        self.row_pool = Pool.of_int32(-1, -1, *[-1] * parallel)
        self.key_pool = Pool.of_int32(-1, *[-1] * parallel)
        self.value_pool = Pool.of_int32(-1)
        self.extra_pool = Pool.of_int32(-1, width=2)
        self.tiles = TilePools(compute_type(self.schedule.element))

    def build(self) -> AttentionTables:
        site, schedule = self.site, self.schedule
        jobs = np.zeros((len(schedule.jobs), len(JOB_COLUMNS)), np.int64)
        for number, part in enumerate(schedule.parts):
            mine = np.flatnonzero(schedule.jobs[:, 0] == number)
            jobs[mine] = self._part(part, schedule.jobs[mine])
        if self.slots.total * site.v.width > MOST_ENTRIES:
            raise NoTables(f"{site.id}: {self.slots.total:,} partial results are more than a kernel can address")
        if not self.split:
            jobs = self._with_extras(jobs)
            jobs = np.concatenate([jobs, self._zero_jobs()])
        rows = self.row_pool.arrays()
        keys = self.key_pool.arrays()
        masks, biases = not self.tiles.masks.empty, not self.tiles.biases.empty
        if not (masks or biases):
            jobs[:, _COLUMN["tile_begin"]] = 0
        weighed = self.weights
        kernel = self._kernel(masks, biases)
        return AttentionTables(
            site=site.id,
            inputs=self._inputs(),
            output=site.output,
            kernel=kernel,
            jobs=jobs.astype(np.int32),
            rows=rows[0],
            results=rows[1],
            keys=keys[0],
            values=self.value_pool.arrays()[0] if self.own_values else None,
            tiles=self.tiles.lines.arrays()[0] if masks or biases else None,
            masks=self.tiles.masks.arrays()[0] if masks else None,
            biases=self.tiles.biases.arrays()[0] if biases else None,
            scales=np.asarray(site.scale, np.float32),
            extras=self.extra_pool.arrays()[0] if kernel.extras else None,
            columns=keys[1] if weighed is not None else None,
            diagonals=rows[2] if weighed is not None else None,
            epsilons=np.array(weighed.epsilons, np.float32) if weighed is not None else None,
            merge=self.slots.merge(self.to, kernel) if self.split else None,
        )

    def _inputs(self) -> tuple[tuple[str, ...], ...]:
        names = [tuple(s.tensor for s in operand.sources) for operand in (self.site.q, self.site.k, self.site.v)]
        return tuple(names) if self.weights is None else (*names, (self.weights.tensor,))

    def _kernel(self, masks: bool, biases: bool) -> AttentionKernel:
        return AttentionKernel(
            element=self.schedule.element,
            variants=self.schedule.variants,
            heads=self.site.heads,
            width=self.site.q.width,
            value_width=self.site.v.width,
            q=self.q.layout,
            k=self.k.layout,
            v=self.v.layout,
            y=self.to.first.layout,
            own_values=self.own_values,
            masks=masks,
            biases=biases,
            extras=not self.extra_pool.empty,
            slots=self.slots.total,
            columns=0 if self.weights is None else self.weights.width,
        )

    def _part(self, part: PatternSchedule, jobs: np.ndarray) -> np.ndarray:
        """The lines of the jobs (part, strip, head) of one part."""
        results: np.ndarray | list[np.ndarray]
        if self.split:
            results, bases = self.slots.number(part)
        else:
            own = self.to.first
            results, bases = own.relative[list(part.heads)], own.shifts[list(part.heads)]
        begins = self._pieces(part, results)
        place = np.full(self.site.heads, -1)
        place[list(part.heads)] = np.arange(len(part.heads))
        strips, heads = jobs[:, 1].astype(np.int64), jobs[:, 2].astype(np.int64)
        sizes = np.array([(len(s.rows), len(s.keys)) for s in part.strips], np.int64).reshape(-1, 2)
        columns = {
            "variant": np.array(part.variants, np.int64)[strips],
            "head": heads,
            "row_count": sizes[strips, 0],
            "key_count": sizes[strips, 1],
            "q_shift": self.q.shifts[heads],
            "k_shift": self.k.shifts[heads],
            "v_shift": self.v.shifts[heads],
            "y_shift": bases[place[heads]],
        }
        for column, name in enumerate(("row_begin", "key_begin", "value_begin", "tile_begin")):
            columns[name] = begins[strips, place[heads], column]
        lines = np.zeros((len(jobs), len(JOB_COLUMNS)), np.int64)
        for name, values in columns.items():
            lines[:, _COLUMN[name]] = values
        return lines

    def _pieces(self, part: PatternSchedule, results: np.ndarray | list[np.ndarray]) -> np.ndarray:
        """Where the rows, keys, values and tiles of strips x heads begin.

        ``results`` are heads x rows of the site or, where keys are split, the numbers of each strip's rows.
        """
        tables = [table.relative[list(part.heads)] for table in (self.q, self.k, self.v)]
        classes = _classes(tables if isinstance(results, list) else [*tables, results])
        looks = self._looks(part)
        marks = PartMarks(self.site, part)
        begins = np.zeros((len(part.strips), len(part.heads), 4), np.int64)
        for number, strip in enumerate(part.strips):
            variant = self.schedule.variants[part.variants[number]]
            for places in classes:
                own = results[number] if isinstance(results, list) else results[places[0], strip.rows]
                vectors = self._vectors(strip.rows, strip.keys, part.heads[places[0]], own, variant)
                begins[number, places, :3] = vectors
            for places, begin in zip(looks, self._tiles(part, number, marks, looks), strict=True):
                begins[number, places, 3] = begin
        return begins

    def _vectors(
        self, rows: np.ndarray, keys: np.ndarray, head: int, results: np.ndarray, variant: AttentionVariant
    ) -> tuple[int, int, int]:
        of_rows, of_keys = [self.q.relative[head, rows], results], [self.k.relative[head, keys]]
        if self.weights is not None:
            of_rows.append(self.weights.diagonals[rows])
            of_keys.append(self.weights.columns[keys])
        row_begin = self.row_pool.add(*of_rows, granule=variant.row_granule)
        key_begin = self.key_pool.add(*of_keys, granule=variant.key_granule)
        if not self.own_values:
            return row_begin, key_begin, key_begin
        values = self.v.relative[head, keys]
        return row_begin, key_begin, self.value_pool.add(values, granule=variant.key_granule)

    def _looks(self, part: PatternSchedule) -> list[list[int]]:
        """The part's heads, by place in it, by what their tiles depend on."""
        kinds: dict[tuple[int, bytes], list[int]] = {}
        for place, head in enumerate(part.heads):
            index = -1 if self.biases[head] is None else int(self.site.head_bias[head])
            empty = self.site.head_empty[head].tobytes() if self.site.empty_kind is not None else b""
            kinds.setdefault((index, empty), []).append(place)
        return list(kinds.values())

    def _tiles(self, part: PatternSchedule, number: int, marks: PartMarks, looks: list[list[int]]) -> list[int]:
        """Where the lines of a strip begin for each of the looks."""
        strip, variant = part.strips[number], self.schedule.variants[part.variants[number]]
        needed = None
        begins = []
        for places in looks:
            head = part.heads[places[0]]
            bias = self.biases[head]
            nan = np.zeros(len(strip.rows), bool)
            if self.site.empty_kind is EmptyRow.NAN:
                nan = self.site.head_empty[head, strip.rows]
            if strip.full and bias is None and not nan.any() and not marks.earlier:
                begins.append(self.tiles.full(-(-len(strip.keys) // variant.keys)))
                continue
            needed = marks.needed(number) if needed is None else needed
            shape = (len(strip.rows), len(strip.keys))
            begins.append(self.tiles.strip(variant, shape, needed, bias, nan))
        return begins

    def _with_extras(self, jobs: np.ndarray) -> np.ndarray:
        """The jobs with the further places of results that the output repeats."""
        further: dict[int, list[tuple[int, int]]] = {}
        strip_of: dict[int, dict[int, tuple[int, int]]] = {}
        job_of = {tuple(job): number for number, job in enumerate(self.schedule.jobs.tolist())}
        for result, offset in self.to.further.tolist():
            head, row = divmod(result, self.site.rows)
            number = next(n for n, part in enumerate(self.schedule.parts) if head in part.heads)
            if number not in strip_of:
                strips = self.schedule.parts[number].strips
                strip_of[number] = {r: (s, i) for s, own in enumerate(strips) for i, r in enumerate(own.rows.tolist())}
            strip, index = strip_of[number][row]
            further.setdefault(job_of[number, strip, head], []).append((index, offset))
        for job, lines in further.items():
            jobs[job, _COLUMN["extra_begin"]] = self.extra_pool.add(np.array(lines))
            jobs[job, _COLUMN["extra_count"]] = len(lines)
        return jobs

    def _zero_jobs(self) -> np.ndarray:
        """Jobs without keys for the blocks of the output that no result reaches."""
        step = self.schedule.variants[0].rows
        lines = []
        for begin in range(0, len(self.to.zeros), step):
            places = self.to.zeros[begin : begin + step]
            none = np.full(len(places), -1)
            columns = [none, places, *([none] if self.weights is not None else [])]
            line = np.zeros(len(JOB_COLUMNS), np.int64)
            line[_COLUMN["row_begin"]] = self.row_pool.add(*columns, granule=self.schedule.variants[0].row_granule)
            line[_COLUMN["row_count"]] = len(places)
            lines.append(line)
        return np.array(lines, np.int64).reshape(-1, len(JOB_COLUMNS))


def _asked_queries(site: AttentionSite) -> np.ndarray:
    """Query vectors; rows whose keys weigh alike whatever their scores have a zero vector."""
    if site.empty_kind is not EmptyRow.UNIFORM:
        return site.query_vectors
    return np.where(site.head_empty, -1, site.query_vectors)


def _computed(site: AttentionSite, schedule: AttentionSchedule) -> np.ndarray:
    """Heads x rows: whether a strip computes the result."""
    result = np.zeros((site.heads, site.rows), bool)
    for part in schedule.parts:
        for strip in part.strips:
            result[np.array(part.heads)[:, None], strip.rows] = True
    return result


def _classes(tables: list[np.ndarray]) -> list[list[int]]:
    """Rows of the tables, by number, that are equal in all of them."""
    kinds: dict[tuple[bytes, ...], list[int]] = {}
    for number in range(len(tables[0])):
        kinds.setdefault(tuple(table[number].tobytes() for table in tables), []).append(number)
    return list(kinds.values())
