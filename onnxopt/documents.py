"""JSON files of a package, read back: they may come from anyone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from onnxopt.errors import InputError
from onnxopt.model.files import read_file

_Read = TypeVar("_Read")


class NewerError(InputError):
    """A newer version wrote this; the message says what to do."""


def read_document(path: Path, max_bytes: int, parse: Callable[[Any], _Read]) -> _Read:
    """What ``parse`` makes of a JSON file of at most ``max_bytes``.

    Raises InputError, with the file and what to do, where it cannot be read, is no JSON, or ``parse`` raises one.
    """
    try:
        document = json.loads(read_file(path, max_bytes))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); optimize the model again") from None
    try:
        return parse(document)
    except NewerError as error:
        raise InputError(f"{path}: {error}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}; optimize the model again, or get the package again") from None
