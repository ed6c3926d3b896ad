"""The error that every validator raises."""

from __future__ import annotations

from onnxopt.errors import VerificationError


class PlanError(VerificationError):
    """A plan, or what was written from it, does not compute its site; a defect of onnxopt, and nothing was written."""
