"""Figures: they say what the result says, survive what is undefined, and stay inside their paper."""

import math
from dataclasses import replace

import numpy
import pytest
import torch
from made_figures import NAN, UNITS, crowd, invalid, make_result, nothing_defined
from matplotlib import pyplot, rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from lightning_sanity.report import figures, psi
from lightning_sanity.report.palette import DARK, LIGHT
from lightning_sanity.report.wording import ordered
from lightning_sanity.result import Outcome, Verdict
from lightning_sanity.result.psi import sensitivity


def words(figure):
    """Every non-empty visible text of a figure."""
    figure.canvas.draw()
    return [t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")) if t.get_visible() and t.get_text()]


def drawn(axes):
    """The curves of a panel, floors left out."""
    return [line for line in axes.lines if line.get_xdata()[0] == 0]


def history(result, dark=False):
    """The history of two measurements."""
    return figures.history([replace(result, step=step) for step in (400, 200)], dark=dark)


DRAW = [
    figures.curves,
    figures.sensitivity,
    figures.maps,
    figures.verdicts,
    figures.samples,
    figures.output_change,
    history,
]
RESULTS = {
    "typical": make_result,
    "one unit, one trial, one method": lambda: make_result(
        methods={"gradient": Verdict(Outcome.PASS, "", 0.9, 0.8, 1.0, "ssim")},
        units=("all units",),
        trials=1,
        similarities=("ssim",),
    ),
    "60 units, 12 methods, 4 similarities": lambda: make_result(
        methods=crowd(12),
        units=[f"model.encoder.layers.encoder_layer_{k}.self_attention" for k in range(60)],
        similarities=("ssim", "spearman", "spearman_support", "spearman_signed"),
    ),
    "invalid": invalid,
    "nothing defined": nothing_defined,
}


def beyond_their_axis(figure):
    """Labels of ticks outside the limits, which Matplotlib 3.8 keeps."""
    found = []
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        hidden = [tick for tick in axis.get_major_ticks() if not low - 1e-9 <= tick.get_loc() <= high + 1e-9]
        found += [label for tick in hidden for label in (tick.label1, tick.label2)]
    return found


@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS)
@pytest.mark.parametrize("draw", DRAW, ids=lambda draw: draw.__name__)
def test_every_text_stays_on_the_paper(draw, result):
    figure = draw(result())
    figure.canvas.draw()
    paper = figure.bbox.padded(1)
    never_drawn = beyond_their_axis(figure)
    for text in figure.findobj(lambda artist: hasattr(artist, "get_text")):
        if text.get_text() and text.get_visible() and text not in never_drawn:
            box = text.get_window_extent()
            inside = paper.x0 <= box.x0 and box.x1 <= paper.x1 and paper.y0 <= box.y0 and box.y1 <= paper.y1
            assert inside or text.get_window_extent().width == 0, f"'{text.get_text()}' is cut off"


@pytest.mark.parametrize("draw", DRAW, ids=lambda draw: draw.__name__)
def test_figures_draw_themselves_with_agg(draw):
    assert isinstance(draw(make_result()).canvas, FigureCanvasAgg)


@pytest.mark.parametrize("draw", DRAW, ids=lambda draw: draw.__name__)
def test_figures_leave_global_settings_alone(draw):
    before = dict(rcParams)
    draw(make_result()).canvas.draw()
    assert dict(rcParams) == before


@pytest.mark.parametrize("draw", DRAW, ids=lambda draw: draw.__name__)
def test_figures_are_unknown_to_pyplot(draw):
    before = pyplot.get_fignums()  # of whoever drew before in this process
    draw(make_result())
    assert pyplot.get_fignums() == before


@pytest.mark.parametrize("draw", DRAW, ids=lambda draw: draw.__name__)
def test_dark_figures_have_dark_paper(draw):
    assert sum(draw(make_result(), dark=True).get_facecolor()[:3]) < 0.5


def test_curves_start_at_the_ceiling():
    line = drawn(figures.curves(make_result()).axes[0])[0]
    assert line.get_ydata()[0] == 1


def test_curves_show_the_mean_at_every_depth():
    result = make_result()
    line = drawn(figures.curves(result).axes[0])[1]
    torch.testing.assert_close(torch.tensor(line.get_ydata()[1:]), result.curves["gradient", "ssim"].mean.double())


def test_curves_have_one_panel_per_similarity_asked_for():
    axes = figures.curves(make_result(), ["spearman"]).axes
    assert [a.get_title(loc="left") for a in axes] == ["Rank correlation of magnitudes\n(spearman)"]


