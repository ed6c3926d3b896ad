"""The page and the documents that it is made of: harmless, self-contained, and never made of anything damaged."""

from __future__ import annotations

import base64
import copy
import json
import re
import struct
import zlib
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from onnxopt.errors import InputError
from onnxopt.plan_document import parse_plan
from onnxopt.report.figure import cells_png, figure, legend
from onnxopt.report.figures import MAX_PICTURES, figures_document, parse_figures
from onnxopt.report.markup import microseconds, numbered, percent, table, text
from onnxopt.report.page import group_planned, render
from onnxopt.report.picture import MAX_TILES, Picture, TileKind
from onnxopt.report.pictures import attention_pictures
from onnxopt.report.png import palette_png
from onnxopt.report.raster import Axis
from onnxopt.target.variant import AttentionVariant
from tests.plan.test_strips import key_lists
from tests.report.cases import attention_site, plan_document, plan_site, schedule, strips_of

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>&'\x1b[31m\u202e\ud800"
VOID = {"meta", "img", "br", "path"}


class _Checker(HTMLParser):
    """Collects what a page loads and whether its elements are closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.alts: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        self.alts += [value or "" for name, value in attrs if name == "alt"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def _checked(page: str) -> _Checker:
    checker = _Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    return checker


def _pictures(order: str = "equal keys") -> list[Picture]:
    lists = key_lists([[0, 2, 4], [1, 3, 5], [0, 2, 4], [1, 3, 5]])
    strips = strips_of(lists, [np.array([0, 2]), np.array([1, 3])])
    return attention_pictures(
        attention_site([lists], 6), schedule([((0,), 0, order, strips)], AttentionVariant("mma", 16, 16, 4, 2))
    )


def _page(
    sites: list[dict[str, Any]], pictures: dict[str, list[Picture]], refusals: list[dict[str, str]] | None = None
) -> str:
    plan = parse_plan(plan_document(sites, refusals or []))
    return render(plan, parse_figures(figures_document(pictures)), {"onnxopt": "0.1.0"})


def test_pictures_survive_being_written_and_read() -> None:
    document = json.loads(json.dumps(figures_document({"attention-0": _pictures()})))
    figures = parse_figures(document)
    assert figures.sites == {"attention-0": (0, 1, 2)}
    for read, written in zip(figures.pictures, _pictures(), strict=True):
        assert (read.stage, read.pattern, read.order, read.rows, read.columns) == (
            written.stage,
            written.pattern,
            written.order,
            written.rows,
            written.columns,
        )
        assert (read.needed, read.computed, read.blocks, read.shown) == (
            written.needed,
            written.computed,
            written.blocks,
            written.shown,
        )
        assert np.array_equal(read.needed_levels, written.needed_levels)
        assert (read.computed_levels is None) == (written.computed_levels is None)
        assert np.array_equal(read.tiles, written.tiles)


def test_equal_pictures_are_written_once_and_always_alike() -> None:
    entries = {"attention-0": _pictures(), "attention-1": _pictures(), "attention-2": _pictures("other")}
    document = figures_document(entries)
    assert document["sites"] == {"attention-0": [0, 1, 2], "attention-1": [0, 1, 2], "attention-2": [0, 3, 4]}
    assert json.dumps(document) == json.dumps(figures_document(entries))


def test_too_many_pictures_are_left_out_by_whole_sites() -> None:
    entries = {f"attention-{n}": _pictures(f"order {n}")[1:] for n in range(MAX_PICTURES // 2 + 2)}
    document = figures_document(entries)
    assert len(document["pictures"]) == MAX_PICTURES
    assert document["sites"][f"attention-{MAX_PICTURES // 2}"] == []
    assert len(parse_figures(document).pictures) == MAX_PICTURES


def _squeezed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


DAMAGE: list[tuple[str, Any, str]] = [
    ("kind", "video", "kind"),
    ("stage", ["after"], "stage"),
    ("pattern", "x" * 201, "up to 200 characters"),
    ("order", None, "text"),
    ("rows", [4], "list of 2"),
    ("rows", [0, 1], "cells"),
    ("rows", [4, 0], None),
    ("rows", [1 << 40, 1 << 32], "cells"),
    ("rows", [257, 1], "up to 256 cells"),
    ("columns", [6.0, 1], "6.0"),
    ("needed", -1, "-1"),
    ("needed", True, "True"),
    ("computed", 1 << 60, "allowed"),
    ("blocks", [1, 2], "list of 3"),
    ("needed_levels", "????", "base 64"),
    ("needed_levels", "AAAA", "base 64"),
    ("needed_levels", _squeezed(bytes(23)), "23 cells"),
    ("needed_levels", _squeezed(bytes(10**7)), "more than 24"),
    ("needed_levels", None, "base 64"),
    ("computed_levels", 3, "base 64"),
    ("tiles", _squeezed(bytes(19)), "19 bytes"),
    ("tiles", _squeezed(struct.pack("<5i", 0, 0, 5, 6, 0)), "not within 4 x 6"),
    ("tiles", _squeezed(struct.pack("<5i", 2, 0, 2, 6, 0)), "not within"),
    ("tiles", _squeezed(struct.pack("<5i", 0, -1, 2, 6, 0)), "not within"),
    ("tiles", _squeezed(struct.pack("<5i", 0, 0, 2, 6, 3)), "not within"),
    ("tiles", _squeezed(bytes(20 * (MAX_TILES + 1))), "more than"),
]


@pytest.mark.parametrize(("field", "value", "message"), DAMAGE)
def test_damaged_pictures_are_refused_with_the_field(field: str, value: Any, message: str | None) -> None:
    document = figures_document({"attention-0": _pictures()})
    document["pictures"][1][field] = value
    with pytest.raises(InputError, match=r"pictures\[1\]") as caught:
        parse_figures(document)
    assert message is None or message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "onnxopt.figures/2"}, "this version reads"),
        ({"pictures": {}}, "pictures"),
        ({"pictures": [7]}, "pictures[0]"),
        ({"sites": []}, "sites"),
        ({"sites": {"a": [3]}}, "allowed: 0 to 2"),
        ({"sites": {"a": 0}}, "list"),
    ],
)
def test_damaged_documents_of_pictures_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_figures(figures_document({"attention-0": _pictures()}) | change)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), "onnxopt.inspect/1"),
        (("model",), None),
        (("model", "path"), 3),
        (("model", "opset"), "17"),
        (("target",), None),
        (("sites",), {}),
        (("sites", 0), []),
        (("sites", 0, "kind"), "pool"),
        (("sites", 0, "decision"), None),
        (("sites", 0, "nodes"), ["a", 1]),
        (("sites", 0, "id"), 0),
        (("refusals",), None),
        (("refusals", 0), "x"),
        (("refusals", 0, "op"), None),
    ],
)
def test_damaged_plans_are_refused_with_the_field(path: tuple[str | int, ...], value: Any) -> None:
    document: Any = plan_document([plan_site()], [{"node": "a", "op": "Softmax", "reason": "b"}])
    at = document
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    with pytest.raises(InputError, match=str(path[-1]) if isinstance(path[-1], str) else str(path[0])):
        parse_plan(document)


def test_two_sites_of_one_id_are_refused() -> None:
    with pytest.raises(InputError, match="same id"):
        parse_plan(plan_document([plan_site(), plan_site()]))


@pytest.mark.parametrize("value", ["12", float("nan"), float("inf"), 10**400, True, [1]])
@pytest.mark.parametrize("field", ["waste", "gap", "needed", "density", "predicted_gain"])
def test_figures_that_are_no_numbers_are_refused(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"field '{field}'"):
        _page([plan_site(**{field: value})], {})


@pytest.mark.parametrize("value", [10**400, -1, True, None, 1.5, {}, "x"])
def test_odd_entries_of_a_plan_are_shown_as_they_are(value: Any) -> None:
    site = plan_site(
        variants=[{"strips": value, "rows": value, "keys": value}, value], solver={"nodes": value}, reorder=value
    )
    _checked(_page([site], {"attention-0": _pictures()}))


def test_a_page_loads_nothing_and_runs_nothing() -> None:
    checker = _checked(_page([plan_site()], {"attention-0": _pictures()}))
    assert not checker.tags & {"script", "link", "iframe", "object", "form", "base"}
    assert not any(name.startswith("on") for name in checker.attributes)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in checker.links)
    assert sum(link.startswith("data:") for link in checker.links) == 3


def test_names_of_a_model_do_no_harm() -> None:
    sites = [
        plan_site(
            0,
            id=f"attention-{HOSTILE}",
            nodes=[HOSTILE],
            reason=HOSTILE,
            reorder=[HOSTILE],
            variants=[{HOSTILE: HOSTILE}, HOSTILE, [HOSTILE]],
            solver={"name": HOSTILE, "status": HOSTILE, "nodes": HOSTILE},
            certificate=HOSTILE,
        ),
        plan_site(1, "conv", kernel=[HOSTILE], pattern=HOSTILE),
        {
            name: value
            for name, value in plan_site(2, reason=HOSTILE, id=HOSTILE, decision="keep").items()
            if name != "computed"
        },
    ]
    document = plan_document(sites, [{"node": HOSTILE, "op": HOSTILE, "reason": HOSTILE}])
    document["model"]["path"] = document["target"] = document["form"] = HOSTILE
    pictures = figures_document({sites[0]["id"]: _pictures()})
    for picture in pictures["pictures"]:
        picture["pattern"] = picture["order"] = HOSTILE
    page = render(parse_plan(document), parse_figures(pictures), {HOSTILE: HOSTILE})
    checker = _checked(page)
    assert not checker.tags & {"script", "object", "link"}
    assert "onerror" not in checker.attributes
    assert all(link.startswith(("data:image/png;base64,", "#plan-")) for link in checker.links)
    assert not re.search("[\x00-\x08\x0e-\x1f\x7f\u202a-\u202e]", page)
    assert page.encode()
    assert sum("<script>alert(1)</script>" in words for words in checker.words) > 10


def test_a_section_says_what_the_plan_says() -> None:
    page = _page([plan_site()], {"attention-0": _pictures()})
    words = re.sub(r"\s+", " ", "".join(_checked(page).words))
    for expected in (
        "swin.onnx",
        "sm_89",
        "portable",
        "onnxopt 0.1.0",
        "1.84×",
        "1,024",
        "1,280",
        "1.25×",
        "12.35 µs",
        "10.10 µs",
        "0.40 %",
        "enumeration, optimal, 12 compared",
        "every order and cut was compared",
        "4 strips of 16 × 16",
        "In the plan’s order (equal keys)",
        "Measured 1.84 times as fast.",
        "3 heads of 32 channels",
    ):
        assert expected in words, expected


def test_every_picture_has_words() -> None:
    alts = _checked(_page([plan_site()], {"attention-0": _pictures()})).alts
    assert len(alts) == 3
    assert "12 query–key pairs needed, 50 % of all" in alts[0]
    assert "waste 42.67×" in alts[1]
    assert not any("<" in alt for alt in alts)


def test_equal_sites_are_shown_once() -> None:
    sites = [plan_site(n, reason=f"measured 1.{n} times as fast", measured_gain=1 + n / 10) for n in range(3)]
    sites.append(plan_site(3, predicted_us=99.0))
    plan = parse_plan(plan_document(sites))
    figures = parse_figures(figures_document({f"attention-{n}": _pictures() for n in range(4)}))
    groups = group_planned(plan.sites, figures)
    assert [[site.id[-1] for site in group.sites] for group in groups] == [["0", "1", "2"], ["3"]]
    page = render(plan, figures, {})
    assert "attention-0 to 2" in page
    assert "These 3 sites have the same pattern and the same schedule." in page
    assert "1.00–1.20<i>×</i>" in page
    assert all(f"measured 1.{n} times as fast" in page for n in range(3))


def test_a_convolution_shows_its_own_kernel_beside_the_compiled_one() -> None:
    compiled = {"operator": "GroupConv_0", "architecture": "sm_80", "registers": 92, "threads": 128, "shared_bytes": 64}
    reason = "implicit_gemm is chosen"
    site = plan_site(0, "conv", kernel=[3, 5], compiled_kernel=compiled, reason=reason)
    words = "".join(_checked(_page([site], {})).words)
    assert "kernel 3 × 5" in words
    assert "sm_80, 92 registers, 128 threads" in words
    assert "implicit_gemm is chosen." in words


def test_the_tactics_of_an_engine_are_listed_and_what_they_lack_is_said() -> None:
    tactics = [{"predicted_us": 12.5, "registers": 92, "shared_bytes": 50000}, {"predicted_us": 13.0, "registers": 64}]
    page = _page([plan_site(tactics=tactics, tactics_note="none is <small>")], {})
    words = "".join(_checked(page).words)
    assert "12.50 µs: 92 registers, 50,000 bytes of shared memory" in words
    assert "13.00 µs: 64 registers" in words
    assert "none is <small>" in words
    assert "tactics of an engine" not in _page([plan_site(tactics=["rubbish", 3])], {})


def test_sites_without_a_schedule_and_refusals_are_listed_by_their_reason() -> None:
    kept = [
        {
            name: value
            for name, value in plan_site(n, "conv", decision="keep", reason="dense").items()
            if name != "computed"
        }
        for n in range(5)
    ]
    refusals = [{"node": f"/blk.{n}/Softmax", "op": "Softmax", "reason": "no product"} for n in range(14)]
    page = _page(kept, {}, refusals)
    words = "".join(_checked(page).words)
    assert "conv-0 to 4" in words
    assert "No schedule was made" in words
    assert "/blk.11/Softmax and 2 more" in words


def test_a_model_without_sites_has_a_page() -> None:
    assert "0 sites: 0 rewritten, 0 kept" in "".join(_checked(_page([], {})).words)


def test_a_site_without_pictures_has_a_section() -> None:
    assert "There are no pictures of this site." in _page([plan_site()], {})


def test_pages_are_the_same_each_time() -> None:
    assert _page([plan_site()], {"attention-0": _pictures()}) == _page([plan_site()], {"attention-0": _pictures()})


def _decoded(png: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The RGBA pixels of a PNG with a palette, and its palette; only what `palette_png` writes is understood."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", png, at + 8 + length) == (zlib.crc32(kind + data),)
        chunks[kind], at = data, at + 12 + length
    width, height, depth, colour, *_ = struct.unpack(">2I5B", chunks[b"IHDR"])
    assert (depth, colour) == (8, 3)
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not lines[:, 0].any()
    palette = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
    full = np.concatenate([palette, np.frombuffer(chunks[b"tRNS"], np.uint8)[:, None]], axis=1)
    return full[lines[:, 1:]], full


def test_a_png_holds_its_pixels() -> None:
    palette = [(1, 2, 3, 0), (200, 100, 50, 255)]
    pixels, _ = _decoded(palette_png(np.array([[0, 1, 1], [1, 0, 0]], np.uint8), palette))
    assert pixels.tolist() == [[list(palette[i]) for i in row] for row in ((0, 1, 1), (1, 0, 0))]


def test_colours_tell_needed_from_spare_from_nothing() -> None:
    shape = Axis(1, 1), Axis(4, 1)
    needed = np.array([[0, 255, 1, 0]], np.uint8)
    computed = np.array([[0, 255, 255, 255]], np.uint8)
    picture = Picture("conv", "after", "", "", *shape, 2, 3, needed, computed, np.empty((0, 5), np.int32), 1)
    nothing, full, little, spare = _decoded(cells_png(picture))[0][0].astype(int)
    assert nothing[3] == 0
    assert full[3] == 255
    assert full[2] > full[0]
    assert spare[0] > spare[2]
    assert spare[3] > 100
    assert little[3] > 100
    assert 'class="cell spare"' in legend([picture])


def test_shared_edges_are_drawn_once() -> None:
    tiles = np.array([[0, 0, 2, 2, TileKind.MASKED], [0, 2, 2, 4, TileKind.MASKED]], np.int32)
    shape = Axis(2, 1), Axis(4, 1)
    picture = Picture("conv", "after", "", "", *shape, 8, 8, np.full((2, 4), 255, np.uint8), None, tiles, 2)
    markup = figure(picture)
    assert re.findall(r'class="masked" d="([^"]*)"', markup) == ["M0 0H4M0 2H4M0 0V2M2 0V2M4 0V2"]


@pytest.mark.parametrize("cells", [(1, 256), (256, 1), (4, 4), (256, 256), (1, 1)])
def test_a_picture_of_any_shape_has_a_sensible_size(cells: tuple[int, int]) -> None:
    picture = Picture(
        "conv",
        "blocks",
        "",
        "",
        Axis(cells[0], 1),
        Axis(cells[1], 1),
        1,
        1,
        np.zeros(cells, np.uint8),
        None,
        np.empty((0, 5), np.int32),
        1,
        0,
        1,
    )
    size = re.search(r'width="(\d+)" height="(\d+)"', figure(picture))
    assert size is not None
    assert all(32 <= int(side) <= 512 for side in size.groups())


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], ""),
        (["conv-0"], "conv-0"),
        (["conv-0", "conv-1", "conv-2", "conv-5"], "conv-0 to 2, 5"),
        (["attention-1", "conv-2", "conv-3"], "attention-1, conv-2, 3"),
        (["x", "x", "conv-9", "odd", "conv-10"], "x, x, conv-9, odd, conv-10"),
        (["a to 1", "a to 2"], "a to 1, 2"),
    ],
)
def test_numbered_names_are_shortened(names: list[str], expected: str) -> None:
    assert numbered(names) == expected


def test_numbers_have_units_and_enough_digits() -> None:
    shown = [percent(value) for value in (0.0, 0.004, 0.045, 0.5)] + [microseconds(value) for value in (1.234, 12345.6)]
    assert [re.sub("<[^>]*>", "", value) for value in shown] == [
        "0 %",
        "0.40 %",
        "4.5 %",
        "50 %",
        "1.23 µs",
        "12,346 µs",
    ]


def test_text_is_escaped_and_bounded() -> None:
    assert text("<a & 'b'>\n\x1b") == "&lt;a &amp; &#x27;b&#x27;&gt; \\x1b"
    assert len(text("x" * 10_000)) == 600


def test_numbers_stand_to_the_right() -> None:
    assert '<td class="n">1</td>' in table([("a", False), ("b", True)], [("x", "1")])


def test_the_documents_are_not_changed_by_rendering() -> None:
    document = plan_document([plan_site()])
    before = copy.deepcopy(document)
    render(parse_plan(document), parse_figures(figures_document({})), {})
    assert document == before
