"""The SQLite file of this machine's measured times, so that several processes may add to it at once.

The file is untrusted: whoever reads a table checks its rows as it would check lines from another machine.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from onnxopt.errors import InputError

FILE_NAME = "tuning-gpu.sqlite"
_MOST_BYTES = 256 << 20
_MOST_RECORDS = 1_000_000
_WAIT_SECONDS = 20.0


def read_lines(path: Path, table: str, order: str) -> tuple[list[bytes], str]:
    """The column ``record`` of a table's rows, and what is wrong with the file as a whole (empty: nothing).

    None where there is no such file or table.
    """
    if not path.exists():
        return [], ""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return [], f"larger than {_MOST_BYTES:,} bytes; delete it and measure again"
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=_WAIT_SECONDS)) as store:
            if not store.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchall():
                return [], ""
            rows = store.execute(f"SELECT record FROM {table} ORDER BY {order} LIMIT {_MOST_RECORDS}").fetchall()
    except (OSError, sqlite3.Error) as error:
        return [], f"the measured times are not used: {error}; delete the file and measure again"
    return [line.encode() if isinstance(line, str) else str(line).encode() for (line,) in rows], ""


@contextmanager
def writable(path: Path) -> Iterator[sqlite3.Connection]:
    """A transaction; nothing of it stays where it fails. Raises InputError where the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=_WAIT_SECONDS)) as store, store:
            yield store
    except (OSError, sqlite3.Error) as error:
        raise InputError(
            f"cannot write {path}: {error}; free space or correct its permissions, or delete it and measure again"
        ) from error
