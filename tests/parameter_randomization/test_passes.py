"""How often a network runs: on the plain walk once for every step of a method, whatever else is told of the step."""

import pytest
import torch
from torch import nn

from lightning_sanity import parameter_randomization_test

CLASSES = torch.arange(6) % 3


class Sentences(nn.Module):
    """Counts the passes that reach its scores."""

    def __init__(self):
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.passes = [0]

    def forward(self, ids):
        x = torch.tanh(self.body(self.embed(ids))).mean(1)
        self.passes[0] += 1
        return self.head(x)

    def __deepcopy__(self, memo):
        made = type(self)()
        made.load_state_dict(self.state_dict())
        made.passes = self.passes
        return made


class Numbers(Sentences):
    """The same of numbers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 8)


def passes(make, inputs, trials, methods):
    torch.manual_seed(0)
    model = make().eval()
    options = {"engine": "plain", "trials": trials, "progress": False, "pictures": False}
    result = parameter_randomization_test(model, inputs, CLASSES, methods=methods, **options)
    assert "output_pattern" in {name for name, _ in result.curves}
    return model.passes[0], len(result.units)


INPUTS = {"text": (Sentences, torch.randint(0, 20, (6, 5))), "numbers": (Numbers, torch.randn(6, 5, 4))}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("methods", [("gradient",), ("gradient", "input_x_gradient")])
def test_a_step_of_the_plain_walk_takes_one_pass_for_each_method(kind, methods):
    (few, steps), (more, _) = (passes(*INPUTS[kind], trials, methods) for trials in (3, 5))
    looked_at = 2  # trials watch the pass at full randomization for what still reads trained weights
    assert more - few <= 2 * steps * len(methods) + looked_at
    assert more - few >= 2 * steps * len(methods)