def test_curves_of_an_unknown_similarity_name_the_choices():
    with pytest.raises(ValueError, match=r"'simm' .* choose from: ssim, spearman"):
        figures.curves(make_result(), ["simm"])


def test_curves_say_the_verdict_in_the_legend():
    assert "\N{CHECK MARK} gradient - PASS" in words(figures.curves(make_result()))


def test_curves_draw_controls_grey_and_dashed():
    control = drawn(figures.curves(make_result()).axes[0])[-1]
    red, green, blue = (int(to_hex(control.get_color())[k : k + 2], 16) for k in (1, 3, 5))
    assert control.is_dashed()
    assert max(red, green, blue) - min(red, green, blue) < 25


def test_curves_of_six_methods_look_different():
    lines = drawn(figures.curves(make_result(methods=crowd(6))).axes[0])
    assert len({(to_hex(line.get_color()), line.get_linestyle(), line.get_marker()) for line in lines}) == 6


@pytest.mark.parametrize("draw", [figures.curves, figures.sensitivity], ids=lambda draw: draw.__name__)
def test_more_than_six_methods_have_a_panel_each_on_one_scale(draw):
    methods = crowd(7) | {"random": Verdict(Outcome.INCONCLUSIVE, "no signal", gated=False)}
    axes = draw(make_result(methods=methods)).axes
    titles = [panel.get_title(loc="left") for panel in axes]
    assert [title.split()[0] for title in titles] == ["\N{BALLOT X}"] * 2 + ["?"] * 2 + ["\N{CHECK MARK}"] * 3 + ["?"]
    assert titles[-1] == "? random (control)"
    assert len({panel.get_ylim() for panel in axes}) == 1


def test_panels_of_many_methods_show_each_its_own_curves():
    result = make_result(methods=crowd(7))
    for panel, name in zip(figures.curves(result).axes, ordered(result), strict=True):
        for line, similarity in zip(drawn(panel), ("ssim", "spearman"), strict=True):
            curve = result.curves[name, similarity].mean.double()
            torch.testing.assert_close(torch.tensor(line.get_ydata()[1:]), curve)


def test_panels_of_many_methods_say_the_number_that_decided():
    methods = crowd(7) | {"gradient": Verdict(Outcome.INCONCLUSIVE, "the maps carry no signal: look")}
    found = words(figures.sensitivity(make_result(methods=methods, similarities=("ssim", "spearman_support"))))
    assert found.count("0.50 [0.40, 0.60] by spearman_support") == 7
    assert "undefined: the maps carry no…" in found


def test_curves_leave_a_gap_where_a_value_is_undefined():
    result = make_result()
    curve = result.curves["gradient", "ssim"]
    curve.values[:, 2] = NAN
    gap = [math.isnan(y) for y in drawn(figures.curves(result).axes[0])[1].get_ydata()]
    assert gap == [False, False, False, True, False, False]


def test_curves_name_methods_without_any_value():
    assert any("undefined: gradient, guided_backprop" in text for text in words(figures.curves(nothing_defined())))


def test_curves_list_methods_that_could_not_run():
    result = make_result()
    left = {key: curve for key, curve in result.curves.items() if key[0] != "guided_backprop"}
    assert "\N{BALLOT X} guided_backprop - FAIL" in words(figures.curves(replace(result, curves=left)))


def test_curves_of_no_method_say_so():
    assert "no curves" in words(figures.curves(make_result(curves={})))


def test_many_units_keep_the_first_and_the_last_name():
    axes = figures.curves(make_result(units=[f"layer{k}" for k in range(60)])).axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert (labels[0], labels[-1]) == ("trained", "layer59")
    assert len(labels) < 16


def test_a_dollar_in_a_name_starts_no_formula():
    methods = {"a$_b$": Verdict(Outcome.PASS, "", 0.9, 0.8, 1.0, "ssim")}
    figures.maps(make_result(methods=methods)).canvas.draw()
    legend = figures.curves(make_result(methods=methods)).legends[0].get_texts()[0]
    assert legend.get_text() == "\N{CHECK MARK} a\\$_b\\$ - PASS"


def test_maps_show_one_row_per_method_and_the_input():
    assert len(figures.maps(make_result()).axes[0].images) == 3 * (1 + 4)


def test_maps_name_the_units_reached():
    assert "down to\nfeatures.6" in words(figures.maps(make_result()))


def test_signed_maps_are_centred_on_zero():
    image = figures.maps(make_result()).axes[0].images[1]
    assert image.get_clim() == (-127, 127)


