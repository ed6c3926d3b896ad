"""The launcher in a plugin registry of NVIDIA's, or its nodes in NVIDIA's parser; either may abort the process.

Arguments: ``registry`` or ``parser``, the module (``tensorrt_lean`` or ``tensorrt_rtx``), the folder with the launcher
and its host library, and a request. The request of ``registry`` is a pickle with the fields of plugins, its answer one
beside it with the ending ``.answer``; that of ``parser`` is an ONNX model, and its answer what is printed.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
from pathlib import Path
from typing import Any

# The host's module alone: nothing of the project is needed here.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.deploy.launcher_host import BUILD, RUNTIME, Field, Host, RefusedError


def loaded_library(words: tuple[str, ...]) -> str:
    """The file of a library that this process has loaded."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    names = {line.split()[-1] for line in maps if ".so" in line}
    return next(name for name in sorted(names) if any(Path(name).name.startswith(word) for word in words))


def told(host: Host, fields: list[Field], phase: int) -> dict[str, Any] | None:
    """What a plugin and its clone, which outlives it, say of their fields."""
    try:
        plugin = host.create(fields, phase)
    except RefusedError:
        return None
    clone = plugin.clone()
    own = plugin.fields()
    plugin.destroy()
    copied, again = clone.fields(), host.create(clone.fields(), RUNTIME)
    found = {"own": own, "clone": copied, "again": again.fields(), "id": again.cache_id()}
    clone.destroy()
    again.destroy()
    return found


def logger_of(trt: Any, lines: list[str]) -> Any:
    """A logger that keeps what it is told, and shows it at once, for whoever may see this process abort."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            lines.append(message)
            print(message, flush=True)

    return Log()


def in_registry(trt: Any, folder: Path, request: Path) -> None:
    lines: list[str] = []
    logger = logger_of(trt, lines)
    # A runtime gives the registry its logger. TensorRT's own can only be made where there is a GPU.
    runtime = trt.Runtime(logger) if trt.__name__ == "tensorrt_rtx" else None
    host = Host(folder, loaded_library(("libnvinfer_lean.so", "libtensorrt_rtx.so")))
    creator = trt.get_plugin_registry().get_creator("OnnxoptKernel", "1", "onnxopt")
    names = [field.name for field in creator.field_names]
    plugins = [told(host, fields, BUILD) for fields in pickle.loads(request.read_bytes())]
    found = {"version": trt.__version__, "names": names, "plugins": plugins, "lines": lines}
    request.with_suffix(".answer").write_bytes(pickle.dumps(found))
    del runtime


def in_parser(trt: Any, folder: Path, request: Path) -> None:
    logger = logger_of(trt, [])
    builder = trt.Builder(logger)
    trt.get_plugin_registry().load_library(str(folder / "libonnxopt_launcher.so"))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    trt.OnnxParser(network, logger).parse(request.read_bytes())


def main() -> None:
    task, module, folder, request = sys.argv[1:]
    trt = importlib.import_module(module)
    {"registry": in_registry, "parser": in_parser}[task](trt, Path(folder), Path(request))
    # Libraries that were loaded by hand and loggers of Python are torn down in no safe order.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
