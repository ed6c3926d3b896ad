"""Profiles are checked field by field, and the name of a target finds the right one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onnxopt.errors import InputError
from onnxopt.resources import resource_dir
from onnxopt.target import (
    Device,
    GpuProfile,
    gpu_profiles,
    load_target,
    read_cpu_profile,
    read_profile,
)
from onnxopt.target import profile as profile_module
from onnxopt.target.device import DeviceSearch

_PROFILES = resource_dir("profiles")


def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((_PROFILES / "l4.json").read_text())
    return document


def _written(folder: Path, document: Any) -> Path:
    path = folder / "gpu.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_the_reference_gpu_has_its_known_limits() -> None:
    profile = read_profile(_PROFILES / "h200.json")
    assert (profile.architecture, profile.multiprocessors) == ("sm_90", 132)
    assert profile.shared_memory_per_block_bytes == 227 * 1024
    assert profile.shared_memory_per_multiprocessor_bytes == 228 * 1024
    assert profile.fp16_flops == 989e12
    assert profile.exponentials_per_second == pytest.approx(3.9e12, rel=0.02)


@pytest.mark.parametrize("path", sorted(_PROFILES.glob("*.json")), ids=lambda p: p.stem)
def test_every_shipped_profile_is_valid_and_every_figure_has_a_source(path: Path) -> None:
    profile = read_cpu_profile(path) if path.stem == "cpu" else read_profile(path)
    assert profile.sources
    assert all(source.strip() for source in profile.sources.values())


@pytest.mark.parametrize(
    "path", [p for p in sorted(_PROFILES.glob("*.json")) if p.stem != "cpu"], ids=lambda p: p.stem
)
def test_peak_rates_agree_with_the_hardware_they_are_made_of(path: Path) -> None:
    """A multiprocessor has 128 fp32 lanes from sm_86 on; its matrix rate is a power of two a cycle."""
    profile = read_profile(path)
    lanes = profile.fp32_flops / profile.multiprocessors / profile.clock_hz / 2
    assert lanes == pytest.approx(128, rel=0.1)
    per_cycle = profile.fp16_flops / profile.multiprocessors / profile.clock_hz
    assert per_cycle == pytest.approx(1024 if profile.architecture == "sm_89" else 4096, rel=0.02)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("multiprocessors", 0),
        ("multiprocessors", 1.5),
        ("multiprocessors", True),
        ("multiprocessors", "58"),
        ("clock_hz", 2.04),
        ("clock_hz", float("nan")),
        ("clock_hz", float("inf")),
        ("memory_bytes_per_second", 300),
        ("launch_seconds", -1),
        ("fp16_flops", 10**400),
        ("l2_bytes", None),
        ("exponentials_per_cycle", [16]),
    ],
)
def test_an_absurd_figure_is_named_with_its_range(tmp_path: Path, field: str, value: object) -> None:
    document = _document()
    document["figures"][field]["value"] = value
    path = _written(tmp_path, document)
    with pytest.raises(InputError) as caught:
        read_profile(path)
    message = str(caught.value)
    assert str(path) in message
    assert f"'{field}'" in message
    assert "allowed" in message


@pytest.mark.parametrize("field", sorted(_document()["figures"]))
def test_a_missing_figure_is_named(tmp_path: Path, field: str) -> None:
    document = _document()
    del document["figures"][field]
    with pytest.raises(InputError, match=f"'{field}' is missing"):
        read_profile(_written(tmp_path, document))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": "onnxopt.profile/9"}, "schema"),
        ({"name": ""}, "name"),
        ({"name": "x\n"}, "name"),
        ({"aliases": "L4"}, "aliases"),
        ({"architecture": "sm_13"}, "architecture"),
        ({"figures": []}, "figures"),
    ],
)
def test_other_damage_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_profile(_written(tmp_path, _document() | change))


def test_a_figure_needs_a_source_and_must_be_known(tmp_path: Path) -> None:
    document = _document()
    document["figures"]["clock_hz"]["source"] = " "
    with pytest.raises(InputError, match="'clock_hz' has the source"):
        read_profile(_written(tmp_path, document))
    document = _document()
    document["figures"]["colour"] = {"value": 1, "source": "x"}
    with pytest.raises(InputError, match="unknown field 'colour'"):
        read_profile(_written(tmp_path, document))


def test_limits_must_agree_with_each_other(tmp_path: Path) -> None:
    document = _document()
    document["figures"]["shared_memory_per_block_bytes"]["value"] = 200_000
    with pytest.raises(InputError, match="more than a multiprocessor has"):
        read_profile(_written(tmp_path, document))


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "[" * 100_000])
def test_what_is_no_profile_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"gpu\.json"):
        read_profile(_written(tmp_path, text))


def test_a_missing_and_a_huge_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_profile(tmp_path / "none.json")
    with pytest.raises(InputError, match="at most"):
        read_profile(_written(tmp_path, " " * (1 << 21)))


@pytest.mark.parametrize(
    ("name", "architecture", "gpu"),
    [
        ("sm_90", "sm_90", "NVIDIA H200"),
        ("SM_89", "sm_89", "NVIDIA L4"),
        ("h200", "sm_90", "NVIDIA H200"),
        ("NVIDIA l4", "sm_89", "NVIDIA L4"),
        ("a100", "sm_80", None),
        ("RTX 5090", "sm_120", None),
        ("GeForce RTX 5090", "sm_120", None),
        ("sm_75", "sm_75", None),
    ],
)
def test_a_name_finds_its_target(name: str, architecture: str, gpu: str | None) -> None:
    target = load_target(name)
    assert (target.name, target.architecture) == (architecture, architecture)
    assert not target.is_cpu
    assert (target.gpu and target.gpu.name) == gpu


def test_the_cpu_is_a_target() -> None:
    target = load_target("CPU")
    assert (target.name, target.is_cpu, target.gpu) == ("cpu", True, None)
    assert target.cpu is not None
    assert target.cpu.fp32_flops > 0


@pytest.mark.parametrize("name", ["", "sm_99", "b300", "../l4", "x" * 1000, "sm_90a"])
def test_an_unknown_name_lists_what_is_allowed(name: str) -> None:
    with pytest.raises(InputError, match=r"unknown target.*sm_75.*NVIDIA H200"):
        load_target(name)


def test_prediction_without_a_profile_names_those_that_exist() -> None:
    with pytest.raises(InputError, match=r"sm_80.*NVIDIA H200.*NVIDIA L4|sm_80.*NVIDIA L4.*NVIDIA H200"):
        load_target("sm_80").need_gpu_profile()
    assert isinstance(load_target("sm_90").need_gpu_profile(), GpuProfile)


def _with_device(monkeypatch: pytest.MonkeyPatch, device: Device | None, reason: str = "") -> None:
    monkeypatch.setattr(profile_module, "find_device", lambda: DeviceSearch(device, reason))


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_device(monkeypatch, None, "no CUDA driver")
    target = load_target("auto")
    assert target.is_cpu
    assert "no CUDA driver" in target.note


def test_auto_is_the_gpu_that_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_device(monkeypatch, Device(0, "NVIDIA H200", "sm_90", 132, 1 << 37, "CUDA 13.0"))
    target = load_target("auto")
    assert (target.name, target.device, target.note) == ("sm_90", 0, "")
    assert target.gpu is not None


def test_auto_says_when_another_gpu_stands_for_the_one_found(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_device(monkeypatch, Device(0, "NVIDIA L40S", "sm_89", 142, 48 << 30, "CUDA 13.0"))
    target = load_target("auto")
    assert (target.name, target.device) == ("sm_89", 0)
    assert "NVIDIA L40S has no profile of its own; NVIDIA L4 stands for sm_89" in target.note


def test_auto_is_the_cpu_for_a_gpu_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_device(monkeypatch, Device(0, "Tesla V100", "sm_70", 80, 16 << 30, "CUDA 12.0"))
    target = load_target("auto")
    assert target.is_cpu
    assert "Tesla V100" in target.note


def test_profiles_are_read_from_a_folder(tmp_path: Path) -> None:
    document = _document() | {"name": "NVIDIA A10", "aliases": ["A10"], "architecture": "sm_86"}
    _written(tmp_path, document)
    assert [p.name for p in gpu_profiles(tmp_path)] == ["NVIDIA A10"]
    assert load_target("a10", tmp_path).need_gpu_profile().architecture == "sm_86"
