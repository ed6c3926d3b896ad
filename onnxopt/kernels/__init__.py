"""Kernels from their sources: compiled for an architecture, kept by content, examined, and launched with checks."""
