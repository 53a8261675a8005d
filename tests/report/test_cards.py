"""Figures for a dashboard's card: legible at 350 pixels, nothing cut off, nothing over something else."""

import pytest
import torch
from made_figures import crowd, invalid, make_result, nothing_defined
from made_texts import faults
from matplotlib.text import Text

from lightning_sanity.report import cards, psi
from lightning_sanity.result import Outcome, Verdict

UNITS = [f"model.encoder.layers.encoder_layer_{k}.self_attention" for k in range(60)]
RESULTS = {
    "typical": make_result,
    "12 methods, 60 units": lambda: make_result(methods=crowd(12), units=UNITS),
    "invalid": invalid,
    "nothing defined": nothing_defined,
}
DRAW = [cards.verdicts, lambda result: cards.maps(result, 0), cards.sensitivity, cards.curves]
NAMES = ["verdicts", "maps", "sensitivity", "curves"]


def texts(figure):
    """The visible texts with their boxes, in pixels at 350 across."""
    figure.canvas.draw()
    found = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    return [(t, t.get_window_extent()) for t in found if t.get_window_extent().width]


@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS)
@pytest.mark.parametrize("draw", DRAW, ids=NAMES)
def test_cards_can_be_read_at_the_size_they_are_shown(draw, result):
    figure = draw(result())
    found, paper = texts(figure), figure.bbox.padded(1)
    assert paper.width == pytest.approx(352)
    for place, (text, box) in enumerate(found):
        assert text.get_fontsize() * figure.dpi / 72 >= 9, text.get_text()
        assert paper.x0 <= box.x0 <= box.x1 <= paper.x1, text.get_text()
        assert paper.y0 <= box.y0 <= box.y1 <= paper.y1, text.get_text()
        for other, second in found[:place]:
            apart = box.x1 <= second.x0 + 1 or second.x1 <= box.x0 + 1 or box.y1 <= second.y0 + 2
            assert apart or second.y1 <= box.y0 + 2, (text.get_text(), other.get_text())


def test_verdict_card_says_name_outcome_and_number():
    found = [text.get_text() for text, _ in texts(cards.verdicts(make_result()))]
    assert {"gradient", "\N{CHECK MARK} PASS", "0.93 [0.88, 0.97]"} <= set(found)
    assert not any("random" in text for text in found), "controls take the room of the methods"


def test_verdict_card_says_why_an_index_is_undefined():
    verdict = Verdict(Outcome.INCONCLUSIVE, "no signal", measure="ssim")
    found = [text.get_text() for text, _ in texts(cards.verdicts(make_result(methods={"gradient": verdict})))]
    assert "no signal" in found
    assert any("hatched where undefined" in text for text in found)


def test_verdict_card_shows_the_controls_of_a_run_that_is_not_valid():
    found = [text.get_text() for text, _ in texts(cards.verdicts(make_result(valid=False, validity="random passed")))]
    assert any("random" in text and "control" in text for text in found)


def test_no_text_of_a_card_over_training_touches_another_or_is_too_small():
    results = [make_result(step=step) for step in (100, 200, 300)]
    assert faults(cards.history(results), 350) == []


def test_map_card_has_four_columns_up_to_the_last_step():
    result = make_result()
    images = cards.maps(result, 1).axes[0].images
    assert len(images) == 4 * 2, "a row for each method, none for a control that came out as it must"
    assert images[0].get_array().tolist() == result.pictures.inputs[1].tolist()


def test_map_card_says_index_and_verdict_and_how_many_pairs_are_defined():
    result = make_result()
    result.pictures.maps["gradient"][0, 2] = 0
    result.curves["gradient", "spearman"].values[:1] = torch.nan
    found = [text.get_text() for text, _ in texts(cards.maps(result, 0))]
    assert {"PSI 0.93 \N{CHECK MARK} PASS", "PSI 0.31 \N{BALLOT X} FAIL", "75% of the pairs are defined"} <= set(found)


def test_curve_card_of_many_methods_names_its_lines_above_the_first_panel():
    figure = cards.curves(make_result(methods=crowd(7)))
    figure.canvas.draw()
    (legend,) = figure.legends
    assert legend.get_window_extent().y0 >= max(axes.bbox.y1 for axes in figure.axes)
    assert max(axes.bbox.x1 for axes in figure.axes) > 300, "panels have the whole width"


def test_sensitivity_card_shows_the_index_after_every_step():
    result = make_result()
    panel = cards.sensitivity(result).axes[1]
    (line,) = (line for line in panel.lines if len(line.get_xdata()) == 1 + len(result.units))
    torch.testing.assert_close(torch.tensor(line.get_ydata()[1:]), psi.over_depth(result, "gradient")[0])
