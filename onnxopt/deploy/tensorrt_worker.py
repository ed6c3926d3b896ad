"""The process in which TensorRT or TensorRT-RTX parses a model and builds its engine.

See :mod:`onnxopt.deploy.tensorrt_build`. Request: ``library`` (the module), ``model`` and ``engine`` (paths),
``batch`` (smallest, best, largest); and where they are wanted ``capability`` (such as ``SM89``, TensorRT-RTX only),
``module`` (a generated plugin module, which is run), ``launcher`` (a plugin library), ``workspace_bytes``, ``tf32``
(false forbids it), ``timing_cache`` with ``new_timing_cache`` (paths of what is read, which may be missing, and
written). With ``only_version`` nothing is built. Events: ``stage``, ``progress``, ``log``, ``warning``; at the end
``refused`` (parser errors), ``failed`` (a message) or ``done``.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxopt.deploy.child import Channel

NAMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


class Unbuildable(Exception):  # noqa: N818 - it ends the work, and is no error of the program
    """The request cannot be carried out; the text says why."""


def main() -> int:
    """Serve one request."""
    channel = Channel()
    request = channel.request()
    channel.send("stage", name=f"loading {NAMES[request['library']]}")
    trt = importlib.import_module(request["library"])
    if request.get("only_version"):
        channel.send("done", version=trt.__version__)
        return 0
    try:
        _serve(trt, request, channel)
    except Unbuildable as reason:
        channel.send("failed", message=str(reason))
    except OSError as error:
        channel.send("failed", message=f"{error.strerror} ({error.filename}); free some space, or choose another place")
    return 0


def _serve(trt: Any, request: Mapping[str, Any], channel: Channel) -> None:
    logger = make_logger(trt, channel)
    load_plugins(trt, logger, request, channel)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt, "module" in request))
    channel.send("stage", name="parsing the model")
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request["model"]):
        channel.send("refused", errors=[_parser_error(parser.get_error(i)) for i in range(parser.num_errors)])
        return
    config = _configured(trt, builder, network, request, channel)
    # The library keeps no reference of its own to the monitor.
    config.progress_monitor = monitor = _make_monitor(trt, channel)
    channel.send("stage", name="building the engine")
    engine = builder.build_serialized_network(network, config)
    del monitor
    if engine is None:
        raise Unbuildable("the builder gave no engine")
    Path(request["engine"]).write_bytes(memoryview(engine))
    _keep_timings(config, request, channel)
    channel.send(
        "done",
        version=trt.__version__,
        layers=network.num_layers,
        inputs=[_described(network.get_input(i)) for i in range(network.num_inputs)],
        outputs=[_described(network.get_output(i)) for i in range(network.num_outputs)],
    )


def load_plugins(trt: Any, logger: Any, request: Mapping[str, Any], channel: Channel) -> None:
    """Register what the model's operators need: NVIDIA's own plugins, a generated module, or the launcher library.

    Raises Unbuildable where one cannot be loaded.
    """
    trt.init_libnvinfer_plugins(logger, "")
    if "module" in request:
        channel.send("stage", name="loading the package's plugins")
        _import_file(Path(request["module"]))
    if "launcher" in request:
        channel.send("stage", name="loading the launcher library")
        # The handle is None where the library cannot be loaded or one of its plugins is there already.
        if trt.get_plugin_registry().load_library(request["launcher"]) is None:
            raise Unbuildable(
                f"the launcher library {request['launcher']} cannot be loaded; build it for this TensorRT "
                f"({trt.__version__})"
            )


def _import_file(path: Path) -> None:
    """Run a module by its path; it registers its plugins as it is imported."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise Unbuildable(f"{path.name} is no Python module")
    module = importlib.util.module_from_spec(spec)
    # Annotations of the plugins' functions are looked up in the module by its name.
    sys.modules[path.stem] = module
    sys.dont_write_bytecode = True
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise Unbuildable(f"the plugin module {path.name} fails: {type(error).__name__}: {error}") from error


def _network_flags(trt: Any, generated: bool) -> int:
    """A strongly typed network; from TensorRT 11 on every one is, and the flag is ignored."""
    flags = trt.NetworkDefinitionCreationFlag
    chosen = 1 << int(flags.STRONGLY_TYPED)
    return chosen | (1 << int(flags.PREFER_AOT_PYTHON_PLUGINS) if generated else 0)


def _configured(trt: Any, builder: Any, network: Any, request: Mapping[str, Any], channel: Channel) -> Any:
    config = builder.create_builder_config()
    if "capability" in request:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, request["capability"]), 0)
    if "workspace_bytes" in request:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(request["workspace_bytes"]))
    if request.get("tf32") is False:
        config.clear_flag(trt.BuilderFlag.TF32)
    if "new_timing_cache" in request:
        _use_timings(config, request, channel)
    _set_batch_range(builder, network, config, request["batch"])
    return config


def _use_timings(config: Any, request: Mapping[str, Any], channel: Channel) -> None:
    path = Path(request["timing_cache"])
    content = path.read_bytes() if path.is_file() else b""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TensorRT-RTX does without one
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return
        channel.send(
            "warning", text="TensorRT does not take the timing cache (other version or GPU?); a new one is made"
        )
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _keep_timings(config: Any, request: Mapping[str, Any], channel: Channel) -> None:
    if "new_timing_cache" not in request:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        cache = config.get_timing_cache()
        content = None if cache is None else cache.serialize()
    if content is None:
        return
    try:
        Path(request["new_timing_cache"]).write_bytes(memoryview(content))
    except OSError as error:
        # The engine is worth more than the time that the next build would save.
        channel.send("warning", text=f"the timing cache cannot be written: {error.strerror}")
        Path(request["new_timing_cache"]).unlink(missing_ok=True)


def _set_batch_range(builder: Any, network: Any, config: Any, batches: list[int]) -> None:
    """Add an optimisation profile for a dynamic batch."""
    profile = None
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shape = list(tensor.shape)
        if -1 not in shape:
            continue
        if -1 in shape[1:]:
            raise Unbuildable(f"input '{tensor.name}' has the shape {shape}; only the first dimension may be dynamic")
        profile = profile or builder.create_optimization_profile()
        sizes = [[batch, *shape[1:]] for batch in batches]
        profile.set_shape(tensor.name, *sizes)
    if profile is not None:
        config.add_optimization_profile(profile)


def _parser_error(error: Any) -> dict[str, Any]:
    return {
        "node": error.node_name(),
        "operator": error.node_operator(),
        "code": error.code().name,
        "text": error.desc(),
        "functions": list(error.local_function_stack()),
    }


def _described(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype.name, "shape": [int(d) for d in tensor.shape]}


def make_logger(trt: Any, channel: Channel) -> Any:
    """A logger that sends what the library says, but for its chatter."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity != trt.ILogger.VERBOSE:
                channel.send("log", severity=severity.name, text=message)

    return Logger()


def _make_monitor(trt: Any, channel: Channel) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Phases may nest; a step's number starts at 0."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._steps[phase] = steps
            channel.send("progress", phase=phase, parent=parent, step=0, steps=steps)

        def step_complete(self, phase: str, step: int) -> bool:
            channel.send("progress", phase=phase, parent=None, step=step + 1, steps=self._steps.get(phase, 0))
            return True

        def phase_finish(self, phase: str) -> None:
            steps = self._steps.pop(phase, 0)
            channel.send("progress", phase=phase, parent=None, step=steps, steps=steps)

    return Monitor()


if __name__ == "__main__":
    sys.exit(main())
