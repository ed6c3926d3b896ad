"""What a CUBIN says about its kernels: an ELF file with attributes in sections of NVIDIA's own."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any

# Attributes in `.nv.info` (of a symbol) and `.nv.info.<kernel>`, by the numbers that CUDA's `cuobjdump -elf` shows.
_REGISTERS, _FRAME, _STACK = 0x2F, 0x11, 0x12
_MAX_THREADS = 0x05
# Only attributes of this form have a payload, whose length stands in place of a value.
_WITH_PAYLOAD = 4

# The driver's own part of each block's shared memory, which a CUBIN counts from compute capability 9.0 on.
_RESERVED_SHARED_BYTES = 1024
_RESERVING_FROM = 90


class CubinError(ValueError):
    """Bytes that are not a CUBIN with the kernel asked for."""


def kernel_figures(cubin: bytes, entry: str, architecture: str) -> dict[str, int]:
    """``registers``, ``stack``, ``threads`` and ``static_shared`` of a kernel; the driver's shared memory is left out.

    Raises :class:`CubinError`.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    try:
        elf = ELFFile(io.BytesIO(cubin))
        sections = {section.name: section for section in elf.iter_sections()}
        if f".text.{entry}" not in sections:
            raise CubinError(f"it holds no kernel {entry!r}")
        table = elf.get_section_by_name(".symtab")
        if not isinstance(table, SymbolTableSection):
            raise CubinError("it has no table of symbols")
        symbols = [symbol.name for symbol in table.iter_symbols()]
        common = list(_attributes(sections[".nv.info"].data()))
        own = dict(_attributes(sections[f".nv.info.{entry}"].data()))
        figures = _of_symbol(common, symbols.index(entry))
        shared = sections.get(f".nv.shared.{entry}")
        reserved = _RESERVED_SHARED_BYTES if capability(architecture) >= _RESERVING_FROM else 0
        return {
            "registers": figures[_REGISTERS],
            "stack": max(figures.get(_FRAME, 0), figures.get(_STACK, 0)),
            "threads": _volume(own[_MAX_THREADS]),
            "static_shared": int(shared["sh_size"]) - reserved if shared is not None else 0,
        }
    except KeyError as error:
        raise CubinError(f"it lacks {error}") from None
    except (ELFError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise CubinError(str(error) or type(error).__name__) from None


def capability(architecture: str) -> int:
    """90 for ``sm_90a``: ten times the compute capability."""
    return int(architecture.removeprefix("sm_").rstrip("af"))


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place + 4 <= len(data):
        form, attribute, value = struct.unpack_from("<BBH", data, place)
        size = value if form == _WITH_PAYLOAD else 0
        yield attribute, data[place + 4 : place + 4 + size]
        place += 4 + size


def _of_symbol(attributes: list[tuple[int, bytes]], number: int) -> dict[int, int]:
    pairs: list[Any] = [(key, *struct.unpack("<2I", value)) for key, value in attributes if len(value) == 8]
    return {key: amount for key, symbol, amount in pairs if symbol == number}


def _volume(payload: bytes) -> int:
    x, y, z = struct.unpack("<3I", payload)
    return int(x * y * z)
