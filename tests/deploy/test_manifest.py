"""A manifest says what is in a package, is the same for the same package, and is not believed unchecked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from onnxopt.deploy.manifest import (
    FILE_NAME,
    BuiltFor,
    Manifest,
    Source,
    add_to_manifest,
    check_manifest,
    checked_file,
    copy_files,
    file_sha256,
    package_versions,
    read_manifest,
    write_manifest,
)
from onnxopt.errors import InputError

_SOURCE = Source("ab" * 32, 18)


def _package(folder: Path) -> Manifest:
    (folder / "kernels").mkdir(parents=True)
    (folder / "model.engine").write_bytes(b"engine")
    (folder / "kernels" / "k.cubin").write_bytes(b"cubin")
    return write_manifest(
        folder,
        target="sm_89",
        versions={"onnx": "1.23.2", "onnxopt": "0.1.0"},
        source=_SOURCE,
        files=["model.engine", "kernels/k.cubin"],
    )


def _document(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / FILE_NAME).read_text())
    return document


def _rewrite(folder: Path, document: Any) -> None:
    (folder / FILE_NAME).write_text(json.dumps(document))


def test_an_intact_package_reads_back_as_written(tmp_path: Path) -> None:
    written = _package(tmp_path)
    assert check_manifest(tmp_path) == read_manifest(tmp_path) == written
    assert [entry.path for entry in written.files] == ["kernels/k.cubin", "model.engine"]
    document = _document(tmp_path)
    assert document["schema"] == "onnxopt.manifest/1"
    assert document["source"] == {"sha256": "ab" * 32, "opset": 18}
    assert document["files"][1] == {
        "path": "model.engine",
        "bytes": 6,
        "sha256": hashlib.sha256(b"engine").hexdigest(),
    }
    assert checked_file(tmp_path, "model.engine") == tmp_path / "model.engine"


def test_the_same_package_has_the_same_manifest(tmp_path: Path) -> None:
    _package(tmp_path / "a")
    _package(tmp_path / "b")
    assert (tmp_path / "a" / FILE_NAME).read_bytes() == (tmp_path / "b" / FILE_NAME).read_bytes()


def test_a_changed_file_is_reported_with_both_sums(tmp_path: Path) -> None:
    _package(tmp_path)
    (tmp_path / "model.engine").write_bytes(b"ENGINE")
    with pytest.raises(InputError) as caught:
        check_manifest(tmp_path)
    for content in (b"engine", b"ENGINE"):
        assert hashlib.sha256(content).hexdigest() in str(caught.value)
    with pytest.raises(InputError, match="found SHA-256"):
        checked_file(tmp_path, "model.engine")


def test_a_file_of_another_size_is_reported_with_both_sizes(tmp_path: Path) -> None:
    _package(tmp_path)
    (tmp_path / "model.engine").write_bytes(b"engine and more")
    with pytest.raises(InputError, match="found 15 bytes, expected 6"):
        check_manifest(tmp_path)


def test_a_missing_file_and_a_link_are_refused(tmp_path: Path) -> None:
    _package(tmp_path)
    engine = tmp_path / "model.engine"
    engine.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"model\.engine.*No such file.*get the package again"):
        check_manifest(tmp_path)
    engine.symlink_to("elsewhere")
    with pytest.raises(InputError, match="symbolic link"):
        check_manifest(tmp_path)


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    _package(tmp_path)
    (tmp_path / "kernels").rename(tmp_path / "real")
    (tmp_path / "kernels").symlink_to("real")
    with pytest.raises(InputError, match="symbolic link"):
        check_manifest(tmp_path)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    _package(tmp_path)
    (tmp_path / "model.engine").unlink()
    (tmp_path / "model.engine").mkdir()
    with pytest.raises(InputError, match="not a regular file"):
        check_manifest(tmp_path)


def test_an_engine_that_is_not_listed_is_not_used(tmp_path: Path) -> None:
    _package(tmp_path)
    (tmp_path / "other.engine").write_bytes(b"x")
    with pytest.raises(InputError, match="is not in"):
        checked_file(tmp_path, "other.engine")


_BAD_PATHS = [
    "../x",
    "/etc/passwd",
    "a/../../x",
    "a//b",
    "./a",
    "",
    ".",
    "a\\b",
    "a\0b",
    "a\nb",
    FILE_NAME,
    "x" * 2000,
    7,
]


@pytest.mark.parametrize("path", _BAD_PATHS, ids=lambda p: repr(p)[:20])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, path: object) -> None:
    _package(tmp_path)
    document = _document(tmp_path)
    document["files"][0]["path"] = path
    _rewrite(tmp_path, document)
    with pytest.raises(InputError, match="allowed: a plain path below the folder"):
        read_manifest(tmp_path)


def test_writing_refuses_the_same(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "link").symlink_to("../secret")
    for path, words in (
        ("../secret", "allowed: a plain path"),
        ("link", "symbolic link"),
        ("none", "No such file"),
    ):
        with pytest.raises(InputError, match=words):
            write_manifest(tmp_path / "p", target="cpu", versions={}, source=_SOURCE, files=[path])
    assert not (tmp_path / "p" / FILE_NAME).exists()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("schema", "onnxopt.manifest/2", "written by a newer version"),
        ("schema", "onnxopt.manifest/0", "this version reads"),
        ("schema", None, "this version reads"),
        ("target", 3, "'target'"),
        ("target", "x" * 1000, "'target'"),
        ("versions", [], "'versions'"),
        ("versions", {"onnx": 1}, r"versions\.onnx"),
        ("source", None, "'source'"),
        ("source", {"sha256": "AB" * 32, "opset": 18}, r"source\.sha256"),
        ("source", {"sha256": "ab" * 32, "opset": True}, "'source'"),
        ("files", {}, "'files'"),
        ("files", [3], "'files'"),
        ("files", [{"path": "a", "bytes": -1, "sha256": "ab" * 32}], "size"),
        ("files", [{"path": "a", "bytes": 1 << 60, "sha256": "ab" * 32}], "size"),
        ("files", [{"path": "a", "bytes": 1, "sha256": "xy"}], "SHA-256"),
        ("files", [{"path": "a", "bytes": 1, "sha256": "ab" * 32}] * 2, "twice"),
        ("files", [{"path": "a", "bytes": 1, "sha256": "ab" * 32}] * 10_001, "'files'"),
    ],
)
def test_damage_is_named(tmp_path: Path, field: str, value: object, words: str) -> None:
    _package(tmp_path)
    _rewrite(tmp_path, _document(tmp_path) | {field: value})
    with pytest.raises(InputError, match=words) as caught:
        read_manifest(tmp_path)
    assert str(tmp_path / FILE_NAME) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "3"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_a_missing_and_a_huge_manifest_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_manifest(tmp_path)
    (tmp_path / FILE_NAME).write_text(" " * (5 << 20))
    with pytest.raises(InputError, match="at most"):
        read_manifest(tmp_path)


def test_versions_name_the_libraries_in_use() -> None:
    versions = package_versions()
    assert {"onnxopt", "onnx", "onnxruntime"} <= set(versions)
    assert set(package_versions("rtx")) - set(versions) <= {"tensorrt_rtx"}


def test_a_file_is_hashed(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"content")
    assert file_sha256(path) == hashlib.sha256(b"content").hexdigest()
    with pytest.raises(InputError, match="cannot read"):
        file_sha256(tmp_path / "none")


def test_an_engine_says_what_it_was_built_for(tmp_path: Path) -> None:
    _package(tmp_path)
    built = BuiltFor("sm_90", "NVIDIA H200", "CUDA 13.0", "tensorrt 10.13.3.9", "aot")
    manifest = write_manifest(
        tmp_path,
        target="sm_90",
        versions={},
        source=_SOURCE,
        files=["model.engine", "kernels/k.cubin"],
        engines={"model.engine": built},
    )
    assert read_manifest(tmp_path) == manifest
    assert manifest.engines == {"model.engine": built}
    entry = _document(tmp_path)["files"][1]
    assert (entry["target"], entry["gpu"], entry["library"]) == ("sm_90", "NVIDIA H200", "tensorrt 10.13.3.9")
    assert "tf32" not in entry
    document = _document(tmp_path)
    document["files"][1]["gpu"] = ["NVIDIA"]
    _rewrite(tmp_path, document)
    with pytest.raises(InputError, match="field 'gpu of 'model.engine''"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("found", ["0.1.1", "1", "0.2.0.dev1", "99999.0"])
def test_what_a_newer_version_wrote_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr("onnxopt.__version__", "0.1.0")
    _package(tmp_path)
    _rewrite(tmp_path, _document(tmp_path) | {"versions": {"onnxopt": found}})
    words = rf"written by onnxopt '{found}' and this is 0.1.0; upgrade with `pip install --upgrade onnxopt`$"
    with pytest.raises(InputError, match=words):
        read_manifest(tmp_path)


@pytest.mark.parametrize("found", ["0.1.0", "0.1", "0.0.9", "unknown"])
def test_what_this_version_or_an_older_one_wrote_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    monkeypatch.setattr("onnxopt.__version__", "0.1.0")
    _package(tmp_path)
    _rewrite(tmp_path, _document(tmp_path) | {"versions": {"onnxopt": found}})
    assert read_manifest(tmp_path).versions["onnxopt"] == found


def test_a_file_that_is_written_anew_may_be_anything(tmp_path: Path) -> None:
    _package(tmp_path)
    (tmp_path / "model.engine").write_bytes(b"half")
    check_manifest(tmp_path, besides="model.engine")
    with pytest.raises(InputError, match="found 4 bytes"):
        check_manifest(tmp_path, besides="kernels/k.cubin")


def test_two_that_add_to_a_package_at_once_are_both_listed(tmp_path: Path) -> None:
    before = _package(tmp_path)
    built = BuiltFor("sm_89", library="tensorrt 10.13.3")
    for name in ("a.engine", "b.engine"):
        (tmp_path / name).write_bytes(name.encode())
        add_to_manifest(tmp_path, before, name, built, {name: "1"})
    manifest = check_manifest(tmp_path)
    assert manifest.engines == {"a.engine": built, "b.engine": built}
    assert manifest.versions == {"a.engine": "1", "b.engine": "1", **before.versions}


def test_what_changed_before_a_file_was_added_stays_changed(tmp_path: Path) -> None:
    before = _package(tmp_path)
    (tmp_path / "kernels" / "k.cubin").write_bytes(b"other")
    (tmp_path / "report.html").write_bytes(b"page")
    add_to_manifest(tmp_path, before, "report.html")
    with pytest.raises(InputError, match=r"k\.cubin is not the file that the manifest lists"):
        check_manifest(tmp_path)


def test_nothing_is_added_to_a_package_that_was_written_anew(tmp_path: Path) -> None:
    before = _package(tmp_path)
    (tmp_path / "kernels" / "k.cubin").write_bytes(b"other")
    now = write_manifest(tmp_path, target="sm_89", versions={}, source=_SOURCE, files=["kernels/k.cubin"])
    (tmp_path / "a.engine").write_bytes(b"of what was there before")
    with pytest.raises(InputError, match=r"was written anew while a\.engine was made"):
        add_to_manifest(tmp_path, before, "a.engine")
    assert check_manifest(tmp_path) == now
    assert not (tmp_path / "a.engine").exists()


def test_copies_are_what_was_compared(tmp_path: Path) -> None:
    manifest = _package(tmp_path / "p")
    copy_files(tmp_path / "p", manifest.files, tmp_path / "copy")
    assert (tmp_path / "copy" / "kernels" / "k.cubin").read_bytes() == b"cubin"
    (tmp_path / "p" / "kernels" / "k.cubin").write_bytes(b"CUBIN")
    with pytest.raises(InputError, match="found SHA-256"):
        copy_files(tmp_path / "p", manifest.files, tmp_path / "again")
    assert not (tmp_path / "again" / "kernels" / "k.cubin").exists()
