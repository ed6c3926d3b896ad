"""Grouping of sites that look alike."""

from __future__ import annotations

from typing import Any

import pytest

from onnxopt.decide import SiteReport
from onnxopt.report.sites import group_sites, span


def _site(number: int, reason: str, **changes: Any) -> SiteReport:
    found = {
        "in_channels": 64,
        "out_channels": 32,
        "kernel": [1, 1],
        "groups": 1,
        "pattern": "pruned",
        "connections": 512,
    } | {key: changes.pop(key) for key in list(changes) if key in ("groups", "pattern")}
    return SiteReport(f"conv-{number}", "conv", found, changes.pop("decision", "rewrite"), reason, **changes)


def test_equal_sites_become_one_group_with_a_range() -> None:
    sites = [
        _site(0, "measured 1.50 times as fast", predicted_gain=2.0, measured_gain=1.5),
        _site(1, "dense", decision="keep", pattern="dense"),
        _site(2, "measured 1.25 times as fast", predicted_gain=2.0, measured_gain=1.25),
    ]
    grouped = group_sites(sites)
    assert [[site.id for site in group.sites] for group in grouped.groups] == [["conv-0", "conv-2"], ["conv-1"]]
    assert grouped.reasons == ("measured 1.25 to 1.50 times as fast", "dense")
    assert [group.reason for group in grouped.groups] == [1, 2]
    assert [group.gain for group in grouped.groups] == ["1.25-1.50", ""]


def test_sites_that_differ_in_one_thing_stay_apart() -> None:
    sites = [_site(0, "a"), _site(1, "a", groups=2), _site(2, "a", decision="keep"), _site(3, "b")]
    assert len(group_sites(sites).groups) == 4


def test_a_prediction_is_marked() -> None:
    assert group_sites([_site(0, "predicted 1.204 times as fast", predicted_gain=1.204)]).groups[0].gain == "~1.20"


def test_reasons_with_several_numbers_get_a_range_for_each() -> None:
    grouped = group_sites([_site(0, "from 1.0 to 9.5, of 7"), _site(1, "from 1.0 to 10.5, of 7")])
    assert grouped.reasons == ("from 1.0 to 9.5 to 10.5, of 7",)


def test_reasons_that_name_other_sites_are_one() -> None:
    grouped = group_sites([_site(n, f"computed by the kernel of conv-{n // 2}") for n in range(10)])
    assert grouped.reasons == ("computed by the kernel of conv-0, conv-1, conv-2 and 2 more",)
    assert len(grouped.groups) == 1
    assert group_sites([_site(1, "read by conv-0"), _site(2, "1.5 of conv-0")]).reasons == (
        "read by conv-0",
        "1.5 of conv-0",
    )


@pytest.mark.parametrize(
    ("values", "shown"),
    [([], ""), ([None], ""), ([1.5, None], "1.50"), ([1.501, 1.502], "1.50"), ([10.0, 9.0], "9.00-10.00")],
)
def test_span(values: list[float | None], shown: str) -> None:
    assert span(values) == shown
