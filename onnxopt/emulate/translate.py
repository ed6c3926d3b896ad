"""PTX into the C++ of a program that emulates it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxopt.emulate.accumulators import Body, live_at, tracked_registers
from onnxopt.emulate.context import Context, variable_name
from onnxopt.emulate.cursor import TYPE_BYTES
from onnxopt.emulate.emit import CONTROL, Emitter, Shared, call_parts, function_name, label_name
from onnxopt.emulate.errors import EmulationError
from onnxopt.emulate.layout import Layout, Parameter, lay_out, parameter_block
from onnxopt.emulate.opcode import Emission, WarpgroupMma
from onnxopt.emulate.parser import parse_ptx
from onnxopt.emulate.ptx import Function, Instruction, Label, Module
from onnxopt.emulate.table import emission_of


@dataclass(frozen=True)
class Program:
    """A kernel in C++. `kernel` and `collectives` are translation units; the second holds the matrix instructions.

    `threads` is the largest block that the kernel's launch bounds allow (None: not given), `required` the exact one.
    `instructions` maps PTX lines to their text, `variables` names the windows in front of the arguments'.
    """

    entry: str
    kernel: str
    collectives: str
    parameters: tuple[Parameter, ...]
    parameter_bytes: int
    counters: tuple[str, ...]
    variables: tuple[str, ...]
    instructions: Mapping[int, str]
    threads: int | None
    required: tuple[int, ...] | None


def translate_ptx(ptx: str, entry: str) -> str:
    """The C++ of the kernel `entry`. Raises EmulationError for what the emulator does not support, with its line."""
    return translate(ptx, entry).kernel


def translate(ptx: str, entry: str) -> Program:
    """The kernel `entry` of a PTX text as a program. Raises EmulationError as `translate_ptx` does."""
    module = parse_ptx(ptx)
    function = _find_entry(module, entry)
    reached = _reachable(module, function)
    layout = lay_out(module, reached)
    shared = Shared()
    bodies = {item.name: [_emission(part) for part in item.body] for item in reached}
    texts = [_function_text(item, bodies[item.name], layout, shared) for item in reached]
    parameters, size = parameter_block(function)
    proxy = any(_reads_through_proxy(part, emission) for body in bodies.values() for part, emission in body)
    limit = function.limits.get("maxntid")
    lines = ptx.splitlines()
    return Program(
        entry=entry,
        kernel=_kernel_text(texts, layout, shared, function_name(entry), size, proxy),
        collectives=_collectives_text(shared),
        parameters=parameters,
        parameter_bytes=size,
        counters=tuple(shared.counters),
        variables=tuple(variable.name for variable in layout.variables),
        instructions={
            part.line: lines[part.line - 1].strip()
            for item in reached
            for part in item.body
            if isinstance(part, Instruction)
        },
        threads=None if limit is None else _product(limit),
        required=function.limits.get("reqntid"),
    )


def _find_entry(module: Module, entry: str) -> Function:
    found = [function for function in module.functions if function.entry and function.name == entry]
    if not found:
        names = ", ".join(function.name for function in module.functions if function.entry) or "none"
        raise EmulationError(f"the PTX has no kernel {entry!r}; it has: {names}")
    return found[0]


def _reachable(module: Module, entry: Function) -> list[Function]:
    """The functions that the entry calls, each in front of its callers. Recursion is refused."""
    functions = {function.name: function for function in module.functions if not function.entry}
    done: dict[str, Function] = {}

    def visit(function: Function, callers: tuple[str, ...]) -> None:
        if function.name in done:
            return
        for part in function.body:
            if isinstance(part, Instruction) and part.opcode == "call":
                _, name, _ = call_parts(part.operands, part.line)
                if name not in functions:
                    raise EmulationError(
                        f"PTX line {part.line}: a call of {name}, which the PTX does not define", part.line
                    )
                if name in callers or name == function.name:
                    raise EmulationError(
                        f"PTX line {part.line}: a recursive call of {name} is not supported", part.line
                    )
                visit(functions[name], (*callers, function.name))
        done[function.name] = function

    visit(entry, ())
    return list(done.values())


def _emission(part: Instruction | Label) -> tuple[Instruction | Label, Emission | None]:
    if isinstance(part, Label) or part.opcode in CONTROL:
        return part, None
    return part, emission_of(part)


def _reads_through_proxy(part: Instruction | Label, emission: Emission | None) -> bool:
    if isinstance(emission, WarpgroupMma):
        return True
    return isinstance(part, Instruction) and part.name.startswith("cp.async.bulk.global.shared")


def _is_wait(instruction: Instruction) -> bool:
    return instruction.name.startswith("wgmma.wait_group")


def _function_text(function: Function, body: Body, layout: Layout, shared: Shared) -> str:
    tracked = tracked_registers(body)
    settle = live_at(body, tracked, function.branch_targets, _is_wait) if tracked else {}
    parameters, _ = parameter_block(function)
    offsets = {parameter.name: parameter.offset for parameter in parameters} if function.entry else {}
    context = Context(function, {**layout.addresses, **offsets}, _arrays(function), tracked)
    labels = {part.name: place for place, (part, _) in enumerate(body) if isinstance(part, Label)}
    emitter = Emitter(context, shared, labels)
    lines: list[str] = []
    for place, (part, emission) in enumerate(body):
        if isinstance(part, Label):
            lines.append(f"{label_name(part.name)}:;")
        else:
            lines.append("  " + emitter.instruction(part, emission, place, settle.get(place, ())))
    head = _signature(function)
    local = [
        f"  uint8_t {variable_name(variable.name)}[{variable.size or 1}];"
        for variable in function.variables
        if variable.space == "param"
    ]
    return "\n".join([f"{head} {{", *_declarations(context), *local, *lines, "}"])


def _signature(function: Function) -> str:
    if function.entry:
        return f"static void {function_name(function.name)}(Thread& t)"
    return f"static void {function_name(function.name)}(Thread& t, const uint8_t* const* given, uint8_t* const* wanted)"


def _arrays(function: Function) -> dict[str, tuple[str, str]]:
    """The parameters in C++ arrays as (what is read, what is written)."""
    found: dict[str, tuple[str, str]] = {}
    for variable in function.variables:
        if variable.space == "param":
            name = variable_name(variable.name)
            found[variable.name] = (name, name)
    if not function.entry:
        for index, variable in enumerate(function.parameters):
            found[variable.name] = (f"given[{index}]", f"const_cast<uint8_t*>(given[{index}])")
        for index, variable in enumerate(function.results):
            found[variable.name] = (f"wanted[{index}]", f"wanted[{index}]")
    return found


def _declarations(context: Context) -> list[str]:
    """Every register that the code mentions. Unwritten ones hold a fixed NaN, so that a run can be repeated."""
    registers = context.function.registers
    lines = ["  bool carry = false; (void)carry;"]
    for name in sorted(context.used):
        kind = registers[name]
        if kind == "pred":
            lines.append(f"  bool {variable_name(name)} = false;")
        else:
            width = 8 * TYPE_BYTES[kind]
            lines.append(f"  uint{width}_t {variable_name(name)} = static_cast<uint{width}_t>(kUnwritten);")
    return lines


def _kernel_text(texts: list[str], layout: Layout, shared: Shared, entry: str, parameters: int, proxy: bool) -> str:
    declared = [f"void matrix_{index}({call}& call);" for index, (_, call) in enumerate(shared.functions)]
    data, table = [], []
    for index, variable in enumerate(layout.variables):
        initial = "nullptr"
        if variable.initial is not None and any(variable.initial):
            data.append(f"static const uint8_t data_{index}[] = {{{', '.join(map(str, variable.initial))}}};")
            initial = f"data_{index}"
        table.append(f"{{{initial}, {variable.size}, {int(variable.space == 'const')}}}")
    references = [
        f"{{{index}, {offset}, UINT64_C({layout.addresses[name] + shift})}}"
        for index, variable in enumerate(layout.variables)
        for offset, name, shift in variable.references
        if name in layout.addresses
    ]
    numbers = (
        f"{parameters}, {layout.shared_bytes}, {layout.local_bytes}, {int(proxy)}, {len(table)}, {len(references)}, "
        f"{len(shared.counters)}"
    )
    return "\n".join(
        [
            '#include "kernel.h"',
            "namespace emu {",
            *declared,
            "namespace {",
            *texts,
            *data,
            f"const ModuleVariable variables[] = {{{', '.join([*table, '{nullptr, 0, 0}'])}}};",
            f"const ModuleReference references[] = {{{', '.join([*references, '{0, 0, 0}'])}}};",
            "}  // namespace",
            "}  // namespace emu",
            f"const emu::Kernel emu_kernel = {{emu::{entry}, {numbers}, emu::variables, emu::references}};",
            "",
        ]
    )


def _collectives_text(shared: Shared) -> str:
    calls = {call for _, call in shared.functions}
    lines = ['#include "warp_call.h"']
    lines += ['#include "matrix.h"'] if "WarpCall" in calls else []
    lines += ['#include "warpgroup.h"'] if "WarpgroupCall" in calls else []
    lines.append("namespace emu {")
    lines += [
        f"void matrix_{index}({call}& call) {{ {name}(call); }}" for index, (name, call) in enumerate(shared.functions)
    ]
    return "\n".join([*lines, "}  // namespace emu", ""])


def _product(numbers: tuple[int, ...]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result
