"""Engines and what belongs to them: TensorRT-RTX, the manifest of a package, and what this machine can do."""