def test_maps_without_negative_values_start_at_zero():
    result = make_result()
    positive = {name: maps.abs().clamp(0, 127) for name, maps in result.pictures.maps.items()}
    unsigned = replace(result, pictures=replace(result.pictures, maps=positive))
    assert figures.maps(unsigned).axes[0].images[1].get_clim() == (0, 127)


def test_blank_maps_are_marked():
    assert words(figures.maps(nothing_defined())).count("blank") == 3 * 4


def test_maps_show_the_sample_with_the_fewest_blank_ones():
    result = make_result()
    result.pictures.maps["gradient"][0, 1:] = 0
    assert "blank" not in words(figures.maps(result))
    assert words(figures.maps(result, 0)).count("blank") == 9  # the rows share their maps
    torch.testing.assert_close(
        torch.tensor(figures.maps(result).axes[0].images[0].get_array()), result.pictures.inputs[1]
    )


def test_maps_say_the_number_under_the_verdict():
    assert {"PSI 0.93 [0.88, 0.97]", "PSI 0.31 [0.25, 0.38]", "PSI undefined"} <= set(
        words(figures.maps(make_result()))
    )


def test_a_row_with_blank_maps_says_how_many_pairs_are_defined():
    result = make_result()
    assert not any("are defined" in text for text in words(figures.maps(result)))
    result.pictures.maps["gradient"][0, 2] = 0
    result.curves["gradient", "spearman"].values[:1] = NAN
    assert "75% of the pairs are defined" in words(figures.maps(result))


@pytest.mark.parametrize("dark", [False, True])
def test_maps_show_one_small_scale_in_their_own_colours(dark):
    result = make_result()
    result.pictures.maps["gradient"] = result.pictures.maps["gradient"].abs().clamp(0, 127)
    figure = figures.maps(result, dark=dark)
    signed, unsigned = (bar.get_facecolors() for bar in figure.axes[-1].collections)
    theme = DARK if dark else LIGHT
    for colours, anchors in ((signed, theme.signed), (unsigned, theme.unsigned)):
        assert [to_hex(colours[place]) for place in (0, -1)] == [anchors[0].lower(), anchors[-1].lower()]
    assert "each map on its own scale, full from its 99th percentile on" in words(figure)


def test_verdicts_of_a_void_run_have_no_colour():
    figure = figures.verdicts(invalid())
    coloured = {str(line.get_color()) for line in figure.axes[0].lines}
    assert coloured & set(LIGHT.outcome.values()) == set()


def test_maps_without_pictures_say_why():
    with pytest.raises(ValueError, match="kept no pictures"):
        figures.maps(make_result(pictures=None))


def test_maps_of_a_sample_not_kept_name_the_range():
    with pytest.raises(ValueError, match="from 0 to 1"):
        figures.maps(make_result(), 2)


def test_samples_drawn_in_turn_look_like_figures_of_their_own():
    result = make_result()
    result.pictures.maps["gradient"][0, 1] = 0  # blank in one sample, and another one is in the other
    result.pictures.maps["gradient"][1, 2] = 0
    found = list(figures.every_sample(result))
    assert len(found) == 2
    for sample, pixels in enumerate(found):
        figure = figures.maps(result, sample)
        figure.canvas.draw()
        alone = torch.tensor(numpy.asarray(figure.canvas.buffer_rgba())).float()
        assert (torch.tensor(pixels).float() - alone).abs().mean() < 0.1  # frames are drawn over one another


def test_verdicts_can_be_read_without_colour():
    found = words(figures.verdicts(make_result()))
    assert {"\N{CHECK MARK} PASS", "\N{BALLOT X} FAIL", "? INCONCLUSIVE"} <= set(found)


def test_verdicts_put_controls_last():
    names = list(make_result().verdicts)
    shuffled = {name: make_result().verdicts[name] for name in reversed(names)}
    labels = [label.get_text() for label in figures.verdicts(make_result(verdicts=shuffled)).axes[0].get_yticklabels()]
    assert labels == ["guided_backprop", "gradient", "random (control)"]


def test_verdicts_mark_the_threshold():
    axes = figures.verdicts(make_result(settings={"criterion": {"min_psi": 0.8}})).axes[0]
    assert any(set(line.get_xdata()) == {0.8} for line in axes.lines)


def test_verdicts_without_a_criterion_have_no_threshold():
    assert not any("passes from" in text for text in words(figures.verdicts(make_result(settings={}))))


def test_verdicts_call_an_undefined_index_undefined():
    assert "undefined" in words(figures.verdicts(make_result()))


