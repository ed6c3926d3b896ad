"""Running a kernel's PTX on the CPU notices bugs that are planted into the sources, one at a time."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.errors import OnnxOptError
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.kernels.source import attention_source, merge_source
from onnxopt.plan.tables import attention_tables
from onnxopt.resources import resource_dir
from onnxopt.target.variant import AttentionVariant
from onnxopt.verification.kernels import check_attention, check_merge
from tests.kernels.planted_bugs import BUGS, Bug
from tests.plan.schedules import scheduled
from tests.plan.sites import Wish, key_lists, made_site

_MMA = AttentionVariant("mma", 32, 32, 2, 2)
_SWAPPED = AttentionVariant("mma", 8, 32, 2, 2, swapped=True)
_WGMMA = AttentionVariant("wgmma", 64, 64, 4, 2)


@dataclass(frozen=True)
class _Case:
    """A kernel and a site that it computes; ``split`` as in a schedule, ``dense``: every row needs every key."""

    variant: AttentionVariant
    architecture: str
    wish: Wish
    split: int = 0
    dense: bool = False

    def tables(self) -> Any:
        site, shapes = made_site(self.wish, seed=1)
        if self.dense:
            site = replace(site, lists=(key_lists(np.ones((site.rows, self.wish.keys), np.int64)),))
        schedule = scheduled(site, (self.variant,), seed=2, split_keys=self.split, element="fp16")
        return attention_tables(site, schedule, shapes=shapes)


_SITE = Wish(heads=1, rows=40, keys=107, width=32, value_width=32, bias=True)
_CASES: Mapping[str, _Case] = {
    "mma": _Case(_MMA, "sm_80", _SITE),
    "mma tail": _Case(_MMA, "sm_80", Wish(heads=1, rows=40, keys=71, width=32, value_width=32), dense=True),
    "split": _Case(_MMA, "sm_80", _SITE, split=40),
    "swapped": _Case(_SWAPPED, "sm_80", _SITE),
    "wgmma": _Case(_WGMMA, "sm_90a", Wish(heads=1, rows=70, keys=400, width=32, value_width=32)),
    "merge": _Case(_MMA, "sm_80", _SITE, split=40),
}


def problem_of(name: str, folder: Path | None, cache: Path | None) -> str:
    """What running the kernel of a case shows; empty where all is well."""
    case = _CASES[name]
    tables = case.tables()
    try:
        if name == "merge":
            kernel = compile_kernel(merge_source(tables.merge.kernel), case.architecture, folder=folder)
            check = check_merge(kernel, tables.merge.kernel, tables.merge.merges, batch=1, cache=cache)
        else:
            description = tables.kernel.to_json()
            kernel = compile_kernel(attention_source(description, 1), case.architecture, folder=folder)
            check = check_attention(kernel, description, tables.arrays(), batch=1, cache=cache)
    except OnnxOptError as error:
        return f"{type(error).__name__}: {error}"
    return "" if check.passed else check.worst().explain()


@pytest.mark.parametrize("name", _CASES)
def test_the_kernel_as_it_is_passes(name: str, programs: Path) -> None:
    assert problem_of(name, None, programs) == ""


def planted(bug: Bug, folder: Path) -> None:
    """Copy the sources into a folder, with the bug."""
    shutil.copytree(resource_dir("cuda"), folder)
    path = folder / bug.file
    text = path.read_text()
    assert text.count(bug.before) == 1, f"{bug.name}: its text must stand once in {bug.file}"
    path.write_text(text.replace(bug.before, bug.after))


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_noticed(bug: Bug, tmp_path: Path, programs: Path) -> None:
    planted(bug, tmp_path / "cuda")
    assert problem_of(bug.case, tmp_path / "cuda", programs) != ""
