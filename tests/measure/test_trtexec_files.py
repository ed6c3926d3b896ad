"""The JSON files of trtexec: read by their format, and refused where they are damaged."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path
from typing import Any

import pytest

from onnxopt.errors import InputError
from onnxopt.measure import trtexec_files
from onnxopt.measure.trtexec_files import (
    LayerTime,
    Trace,
    check_trace,
    metadata_nodes,
    read_layers,
    read_profile,
    read_trace,
)
from onnxopt.measure.trtexec_log import METRICS, Spread, Summary

_PROFILE = """[
  { "count" : 20 }
, { "name" : "conv + relu", "timeMs" : 2.5, "averageMs" : 0.125, "medianMs" : 0.12, "percentage" : 71.4286 }
, { "name" : "fc", "timeMs" : 1, "averageMs" : 5e-02, "medianMs" : 0.05, "percentage" : 28.5714 }
]
"""


def _write(folder: Path, text: str) -> Path:
    path = folder / "file.json"
    path.write_text(text)
    return path


def _trace(values: list[float]) -> str:
    """What ``exportJSONTrace`` writes: the first value begins a line with blanks, the others with a comma."""
    text, separator = "[\n", "  "
    for value in values:
        names = ("startEnqMs", "endEnqMs", "startH2dMs", "endH2dMs", "startComputeMs", "endComputeMs", "startD2hMs")
        fields = dict.fromkeys((*names, "endD2hMs", "h2dMs"), 1.0) | {"computeMs": value, "d2hMs": 0.5}
        fields["latencyMs"] = value + 1.5
        text += separator + "{ " + ", ".join(f'"{name}" : {number:g}' for name, number in fields.items()) + " }\n"
        separator = ", "
    return text + "]\n"


def test_a_trace_gives_its_medians(tmp_path: Path) -> None:
    numbers = random.Random(0)
    values = [round(numbers.uniform(1, 2), 4) for _ in range(50)]
    trace = read_trace(_write(tmp_path, _trace(values)))
    assert trace.queries == 50
    assert trace.gpu_compute == statistics.median(values)
    assert trace.latency == pytest.approx(statistics.median(values) + 1.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[\n]\n", "has no inferences"),
        ("{}", "is {}; allowed: a list"),
        ("[1]", "inference 0 is 1; allowed: an object"),
        (_trace([1.0]).replace('"computeMs" : 1', '"computeMs" : "1"'), "has '1' in 'computeMs'"),
        (_trace([1.0]).replace('"computeMs" : 1', '"computeMs" : NaN'), "has nan in 'computeMs'"),
        (_trace([1.0]).replace('"computeMs" : 1', '"computeMs" : true'), "has True in 'computeMs'"),
        (_trace([1.0]).replace('"computeMs" : 1', '"computeMs" : 1' + "0" * 400), "allowed: a finite number"),
        (_trace([1.0])[:-4], "is not valid JSON"),
        ("[" * 100_000, "is nested too deep"),
    ],
)
def test_a_damaged_trace_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_trace(_write(tmp_path, text))


def test_a_missing_or_large_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="trtexec has not written"):
        read_profile(tmp_path / "none.json")
    monkeypatch.setattr(trtexec_files, "_MAX_PROFILE", 100)
    with pytest.raises(InputError, match="at most 100 are allowed"):
        read_profile(_write(tmp_path, _PROFILE))


def test_a_trace_of_another_run_is_refused() -> None:
    times = dict.fromkeys(METRICS, Spread(1, 3, 2, 2.0))
    summary = Summary(1.0, times, 1.0, 1.0)
    check_trace(Trace(9, 2.0005, 2.0), summary)
    with pytest.raises(InputError, match="'GPU Compute Time' is 2 ms in its summary and 2.1 ms in its exported"):
        check_trace(Trace(9, 2.0, 2.1), summary)


def test_a_profile_gives_the_times_of_layers(tmp_path: Path) -> None:
    assert read_profile(_write(tmp_path, _PROFILE)) == (
        LayerTime("conv + relu", 0.125, 0.12),
        LayerTime("fc", 0.05, 0.05),
    )


@pytest.mark.parametrize("name", ['say "conv"', "a\\b", 'x", "timeMs" : 3'])
def test_names_that_break_the_json_are_read_as_they_are(tmp_path: Path, name: str) -> None:
    (first, second) = read_profile(_write(tmp_path, _PROFILE.replace("conv + relu", name)))
    assert first == LayerTime(name, 0.125, 0.12)
    assert second.name == "fc"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.125", "-nan", "layer 0 has nan in 'averageMs'; allowed: a finite number"),
        ("0.125", "inf", "layer 0 has inf in 'averageMs'"),
        ("0.125", "-0.125", "layer 0 has a negative time"),
        ("0.125", '"0.125"', "layer 0 has nan in 'averageMs'"),
        ('"count" : 20', '"count" : 0', "is over 0 inferences"),
        ('"count"', '"number"', "does not begin with the number of inferences"),
        ('"medianMs" : 0.12,', "", "layer 0 has None in 'medianMs'"),
        ('"averageMs" : 0.125', '"averageMs":"0.125"', "layer 0 has '0.125' in 'averageMs'"),
        ("]\n", "", "is not valid JSON"),
        (", {", "; {", "is not valid JSON"),
        ("[\n", "(\n", "is not valid JSON"),
    ],
)
def test_a_damaged_profile_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in _PROFILE
    with pytest.raises(InputError, match=message):
        read_profile(_write(tmp_path, _PROFILE.replace(old, new, 1)))


def test_a_profile_without_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no layers"):
        read_profile(_write(tmp_path, '[\n  { "count" : 20 }\n]\n'))


def test_layers_give_the_nodes_in_their_metadata(tmp_path: Path) -> None:
    layers: list[Any] = [
        {"Name": "__myl_ConvRelu", "Metadata": "[ONNX Layer: conv]\x1e[ONNX Layer: relu]", "LayerType": "kgen"},
        {"Name": "__myl_ConvRelu", "Metadata": "[ONNX Layer: conv]\x1e[ONNX Layer: add]", "LayerType": "kgen"},
        {"Name": "Reformatting CopyNode for Input Tensor 0 to fc", "Metadata": ""},
        {"Name": "no metadata"},
    ]
    found = read_layers(_write(tmp_path, json.dumps({"Layers": layers, "Bindings": []})))
    assert found == {
        "__myl_ConvRelu": ("conv", "relu", "add"),
        "Reformatting CopyNode for Input Tensor 0 to fc": (),
        "no metadata": (),
    }
    names = read_layers(_write(tmp_path, '{"Layers": ["conv + relu"\n,"fc"\n],\n"Bindings": ["x"\n,"y"\n]}'))
    assert names == {"conv + relu": (), "fc": ()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"is \[\]; allowed: an object with 'Layers'"),
        ("{}", "'Layers' of .* is None; allowed: a list"),
        ('{"Layers": [1]}', "layer 0 is 1; allowed: a name"),
        ('{"Layers": [{"Name": 1}]}', "layer 0 is {'Name': 1}"),
        ('{"Layers": [{"Name": "a", "Metadata": 2}]}', "has the 'Metadata' 2; allowed: a text"),
        ('{"Layers": ["a"', "is not valid JSON"),
    ],
)
def test_damaged_layers_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_layers(_write(tmp_path, text))


@pytest.mark.parametrize(
    ("metadata", "nodes"),
    [
        ("", ()),
        ("[ONNX Layer: conv]", ("conv",)),
        ("[ONNX Layer: conv | Local Function: f]", ("conv",)),
        ("[ONNX Layer: /block[0]/conv]", ("/block[0]/conv",)),
        ("[ONNX Layer: a]\x1e[ONNX Layer: b]\x1e[ONNX Layer: a]", ("a", "b")),
        ("[ONNX Layer: a][ONNX Layer: b | x]", ("a", "b")),
        ("made by hand", ()),
    ],
)
def test_metadata_names_nodes(metadata: str, nodes: tuple[str, ...]) -> None:
    assert metadata_nodes(metadata) == nodes
