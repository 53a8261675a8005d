"""The number that decided: one number, the reason's, wherever a verdict is shown."""

import math
import re
from html.parser import HTMLParser

import pytest
import torch
from made_figures import make_result
from made_results import made_of_labels

from lightning_sanity.callback.scalars import scalars
from lightning_sanity.release import Check, Decision, decision, gate
from lightning_sanity.report import cards, comparison_page, comparison_text, decided, figures, html, markdown
from lightning_sanity.report.columns import fitted
from lightning_sanity.report.shown import Shown
from lightning_sanity.report.text import account, markup
from lightning_sanity.result import Criterion, Outcome, Verdict
from lightning_sanity.result.comparison import compared
from lightning_sanity.result.verdict import MEASURES, Evidence, judge

PER_RESULT = 25


def simulated(draw):
    """A verdict on maps that let go by a random amount, differently by every measure."""
    level, spread = torch.rand(2, generator=draw).tolist()
    values, floor, ceiling = {}, {}, {}
    for measure in MEASURES:
        kept = level + 0.3 * torch.randn(1, generator=draw)
        values[measure] = kept + spread * torch.randn(3, 3, 6, generator=draw)
        floor[measure] = 0.05 * torch.randn(3, 3, 6, generator=draw)
        ceiling[measure] = torch.ones(2, 6)
    noise, cross = torch.full((3, 6), 0.95), 0.05 * torch.randn(3, 6, generator=draw)
    dead = 0.5 if float(torch.rand(1, generator=draw)) < 0.1 else 0.0
    return judge(Evidence(values, floor, ceiling, noise, cross, dead), Criterion())


