"""PTX text into a Module."""

from __future__ import annotations

from onnxopt.emulate.body import BodyParser
from onnxopt.emulate.cursor import STATE_SPACES, Cursor, read_variables
from onnxopt.emulate.lexer import tokens
from onnxopt.emulate.ptx import Function, Module, Variable

_LINKING = frozenset({".visible", ".extern", ".weak", ".common"})
_LIMITS = frozenset({"maxntid", "reqntid", "minnctapersm", "maxnreg", "maxnctapersm"})


def parse_ptx(text: str) -> Module:
    """Reads a whole PTX text. Raises EmulationError with the line of what it cannot read or does not support."""
    cursor = Cursor(tokens(text))
    version, target = "", ""
    variables: list[Variable] = []
    functions: list[Function] = []
    while cursor.token.kind != "end":
        extern = False
        while cursor.token.text in _LINKING:
            extern |= cursor.take().text == ".extern"
        line = cursor.token.line
        directive = cursor.take().text
        if directive == ".version":
            version = cursor.take().text
        elif directive == ".target":
            target = cursor.word()
            while cursor.accept(","):
                cursor.word()
        elif directive == ".address_size":
            if cursor.integer() != 64:
                cursor.fail("only 64-bit addresses are supported")
        elif directive[1:] in STATE_SPACES:
            variables.extend(read_variables(cursor, directive[1:], extern))
            cursor.expect(";")
        elif directive in (".entry", ".func"):
            function = _read_function(cursor, line, directive == ".entry")
            if function is not None:
                functions.append(function)
        elif directive == ".file":
            cursor.skip_line()
        elif directive == ".section":
            _skip_section(cursor)
        else:
            cursor.fail(f"the directive {directive} is not supported")
    return Module(version, target, tuple(variables), tuple(functions))


def _read_function(cursor: Cursor, line: int, entry: bool) -> Function | None:
    """A function; None for a declaration without a body."""
    results = () if entry else _read_parameters(cursor)
    name = cursor.word()
    parameters = _read_parameters(cursor)
    limits: dict[str, tuple[int, ...]] = {}
    while cursor.token.kind == "directive":
        directive = cursor.take().text[1:]
        if directive in _LIMITS:
            numbers = [cursor.integer()]
            while cursor.accept(","):
                numbers.append(cursor.integer())
            limits[directive] = tuple(numbers)
        elif directive != "noreturn":
            cursor.fail(f"the directive .{directive} of {name} is not supported")
    if cursor.accept(";"):
        return None
    body = BodyParser(cursor)
    body.read()
    return Function(
        line=line,
        name=name,
        entry=entry,
        results=results,
        parameters=parameters,
        limits=limits,
        registers=body.registers,
        variables=tuple(body.variables),
        branch_targets=tuple(body.branch_targets),
        body=tuple(body.body),
    )


def _read_parameters(cursor: Cursor) -> tuple[Variable, ...]:
    found: list[Variable] = []
    if not cursor.accept("("):
        return ()
    while not cursor.accept(")"):
        if cursor.take().text != ".param":
            cursor.fail("expected a .param")
        found.extend(read_variables(cursor, "param", extern=False))
        cursor.accept(",")
    return tuple(found)


def _skip_section(cursor: Cursor) -> None:
    while not cursor.accept("{"):
        cursor.take()
    while not cursor.accept("}"):
        cursor.take()
