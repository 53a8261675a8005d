"""The positive control: a pattern that changes exactly as far as the outputs do."""

import pytest
import torch
from made_networks import cnn
from torch import nn

from lightning_sanity.attribution import output_pattern
from lightning_sanity.similarity import spearman


class Given(nn.Module):
    """Returns what it was told to."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x):
        return self.outputs[: len(x)]


def patterns(outputs, reference, shape=(1, 16, 16)):
    return output_pattern(reference)(Given(outputs), torch.rand(len(outputs), *shape))


@pytest.mark.parametrize("scores", [1, 3, 10, 200])
def test_likeness_falls_with_the_distance_of_the_outputs(scores):
    trained, other = torch.randn(2, 24, scores)
    maps = patterns(trained, trained)
    likeness = [
        float(spearman(maps[:, 0], patterns(trained + share * (other - trained), trained)[:, 0]).mean())
        for share in (0, 0.05, 0.2, 0.5, 1)
    ]
    assert likeness[0] == pytest.approx(1)
    assert likeness == sorted(likeness, reverse=True)
    assert likeness[1] > 0.8
    assert likeness[-1] < 0.55


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_and_offset_of_each_score_say_nothing(scale):
    trained, other = torch.randn(2, 12, 4, dtype=torch.float64)
    law = torch.tensor([1.0, 3.0, scale, 10.0]), torch.tensor([0.0, 5.0, -scale, 1.0])
    assert torch.allclose(
        patterns(other, trained), patterns(other * law[0] + law[1], trained * law[0] + law[1]), atol=1e-6
    )


def test_a_score_that_is_the_same_for_all_samples_is_no_obstacle():
    trained = torch.randn(12, 3)
    trained[:, 1] = 7.0
    assert patterns(trained, trained).isfinite().all()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((13,), (13,)), ((3, 20), (1, 20)), ((3, 8, 9), (1, 8, 9)), ((2, 4, 5, 6), (1, 4, 5, 6))],
    ids=["table", "signal", "image", "volume"],
)
def test_the_pattern_lies_over_the_grid_of_the_input(shape, expected):
    outputs = torch.randn(5, 4)
    assert patterns(outputs, outputs, shape).shape == (5, *expected)
    assert patterns(outputs[:, 0], outputs[:, 0], shape).shape == (5, *expected)  # one score


def test_the_pattern_looks_at_outputs_only():
    model = cnn()
    x, permuted = torch.rand(6, 3, 12, 12), torch.randperm(6)
    method = output_pattern(model(x).detach())
    maps = method(model, x)
    assert torch.equal(method(Given(model(x)), torch.zeros(6, 3, 12, 12)), maps)
    torch.testing.assert_close(method(model, x[permuted]), maps[permuted])
