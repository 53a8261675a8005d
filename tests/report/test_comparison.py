"""Results side by side: what page and Markdown show is what was compared, for every kind of results."""

import math
import re
from xml.etree import ElementTree

import pytest
from made_browser import BROWSER, TEXTS, chromium, show
from made_compared import KINDS, run, two, undefined
from made_figures import EVIL
from made_results import FAILING, PASSING

from lightning_sanity.report import comparison_page, decided
from lightning_sanity.report.comparison_text import became, letters, markdown, number
from lightning_sanity.result import Outcome
from lightning_sanity.result.comparison import compared

SVG = {"svg": "svg"}


@pytest.fixture(scope="module", params=KINDS)
def shown(request):
    """A comparison, its page as a tree, and its Markdown."""
    comparison = compared(KINDS[request.param]())
    names = [f"runs/{k}/latest.json" for k in range(len(comparison.results))]
    return comparison, tree(comparison, names), markdown(comparison, names)


def tree(comparison, names):
    page = comparison_page.render(comparison, names)
    for void in ("meta", "link"):
        page = re.sub(rf"<{void}\b[^>]*>", "", page)
    page = page.replace("<!DOCTYPE html>", "").replace("<br>", "").replace("&nbsp;", " ").replace("&minus;", "-")
    return ElementTree.fromstring(page)


def words(node):
    return " ".join("".join(node.itertext()).split())


def rows(page):
    return page.findall(".//table[@class='tracks']/tbody/tr")


def drawings(comparison):
    page = tree(comparison, ["a", "b"])
    return {
        track.method: row.find(".//svg[@role='img']") for track, row in zip(comparison.tracks, rows(page), strict=True)
    }


def test_every_method_has_a_row_the_worst_first(shown):
    comparison, page, _ = shown
    assert [words(row.find("th/strong")).replace("\u200b", "") for row in rows(page)] == [
        track.method for track in comparison.tracks
    ]
    assert [row.find("th/span").text.strip()[2:] for row in rows(page)] == [became(t) for t in comparison.tracks]


def test_every_result_of_a_method_is_shown_with_the_number_that_decided(shown):
    comparison, page, _ = shown
    for track, row in zip(comparison.tracks, rows(page), strict=True):
        lines = row.findall(".//ul[@class='lanes']/li")
        described = row.find(".//svg[@role='img']").get("aria-label")
        for verdict, line, letter in zip(track.verdicts, lines, letters(len(lines)), strict=True):
            expected = "not measured" if verdict is None else decided.number(verdict)
            assert words(line).startswith(f"{letter} {expected}")
            assert f"{letter} {expected}" in described
            if verdict is not None:
                assert verdict.outcome.value in words(line)
        assert (number(track.change) in words(row.find("th"))) == math.isfinite(track.change.value)


def test_descriptions_say_verdict_threshold_and_what_became(shown):
    comparison, page, _ = shown
    for track, row in zip(comparison.tracks, rows(page), strict=True):
        described = row.find(".//svg[@role='img']").get("aria-label")
        assert described.startswith(f"{track.method}: {became(track)}, ")
        held = sum(verdict is not None for verdict in track.verdicts)
        assert len(re.findall(r"passes from 0\.\d+", described)) == held


def test_a_mark_lies_where_its_number_is(shown):
    comparison, page, _ = shown
    low, high = comparison_page.reach(comparison)
    for track, row in zip(comparison.tracks, rows(page), strict=True):
        marks = [float(mark.get("x").rstrip("%")) for mark in row.findall(".//svg[@class='mark']")]
        known = [v.psi for v in track.verdicts if v is not None and math.isfinite(v.psi)]
        assert marks == pytest.approx(
            [100 * (min(max(psi, low), high) - low) / (high - low) for psi in known], abs=0.01
        )


def test_answer_and_reason_are_the_comparisons(shown):
    comparison, page, summary = shown
    said = f"{comparison.outcome.value}: {' '.join(comparison.reason.split())}"
    assert words(page.find(".//p")).endswith(said)
    assert comparison.outcome.value in summary.splitlines()[0]


