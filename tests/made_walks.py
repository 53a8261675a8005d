"""Networks that are walked, and the comparison of shared walks with one pass per depth."""

import torch
from lightning import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from lightning_sanity import parameter_randomization_test
from lightning_sanity.attribution import resolve
from lightning_sanity.attribution.method import first
from lightning_sanity.engine import Engine
from lightning_sanity.engine.path import named_tensors
from lightning_sanity.explanation.maps import Explanation
from lightning_sanity.model.clone import Adapted, clone
from lightning_sanity.randomization import units
from lightning_sanity.randomization.twins import Reinitializer
from lightning_sanity.randomization.unit import subsets
from lightning_sanity.resources.random_streams import generator

IMAGES = torch.rand(5, 3, 12, 12, generator=generator("images"))


class Residual(nn.Module):
    """A skip connection, batch normalisation, in-place activations, functional pooling, dropout."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.one, self.two, self.skip = nn.Conv2d(6, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(6, 8, 3)
        self.relu, self.drop, self.head = nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 4)

    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        y = self.two(F.relu(self.one(x), inplace=True))
        y += self.skip(x)
        y = F.adaptive_avg_pool2d(self.relu(y), 1)
        return self.head(self.drop(y.view(y.size(0), -1)))


class Branches(nn.Module):
    """Parallel branches joined by ``cat``, and a batch size that is read long before it is used."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3, 2), nn.Linear(10, 4)
        self.left, self.right = nn.Sequential(nn.Conv2d(6, 5, 1), nn.GELU(), nn.Conv2d(5, 5, 3)), nn.Conv2d(6, 5, 3)

    def forward(self, x):
        samples = x.shape[0]
        x = F.relu(self.stem(x))
        x = torch.cat([self.left(x), self.right(x).sigmoid()], 1)
        return self.head(x.reshape(samples, 10, -1).mean(2))


class Shared(nn.Module):
    """One module three times, and weights read by function calls."""

    def __init__(self):
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 6, 3, padding=1)
        self.weight, self.shift = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(1, 6, 1, 1))

    def forward(self, x):
        x = torch.tanh(self.stem(x) + self.shift)
        for _ in range(3):
            x = x + F.relu(self.block(x))
        return x.mean((2, 3)) @ (2 * self.weight)


class Tokens(nn.Module):
    """A leaf module that holds several units, a class token, positions."""

    def __init__(self):
        super().__init__()
        self.patches, self.attention = nn.Conv2d(3, 8, 4, 4), nn.MultiheadAttention(8, 2, batch_first=True)
        self.token, self.head = nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(8, 4)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = self.norm(x)
        return self.head((x + self.attention(x, x, x, need_weights=False)[0])[:, 0])


class Recurrent(nn.Module):
    """Time comes first inside, samples second."""

    def __init__(self):
        super().__init__()
        self.recurrent, self.head = nn.LSTM(36, 6, num_layers=2), nn.Linear(6, 4)

    def forward(self, x):
        found, _ = self.recurrent(x.transpose(1, 2).flatten(2).transpose(0, 1))
        return self.head(found[-1])


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.other, self.head = nn.Conv2d(3, 6, 5), nn.Linear(2, 6), nn.Linear(6, 4)

    def forward(self, image, other, scale=1.0):
        return self.head(F.relu(self.image(image)).amax((2, 3)) * self.other(other) * scale)


class Lit(LightningModule):
    def __init__(self):
        super().__init__()
        self.save_hyperparameters()
        self.net = Residual()

    def forward(self, x):
        return {"logits": self.net(x)}


def parametrised():
    model = Residual()
    parametrizations.weight_norm(model.one)
    parametrizations.weight_norm(model.head)
    return model