def test_verdicts_name_the_deciding_measure():
    assert "by spearman" in words(figures.verdicts(make_result()))


@pytest.mark.parametrize("draw", [figures.curves, figures.maps, figures.verdicts], ids=lambda draw: draw.__name__)
def test_an_invalid_run_carries_a_banner(draw):
    assert "NOT VALID" in draw(invalid()).get_suptitle()


@pytest.mark.parametrize(
    ("keep", "answer"),
    [
        (("gradient",), "PASS: maps of gradient change with the weights"),
        (("gradient", "guided_backprop"), "FAIL: maps of guided_backprop change too little"),
        (("random",), "Only controls were tested"),
    ],
)
def test_headline_gives_the_answer(keep, answer):
    result = make_result()
    kept = {name: result.verdicts[name] for name in keep}
    assert answer in figures.verdicts(replace(result, verdicts=kept)).get_suptitle()


def test_output_change_of_a_single_output_calls_agreement_undefined():
    change = make_result().output_change
    one = replace(change, agreement=change.agreement * NAN)
    assert "same predicted class (undefined)" in words(figures.output_change(make_result(output_change=one)))


def test_sensitivity_starts_at_the_trained_map_and_averages_to_the_psi():
    result = make_result()
    line = drawn(figures.sensitivity(result).axes[0])[1]
    band = psi.over_depth(result, "gradient")
    assert line.get_ydata()[0] == 0
    torch.testing.assert_close(torch.tensor(line.get_ydata()[1:]), band[0])
    curve = result.curves["gradient", "spearman"]
    found = sensitivity(curve.values, curve.floor, curve.ceiling)
    assert float(band[0].mean()) == pytest.approx(found.psi.value)


def test_sensitivity_draws_the_threshold_and_both_ends_of_the_scale():
    levels = {line.get_ydata()[0] for line in figures.sensitivity(make_result()).axes[0].lines[-3:]}
    assert levels == {0.0, 0.65, 1.0}


def test_sensitivity_leaves_methods_without_an_index_to_the_legend():
    figure = figures.sensitivity(make_result())
    assert len([line for line in figure.axes[0].lines if len(line.get_xdata()) == 1 + len(UNITS)]) == 2
    assert "? random - INCONCLUSIVE\n    undefined" in words(figure)


def test_sensitivity_of_nothing_defined_says_so():
    assert "no index is defined" in words(figures.sensitivity(nothing_defined()))


def test_samples_show_one_dot_each():
    dots = [line for line in figures.samples(make_result()).axes[0].lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in dots] == [6, 6]
    torch.testing.assert_close(
        torch.tensor(dots[1].get_xdata()), psi.of_samples(make_result(), "gradient").clamp(-0.5, 1.5)
    )


def test_history_follows_training_whatever_the_order():
    early = Verdict(Outcome.INCONCLUSIVE, "", 0.5, 0.3, 0.7, "ssim")
    before = make_result(step=100, verdicts=make_result().verdicts | {"gradient": early})
    axes = figures.history([make_result(step=400), before]).axes[0]
    (line,) = (line for line in axes.lines if line.get_label() == "gradient")
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([100, 400], [0.5, 0.93])


def test_history_reads_the_folder_that_the_callback_fills(tmp_path):
    for step in (9, 10):
        make_result(step=step).to_json(tmp_path / f"step={step}.json")
    assert list(figures.history(tmp_path).axes[0].lines[0].get_xdata()) == [9, 10]


def test_history_warns_on_paper_that_the_probe_changed():
    results = [make_result(step=1), make_result(step=2, probe_digest="other")]
    assert any("different probes do not compare" in text for text in words(figures.history(results)))


@pytest.mark.parametrize(
    ("results", "complaint"), [([], "no result"), ([make_result(step=None)], "no place in a history")]
)
def test_history_refuses_what_has_no_place(results, complaint):
    with pytest.raises(ValueError, match=complaint):
        figures.history(results)


def test_history_of_an_empty_folder_says_where_results_are(tmp_path):
    with pytest.raises(ValueError, match=r"step=<n>\.json"):
        figures.history(tmp_path)


def test_overlay_lets_the_input_through_where_a_map_is_zero():
    result = make_result()
    image = figures.maps(result, overlay=True).axes[0].images[2]  # after the input and its ghost
    assert image.get_alpha().shape == (8, 8)
    torch.testing.assert_close(
        torch.tensor(image.get_alpha() ** 2 * 127), result.pictures.maps["gradient"][0, 0].abs().float()
    )
