"""Which picture illustrates a result, and why there is none where there is none."""

import pytest
import torch
from made_figures import make_result
from torch import nn

import lightning_sanity
from lightning_sanity.report import html
from lightning_sanity.report.illustrated import absent


def result_on(channels, **options):
    """A real result on images of so many channels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
    inputs = torch.randn(4, channels, 8, 8)
    return lightning_sanity.parameter_randomization_test(
        model, inputs, methods="gradient", trials=1, progress=False, **options
    )


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: result_on(3, pictures=False), "the test ran without them"),
        (lambda: result_on(5), "there is none of inputs of this kind"),
        (lambda: make_result(pictures=None, settings={"explained": ["image", "table"]}), "several inputs"),
    ],
    ids=["asked for none", "none of such inputs", "several inputs"],
)
def test_a_result_without_pictures_says_which_cause_applies(make, why):
    result = make()
    assert why in absent(result)
    assert absent(result) in html.render(result).replace("&#39;", "'")


def test_a_result_with_pictures_misses_none():
    assert absent(result_on(3)) == ""
