"""The answer for people: terminal, Markdown, page, notebook."""

import re
from dataclasses import replace

from lightning_sanity.report import choice_page, choice_text
from lightning_sanity.result.choice import Standing
from tests.made_choices import answer


def test_print_says_the_answer_first_and_what_it_does_not_show_last():
    printed = str(answer())
    assert printed.startswith(f"* {answer().recommended}")
    assert "does not show that its maps are right" in " ".join(printed.split())
    assert all(len(line) <= 130 for line in choice_text.account(answer(), 130).splitlines()[-5:])


def test_every_candidate_with_a_verdict_has_a_line_and_the_others_a_reason():
    printed = str(answer())
    for row in answer():
        assert row.method in printed
    assert "global average pooling" in " ".join(printed.split())


def test_a_score_that_beats_the_baselines_is_marked():
    row = answer()[answer().recommended]
    for metric, score in row.scores.items():
        assert choice_text.score(score).endswith(" b") == score.beats_baselines, metric


def test_the_page_stands_alone_and_shows_the_answer(tmp_path):
    page = answer().to_html(tmp_path / "choice.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "<script" not in page
    assert answer().reason.split(":")[0] in page
    for heading in ("Candidates", "Both metrics", "Do they agree?", "By group of samples", "Which steps the map"):
        assert heading in page, heading


def test_a_name_with_markup_stays_text():
    rude = replace(
        answer().table[-1], method="<b>bold</b>|x", standing=Standing.OPEN, verdict=answer().table[0].verdict
    )
    choice = replace(answer(), table=(*answer().table[:-1], rude))
    assert "<b>bold" not in choice_page.render(choice)
    assert "<b>bold" not in choice._repr_html_()
    assert "&lt;b" in choice.to_markdown()


def test_better_methods_lie_further_right_and_up():
    plane = choice_page.plane(answer())
    points = {point.name: point for point in plane.points}
    first, second = points[answer().recommended], points["random"]
    scores = answer()[answer().recommended].scores, {m: each["random"] for m, each in answer().baselines.items()}
    assert (first.x > second.x) == (scores[0]["fidelity"].value > scores[1]["fidelity"].value)
    assert (first.y < second.y) == (scores[0]["deletion"].value > scores[1]["deletion"].value)


def test_the_samples_on_which_the_two_best_differ_are_pictured():
    likeness = answer().likeness
    rows = choice_page._gallery(answer())
    assert [sample for sample, _, _ in rows] == list(likeness.differing)
    assert [name for name, _, _ in rows[0][2]] == list(likeness.pair)
    assert choice_page.render(answer()).count("data:image/png") >= 3 * len(rows)


def test_nothing_to_recommend_is_a_page_as_well(tmp_path):
    nothing = replace(answer(), recommended=None, tied=(), reason="no recommendation: nothing", profile={})
    assert "No recommendation" in nothing.to_html(tmp_path / "page.html").read_text()
    assert str(nothing).startswith("- no recommendation")