NETWORKS = {
    "residual": (Residual, IMAGES),
    "branches": (Branches, IMAGES),
    "shared module": (Shared, IMAGES),
    "tokens": (Tokens, IMAGES),
    "lstm": (Recurrent, IMAGES),
    "several inputs": (TwoInputs, (IMAGES, torch.rand(5, 2, generator=generator("other")))),
    "parametrised": (parametrised, IMAGES),
    "LightningModule with a dictionary": (Lit, IMAGES, None),
}
"""What makes them, their inputs and, where outputs must be found in what they return, ``forward=``."""


def explained(name, networks=NETWORKS):
    """The clone with its face, its units and what is explained."""
    torch.manual_seed(0)
    make, inputs, *forward = networks[name]
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as training would leave it
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.uniform_(0.5, 1.5)
    copied = clone(model)
    face = Adapted(copied, *forward).eval() if forward else copied
    return copied, face, inputs


def walked(name, methods=("gradient",), order="cascading", networks=NETWORKS, **options):
    copied, face, inputs = explained(name, networks)
    target = torch.arange(5) % 4
    what = Explanation(face, inputs, target)
    chosen = {key: resolve(key) for key in methods}
    chosen = {key: m.settle(face, inputs, target) if m.settle else m for key, m in chosen.items()}
    prepared = {
        key: (method, method.prepare(face, inputs) if method.prepare else method.attribute)
        for key, method in chosen.items()
    }
    steps = subsets(units(copied, inputs, "layer") if face is copied else _units(copied, face, inputs), order)
    redraw = Reinitializer("normal", "normal", 0, "auto").start_trial(0)
    engine = Engine(copied, what, prepared, steps, 7, **options)
    saved = {key: tensor.detach().clone() for key, tensor in named_tensors(copied)}
    return engine, engine.trial(redraw, saved), what, prepared, steps, redraw, copied


def _units(copied, face, inputs):
    from lightning_sanity.model.graph import trace
    from lightning_sanity.randomization.unit import plan

    return plan(copied, trace(copied, (inputs,), lambda *arguments: face(*arguments))).units


def plain(function, what, step, redraw, copied):
    """The attribution and the outputs of one depth by a pass of its own; the clone keeps its weights."""
    saved = {name: tensor.clone() for name, tensor in copied.state_dict().items()}
    for unit in step:
        redraw(copied, unit)
    torch.manual_seed(7)
    found = function(what.model, what.inputs, what.target).detach(), what.outputs()
    copied.load_state_dict(saved)
    return found


def assert_equal_at_all_depths(engine, trial, what, prepared, steps, redraw, copied):
    assert set(trial.attributions) == set(prepared), "a method went back to the plain loop"
    for name, (_, function) in prepared.items():
        for depth, step in enumerate(steps):
            expected, outputs = plain(function, what, step, redraw, copied)
            found = trial.attributions[name][depth]
            off = torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected)
            assert off <= prepared[name][1].tolerance, (name, depth)
            assert torch.allclose(trial.outputs[depth], outputs, rtol=1e-5, atol=1e-6)


SUITE = ("gradient", "input_x_gradient", "gradcam", "layercam", "guided_backprop", "deconvnet", "guided_gradcam")

SUMMED = ("integrated_gradients", "integrated_gradients_local", "smoothgrad", "smoothgrad_squared", "vargrad")


class Branching(nn.Module):
    """Goes another way where the data say so."""

    def __init__(self):
        super().__init__()
        self.one, self.head = nn.Linear(432, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.one(x.flatten(1))
        return self.head(x.relu() if x.sum() > 0 else x.sigmoid())


class Mixing(nn.Module):
    """A sample's output depends on its neighbours."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(432, 4)

    def forward(self, x):
        x = x.flatten(1)
        return self.head(x - x.mean(0))


def check(model, inputs=IMAGES, **options):
    target = torch.arange(len(first(inputs))) % 4
    settings = {"methods": ("gradient", "gradcam"), "trials": 2, "repeats": 1, "progress": False} | options
    return parameter_randomization_test(model.eval(), inputs, target, **settings)
