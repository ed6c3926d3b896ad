"""The process in which TensorRT-RTX parses a model and builds its engine; see :mod:`onnxopt.deploy.rtx`.

Request: ``model`` and ``engine`` (paths), ``capability`` (such as ``SM89``), ``max_batch``. Events:
``stage``, ``progress``, ``log``; at the end ``refused`` (parser errors), ``failed`` (a message) or ``done``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from onnxopt.deploy.child import Channel


def main() -> int:
    """Serve one request."""
    channel = Channel()
    request = channel.request()
    channel.send("stage", name="loading TensorRT-RTX")
    import tensorrt_rtx as trt

    logger = _make_logger(trt, channel)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    channel.send("stage", name="parsing the model")
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request["model"]):
        channel.send("refused", errors=[_parser_error(parser.get_error(i)) for i in range(parser.num_errors)])
        return 0
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, request["capability"]), 0)
    fault = _set_batch_range(builder, network, config, int(request["max_batch"]))
    if fault:
        channel.send("failed", message=fault)
        return 0
    config.progress_monitor = monitor = _make_monitor(trt, channel)
    channel.send("stage", name="building the engine")
    engine = builder.build_serialized_network(network, config)
    del monitor
    if engine is None:
        channel.send("failed", message="the builder gave no engine")
        return 0
    Path(request["engine"]).write_bytes(memoryview(engine))
    channel.send(
        "done",
        version=trt.__version__,
        layers=network.num_layers,
        inputs=[_described(network.get_input(i)) for i in range(network.num_inputs)],
        outputs=[_described(network.get_output(i)) for i in range(network.num_outputs)],
    )
    return 0


def _set_batch_range(builder: Any, network: Any, config: Any, max_batch: int) -> str:
    """Add an optimisation profile for a dynamic batch; returns what is wrong with the inputs, or nothing."""
    profile = None
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shape = list(tensor.shape)
        if -1 not in shape:
            continue
        if -1 in shape[1:]:
            return f"input '{tensor.name}' has the shape {shape}; only the first dimension may be dynamic"
        profile = profile or builder.create_optimization_profile()
        sizes = [[batch, *shape[1:]] for batch in (1, 1, max_batch)]
        profile.set_shape(tensor.name, *sizes)
    if profile is not None:
        config.add_optimization_profile(profile)
    return ""


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


def _make_logger(trt: Any, channel: Channel) -> Any:
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
