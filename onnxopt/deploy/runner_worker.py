"""The process in which an engine is loaded and run; see :mod:`onnxopt.deploy.runner`.

Request: ``library`` (the module), ``engine`` (a path) with its ``sha256``, ``inputs`` (an .npz file), ``outputs`` (a
path to write), ``iterations``, ``warm_up``, ``graph``; ``launcher`` where the engine needs that library. Events:
``stage``, ``log``; at the end ``failed`` (a message) or ``done``.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.deploy.child import Channel
from onnxopt.deploy.runner_device import EngineDevice
from onnxopt.deploy.runner_engine import Outcome, engine_ports, load_arrays, run_engine
from onnxopt.deploy.tensorrt_worker import NAMES, Unbuildable, load_plugins, make_logger
from onnxopt.errors import OnnxOptError


def main() -> int:
    """Serve one request."""
    channel = Channel()
    request = channel.request()
    try:
        channel.send("stage", name=f"loading {NAMES[request['library']]}")
        outcome = _serve(importlib.import_module(request["library"]), request, channel)
        save_arrays(Path(request["outputs"]), outcome.outputs)
    except (OnnxOptError, Unbuildable) as error:
        channel.send("failed", message=str(error))
        return 0
    except OSError as error:
        channel.send("failed", message=f"{error.strerror} ({error.filename}); free some space, or choose another place")
        return 0
    channel.send("done", latency=outcome.latency.to_json(), note=outcome.note)
    return 0


def save_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write an .npz file; unlike ``numpy.savez`` it takes arrays of any name, ``file`` included."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _serve(trt: Any, request: Mapping[str, Any], channel: Channel) -> Outcome:
    from cuda.bindings import driver

    logger = make_logger(trt, channel)
    load_plugins(trt, logger, request, channel)
    channel.send("stage", name="loading the engine")
    content = Path(request["engine"]).read_bytes()
    # What is loaded is what was compared: an engine is code that runs.
    if hashlib.sha256(content).hexdigest() != request["sha256"]:
        raise Unbuildable("the engine changed after it was compared with the manifest; get the package again")
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise Unbuildable("the engine cannot be loaded; build it again on this machine")
    arrays = load_arrays(Path(request["inputs"]), engine_ports(trt, engine))
    device = EngineDevice(driver)
    try:
        return run_engine(
            trt,
            engine,
            device,
            arrays,
            iterations=request["iterations"],
            warm_up=request["warm_up"],
            graph=request["graph"],
            tell=lambda stage: channel.send("stage", name=stage),
        )
    finally:
        device.close()


if __name__ == "__main__":
    sys.exit(main())
