"""What TensorRT has to be, the batches that an engine takes, and the timings that are kept between builds."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from onnxopt.deploy.batch_range import parse_batch
from onnxopt.deploy.tensorrt_cache import default_timing_cache, read_timings
from onnxopt.deploy.tensorrt_machine import check_machine, check_version
from onnxopt.errors import InputError, MissingError


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("10.8.0.43", "10.9 or later"),
        ("8.6.1", "10.9 or later"),
        ("10.14.1.48", "do not work in 10.14"),
        ("12.0.0", "from 12 on"),
        ("unknown", "10.9 or later"),
    ],
)
def test_versions_that_do_not_work_are_refused_with_the_reason(version: str, reason: str) -> None:
    with pytest.raises(MissingError, match=rf"TensorRT {version} is installed, but .*{reason}.*pip install"):
        check_version(version)


@pytest.mark.parametrize("version", ["10.9.0.34", "10.13.3.9", "10.15.1.29", "11.4.0.106"])
def test_versions_that_work_are_taken(version: str) -> None:
    check_version(version)


def test_a_machine_without_tensorrt_is_told_how_to_get_it() -> None:
    if find_spec("tensorrt") is not None:
        check_version(check_machine().version)
        return
    with pytest.raises(MissingError, match=r"TensorRT is not installed; .*pip install 'onnxopt\[tensorrt\]'"):
        check_machine()


@pytest.mark.parametrize(
    ("text", "sizes"), [("4", [4, 4, 4]), ("1,8,32", [1, 8, 32]), (" 1, 1, 2147483647", [1, 1, 2147483647])]
)
def test_batches_are_read(text: str, sizes: list[int]) -> None:
    assert parse_batch(text).sizes == sizes


@pytest.mark.parametrize(
    "text", ["", "0", "1,2", "8,4,16", "1,9,8", "1,1,2147483648", "a", "-1", "1,2,3,4", "1.5", "²"]
)
def test_batches_that_are_no_range_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="allowed"):
        parse_batch(text)


@pytest.mark.parametrize("content", [b"", b"rubbish", b"onnxopt timing cache 1 " + b"0" * 64 + b"\n"])
def test_what_is_no_timing_cache_is_not_used(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t"
    assert read_timings(path) is None
    assert not caplog.records
    path.write_bytes(content)
    assert read_timings(path) is None
    assert "written anew" in caplog.text


def test_timings_of_versions_and_gpus_stay_apart(tmp_path: Path) -> None:
    places = {
        default_timing_cache(tmp_path, version, gpu)
        for version in ("10.13.3.9", "11.4.0.106")
        for gpu in ("NVIDIA L4", "NVIDIA L40S", "../../etc")
    }
    assert len(places) == 6
    assert all(place.parent == tmp_path / "tensorrt" for place in places)
