"""The report as a file: complete, self-contained, well-formed, and deaf to markup in names."""

import ast
import inspect
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from made_figures import EVIL, crowd, invalid, make_result, nothing_defined

import lightning_sanity
from lightning_sanity import SanityResult
from lightning_sanity.report import chart, html, thumbnails
from lightning_sanity.report.first_screen import Row
from lightning_sanity.report.palette import DARK, LIGHT
from lightning_sanity.report.reproduction import python_call
from lightning_sanity.result import Outcome, OutputChange, Verdict
from lightning_sanity.result.sanity_result import Pictures

VOID = {"meta", "link", "img", "br", "input", "hr", "source"}


class Page(HTMLParser):
    """What a page holds; parsing refuses tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.headings, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_data(self, data):
        if not {"style", "title"} & set(self.open[-1:]):
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def data_randomization():
    """One step, one pair of models, a result of the other test."""
    return make_result(
        methods={"gradient": Verdict(Outcome.PASS, "it changes", 0.9, 0.8, 1.0, "ssim")},
        units=("random labels",),
        trials=1,
        settings={"test": "data_randomization", "methods": ["gradient"], "trials": 1, "similarities": ["ssim"]},
    )


def controls_only():
    result = make_result()
    return replace(result, verdicts={name: replace(v, gated=False) for name, v in result.verdicts.items()})


RESULTS = {
    "typical": make_result,
    "invalid": invalid,
    "nothing defined": nothing_defined,
    "no pictures": lambda: make_result(pictures=None),
    "no curves": lambda: make_result(curves={}, pictures=None),
    "controls only": controls_only,
    "no methods": lambda: make_result(verdicts={}, curves={}, pictures=None),
    "no settings": lambda: make_result(settings={}, environment={}),
    "data randomization": data_randomization,
    "60 units": lambda: make_result(methods=crowd(12), units=[f"model.layers.{k}.mlp" for k in range(60)]),
    "ids": lambda: make_result(probe_ids=(3, 1), step=None),
}


@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS)
def test_page_is_well_formed(result):
    page = Page(html.render(result()))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(image.get("alt") for image in page.all("img"))
    assert page.headings[0] == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert page.headings.count(1) == 1
    references = [link["href"][1:] for link in page.all("a")]
    references += [name for svg in page.all("svg") for name in svg.get("aria-labelledby", "").split()]
    assert set(references) <= set(ids)
    assert page.all("html") == [{"lang": "en"}]


@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS)
def test_page_asks_for_nothing_outside_itself(result):
    text = html.render(result())
    page = Page(text)
    sources = [
        value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "srcset", "href")
    ]
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert not re.search(r"url\((?!#)|@import|https?://", text)
    assert not page.all("script")


@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS)
def test_page_shows_no_number_that_is_none(result):
    assert not re.search(r"\bnan\b|\binf\b", html.render(result()))


def test_page_begins_with_the_verdicts():
    titles = re.findall(r'<h2 id="(\w+)"', html.render(make_result()))
    assert titles == [
        "verdicts",
        "methods",
        "curves",
        "maps",
        "coverage",
        "output",
        "evidence",
        "settings",
        "reproduce",
        "limits",
    ]


def test_invalid_run_is_announced_before_everything():
    text = Page(html.render(invalid())).text
    assert text.index("NOT VALID, no verdict can be trusted: the control 'random'") < text.index("Validity")


def test_names_with_markup_come_out_as_text(tmp_path):
    base = make_result()
    verdicts = {EVIL: replace(base.verdicts["gradient"], reason=EVIL, measure=EVIL)}
    maps = Pictures(base.pictures.inputs, base.pictures.depths, {EVIL: base.pictures.maps["gradient"]})
    units = tuple(f"</svg>{EVIL}{k}" for k in range(5))
    coverage = replace(base.coverage, units=(replace(base.coverage.units[0], name=EVIL),), notes=(EVIL,))
    result = make_result(
        methods=verdicts,
        units=units,
        pictures=maps,
        coverage=coverage,
        settings=dict(base.settings) | {"model": EVIL, EVIL: EVIL, "methods": [EVIL]},
        environment={EVIL: EVIL},
        validity=EVIL,
        weights_digest=EVIL,
        probe_digest=EVIL,
    )
    result = replace(result, curves=dict(result.curves) | {(EVIL, EVIL): result.curves[EVIL, "ssim"]})
    page = Page(result.to_html(tmp_path / "<img src=x onerror=1>.html").read_text(encoding="utf-8"))
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert page.text.count(EVIL) > 10


def test_every_method_has_its_sentence_and_its_picture():
    page = Page(html.render(make_result()))
    assert {"It changes.", "It stays."} <= {line.strip() for line in page.text.splitlines()}
    alts = {image["alt"] for image in page.all("img")}
    assert {"gradient, input 1, trained", "guided_backprop, input 2, down to features.6"} <= alts


def test_page_of_a_data_randomization_speaks_of_labels():
    text = Page(html.render(data_randomization())).text
    assert "Do the saliency maps depend on the labels?" in text
    assert "data_randomization_test(\n    models, random_label_models, inputs" in text
    for word in ("re-initialis", "trained model", "each step", "last step", "trials", "run twice", "cascade"):
        assert word not in text.split("What a pass does not mean")[0], word


def test_page_of_a_data_randomization_says_first_what_the_models_learned():
    known = {"true_train": [1.0], "permuted_train": [0.98], "permuted_test": [0.1], "test_samples": 90, "chance": 0.1}
    plain = data_randomization()
    text = Page(html.render(replace(plain, settings={**plain.settings, "memorization": known}))).text
    assert text.index("random-label model 0") < text.index("Verdicts", text.index("What the models learned"))
    assert "98.0 %" in text
    assert "memorization=Memorization(true_train=[1.0], permuted_train=[0.98], permuted_test=[0.1]" in text
    assert "Nothing shows that the models learned their labels" in Page(html.render(plain)).text


def test_diagnostics_are_shown_where_a_result_has_them():
    result = make_result()
    object.__setattr__(result, "diagnostics", {"gradient": {"complexity of its maps": 0.12345}})
    assert re.search(r"complexity of its maps\s*0\.12", Page(html.render(result)).text)


def test_page_of_eight_methods_with_large_noisy_maps_stays_under_two_megabytes():
    methods = {f"method{k}": Verdict(Outcome.PASS, "", 0.9, 0.8, 1.0, "ssim") for k in range(12)}
    inputs = torch.randint(0, 256, (3, 112, 112, 3), dtype=torch.uint8)
    maps = torch.randint(-127, 128, (3, 6, 112, 112), dtype=torch.int8)
    pictures = Pictures(inputs, (1, 2, 3, 4, 5), dict.fromkeys(methods, maps))
    verdicts = {name: replace(v, gated=k < 8) for k, (name, v) in enumerate(methods.items())}
    assert len(html.render(make_result(methods=verdicts, pictures=pictures))) < 2e6  # each map is there once


def test_to_html_leaves_one_whole_file(tmp_path):
    path = make_result().to_html(tmp_path / "deep" / "report.html")
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_same_result_gives_the_same_page():
    assert html.render(make_result()) == html.render(make_result())


def test_psi_bar_puts_zero_and_one_on_its_marks():
    row = Row.of(make_result(methods={"a": Verdict(Outcome.PASS, "", 1.0, 0.0, 1.25, "ssim")}), "a")
    assert (row.point, row.bar) == (83.3, (16.7, 83.3))


def test_call_spells_out_every_setting_and_runs():
    found = python_call(lightning_sanity.SanityResult.from_dict(RAN.to_dict()))
    scope = {"model": MODEL, "inputs": INPUTS}
    exec(found, scope)
    assert scope["result"].verdicts == RAN.verdicts
    (call,) = [node for node in ast.walk(ast.parse(found)) if getattr(node, "keywords", None) and node.args]
    accepted = inspect.signature(lightning_sanity.parameter_randomization_test).parameters
    assert {keyword.arg for keyword in call.keywords} <= set(accepted)


MODEL = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3))
INPUTS = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
RAN = lightning_sanity.parameter_randomization_test(
    MODEL, INPUTS, methods=["gradient"], trials=2, order="bottom_up", seed=5, progress=False
)


def test_chart_breaks_its_line_where_a_value_is_undefined():
    band = torch.tensor([[0.5, math.nan, 0.5, 0.2]] * 3)
    (line,) = chart.over_depth("", "", "abcd", [chart.Series("", band, 1.0, "")]).lines
    assert (line.path.count("M"), line.path.count("L"), len(line.points)) == (2, 2, 4)
    assert line.band.count("Z") == 2


def test_chart_keeps_far_values_on_its_edge():
    band = torch.tensor([[9.0, -9.0]] * 3)
    found = chart.over_depth("", "", "ab", [chart.Series("", band, 0.0, "")])
    assert [y for _, y in found.lines[0].points][1:] == [found.top, found.bottom]


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_map_thumbnail_has_the_colours_of_its_scale(theme):
    values = torch.tensor([[-127, 0, 127]], dtype=torch.int8)
    image = decoded(thumbnails.of_map(values, signed=True))
    tables = thumbnails.colourings()["signed-light" if theme is LIGHT else "signed-dark"]
    for pixel, anchor in ((0, 0), (1, 3), (2, 6)):
        grey = image.getpixel((pixel, 0))[0] / 255
        channels = [float(np.interp(grey, np.linspace(0, 1, 7), list(map(float, table.split())))) for table in tables]
        wanted = [int(theme.signed[anchor][k : k + 2], 16) / 255 for k in (1, 3, 5)]
        assert channels == pytest.approx(wanted, abs=0.01)


def test_blank_map_has_no_thumbnail():
    assert thumbnails.of_map(torch.zeros(3, 3, dtype=torch.int8), signed=True) is None


def test_photo_thumbnail_is_close_to_the_input():
    ramp = torch.linspace(0, 255, 100).expand(100, 100)[..., None].expand(-1, -1, 3).to(torch.uint8)
    url = thumbnails.of_input(ramp)
    assert url.startswith("data:image/jpeg")
    pixels = torch.frombuffer(bytearray(decoded(url).tobytes()), dtype=torch.uint8).reshape(100, 100, 3).long()
    assert (pixels - ramp.long()).abs().max() <= 4


def decoded(url):
    import base64
    from io import BytesIO

    from PIL import Image

    return Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")


def test_page_survives_a_round_trip_through_json(tmp_path):
    result = make_result()
    assert html.render(SanityResult.from_json(result.to_json(tmp_path / "r.json"))) == html.render(result)


def test_undefined_output_change_is_called_undefined():
    change = make_result().output_change
    nothing = OutputChange(*(getattr(change, name) * math.nan for name in vars(change)))
    text = html.render(make_result(output_change=nothing))
    assert "agreement of the predicted classes is undefined" in text


def test_page_says_how_far_methods_agree_with_themselves_and_which_steps_were_walked():
    result = make_result()
    name = next(name for name, verdict in result.verdicts.items() if verdict.gated)
    drawn = replace(
        result, reproducibility={name: torch.full((2, 24), 0.934)}, settings={**result.settings, "steps": 99}
    )
    page = html.render(drawn)
    assert f"{name} at 0.93" in page
    assert f"{len(result.units)} of 99 steps walked" in page
    assert "another seed" not in html.render(result)
