"""The methods of a test: names, controls, guests, and what they explain."""

import torch
from torch import nn

from lightning_sanity.attribution.method import outputs_of
from lightning_sanity.explanation.guests import Guests
from lightning_sanity.explanation.lineup import lineup
from lightning_sanity.explanation.maps import Explanation
from lightning_sanity.explanation.options import DEFAULTS
from lightning_sanity.explanation.request import asked_of
from lightning_sanity.model.clone import Adapted
from lightning_sanity.result.controls import CONTROLS, POSITIVE_CONTROL


def lined(model, inputs, methods, models=1, face=None, **options):
    given = {**DEFAULTS, **options}
    asked = asked_of(model, inputs, None, given)
    target = torch.zeros(len(inputs), dtype=torch.long)
    subjects = [Explanation(face or model, inputs, target)] * models
    outputs = outputs_of(face or model, inputs).detach()[None]
    return lineup(methods, subjects, outputs, asked, given, Guests([(model, model)]))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)
    ).eval()


IMAGES = torch.randn(4, 1, 8, 8)


def test_controls_are_added_unless_they_are_asked_for_or_switched_off():
    assert set(lined(convolutional(), IMAGES, ["gradient"]).methods) == {"gradient", *CONTROLS}
    assert set(lined(convolutional(), IMAGES, ["gradient"], controls=False).methods) == {"gradient"}
    asked = lined(convolutional(), IMAGES, ["gradient", "random"]).methods
    assert set(asked) == {"gradient", *CONTROLS}
    assert not asked["gradient"].control
    assert lined(convolutional(), IMAGES, ["smoothgrad"]).methods["gradient"].control


def test_the_positive_control_is_standardised_by_the_outputs():
    model = convolutional()
    control = lined(model, IMAGES, ["gradient"]).methods[POSITIVE_CONTROL]
    before = control(model, IMAGES, None)
    with torch.no_grad():
        model[-1].weight *= 100
    assert not torch.allclose(control(model, IMAGES, None), before, atol=0.1)
    again = lined(model, IMAGES, ["gradient"]).methods[POSITIVE_CONTROL]
    assert torch.allclose(again(model, IMAGES, None), before, atol=1e-3)


def test_a_layer_is_found_behind_an_adapted_model():
    model = convolutional()
    faces = None, Adapted(model, None)
    plain, adapted = (lined(model, IMAGES, ["gradcam"], face=face, layer="2").methods["gradcam"] for face in faces)
    target = torch.zeros(4, dtype=torch.long)
    assert torch.equal(plain(model, IMAGES, target), adapted(Adapted(model, None).eval(), IMAGES, target))


class Centred(nn.Module):
    """Scores that depend on the batch's mean."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, rows):
        return self.layer(rows - rows.mean(0)).tanh()


def test_a_batch_that_is_one_thing_is_so_for_all_models():
    found = lined(Centred().eval(), torch.randn(6, 5), ["gradient"], models=2)
    assert found.in_one
    assert [what.in_one for what in found.subjects] == [True, True]
    assert any("depend on the other samples of the batch" in note for note in found.notes)
    assert not lined(convolutional(), IMAGES, ["gradient"]).in_one


class Words(nn.Module):
    """Scores of token ids."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 6), nn.Linear(6, 3)

    def forward(self, ids):
        return self.head(self.embedding(ids).tanh().mean(1))


def test_token_ids_are_explained_at_their_embeddings():
    found = lined(Words().eval(), torch.randint(0, 20, (4, 7)), ["gradient"], models=2)
    assert found.place is not None
    for what in found.subjects:
        maps = found.methods["gradient"](what.model, what.inputs, what.target)
        assert maps.shape[0] == 4
        assert maps.shape[-1] == 7
