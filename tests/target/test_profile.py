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
from onnxopt.target.architecture import ARCHITECTURES, plain_name
from onnxopt.target.device import DeviceSearch

_PROFILES = resource_dir("profiles")


def _document(gpu: str = "l4") -> dict[str, Any]:
    document: dict[str, Any] = json.loads((_PROFILES / f"{gpu}.json").read_text())
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


def test_a_gpu_without_tf32_and_bf16_computes_them_in_its_ordinary_lanes() -> None:
    profile = read_profile(_PROFILES / "t4.json")
    assert profile.lacking_types == ("bf16", "tf32")
    assert profile.bf16_flops == profile.tf32_flops == profile.fp32_flops == 8.1e12
    assert "not supported" in profile.sources["tf32_flops"]
    assert read_profile(_PROFILES / "a100.json").lacking_types == ()


@pytest.mark.parametrize("path", sorted(_PROFILES.glob("*.json")), ids=lambda p: p.stem)
def test_every_shipped_profile_is_valid_and_every_figure_has_a_source(path: Path) -> None:
    profile = read_cpu_profile(path) if path.stem == "cpu" else read_profile(path)
    assert set(profile.sources) == set(json.loads(path.read_text())["figures"])
    assert all(source.strip() for source in profile.sources.values())


# Of one multiprocessor: fp32 lanes, and fp16 operations a cycle of its matrix units with sums in fp32.
_MADE_OF = {
    "NVIDIA A10": (128, 1024),
    "NVIDIA A100 80GB": (64, 2048),
    "NVIDIA B200": (128, 8192),
    "NVIDIA GeForce RTX 4090": (128, 512),
    "NVIDIA GeForce RTX 5090": (128, 512),
    "NVIDIA H100": (128, 4096),
    "NVIDIA H200": (128, 4096),
    "NVIDIA Jetson AGX Orin 64GB": (128, 2048),
    "NVIDIA L4": (128, 1024),
    "NVIDIA T4": (64, 1024),
}


@pytest.mark.parametrize("profile", gpu_profiles(), ids=lambda p: p.name)
def test_peak_rates_agree_with_the_hardware_they_are_made_of(profile: GpuProfile) -> None:
    lanes, operations = _MADE_OF[profile.name]
    cycles = profile.multiprocessors * profile.clock_hz
    # The clock is that of the matrix units; the lanes of the largest GPUs run up to 8% above it.
    assert lanes * 0.99 <= profile.fp32_flops / cycles / 2 <= lanes * 1.09
    assert profile.fp16_flops / cycles == pytest.approx(operations, rel=0.02)
    if "bf16" not in profile.lacking_types:
        assert profile.bf16_flops == profile.fp16_flops
        assert profile.tf32_flops == pytest.approx(profile.fp16_flops / 2, rel=0.01)


@pytest.mark.parametrize("profile", gpu_profiles(), ids=lambda p: p.name)
def test_limits_of_a_multiprocessor_are_sane(profile: GpuProfile) -> None:
    reserved = profile.shared_memory_per_multiprocessor_bytes - profile.shared_memory_per_block_bytes
    assert reserved == (0 if profile.architecture == "sm_75" else 1024)
    assert profile.threads_per_multiprocessor % 32 == profile.threads_per_block % 32 == 0
    assert profile.blocks_per_multiprocessor * 32 <= profile.threads_per_multiprocessor
    assert profile.memory_bytes_per_second < profile.fp16_flops / 10


@pytest.mark.parametrize("field", ["multiprocessors", "clock_hz", "l2_bytes", "fp16_flops", "tf32_flops", "fp32_flops"])
def test_the_h200_is_an_h100_with_faster_memory(field: str) -> None:
    h100, h200 = (load_target(name).need_gpu_profile() for name in ("h100", "h200"))
    assert getattr(h100, field) == getattr(h200, field)
    assert h100.memory_bytes_per_second < h200.memory_bytes_per_second


@pytest.mark.parametrize("field", ["memory_bytes_per_second", "fp16_flops", "tf32_flops", "fp32_flops", "l2_bytes"])
@pytest.mark.parametrize(
    ("slower", "faster"), [("t4", "l4"), ("t4", "a10"), ("orin", "a10"), ("rtx 4090", "rtx 5090"), ("h100", "b200")]
)
def test_a_faster_gpu_is_faster(slower: str, faster: str, field: str) -> None:
    if (slower, faster, field) == ("t4", "l4", "memory_bytes_per_second"):
        slower, faster = faster, slower  # the L4 trades bandwidth for a large cache
    assert getattr(load_target(slower).gpu, field) < getattr(load_target(faster).gpu, field)