def test_markdown_is_a_table_with_a_row_per_method_the_worst_first(shown):
    comparison, _, summary = shown
    lines = summary.replace("\N{NO-BREAK SPACE}", " ").splitlines()
    table = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
    assert {len(line) for line in table} <= {len(comparison.results) + 4}
    assert len(table) == (len(comparison.tracks) + 2 if comparison.tracks else 0)
    for line, track in zip(table[2:], comparison.tracks, strict=True):
        assert line[0].split(maxsplit=1)[1].strip() == became(track)
        assert line[-2].strip() == number(track.change)
        for cell, verdict in zip(line[2:-2], track.verdicts, strict=True):
            assert cell.strip().startswith("not measured" if verdict is None else decided.number(verdict))


def test_what_is_undefined_is_hatched_and_has_no_mark():
    for method, drawn in drawings(compared(undefined())).items():
        hatched = len(drawn.findall(".//rect[@class='hatched']"))
        assert hatched == {"lost": 1, "found": 1, "never": 2}.get(method, 0)
        assert len(drawn.findall(".//svg[@class='mark']")) == 2 - hatched


def test_what_no_measure_decided_is_hollow():
    drawn = drawings(compared(undefined()))
    hollow = {method: len(d.findall(".//g[@class='INCONCLUSIVE hollow']")) for method, d in drawn.items()}
    assert hollow == {**dict.fromkeys(drawn, 0), "unchecked": 2}


@pytest.mark.parametrize(("method", "text"), [("beyond", "2.40"), ("below", "-1.20")])
def test_off_the_scale_is_an_arrow_with_its_number(method, text):
    drawn = drawings(compared(undefined()))[method]
    assert [words(node) for node in drawn.findall(".//text") if "beyond" in node.get("class")] == [text]


def test_what_is_no_worse_and_fails_as_before_is_not_called_good():
    comparison = compared(two())
    (track,) = (t for t in comparison.tracks if t.method == "guided_backprop")
    assert (track.change.outcome, became(track)) == (Outcome.PASS, "not worse, still fails")
    page = words(tree(comparison, ["a", "b"]).find(".//header"))
    assert "not worse, still fails: guided_backprop; not to be shown as evidence" in page
    assert "not worse: gradcam, lime." in page


def test_two_thresholds_are_drawn_where_each_result_has_its_own():
    comparison = compared(KINDS["two thresholds"]())
    lines = drawings(comparison)["gradcam"].findall("line[@class='level']")
    low, high = comparison_page.reach(comparison)
    expected = [100 * (limit - low) / (high - low) for limit in (0.65, 0.5)]
    assert [float(line.get("x1").rstrip("%")) for line in lines] == pytest.approx(expected, abs=0.01)


def test_only_what_compares_is_joined(shown):
    comparison, page, _ = shown
    for track, row in zip(comparison.tracks, rows(page), strict=True):
        known = sum(verdict is not None and math.isfinite(verdict.psi) for verdict in track.verdicts)
        joined = 0 if comparison.problem else max(known - 1, 0)
        assert len(row.findall(".//line[@class='link']")) == joined


def test_names_are_text():
    comparison = compared([run({EVIL: PASSING}), run({EVIL: FAILING}, "1")])
    page = tree(comparison, [EVIL, "b.json"])
    assert page.findall(".//img") == []
    assert EVIL in words(page)
    assert "<img" not in markdown(comparison, [EVIL, "b.json"])


# ------------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    if BROWSER is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with chromium(tmp_path_factory.mktemp("browser")) as opened:
        opened("Page.enable")
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_page_can_be_read_in_every_size(kind, tab, tmp_path):
    comparison = compared(KINDS[kind]())
    names = [f"runs/{k}/latest.json" for k in range(len(comparison.results))]
    page = comparison_page.write(comparison, tmp_path / "page.html", names)
    for width, height in ((1280, 800), (768, 1024), (390, 844)):
        show(tab, page, width=width)
        found = tab.evaluate(TEXTS)
        assert [found[wrong] for wrong in ("overlap", "cut", "small", "sideways")] == [[], [], [], 0]
        if comparison.tracks and comparison.problem is None and len(comparison.results) <= 5:
            assert found["first"] <= height, "the first method stands on the first screen"
