"""Which registers may hold an accumulator of wgmma before its wait, and which of them a wait has to complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from onnxopt.emulate.emit import CONTROL
from onnxopt.emulate.opcode import Code, Collective, Emission, WarpgroupMma
from onnxopt.emulate.ptx import BranchTargets, Instruction, Label, Operand, Register, Symbol

Body = Sequence[tuple[Instruction | Label, Emission | None]]


def tracked_registers(body: Body) -> frozenset[str]:
    """The accumulators of every wgmma.mma_async and the registers that moves copy them to."""
    tracked: set[str] = set()
    moves: list[tuple[str, str]] = []
    for _, emission in body:
        if isinstance(emission, WarpgroupMma):
            tracked.update(_names(emission.accumulators))
        elif isinstance(emission, Code) and emission.copies:
            (source,), (target,) = emission.inputs.values(), emission.outputs.values()
            if isinstance(source.operand, Register) and isinstance(target.operand, Register):
                moves.append((source.operand.name, target.operand.name))
    if not tracked:
        return frozenset()
    grown = True
    while grown:
        added = {target for source, target in moves if source in tracked} - tracked
        grown = bool(added)
        tracked |= added
    return frozenset(tracked)


def live_at(
    body: Body, tracked: frozenset[str], targets: Sequence[BranchTargets], wanted: Callable[[Instruction], bool]
) -> dict[int, tuple[str, ...]]:
    """For each place whose instruction is wanted: the tracked registers that something reads afterwards, sorted.

    Backward liveness over the control-flow graph; sets of registers are the bits of an integer.
    """
    names = sorted(tracked)
    bit = {name: 1 << index for index, name in enumerate(names)}
    effects = [_effect(item, emission, bit) for item, emission in body]
    following = list(_successors(body, targets))
    live = [0] * (len(body) + 1)
    changed = True
    while changed:
        changed = False
        for place in range(len(body) - 1, -1, -1):
            after = 0
            for successor in following[place]:
                after |= live[successor]
            reads, writes = effects[place]
            before = reads | (after & ~writes)
            if before != live[place]:
                live[place] = before
                changed = True
    found: dict[int, tuple[str, ...]] = {}
    for place, (item, _) in enumerate(body):
        if isinstance(item, Instruction) and wanted(item):
            after = 0
            for successor in following[place]:
                after |= live[successor]
            found[place] = tuple(name for name in names if after & bit[name])
    return found


def _names(operands: Sequence[Operand]) -> Iterator[str]:
    return (operand.name for operand in operands if isinstance(operand, Register))


def _effect(item: Instruction | Label, emission: Emission | None, bit: dict[str, int]) -> tuple[int, int]:
    """The tracked registers that an instruction reads, and those that it surely overwrites."""
    if emission is None or isinstance(item, Label):
        return 0, 0
    reads: Sequence[Operand]
    writes: Sequence[Operand]
    if isinstance(emission, Code):
        reads = [typed.operand for typed in emission.inputs.values()]
        writes = [typed.operand for typed in emission.outputs.values()]
    elif isinstance(emission, Collective):
        reads, writes = emission.inputs, emission.outputs
    else:
        reads, writes = (*emission.accumulators, *emission.a), ()
    read = sum({bit.get(name, 0) for name in _names(reads)})
    written = 0 if item.predicate else sum({bit.get(name, 0) for name in _names(writes)})
    return read, written


def _successors(body: Body, targets: Sequence[BranchTargets]) -> Iterator[tuple[int, ...]]:
    places = {item.name: place for place, (item, _) in enumerate(body) if isinstance(item, Label)}
    tables = {table.name: table.labels for table in targets}
    for place, (item, _) in enumerate(body):
        ahead = (place + 1,)
        if isinstance(item, Label) or item.opcode not in CONTROL or item.opcode == "call":
            yield ahead
            continue
        goals: tuple[int, ...] = ()
        if item.opcode == "bra":
            goals = tuple(
                places[name.name] for name in item.operands if isinstance(name, Symbol) and name.name in places
            )
        elif item.opcode == "brx":
            labels = [
                label for name in item.operands if isinstance(name, Symbol) for label in tables.get(name.name, ())
            ]
            goals = tuple(places[label] for label in labels if label in places)
        yield (*goals, *ahead) if item.predicate else goals