def test_every_name_belongs_to_one_profile() -> None:
    own = [{plain_name(name) for name in (p.name, *p.aliases)} for p in gpu_profiles()]
    assert len(set().union(*own)) == sum(map(len, own))


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


@pytest.mark.parametrize(
    ("gpu", "field", "value", "words"),
    [
        ("t4", "tf32_flops", 8.1e12, "'tf32_flops' is 8100000000000.0; allowed: null, .* sm_75 do not take tf32"),
        ("t4", "bf16_flops", 0, "'bf16_flops' is 0; allowed: null"),
        ("t4", "fp16_flops", None, "'fp16_flops' is null; allowed: a number"),
        ("t4", "fp32_flops", None, "'fp32_flops' is null; allowed: a number"),
        ("l4", "tf32_flops", None, "'tf32_flops' is null; allowed: a number"),
        ("l4", "bf16_flops", 0, "'bf16_flops' is 0; allowed: a number"),
    ],
)
def test_null_is_for_types_that_the_architecture_lacks(
    tmp_path: Path, gpu: str, field: str, value: object, words: str
) -> None:
    document = _document(gpu)
    document["figures"][field]["value"] = value
    with pytest.raises(InputError, match=words):
        read_profile(_written(tmp_path, document))


def test_a_type_that_is_lacking_needs_its_entry_and_a_source(tmp_path: Path) -> None:
    document = _document("t4")
    document["figures"]["tf32_flops"]["source"] = ""
    with pytest.raises(InputError, match="'tf32_flops' has the source"):
        read_profile(_written(tmp_path, document))
    del document["figures"]["tf32_flops"]
    with pytest.raises(InputError, match="'tf32_flops' is missing; allowed: null"):
        read_profile(_written(tmp_path, document))


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
        ("h100", "sm_90", "NVIDIA H100"),
        ("NVIDIA H100 80GB HBM3", "sm_90", "NVIDIA H100"),
        ("a100", "sm_80", "NVIDIA A100 80GB"),
        ("NVIDIA A100-SXM4-80GB", "sm_80", "NVIDIA A100 80GB"),
        ("A10", "sm_86", "NVIDIA A10"),
        ("orin", "sm_87", "NVIDIA Jetson AGX Orin 64GB"),
        ("rtx 4090", "sm_89", "NVIDIA GeForce RTX 4090"),
        ("rtx_4090", "sm_89", "NVIDIA GeForce RTX 4090"),
        ("b200", "sm_100", "NVIDIA B200"),
        ("RTX 5090", "sm_120", "NVIDIA GeForce RTX 5090"),
        ("GeForce RTX 5090", "sm_120", "NVIDIA GeForce RTX 5090"),
        ("Tesla T4", "sm_75", "NVIDIA T4"),
        ("sm_75", "sm_75", "NVIDIA T4"),
        ("gb10", "sm_121", None),
    ],
)
def test_a_name_finds_its_target(name: str, architecture: str, gpu: str | None) -> None:
    target = load_target(name)
    assert (target.name, target.architecture) == (architecture, architecture)
    assert not target.is_cpu
    assert (target.gpu and target.gpu.name) == gpu


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "sm_121"])
def test_an_architecture_stands_for_its_gpu(architecture: str) -> None:
    gpu = load_target(architecture).need_gpu_profile()
    assert gpu.architecture == architecture
    assert plain_name(ARCHITECTURES[architecture]) in map(plain_name, (gpu.name, *gpu.aliases))


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
    with pytest.raises(InputError, match=r"'sm_121' has no profile.*sm_90 \(NVIDIA H200\).*sm_89 \(NVIDIA L4\)"):
        load_target("sm_121").need_gpu_profile()
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


def test_auto_tells_gpus_of_one_name_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_device(monkeypatch, Device(0, "Orin", "sm_87", 16, 64 << 30, "CUDA 12.6"))
    assert load_target("auto").note == ""
    _with_device(monkeypatch, Device(0, "Orin", "sm_87", 8, 8 << 30, "CUDA 12.6"))
    assert "Orin has no profile of its own" in load_target("auto").note


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
