"""Batch normalisation folded away gives the maps of the plain path to rounding, and is caught where it does not."""

import logging

import pytest
import torch
from made_processes import forking, in_processes, whole
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torchvision.models import resnet18

from lightning_sanity import parameter_randomization_test
from lightning_sanity.attribution import resolve
from lightning_sanity.engine import ENGINES, Engine, folding
from lightning_sanity.engine.folding import Folded
from lightning_sanity.engine.path import NotTraceable, named_tensors
from lightning_sanity.engine.streams import TwoStream
from lightning_sanity.explanation.maps import Explanation
from lightning_sanity.model.clone import clone
from lightning_sanity.randomization import Unit, units
from lightning_sanity.randomization.twins import Reinitializer
from lightning_sanity.randomization.unit import subsets
from lightning_sanity.resources.memory import bytes_of
from lightning_sanity.resources.random_streams import generator

IMAGES = torch.rand(4, 3, 32, 32, generator=generator("images"))
CLASSES = torch.arange(4)


def as_trained(model):
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, 0, 0.5)
    return model.eval()


class Small(nn.Module):
    """Pairs of every kind: groups, a bias, no affine part, a linear layer; and one that a skip connection forbids."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8)
        self.grouped, self.plain_norm = nn.Conv2d(8, 8, 3, 2, groups=4), nn.BatchNorm2d(8, affine=False)
        self.skipped, self.third = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.hidden, self.fourth, self.head = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.plain_norm(self.grouped(x)))
        x = self.skipped(x)
        x = F.relu(x + self.third(x)).mean((2, 3))
        return self.head(F.relu(self.fourth(self.hidden(x))))


NETWORKS = {"resnet18": lambda: resnet18(num_classes=4), "small": Small}


def prepared(model, names, layer):
    methods = {name: resolve(name, layer) for name in names}
    methods = {n: m.settle(model, IMAGES, torch.arange(len(IMAGES)) % 4) if m.settle else m for n, m in methods.items()}
    return {
        name: (method, method.prepare(model, IMAGES) if method.prepare else method.attribute)
        for name, method in methods.items()
    }


def modules(model):
    """A unit for each module, so that a normalisation is random before or after its convolution."""
    found = []
    for name, module in reversed(list(model.named_children())):
        kinds = module.named_parameters(), module.named_buffers()
        names = [[f"{name}.{key}" for key, tensor in kind if tensor.is_floating_point()] for kind in kinds]
        found += [Unit(name, *map(tuple, names))] if names[0] else []
    return found


def walked(make=Small, names=("gradient",), layer=None, split=None, order="cascading", **options):
    """The engine, its trial, and what the plain path gives at every depth."""
    model = clone(as_trained(make()))
    what, functions = Explanation(model, IMAGES, CLASSES), prepared(model, names, layer)
    steps = subsets(units(model, IMAGES, "block") if split is None else split(model), order)
    engine = Engine(model, what, functions, steps, 7, paths=ENGINES["folded"], **options)
    saved = {name: tensor.clone() for name, tensor in named_tensors(model)}
    redraw = Reinitializer("normal", "normal", 0, "auto").start_trial(0)
    trial = engine.trial(redraw, saved)
    assert set(trial.attributions) == set(names), "a method went back to the plain loop"
    expected = {name: [] for name in names}
    for step in steps:
        for unit in step:
            redraw(model, unit)
        for name, (_, function) in functions.items():
            torch.manual_seed(7)
            expected[name].append(function(model, IMAGES, CLASSES).detach())
        model.load_state_dict(saved)
    return engine, trial, expected


def assert_equal_to_rounding(trial, expected):
    for name, maps in expected.items():
        assert sum(bool(plain.any()) for plain in maps) > len(maps) / 2, "dead maps are no evidence"
        for found, plain in zip(trial.attributions[name], maps, strict=True):
            off = ((found - plain) / plain)[plain != 0].abs()
            assert len(off) == 0 or off.median() <= 1e-5, name
            assert found.is_contiguous()


def checked(model, engine, inputs=IMAGES, target=CLASSES, **options):
    given = {"trials": 1, "repeats": 1, "progress": False, "pictures": False, "reinitialize": "normal"} | options
    return parameter_randomization_test(model, inputs, target, engine=engine, **given)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_depth_is_equal_to_rounding(name):
    engine, *found = walked(NETWORKS[name])
    assert_equal_to_rounding(*found)
    folds = {str(node.target) for node in engine.path._norm_of}
    # The last convolutions of a ResNet-18 have many weights for a single position each.
    assert folds >= ({"conv1", "layer1.0.conv1"} if name == "resnet18" else {"stem", "grouped", "hidden"})
    assert not folds & {"layer4.1.conv2", "skipped"}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_result_is_that_of_the_plain_loop_to_rounding(name):
    model = as_trained(NETWORKS[name]())
    options = {"methods": "gradient", "max_steps": 3, "trials": 2}
    fold, plain = (checked(model, engine, **options) for engine in ("folded", "plain"))
    assert fold.engine["gradient"] == "two_stream, folded"
    for key, curve in plain.curves.items():
        torch.testing.assert_close(fold.curves[key].values, curve.values, atol=1e-3, rtol=0, equal_nan=True)
    for key, verdict in plain.verdicts.items():
        assert fold.verdicts[key].outcome is verdict.outcome
        assert [fold.verdicts[key].psi, fold.verdicts[key].psi_low] == pytest.approx(
            [verdict.psi, verdict.psi_low], abs=1e-3, nan_ok=True
        )


@pytest.mark.parametrize("order", ["cascading", "bottom_up", "independent"])
def test_a_pair_may_be_half_random(order):
    engine, *found = walked(split=modules, order=order)
    assert_equal_to_rounding(*found)
    mixtures = {len(key) for node, key in engine.path._folded if str(node.target) == "hidden"}
    assert mixtures == ({0, 1, 2} if order != "independent" else {0, 1})


MANY = ("gradient", "guided_backprop", "deconvnet", "gradcam", "layercam", "smoothgrad", "integrated_gradients")


@pytest.mark.parametrize("layer", ["grouped", "plain_norm", "skipped"])
def test_every_method_is_equal_wherever_it_looks(layer):
    engine, *found = walked(names=MANY, layer=layer)
    assert_equal_to_rounding(*found)
    assert len(engine.path._norm_of) == (2 if layer == "grouped" else 3)  # its own value is looked at


class Twice(nn.Module):
    """One convolution for two scales, each with a normalisation of its own."""

    def __init__(self):
        super().__init__()
        self.stem, self.shared, self.head = nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 4)
        self.fine, self.coarse = nn.BatchNorm2d(6), nn.BatchNorm2d(6)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = F.relu(self.coarse(self.shared(F.avg_pool2d(x, 2))))
        return self.head(F.relu(self.fine(self.shared(x))).mean((2, 3)) + y.mean((2, 3)))


def test_a_convolution_with_two_normalisations_is_folded_into_each():
    engine, *found = walked(Twice, split=modules)
    assert_equal_to_rounding(*found)
    assert [str(node.target) for node in engine.path._norm_of] == ["shared", "shared"]


def test_maps_do_not_depend_on_the_budget():
    engine, trial, expected = walked(budget=100_000)
    assert len(list(engine._plans(engine._random, (), True))) == 1
    assert engine.budget < 4 * next(engine._plans(engine._random, (), True)).bytes_per_sample()
    assert_equal_to_rounding(trial, expected)


def test_weights_are_folded_once_for_each_trial_and_mixture(monkeypatch):
    calls, fold = [], folding.folded

    def counted(module, norm):
        calls.append(module)
        return fold(module, norm)

    monkeypatch.setattr(folding, "folded", counted)
    engine, *_ = walked(budget=100_000)  # walks samples in turn
    assert len(calls) == 2 * 3  # trained and random
    saved = {name: tensor.clone() for name, tensor in named_tensors(engine.model)}
    for trial, made in ((1, 2 * 3), (2, 3)):  # the proof of the first trial wrote to the trained weights
        calls.clear()
        engine.trial(Reinitializer("normal", "normal", 0, "auto").start_trial(trial), saved)
        assert len(calls) == made


class Unfoldable(nn.Module):
    """A pair that is none, for the given reason."""

    def __init__(self, reason):
        super().__init__()
        self.reason, self.stem, self.norm = reason, nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        if reason == "statistics of the batch":
            self.norm = nn.BatchNorm2d(4, track_running_stats=False)
        elif reason == "a parametrised weight":
            parametrizations.weight_norm(self.stem)
        elif reason == "a hook":
            self.stem.register_forward_hook(lambda module, inputs, output: 2 * output)
        elif reason == "channels last":
            self.stem, self.norm = nn.Linear(32, 32), nn.BatchNorm1d(96)
        elif reason == "another precision":
            self.norm = nn.BatchNorm2d(4).double()
        self.head = nn.Linear(32 if reason == "channels last" else 4, 4)

    def forward(self, x):
        if self.reason == "channels last":
            return self.head(self.norm(self.stem(x.flatten(1, 2))).relu().mean(1))
        y = self.stem(x)
        if self.reason == "another precision":
            y = y.double()
        y = self.norm(y).relu() + (y if self.reason == "a second reader" else 0)
        return self.head(y.mean((2, 3)).to(x.dtype))


REASONS = ("statistics of the batch", "a parametrised weight", "a hook", "channels last", "a second reader")


@pytest.mark.parametrize("reason", [*REASONS, "another precision", "none"])
def test_what_is_no_pair_is_left_alone(reason):
    model = Unfoldable(reason).eval()
    if reason == "statistics of the batch":  # then samples depend on one another, and nothing can be walked
        assert not folding._go_together(model.stem, model.norm, 4)
        return
    given = model, IMAGES, units(model, IMAGES), model
    if reason == "none":
        assert len(Folded(*given)._norm_of) == 1
    else:
        with pytest.raises(NotTraceable, match="no normalisation that is worth folding"):
            Folded(*given)


def test_a_network_without_a_pair_is_walked_as_ever():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()
    fold, auto = (checked(model, engine, methods="gradient") for engine in ("folded", "auto"))
    assert fold.engine["gradient"] == "two_stream"
    for key, curve in auto.curves.items():
        assert torch.equal(fold.curves[key].values.nan_to_num(9), curve.values.nan_to_num(9))


def without_mean(module, norm, fold=folding.folded):
    mean, norm.running_mean = norm.running_mean, torch.zeros_like(norm.running_mean)
    try:
        return fold(module, norm)
    finally:
        norm.running_mean = mean


def without_scale(module, norm, fold=folding.folded):
    made = fold(module, norm)
    made.weight.data = module.weight.data.clone()
    return made


@pytest.mark.parametrize("wrong", [without_mean, without_scale])
def test_a_wrong_fold_goes_back_to_the_plain_loop(wrong, monkeypatch, caplog):
    model = as_trained(Small())
    plain = checked(model, "plain", methods="gradient")
    monkeypatch.setattr(folding, "folded", wrong)
    with caplog.at_level(logging.DEBUG, "lightning_sanity"):
        found = checked(model, "folded", methods="gradient")
    assert "differs" in caplog.text
    assert found.settings["engine"]["gradient"] == "plain"
    assert torch.equal(found.curves["gradient", "spearman"].values, plain.curves["gradient", "spearman"].values)


def test_the_users_model_is_left_as_it_is():
    model = as_trained(Small())
    before = {name: (tensor.clone(), tensor._version) for name, tensor in named_tensors(model)}
    checked(model, "folded", methods=("gradient", "guided_backprop"))
    for name, tensor in named_tensors(model):
        assert torch.equal(tensor, before[name][0]), name
        assert tensor._version == before[name][1], name


def test_verdicts_on_trained_digits_are_the_same(digits_network):
    model, images, _ = digits_network
    options = {"methods": ("gradient", "gradcam", "guided_backprop", "smoothgrad"), "trials": 2, "max_steps": 5}
    fold, auto = (checked(model, engine, images[:8], None, **options) for engine in ("folded", "auto"))
    for name in options["methods"]:
        assert fold.engine[name] == "two_stream, folded"
        assert fold.verdicts[name].outcome is auto.verdicts[name].outcome
        assert fold.verdicts[name].psi == pytest.approx(auto.verdicts[name].psi, abs=1e-3, nan_ok=True)


@forking
def test_several_processes_find_the_same_to_the_last_bit(digits_network, tmp_path):
    model, images, _ = digits_network
    options = {"engine": "folded", "trials": 3, "methods": ("gradient", "gradcam")}
    alone = whole(model, images, None, **options)
    assert alone["settings"]["engine"]["gradient"] == "two_stream, folded"
    for found in in_processes(2, tmp_path, lambda share: whole(model, images, share, **options)):
        assert found == alone


def test_a_limit_on_memory_counts_what_is_folded_and_changes_no_result():
    engine, *_ = walked(split=modules)
    made = bytes_of(tensor for _, module in engine.path._folded.values() for tensor in module.parameters())
    copied = [kind.copied_bytes(engine.path, engine._random) for kind in (TwoStream, Folded)]
    assert copied[1] - copied[0] == pytest.approx(made, rel=0.1)
    model, found = as_trained(Small()), {}
    for limit, path in ((None, "two_stream, folded"), (1_000_000, "two_stream, folded"), (10_000, "plain")):
        found[limit] = checked(model, "folded", methods="gradient", controls=False, max_memory=limit)
        assert found[limit].engine["gradient"] == path
        for key, curve in found[None].curves.items():
            torch.testing.assert_close(found[limit].curves[key].values, curve.values, atol=1e-3, rtol=0, equal_nan=True)
