"""The errors that a user can meet, each with the exit code of the command that shows it."""

from __future__ import annotations


class OnnxOptError(Exception):
    """Base of every error that is the user's to act on; the message says what failed and the next step."""

    exit_code = 1


class InputError(OnnxOptError):
    """Bad usage or bad input: a wrong option, a file that cannot be read, an unsupported model."""

    exit_code = 2


class VerificationError(OnnxOptError):
    """Two models that should agree do not; nothing was written."""

    exit_code = 3


class MissingError(OnnxOptError):
    """The machine lacks something (a package, a GPU, a compiler); the message says what to install."""

    exit_code = 4


def shown(value: object) -> str:
    """A value that somebody else gave, as a message shows it: in at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
