"""The data randomization test in its own words: it has no steps, and both kinds of its models are trained."""

import re
from dataclasses import replace

import pytest
import torch
from made_figures import make_result
from made_results import FAILING, OPEN, PASSING, made_of_labels
from made_texts import faults, texts

from lightning_sanity.report import cards, decided, figures, html, markdown
from lightning_sanity.report.label_figures import label_maps
from lightning_sanity.report.text import account, markup
from lightning_sanity.result.sanity_result import Pictures

METHODS = {"gradcam": PASSING, "lime": FAILING, "integrated_gradients": OPEN}
WHO = "3 models trained on the true labels and 3 trained on random ones"
OF_THE_OTHER_TEST = re.compile(
    r"each step|last step|step by step|step 1\b|re-initiali[sz]|cascad|\bdepth\b|on average|\btrials?\b"
    r"|the trained (model|map)|^trained$|\bPSI\b|make noise|weights are",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def result():
    """A result with pictures and without the trials that only made ones have."""
    made = made_of_labels(METHODS)
    maps = torch.randint(-127, 128, (2, 2, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    pictures = Pictures(make_result().pictures.inputs, (1,), dict.fromkeys(made.verdicts, maps))
    settings = {key: value for key, value in made.settings.items() if key != "trials"}
    return replace(made, pictures=pictures, settings=settings)


def page_texts(result):
    """What the page says, without settings, the call, and what it says of the other test."""
    page = html.render(result).split("<style>")[0] + html.render(result).split("</style>")[1]
    page = re.sub(r'<section aria-labelledby="(settings|reproduce|limits)">.*?</section>', "", page, flags=re.DOTALL)
    labels = re.findall(r'(?:alt|aria-label)="([^"]*)"', page)
    return [*(text.strip() for text in re.split(r"<[^>]*>", page)), *labels]


@pytest.fixture(scope="module")
def drawn(result):
    """Every figure by its name, with what it says."""
    making = {name: getattr(figures, name) for name in ("verdicts", "samples", "curves", "sensitivity", "maps")}
    making |= {"output_change": figures.output_change, "label_maps": label_maps}
    making |= {f"card {name}": getattr(cards, name) for name in ("verdicts", "sensitivity", "curves")}
    making |= {"card maps": lambda result: cards.maps(result, 0)}
    found = {name: make(result) for name, make in making.items()}
    return {name: (figure, [text.get_text() for text, _ in texts(figure)]) for name, figure in found.items()}


def test_nothing_speaks_of_steps_or_of_one_trained_model(result, drawn):
    said = {"page": page_texts(result), "terminal": [account(result)], "Markdown": [markdown.summary(result)]}
    said |= {name: every for name, (_, every) in drawn.items()}
    found = {where: [text for text in every if OF_THE_OTHER_TEST.search(text)] for where, every in said.items()}
    assert {where: every for where, every in found.items() if every} == {}


def test_the_same_words_are_those_of_the_other_test():
    page = page_texts(make_result())
    assert any(OF_THE_OTHER_TEST.search(text) for text in page)
    assert WHO not in account(make_result())


def test_who_was_trained_on_what_is_said_everywhere(result):
    for said in (account(result, width=120), markdown.summary(result), markup(result), html.render(result)):
        assert WHO in said


def test_one_model_of_a_kind_is_one_model(result):
    single = replace(result, settings={**result.settings, "models": [1, 1]})
    assert "1 model trained on the true labels and 1 trained on random ones" in account(single, width=120)


def test_curves_and_rows_of_maps_begin_with_the_true_labels(result, drawn):
    for name in ("curves", "sensitivity", "maps", "card maps", "card sensitivity"):
        assert {"true labels", "random labels"} <= set(drawn[name][1]), name
    assert page_texts(result).count("true labels") >= len(METHODS)


def test_texts_of_its_figures_can_be_read(drawn):
    for name, (figure, _) in drawn.items():
        assert faults(figure, 350 if name.startswith("card") else None) == [], name


def test_numbers_shown_are_those_of_the_reasons(result, drawn):
    numbers = {n: decided.number(v) for n, v in result.verdicts.items() if v.gated}
    for name, number in numbers.items():
        assert number in result.verdicts[name].reason
    shown = {
        "terminal": account(result),
        "Markdown": markdown.summary(result).replace("\xa0", " "),
        "page": html.render(result),
    }
    shown |= {name: " ".join(drawn[name][1]) for name in ("verdicts", "maps", "label_maps", "card verdicts")}
    for where, said in shown.items():
        assert all(number in said for number in numbers.values()), where
