"""A module `tensorrt` for tests: TensorRT-RTX, whose classes are the same, under the other name.

What TensorRT has beyond it is here: the flag for plugins that an engine holds, and building for the GPU of the
machine, for which an architecture is set. Calls that tests look at are noted in a file. No model with plugin nodes may
come here.
"""

import enum
import json
import os
from pathlib import Path

import tensorrt_rtx as _rtx

globals().update({name: value for name, value in vars(_rtx).items() if not name.startswith("__")})

__version__ = os.environ.get("STAND_IN_VERSION", "10.13.3.9")


def note(**values):
    with Path(os.environ["STAND_IN_LOG"]).open("a") as file:
        file.write(json.dumps(values) + "\n")


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1
    PREFER_AOT_PYTHON_PLUGINS = 3


class Builder(_rtx.Builder):
    def __init__(self, logger):
        super().__init__(logger)

    def create_network(self, flags):
        note(flags=sorted(flag.name for flag in NetworkDefinitionCreationFlag if flags >> flag & 1))
        return super().create_network(1 << int(_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))

    def create_builder_config(self):
        return Config(super().create_builder_config())

    def build_serialized_network(self, network, config):
        inner = config.inner
        note(
            workspace=inner.get_memory_pool_limit(_rtx.MemoryPoolType.WORKSPACE),
            tf32=inner.get_flag(_rtx.BuilderFlag.TF32),
        )
        return super().build_serialized_network(network, inner)


class Config:
    """TensorRT-RTX's configuration for an L4, which notes what it is asked for."""

    def __init__(self, inner):
        object.__setattr__(self, "inner", inner)
        inner.num_compute_capabilities = 1
        inner.set_compute_capability(_rtx.ComputeCapability.SM89, 0)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __setattr__(self, name, value):
        setattr(self.inner, name, value)

    def create_timing_cache(self, content):
        note(timings=len(content))
        return self.inner.create_timing_cache(content)

    def add_optimization_profile(self, profile):
        note(profile=[shape[0] for shape in profile.get_shape("x")])
        return self.inner.add_optimization_profile(profile)