@pytest.fixture(scope="module")
def results():
    draw = torch.Generator().manual_seed(3)
    return [
        make_result(methods={f"method{k}": simulated(draw) for k in range(PER_RESULT)}, curves={}, pictures=None)
        for _ in range(500 // PER_RESULT)
    ]


def named(verdict):
    """Number and measure as the reason names them; None where it names none."""
    found = re.search(r"(-?\d+\.\d\d \[-?\d+\.\d\d, -?\d+\.\d\d\]) by (\w+)", verdict.reason)
    return found and found.groups()


class Cells(HTMLParser):
    """The rows of a table of the page as text, that of the verdicts if no other is named."""

    def __init__(self, page, table="verdicts"):
        super().__init__()
        self.rows, self.inside, self.table = [], False, table
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.inside = dict(attributes).get("class") == self.table
        if tag == "tr" and self.inside:
            self.rows.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "table"

    def handle_data(self, data):
        if self.inside and self.rows:
            self.rows[-1] += data


def shown_for(name, lines):
    (line,) = (line for line in lines if re.search(rf"\b{name}\b", line))
    return line


def test_simulated_results_decide_in_every_way(results):
    verdicts = [verdict for result in results for verdict in result.verdicts.values()]
    assert len(verdicts) == 500
    assert {verdict.outcome for verdict in verdicts} == set(Outcome)
    assert {verdict.measure for verdict in verdicts if named(verdict)} == set(MEASURES)
    assert 20 < sum(named(verdict) is None for verdict in verdicts) < 100


def test_the_measure_that_decided_has_the_end_that_meets_the_threshold(results):
    not_the_smallest = set()
    for verdict in (verdict for result in results for verdict in result.verdicts.values() if named(verdict)):
        values, lows, highs = zip(*verdict.psi_of.values(), strict=True)
        decisive = (verdict.psi_high, highs) if verdict.outcome is Outcome.FAIL else (verdict.psi_low, lows)
        assert decisive[0] == min(decisive[1])
        if verdict.psi > min(values):
            not_the_smallest.add(verdict.outcome)
    assert not_the_smallest == set(Outcome), "where the smallest index always decides, nothing is shown"


def test_tables_show_the_number_of_the_reason(results):
    for result in results:
        terminal = account(result, width=120).split("\n\n")[1].splitlines()
        summary = markdown.table(result).replace("\xa0", " ").splitlines()
        page = Cells(html.render(result)).rows
        for name, verdict in result.verdicts.items():
            number, measure = named(verdict) or ("undefined", "")
            for lines in (terminal, page):
                assert number in shown_for(name, lines)
                assert f"{measure}" in shown_for(name, lines)
            assert f"| {number} |" in shown_for(name, summary)


def test_figure_shows_the_number_of_the_reason(results):
    for result in results:
        (axes,) = figures.verdicts(result).axes
        at = {row: label.get_text() for row, label in enumerate(axes.get_yticklabels())}
        for row, name in at.items():
            verdict = result.verdicts[name]
            texts = [t.get_text() for t in axes.texts if getattr(t, "xy", (0, t.get_position()[1]))[1] == row]
            marks = [line for line in axes.lines if list(line.get_ydata()) == [row]]
            if named(verdict) is None:
                assert "undefined" in texts
                assert marks == []
                continue
            number, measure = named(verdict)
            assert {number, f"by {measure}"} <= set(texts)
            (mark,) = marks
            low, high = axes.get_xlim()
            assert float(mark.get_xdata()[0]) == min(max(verdict.psi, low), high)


def test_scalars_are_the_number_of_the_reason(results):
    for result in results:
        logged = scalars(result, list(result.verdicts), [], age=0, seconds=1.0, moved={})
        for name, verdict in result.verdicts.items():
            if named(verdict):
                number = named(verdict)[0]
                assert number.startswith(f"{logged[f'{name}/psi']:.2f} [{logged[f'{name}/psi_low']:.2f},")


def expected(verdict):
    return named(verdict)[0] if named(verdict) else "undefined"


def test_github_summary_shows_the_number_of_the_reason(results):
    for result in results:
        checks = tuple(Check(name, v.outcome, v.reason, verdict=v) for name, v in result.verdicts.items())
        lines = decision.markdown(Decision(checks)).replace("\xa0", " ").splitlines()[4:]
        for name, verdict in result.verdicts.items():
            assert f"| {expected(verdict)} |" in shown_for(name, lines)


def test_a_comparison_shows_the_numbers_of_both_reasons(results):
    for one, other in zip(results, results[1:] + results[:1], strict=True):
        comparison = compared([one, other])
        terminal = fitted(comparison_text.headings(comparison), comparison_text.rows(comparison), 100)
        summary = comparison_text.markdown(comparison, ["a", "b"]).replace("\xa0", " ").splitlines()
        page = Cells(comparison_page.render(comparison, ["a", "b"]), "tracks").rows
        for name in one.verdicts:
            for verdict in (one.verdicts[name], other.verdicts[name]):
                number = expected(verdict)
                assert f"  {number.split(' [')[0]} {verdict.outcome.value}" in shown_for(name, terminal)
                assert f"| {number} " in shown_for(name, [line for line in summary if line.startswith("|")])
                assert number in shown_for(name, page)


def test_notebook_card_and_dashboards_table_show_the_number_of_the_reason(results):
    for result in results:
        notebook = markup(result).split("</table>")[0].split("<tr>")
        card = [text.get_text() for text in cards.verdicts(result).axes[0].texts]
        table = {row["method"]: row for row in Shown(result, "sanity", 1).verdicts()}
        for name, verdict in result.verdicts.items():
            assert f">{expected(verdict)}<" in shown_for(name, notebook)
            if named(verdict):  # a card hatches what is undefined
                assert expected(verdict) in card
            index = Verdict(verdict.outcome, "", *(table[name][key] or math.nan for key in ("index", "low", "high")))
            assert decided.number(index) == expected(verdict)


def test_the_index_of_random_labels_is_shown_as_its_reason_has_it():
    draw = torch.Generator().manual_seed(5)
    levels = torch.rand(25, generator=draw).tolist()
    result = made_of_labels({f"method{k}": level for k, level in enumerate(levels)})
    terminal, page = account(result, width=120).splitlines(), Cells(html.render(result)).rows
    summary = decision.markdown(gate([result])).replace("\xa0", " ").splitlines()
    assert {verdict.outcome for verdict in result.verdicts.values()} == set(Outcome)
    for name, verdict in result.verdicts.items():
        if verdict.gated:
            for lines in (terminal[:40], page, summary[4:], markdown.table(result).replace("\xa0", " ").splitlines()):
                assert expected(verdict) in next(line for line in lines if re.search(rf"\b{name}\b", line))


def forest(**verdicts):
    (axes,) = figures.verdicts(make_result(methods=verdicts, curves={}, pictures=None)).axes
    return axes


def test_what_no_measure_decided_is_hollow_and_says_why():
    unchecked = Verdict(Outcome.INCONCLUSIVE, "memorisation was not checked: pass it", 0.8, 0.7, 0.9, "ssim")
    axes = forest(gradient=unchecked)
    (mark,) = (line for line in axes.lines if line.get_marker() == "D")
    assert mark.get_markerfacecolor() == "#ffffff"
    assert any(text.get_text().startswith("memorisation was") for text in axes.texts)
    assert not any("by ssim" in text.get_text() for text in axes.texts)


def test_undefined_is_hatched_and_stands_at_no_value():
    axes = forest(gradient=Verdict(Outcome.INCONCLUSIVE, "the maps carry no signal: look", measure="ssim"))
    (bar,) = (patch for patch in axes.patches if patch.get_hatch())
    assert (bar.get_x(), bar.get_x() + bar.get_width()) == pytest.approx(axes.get_xlim())
    assert not [line for line in axes.lines if line.get_marker() in ("o", "X", "D")]
    assert any(text.get_text() == "the maps carry no signal" for text in axes.texts)


@pytest.mark.parametrize(("psi", "arrow"), [(1.9, ">"), (-0.9, "<")])
def test_off_the_scale_is_an_arrow_with_the_number(psi, arrow):
    axes = forest(gradient=Verdict(Outcome.FAIL, "it stays", psi, psi - 0.1, psi + 0.1, "ssim"))
    assert [line.get_marker() for line in axes.lines if line.get_marker() in "<>"] == [arrow]
    assert f"{psi:.2f}" in [text.get_text() for text in axes.texts]


def test_a_long_cause_is_cut_after_a_word():
    verdict = Verdict(Outcome.INCONCLUSIVE, "every map of the trained model is constant or not finite; so")
    assert decided.by(verdict, 30) == "every map of the trained…"
    assert decided.by(verdict, 99) == "every map of the trained model is constant or not finite"
    assert math.isnan(verdict.psi)


def test_what_would_settle_a_verdict_is_said_without_its_aside():
    reason = "PSI 0.85 straddles 0.65; about 6 trials instead of 3 would settle it (43% of the pairs are left out: why)"
    assert decided.settles(Verdict(Outcome.INCONCLUSIVE, reason)) == "open; about 6 trials instead of 3 would settle it"
