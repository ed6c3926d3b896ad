"""`onnxopt report`: the file that it writes, and a package that stays whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from onnxopt.cli import app
from onnxopt.deploy.manifest import check_manifest
from onnxopt.errors import InputError
from onnxopt.package import PLAN
from onnxopt.report.figures import FIGURES
from onnxopt.report.package_report import REPORT, write_report
from onnxopt.report.pictures import attention_pictures
from onnxopt.target.variant import AttentionVariant
from tests.report.cases import (
    attention_site,
    list_in_manifest,
    neighbourhood,
    plan_document,
    plan_site,
    schedule,
    square_cuts,
    strips_of,
    write_package,
)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of one planned site with its pictures."""
    lists = neighbourhood(8, 3)
    plan = schedule([((0,), 0, "squares", strips_of(lists, square_cuts(8, 4)))], AttentionVariant("mma", 16, 16, 4, 2))
    pictures = {"attention-0": attention_pictures(attention_site([lists], 64), plan)}
    return write_package(tmp_path / "net.onnxopt", plan_document([plan_site()]), pictures)


def test_the_report_becomes_part_of_the_package(package: Path) -> None:
    written = write_report(package)
    assert written.path == package / REPORT
    assert (written.sites, written.planned, written.sections, written.pictures) == (1, 1, 1, 3)
    manifest = check_manifest(package)
    entry = manifest.entry(REPORT)
    assert entry is not None
    assert entry.bytes == written.bytes == (package / REPORT).stat().st_size


def test_a_second_run_changes_nothing(package: Path) -> None:
    write_report(package)
    before = {path.name: path.read_bytes() for path in package.iterdir()}
    write_report(package)
    assert {path.name: path.read_bytes() for path in package.iterdir()} == before


@pytest.mark.parametrize("how", ["changed", "deleted"])
def test_a_damaged_report_is_written_anew(package: Path, how: str) -> None:
    write_report(package)
    before = (package / REPORT).read_bytes()
    if how == "changed":
        (package / REPORT).write_text("gone")
    else:
        (package / REPORT).unlink()
    write_report(package)
    assert (package / REPORT).read_bytes() == before
    check_manifest(package)


def test_a_report_elsewhere_leaves_the_package_alone(package: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in package.iterdir()}
    written = write_report(package, tmp_path / "page.html")
    assert written.path.read_bytes().startswith(b"<!DOCTYPE html>")
    assert {path.name: path.read_bytes() for path in package.iterdir()} == before


def test_its_own_place_may_be_named(package: Path) -> None:
    write_report(package, package / "." / REPORT)
    assert check_manifest(package).entry(REPORT) is not None


@pytest.mark.parametrize("name", [PLAN, FIGURES, "model.portable.onnx", "manifest.json", "other.html", "sub/x.html"])
def test_nothing_else_of_a_package_is_replaced(package: Path, name: str) -> None:
    before = {path.name: path.read_bytes() for path in package.iterdir()}
    with pytest.raises(InputError, match="leave out -o"):
        write_report(package, package / name)
    assert {path.name: path.read_bytes() for path in package.iterdir()} == before


@pytest.mark.parametrize("name", [PLAN, FIGURES, "model.portable.onnx"])
@pytest.mark.parametrize("reported", [False, True])
def test_a_changed_file_is_not_blessed(package: Path, name: str, reported: bool) -> None:
    if reported:
        write_report(package)
        (package / REPORT).unlink()
    (package / name).write_bytes((package / name).read_bytes() + b" ")
    with pytest.raises(InputError, match=f"{name} is not the file that the manifest lists"):
        write_report(package)


def test_a_package_of_an_older_version_says_what_to_do(tmp_path: Path) -> None:
    package = write_package(tmp_path / "old.onnxopt", plan_document([plan_site()]), None)
    with pytest.raises(InputError, match=r"figures\.json.*optimize the model again"):
        write_report(package)


def test_a_folder_that_is_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        write_report(tmp_path / "missing")
    with pytest.raises(InputError, match=r"manifest\.json"):
        write_report(tmp_path)


@pytest.mark.parametrize(("name", "content"), [(PLAN, b"{"), (FIGURES, b"[" * 100_000), (PLAN, b"{}"), (FIGURES, b"3")])
def test_documents_that_are_none_are_named(package: Path, name: str, content: bytes) -> None:
    (package / name).write_bytes(content)
    list_in_manifest(package)
    with pytest.raises(InputError, match=f"{name}.*optimize the model again"):
        write_report(package)


def test_a_figure_that_is_no_number_names_the_file(package: Path) -> None:
    (package / PLAN).write_text(json.dumps(plan_document([plan_site(waste="much")])))
    list_in_manifest(package)
    with pytest.raises(InputError, match=r"plan\.json: site 'attention-0' has 'much' in the field 'waste'"):
        write_report(package)
    assert not (package / REPORT).exists()


def test_a_plan_that_is_nested_too_deep_is_bad_input(package: Path) -> None:
    text = json.dumps(plan_document([plan_site(variants="DEEP")]))
    (package / PLAN).write_text(text.replace('"DEEP"', "[" * 900 + "]" * 900))
    list_in_manifest(package)
    result = CliRunner().invoke(app, ["report", str(package)])
    assert result.exit_code in (0, 2)


def test_an_engine_keeps_its_target(package: Path) -> None:
    document = json.loads((package / "manifest.json").read_text())
    next(entry for entry in document["files"] if entry["path"] == "model.portable.onnx")["target"] = "sm_89"
    (package / "manifest.json").write_text(json.dumps(document))
    write_report(package)
    entry = check_manifest(package).entry("model.portable.onnx")
    assert entry is not None
    assert entry.target == "sm_89"


def test_the_command_says_where_the_report_is(package: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(package)])
    assert result.exit_code == 0, result.output
    assert str(package / REPORT) in result.output
    assert "1 of 1 sites with a schedule, 3 pictures" in result.output


def test_the_command_prints_one_document(package: Path, tmp_path: Path) -> None:
    place = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["report", str(package), "-o", str(place), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "schema": "onnxopt.report/1",
        "path": str(place),
        "bytes": place.stat().st_size,
        "sites": 1,
        "planned": 1,
        "sections": 1,
        "pictures": 3,
    }


def test_bad_input_ends_with_2(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(tmp_path / "missing")])
    assert result.exit_code == 2
    assert "no folder" in result.output
