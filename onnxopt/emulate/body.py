"""The body of a function: instructions, labels, and the names that its scopes declare."""

from __future__ import annotations

from onnxopt.emulate.cursor import STATE_SPACES, TYPE_BYTES, Cursor, read_variables
from onnxopt.emulate.lexer import number_bits
from onnxopt.emulate.ptx import (
    Address,
    BranchTargets,
    Immediate,
    Instruction,
    Label,
    Negated,
    Operand,
    Pair,
    Predicate,
    Register,
    Sink,
    Symbol,
    Variable,
    Vector,
)

_MODULUS = 1 << 64

# Kernels have a few ten thousand; a file from elsewhere may say anything.
_MOST_REGISTERS = 1_000_000


class BodyParser:
    """Reads `{ ... }`. Names of inner scopes get a number behind them, so that every name is unique afterwards."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._scopes: list[tuple[int, dict[str, str]]] = []
        self._count = 0
        self.registers: dict[str, str] = {}
        self.variables: list[Variable] = []
        self.branch_targets: list[BranchTargets] = []
        self.body: list[Instruction | Label] = []

    def read(self) -> None:
        """Reads from the opening brace to the closing one."""
        self._cursor.expect("{")
        self._scopes.append((0, {}))
        while self._scopes:
            self._statement()

    def _statement(self) -> None:
        cursor = self._cursor
        token = cursor.token
        if token.kind == "end":
            cursor.fail("the function has no end")
        elif token.text == "{":
            cursor.take()
            self._open_scope()
        elif token.text == "}":
            cursor.take()
            self._scopes.pop()
        elif token.text == ";":
            cursor.take()
        elif token.kind == "directive":
            self._directive()
        elif token.kind == "word" and cursor.ahead(1).text == ":":
            self._label()
        else:
            self._instruction()

    def _open_scope(self) -> None:
        self._count += 1
        scope: dict[str, str] = {}
        depth, ahead = 1, 0
        # A branch may come before its label, so the labels of the scope are looked up first.
        while depth:
            token = self._cursor.ahead(ahead)
            depth += {"{": 1, "}": -1}.get(token.text, 0)
            if depth == 1 and token.kind == "word" and self._cursor.ahead(ahead + 1).text == ":":
                scope[token.text] = f"{token.text}__{self._count}"
            if token.kind == "end":
                self._cursor.fail("a scope has no end")
            ahead += 1
        self._scopes.append((self._count, scope))

    def _declare(self, name: str) -> str:
        number, scope = self._scopes[-1]
        unique = f"{name}__{number}" if number else name
        scope[name] = unique
        return unique

    def _resolve(self, name: str) -> str:
        for _, scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        return name

    def _directive(self) -> None:
        cursor = self._cursor
        name = cursor.take().text[1:]
        if name == "reg":
            self._registers()
        elif name in STATE_SPACES:
            for variable in read_variables(cursor, name, extern=False):
                self.variables.append(
                    Variable(
                        variable.line,
                        self._declare(variable.name),
                        *(name, variable.alignment, variable.size, variable.initial, False, variable.references),
                    )
                )
            cursor.expect(";")
        elif name == "pragma":
            cursor.take()
            cursor.expect(";")
        elif name == "loc":
            cursor.skip_line()
        else:
            cursor.fail(f"the directive .{name} is not supported")

    def _registers(self) -> None:
        cursor = self._cursor
        kind = cursor.take().text[1:]
        if kind not in TYPE_BYTES:
            cursor.fail(f"registers of type .{kind} are not supported")
        while True:
            name = cursor.word()
            if cursor.accept("<"):
                count = cursor.integer()
                cursor.expect(">")
                if count > _MOST_REGISTERS:
                    cursor.fail(f"{count:,} registers of one name are more than a compiler makes ({_MOST_REGISTERS:,})")
                for index in range(count):
                    self.registers[self._declare(f"{name}{index}")] = kind
            else:
                self.registers[self._declare(name)] = kind
            if not cursor.accept(","):
                break
        cursor.expect(";")

    def _label(self) -> None:
        cursor = self._cursor
        token = cursor.take()
        cursor.expect(":")
        name = self._resolve(token.text)
        if not cursor.accept(".branchtargets"):
            self.body.append(Label(token.line, name))
            return
        labels = [self._resolve(cursor.word())]
        while cursor.accept(","):
            labels.append(self._resolve(cursor.word()))
        cursor.expect(";")
        self.branch_targets.append(BranchTargets(name, tuple(labels)))

    def _instruction(self) -> None:
        cursor = self._cursor
        predicate = None
        if cursor.accept("@"):
            negated = cursor.accept("!")
            predicate = Predicate(Register(self._resolve(cursor.word())), negated)
        line = cursor.token.line
        opcode, *modifiers = cursor.word().split(".")
        operands: list[Operand] = []
        if not cursor.accept(";"):
            operands.append(self._operand())
            while cursor.accept(","):
                operands.append(self._operand())
            cursor.expect(";")
        self.body.append(Instruction(line, predicate, opcode, tuple(modifiers), tuple(operands)))

    def _operand(self) -> Operand:
        first = self._single()
        return Pair(first, self._single()) if self._cursor.accept("|") else first

    def _single(self) -> Operand:
        cursor = self._cursor
        token = cursor.token
        if token.text in ("{", "("):
            return self._list("}" if token.text == "{" else ")")
        if token.text == "[":
            return self._address()
        if cursor.accept("!"):
            return Negated(Register(self._resolve(cursor.word())))
        if token.kind == "number" or token.text == "-":
            return self._number()
        name = cursor.word()
        return Sink() if name == "_" else self._named(name)

    def _named(self, name: str) -> Register | Symbol | Immediate:
        unique = self._resolve(name)
        if unique in self.registers or name.startswith("%"):
            return Register(unique)
        return Immediate(32, "int") if name == "WARP_SZ" else Symbol(unique)

    def _number(self) -> Immediate:
        negative = self._cursor.accept("-")
        if self._cursor.token.kind != "number":
            self._cursor.fail("expected a number")
        bits, kind = number_bits(self._cursor.take().text)
        if negative:
            # The sign of a floating-point constant is its top bit; such a sign only occurs with decimal ones.
            bits = bits ^ (1 << 63) if kind == "f64" else -bits % _MODULUS
        return Immediate(bits, kind)

    def _list(self, end: str) -> Vector:
        cursor = self._cursor
        cursor.take()
        items: list[Operand] = []
        while not cursor.accept(end):
            items.append(self._single())
            cursor.accept(",")
        return Vector(tuple(items))

    def _address(self) -> Address:
        cursor = self._cursor
        cursor.expect("[")
        base: Register | Symbol | Immediate
        base = self._number() if cursor.token.kind == "number" else self._named(cursor.word())
        offset = 0
        while cursor.token.text in ("+", "-"):
            sign = 1 if cursor.accept("+") else -1
            if sign < 0:
                cursor.expect("-")
            offset += sign * cursor.integer()
        if cursor.token.text == ",":
            cursor.fail("tensor maps are not supported (copies take plain addresses)")
        cursor.expect("]")
        return Address(base, offset)
