"""Tables that consist of pieces: equal pieces are stored once, every piece begins at a multiple of 16 bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxopt.errors import InputError

# Entries are addressed by int32.
MOST_ENTRIES = 2**31 - 1
_ALIGNMENT_BYTES = 16


class NoTables(InputError):  # noqa: N818  # a reason to keep a site rather than a fault
    """A site that the kernels' tables cannot describe; the message is the reason for keeping it as it is."""


@dataclass
class Pool:
    """Parallel tables that are built piece by piece; a piece is one array for each of them, of equal lengths.

    ``padding`` is what stands between pieces, one value for each table; ``dtypes`` are of one width.
    """

    dtypes: Sequence[np.dtype]
    padding: Sequence[int]
    width: int = 1
    _pieces: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    _begins: dict[bytes, int] = field(default_factory=dict)
    _length: int = 0

    @classmethod
    def of_int32(cls, *padding: int, width: int = 1) -> Pool:
        """Tables of int32, each with its padding; an entry has ``width`` numbers."""
        return cls([np.dtype(np.int32)] * len(padding), padding, width)

    @property
    def empty(self) -> bool:
        """Whether nothing was added yet."""
        return not self._pieces

    def add(self, *columns: np.ndarray, granule: int = 1) -> int:
        """Where the piece begins, in entries; it is padded to a multiple of ``granule`` entries.

        A piece without entries begins at 0 and takes no room. Raises :class:`NoTables` where a table grows beyond what
        int32 addresses.
        """
        if not len(columns[0]):
            return 0
        made = tuple(np.ascontiguousarray(c, dtype) for c, dtype in zip(columns, self.dtypes, strict=True))
        digest = hashlib.sha256(len(made[0]).to_bytes(8, "little") + granule.to_bytes(4, "little"))
        for column in made:
            digest.update(column.tobytes())
        key = digest.digest()
        if key not in self._begins:
            step = max(granule, 1)
            entry_bytes = self.dtypes[0].itemsize * self.width
            aligned = max(1, _ALIGNMENT_BYTES // entry_bytes)
            length = -(-len(made[0]) // step) * step
            self._begins[key] = self._length
            self._pieces.append(tuple(self._filled(made, -(-length // aligned) * aligned)))
            self._length += len(self._pieces[-1][0])
            if self._length > MOST_ENTRIES:
                raise NoTables(f"a table of more than {MOST_ENTRIES:,} entries is needed; a kernel cannot address it")
        return self._begins[key]

    def _filled(self, columns: Sequence[np.ndarray], length: int) -> list[np.ndarray]:
        result = []
        for column, padding in zip(columns, self.padding, strict=True):
            shape = (length, *column.shape[1:])
            filled = np.full(shape, padding, column.dtype)
            filled[: len(column)] = column
            result.append(filled)
        return result

    def arrays(self) -> list[np.ndarray]:
        """The finished tables, each with at least one entry."""
        if self.empty:
            shape = (1,) if self.width == 1 else (1, self.width)
            return [np.full(shape, padding, dtype) for dtype, padding in zip(self.dtypes, self.padding, strict=True)]
        return [np.concatenate(column) for column in zip(*self._pieces, strict=True)]
