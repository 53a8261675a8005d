"""Tables of the terminal: no word is cut, in any width, for any number of methods."""

import re
import sys

import pytest
from made_compared import LONG, many
from made_results import FAILING, OPEN, PASSING, made, made_of_labels

from lightning_sanity.cli import terminal
from lightning_sanity.release.gating import gate
from lightning_sanity.report import choice_text, comparison_text, text
from lightning_sanity.report.columns import coloured, columns, fitted, paragraph
from lightning_sanity.result import Choice, Outcome, Verdict
from lightning_sanity.result.choice import Row, Score, Standing
from lightning_sanity.result.comparison import compared

WIDTHS = (60, 72, 80, 100, 120)
COUNTS = (1, 2, 3, 6, 12)
LEVELS = (FAILING, PASSING, OPEN)


def names(count):
    """Long names, and one that leaves no room beside it."""
    return [f"method_with_quite_a_long_name_{k}" for k in range(count - 1)] + [LONG]


def levels(count):
    return {name: LEVELS[k % 3] for k, name in enumerate(names(count))}


def choice(count):
    """An answer with every metric."""
    verdict = Verdict(Outcome.PASS, "it changes", 0.93, 0.88, 0.97, "spearman")
    score = Score(0.31, 0.22, 0.4, {"random": (0.2, 0.1, 0.3)})
    scores = dict.fromkeys(choice_text.COLUMNS, score)
    standings = [*[Standing.PASSED] * (count - 1), Standing.RECOMMENDED]
    rows = [Row(name, at, "it passed", verdict, 20.0, scores) for name, at in zip(names(count), standings, strict=True)]
    return Choice(LONG, (), f"show {LONG}", tuple(rows), "ab", "cd")


def account(result):
    """What ``print`` shows of a result, and the cells of its table."""
    return lambda width: text.account(result, width=width), text._rows(result)


def drawn(headings, rows, leading):
    return lambda width: "\n".join(fitted(headings, rows, width, leading=leading)), rows


def of_results(count):
    return account(made(levels(count)))


def of_labels(count):
    return account(made_of_labels(levels(count)))


def of_choices(count):
    answer = choice(count)
    return lambda width: choice_text.account(answer, width), [choice_text.cells(answer, row) for row in answer.table]


def of_compares(count):
    comparison = compared(many(count))
    return drawn(comparison_text.headings(comparison), comparison_text.rows(comparison), 1)


def of_decisions(count):
    checks = gate([made(levels(count))]).checks
    return drawn(["outcome", "check", "why"], [[c.outcome.value, c.title, c.reason] for c in checks], 2)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", [of_results, of_labels, of_choices, of_compares, of_decisions])
def test_no_word_is_cut_and_no_line_is_too_wide(kind, count):
    show, rows = kind(count)
    for width in WIDTHS:
        said = show(width)
        assert max(map(columns, said.splitlines())) <= width
        shown = said.split()
        for row in rows:
            for cell in row:
                assert set(cell.split()) <= set(shown), f"'{cell}' at {width} columns"


@pytest.mark.parametrize("kind", [of_results, of_labels, of_choices, of_compares, of_decisions])
def test_a_number_stays_on_a_line_with_its_interval(kind):
    show, rows = kind(6)
    numbers = {cell for row in rows for cell in row if re.fullmatch(r"[-+]?\d\.\d\d \[[^\]]*\]", cell)}
    for width in WIDTHS:
        assert all(any(number in line for line in show(width).splitlines()) for number in numbers)


def test_what_fits_is_in_columns_on_one_line_each():
    rows = [["gradcam", "PASS"], ["lime", "INCONCLUSIVE"]]
    assert fitted(["method", "verdict"], rows, 80) == ["method   verdict", "gradcam  PASS", "lime     INCONCLUSIVE"]
    assert fitted(["method", "verdict"], rows) == fitted(["method", "verdict"], rows, 80)


def test_the_column_gives_way_whose_wrapping_makes_fewest_lines():
    rows = [["abc def ghi jkl", "a long sentence here"], *[["mno pqr stu vwx", "short"]] * 3]
    lines = fitted(["method", "why"], rows, 30)
    assert lines[1:3] == ["abc def ghi jkl  a long", "                 sentence here"]
    assert len(lines) == 6


def test_where_words_do_not_fit_a_row_becomes_a_record():
    rows = [["integrated_gradients", "INCONCLUSIVE", "0.65 [0.64, 0.66]", "spearman"], ["cam", "PASS", "", "ssim"]]
    assert fitted(["method", "verdict", "PSI [95 %]", "by"], rows, 50, leading=2) == [
        "integrated_gradients  INCONCLUSIVE",
        "  PSI [95 %] 0.65 [0.64, 0.66]  by spearman",
        "cam  PASS",
        "  by ssim",
    ]


def test_a_word_wider_than_the_line_is_broken_after_an_underscore():
    (record,) = [fitted(["a", "b"], [["one_two_three_four_five_six_seven", "x"]], 20)]
    assert record == ["one_two_three_four_", "five_six_seven", "  b x"]
    assert "".join(fitted(["a"], [["x" * 50]], 20)) == "x" * 50


def test_letters_that_take_two_columns_are_counted_as_two():
    for line in fitted(["method", "why"], [["\u52fe\u914d" * 20, "\u5730\u56fe " * 20]], 40):
        assert columns(line) <= 40


@pytest.mark.parametrize("rows", [[], [["", ""]], [["a", ""]], [["", "b c"]]])
def test_empty_tables_and_cells_are_no_trouble(rows):
    for width in (None, 20, 80):
        assert isinstance(fitted(["method", "why"], rows, width), list)


def test_sentences_keep_their_words_too():
    sentence = f"the method {LONG} keeps too much: PSI 0.11 [0.10, 0.12] by spearman"
    for width in WIDTHS:
        said = paragraph(sentence, width)
        assert set(sentence.split()) <= set(said.split())
        assert max(map(len, said.splitlines())) <= width


def test_only_whole_cells_are_coloured():
    assert coloured("gradcam  PASS  PASSED") == "gradcam  \033[32mPASS\033[0m  PASSED"
    assert coloured("FAIL  it did not PASS") == "\033[31mFAIL\033[0m  it did not PASS"
    assert coloured("a PASS was expected") == "a PASS was expected"


def test_a_terminal_gets_its_width_and_a_file_long_lines(monkeypatch):
    rows = [["FAIL", "lime", "the map keeps too much of itself when the weights are noise " * 3]]
    assert len(terminal.table(["outcome", "check", "why"], rows).splitlines()) == 2
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    lines = terminal.table(["outcome", "check", "why"], rows).splitlines()
    assert "\033[31mFAIL" in lines[1]
    assert max(len(re.sub(r"\033\[\d+m", "", line)) for line in lines) <= 80
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in terminal.table(["outcome", "check", "why"], rows)
