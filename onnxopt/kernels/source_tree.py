"""A kernel's source with the headers of its own that it can include, read once: what is hashed is what is compiled."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from onnxopt.errors import InputError
from onnxopt.model.files import read_file
from onnxopt.resources import resource_dir

_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)
# A source of ours has a few thousand lines at most.
_LARGEST_FILE = 1 << 20


@dataclass(frozen=True)
class SourceTree:
    """The content of a source, and of each header below the same folder by the name under which it is included."""

    file: str
    text: bytes
    headers: tuple[tuple[str, bytes], ...]

    def digest(self) -> str:
        """A hash of all names and contents."""
        digest = hashlib.sha256()
        for name, text in ((self.file, self.text), *self.headers):
            digest.update(f"{name}\0{len(text)}\0".encode())
            digest.update(text)
        return digest.hexdigest()


def read_tree(file: str, folder: Path | None = None) -> SourceTree:
    """Read ``file`` below ``folder`` (this package's kernel sources) with every header that it can reach.

    Headers are included by their path below the folder, whatever ``#if`` stands around. One that does not exist is
    left to the compiler, which may never come to it. Raises InputError where the source cannot be read.
    """
    root = folder or resource_dir("cuda")
    known: dict[str, bytes] = {}
    text = read_file(root / file, _LARGEST_FILE)
    waiting = _includes(text)
    while waiting:
        name = waiting.pop()
        if name in known or name == file or not _inside(root, name):
            continue
        known[name] = read_file(root / name, _LARGEST_FILE)
        waiting += _includes(known[name])
    return SourceTree(file, text, tuple(sorted(known.items())))


def _includes(text: bytes) -> list[str]:
    return [name.decode(errors="replace") for name in _INCLUDE.findall(text)]


def _inside(root: Path, name: str) -> bool:
    path = root / name
    if not path.is_file():
        return False
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{name!r} is included from outside of {root}; kernel sources include their own folder only")
    return True
