"""The report of a package: read what `optimize` left, write one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxopt.deploy.manifest import Manifest, add_to_manifest, check_manifest, checked_file, read_manifest
from onnxopt.errors import InputError
from onnxopt.model.files import atomic_write
from onnxopt.package import PLAN
from onnxopt.plan_document import read_plan
from onnxopt.report.figures import FIGURES, read_figures
from onnxopt.report.page import group_planned, render

REPORT = "report.html"
SCHEMA = "onnxopt.report/1"


@dataclass(frozen=True)
class WrittenReport:
    """A report: its file, its size in bytes, and how many sites, sections and pictures it has."""

    path: Path
    bytes: int
    sites: int
    planned: int
    sections: int
    pictures: int

    def to_json(self) -> dict[str, Any]:
        """The document ``onnxopt.report/1``."""
        return {
            "schema": SCHEMA,
            "path": str(self.path),
            "bytes": self.bytes,
            "sites": self.sites,
            "planned": self.planned,
            "sections": self.sections,
            "pictures": self.pictures,
        }


def rendered(folder: Path, versions: Mapping[str, str]) -> bytes:
    """The page for the plan and the pictures that lie in a folder, not yet a package."""
    return render(read_plan(folder / PLAN), read_figures(folder / FIGURES), versions).encode()


def write_report(folder: str | Path, out: str | Path | None = None) -> WrittenReport:
    """Write the report of a package, by default into it, where it becomes part of its manifest.

    The same package gives the same bytes. Raises InputError for a folder that is no package or is damaged, for one
    without pictures, and for a place that cannot be written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder; give a package that `onnxopt optimize` has written")
    place = Path(out) if out is not None else folder / REPORT
    inside = _is_inside(place, folder)
    manifest = _checked_besides(folder, REPORT) if inside else read_manifest(folder)
    if manifest.entry(FIGURES) is None:
        raise InputError(f"{folder}: has no {FIGURES}, so it was written by an older version; optimize the model again")
    plan, figures = read_plan(checked_file(folder, PLAN)), read_figures(checked_file(folder, FIGURES))
    try:
        groups = group_planned(plan.sites, figures)
        page = render(plan, figures, manifest.versions).encode()
    except (InputError, RecursionError) as error:
        raise InputError(f"{folder / PLAN}: {error}; optimize the model again, or get the package again") from None
    atomic_write(place, page)
    if inside:
        add_to_manifest(folder, manifest, REPORT)
    return WrittenReport(
        place,
        len(page),
        len(plan.sites),
        sum(len(group.sites) for group in groups),
        len(groups),
        sum(len(group.pictures) for group in groups),
    )


def _is_inside(place: Path, folder: Path) -> bool:
    """Whether the report goes into the package; there it has one name, so that it can replace nothing else."""
    if folder.resolve() not in place.parent.resolve().joinpath(place.name).parents:
        return False
    if place.parent.resolve() == folder.resolve() and place.name == REPORT:
        return True
    raise InputError(
        f"-o {place}: in a package the report is called {folder / REPORT}; leave out -o, or name another place"
    )


def _checked_besides(folder: Path, written: str) -> Manifest:
    """The manifest, after comparing every file with it but the one that is written anew."""
    try:
        return check_manifest(folder)
    except InputError:
        manifest = read_manifest(folder)
        if manifest.entry(written) is None:
            raise
        for entry in manifest.files:
            if entry.path != written:
                checked_file(folder, entry.path)
        return manifest
