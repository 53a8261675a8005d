"""Before a walk a method is told how much effort the trained model needs, and keeps to it."""

import torch
from torch import nn

from lightning_sanity import data_randomization_test, parameter_randomization_test
from lightning_sanity.attribution import integrated_gradients, integrated_gradients_local, resolve_all
from lightning_sanity.explanation.maps import Explanation
from lightning_sanity.explanation.preparation import prepared_methods


class Steep(nn.Module):
    def __init__(self, steepness):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.steepness = nn.Linear(5, 3), steepness

    def forward(self, x):
        return torch.tanh(self.steepness * self.head(x)) + 0.1 * self.head(x)


INPUTS, TARGET = torch.rand(6, 5, generator=torch.Generator().manual_seed(1)) * 3 + 1, torch.arange(6) % 3


def steps(steepness):
    return integrated_gradients().settle(Steep(steepness), INPUTS, TARGET).settled["n_steps"]


def test_the_number_of_steps_is_kept_for_all_depths_and_on_record():
    assert steps(200) > 32
    options = {"trials": 1, "repeats": 1, "controls": False, "pictures": False}
    methods = ["integrated_gradients", "integrated_gradients_local", "gradient"]
    found = parameter_randomization_test(Steep(200), INPUTS, TARGET, methods=methods, **options)
    effort = {"n_steps": steps(200)}
    assert found.settings["effort"] == {"integrated_gradients": effort, "integrated_gradients_local": effort}
    same = {"integrated_gradients": integrated_gradients(steps(200))}
    fixed = parameter_randomization_test(Steep(200), INPUTS, TARGET, methods=same, **options)
    key = "integrated_gradients", "spearman"
    torch.testing.assert_close(found.curves[key].values, fixed.curves[key].values, equal_nan=True)
    assert fixed.settings["effort"] == {}


def test_the_part_that_takes_most_decides_for_all():
    what = Explanation(Steep(200), INPUTS, TARGET)
    refused, prepared = prepared_methods(resolve_all("integrated_gradients"), what, max_batch=2)
    assert refused == {}
    each = [integrated_gradients().settle(p.model, p.inputs, p.target).settled["n_steps"] for p in what.chunks(2)]
    assert prepared["integrated_gradients"][0].settled["n_steps"] == max(each)


def test_models_of_the_other_test_are_explained_with_the_same_number_of_steps():
    other = Steep(200)
    nn.init.normal_(other.head.weight)
    options = {"repeats": 1, "controls": False, "pictures": False}
    curves = [
        data_randomization_test(Steep(200), other, INPUTS, TARGET, methods={"ig": method}, **options).curves
        for method in (integrated_gradients_local(), integrated_gradients_local(steps(200)))
    ]
    assert curves[0].keys() == curves[1].keys()
    for key, curve in curves[0].items():
        torch.testing.assert_close(curve.values, curves[1][key].values, equal_nan=True)


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 6), nn.Linear(6, 3)

    def forward(self, ids):
        return torch.tanh(20 * self.head(self.embedding(ids).mean(1)))


def test_the_number_of_steps_is_found_at_embeddings_too():
    ids = torch.stack([torch.randperm(20)[:7] for _ in range(6)])
    options = {"trials": 1, "repeats": 1, "controls": False}
    found = parameter_randomization_test(Reader(), ids, TARGET, methods=["integrated_gradients"], **options)
    assert found.settings["effort"]["integrated_gradients"]["n_steps"] in (32, 64, 128, 256)


def test_the_result_says_which_layer_a_class_activation_map_is_made_of():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.pooled = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), nn.Linear(4, 3)

        def forward(self, x):
            return {"logits": self.pooled(self.body(x).mean((2, 3)))}

    torch.manual_seed(0)
    methods, options = ["gradcam", "scorecam", "gradient"], {"trials": 1, "repeats": 1, "controls": False}
    x, target = torch.rand(4, 1, 12, 12), torch.arange(4) % 3
    taken = parameter_randomization_test(Named(), x, target, methods=methods, **options).settings["cam_layers"]
    assert taken == {"gradcam": "body", "scorecam": "body"}
