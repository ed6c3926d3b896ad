"""Records as lines of JSON that one machine gives to another: what every kind of them checks, field by field.

Lines are untrusted. A check takes an entry and the name of a field, gives the field's value, and raises ValueError with
the name, the value seen and what is allowed.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

MAX_LINE_BYTES = 2048
MAX_TEXT = 200

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")

Check = Callable[[Mapping[str, Any], str], Any]


def format_line(schema: str, fields: Mapping[str, Any]) -> bytes:
    """A record as one line without its end; ValueError where it holds what JSON cannot say."""
    return json.dumps({"schema": schema, **fields}, separators=(",", ":"), allow_nan=False).encode()


def schema_of(line: bytes) -> str:
    """The schema that a line names; empty where it is no record."""
    try:
        return str(_entry(line).get("schema", ""))
    except ValueError:
        return ""


def parse_line(line: bytes, schema: str, checks: Mapping[str, Check]) -> dict[str, Any]:
    """The checked fields of a line. Raises ValueError with the field and the value that is wrong."""
    entry = _entry(line)
    if entry.get("schema") != schema:
        raise ValueError(f"its schema is {shown(entry.get('schema'))}; this version reads {schema!r}")
    if set(entry) != set(checks) | {"schema"}:
        raise ValueError(f"missing or unknown fields: {shown(sorted(set(entry) ^ (set(checks) | {'schema'})))}")
    return {name: check(entry, name) for name, check in checks.items()}


def _entry(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"it has {len(line):,} bytes; at most {MAX_LINE_BYTES:,} are allowed")
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(entry, dict):
        raise ValueError("it is not a JSON object")
    return entry


def whole(smallest: int, largest: int) -> Check:
    """A whole number within limits."""

    def check(entry: Mapping[str, Any], name: str) -> int:
        return _whole_number(entry[name], name, smallest, largest)

    return check


def wholes(fewest: int, most: int, largest: int, smallest: int = 1) -> Check:
    """A list of so many whole numbers from ``smallest`` on; a tuple."""

    def check(entry: Mapping[str, Any], name: str) -> tuple[int, ...]:
        value = entry[name]
        if not isinstance(value, list) or not fewest <= len(value) <= most:
            raise ValueError(f"{name} is {shown(value)}; it must be a list of {fewest} to {most} whole numbers")
        return tuple(_whole_number(item, name, smallest, largest) for item in value)

    return check


def number(smallest: float, largest: float) -> Check:
    """A number within limits."""

    def check(entry: Mapping[str, Any], name: str) -> float:
        value = entry[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not smallest <= value <= largest:
            raise ValueError(f"{name} is {shown(value)}; it must be a number from {smallest:g} to {largest:g}")
        return float(value)

    return check


def one_of(allowed: Iterable[str]) -> Check:
    """One of some words."""
    names = tuple(allowed)

    def check(entry: Mapping[str, Any], name: str) -> str:
        value = entry[name]
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"{name} is {shown(value)}; allowed: {', '.join(names)}")
        return value

    return check


def text(entry: Mapping[str, Any], name: str) -> str:
    """Printable text."""
    value = entry[name]
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT or not value.isprintable():
        raise ValueError(f"{name} is {shown(value)}; it must be printable text of 1 to {MAX_TEXT} characters")
    return value


def flag(entry: Mapping[str, Any], name: str) -> bool:
    """True or false."""
    value = entry[name]
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {shown(value)}; it must be true or false")
    return value


def date(entry: Mapping[str, Any], name: str) -> str:
    """A date written YYYY-MM-DD."""
    value = entry[name]
    try:
        if isinstance(value, str) and _DATE.fullmatch(value):
            datetime.date.fromisoformat(value)
            return value
    except ValueError:
        pass
    raise ValueError(f"{name} is {shown(value)}; it must be a date written YYYY-MM-DD")


def _whole_number(value: Any, name: str, smallest: int, largest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
        raise ValueError(f"{name} is {shown(value)}; it must be a whole number from {smallest} to {largest}")
    return value


def shown(value: object) -> str:
    """A value as a message shows it, in at most 80 characters."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
