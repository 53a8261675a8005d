"""What cannot be traced, but runs the same for every sample, is explained in full batches; what may not, is refused."""

import pytest
import torch
from made_untraceable import SEQUENCES, UNTRACEABLE, Handing, Sized
from made_walks import (
    IMAGES,
    NETWORKS,
    SUITE,
    SUMMED,
    Branching,
    Mixing,
    Residual,
    assert_equal_at_all_depths,
    check,
    explained,
    plain,
    walked,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision import models

from lightning_sanity import parameter_randomization_test
from lightning_sanity.attribution import smoothgrad
from lightning_sanity.engine import full_batch
from lightning_sanity.engine.full_batch import FullBatch
from lightning_sanity.engine.path import NotTraceable
from lightning_sanity.engine.streams import TwoStream
from lightning_sanity.randomization import units
from lightning_sanity.randomization.unit import ORDERS


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", UNTRACEABLE)
def test_every_depth_equals_a_pass_of_its_own(name, order):
    assert_equal_at_all_depths(*walked(name, order=order, networks=UNTRACEABLE, paths=(FullBatch,)))


def test_depths_that_begin_at_several_values_take_this_path():
    engine, *found = walked("states", networks={"states": (Handing, SEQUENCES)})
    assert engine.path.name == "full_batch"
    assert_equal_at_all_depths(engine, *found)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "residual"])
def test_traceable_networks_take_this_path_as_well(name):
    assert_equal_at_all_depths(*walked(name, paths=(FullBatch,)))


@pytest.mark.parametrize("methods", [SUITE, SUMMED, ("gradcam",)], ids=["one pass", "many copies", "layer only"])
def test_every_method_equals_its_plain_self(methods):
    assert_equal_at_all_depths(*walked("residual", methods, paths=(FullBatch,)))


def test_the_maps_are_bit_identical_where_the_batch_does_not_change_rounding():
    _engine, trial, what, prepared, steps, redraw, copied = walked("residual", paths=(FullBatch,))
    for depth, step in enumerate(steps):
        expected = plain(prepared["gradient"][1], what, step, redraw, copied)[0]
        assert torch.equal(trial.attributions["gradient"][depth], expected)


def test_more_depths_run_together_the_smaller_their_values_are(monkeypatch):
    def runs(engine):
        return [len(plan.chosen) for plan in engine._plans(engine._random, (), True, engine.samples)]

    engine, whole, *_ = walked("residual", paths=(FullBatch,))
    assert runs(engine) == [5]
    monkeypatch.setattr(full_batch, "_JOIN", 2 * 5 * engine.path.largest)
    engine, few, *_ = walked("residual", paths=(FullBatch,))
    assert max(runs(engine)) == 2
    monkeypatch.setattr(full_batch, "_JOIN", 1)
    engine, single, *_ = walked("residual", paths=(FullBatch,))
    assert runs(engine) == [1] * 5
    for found in (few, single):
        for one, other in zip(whole.attributions["gradient"], found.attributions["gradient"], strict=True):
            assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


def test_maps_do_not_depend_on_the_budget():
    whole = walked("nested weights", networks=UNTRACEABLE)[1].attributions["gradient"]
    few = walked("nested weights", networks=UNTRACEABLE, budget=30_000)[1].attributions["gradient"]
    for a, b in zip(whole, few, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_the_clone_is_left_as_it_was():
    copied = walked("nested weights", SUITE[:2], networks=UNTRACEABLE)[-1]
    fresh = explained("nested weights", UNTRACEABLE)[0]
    for module, other in zip(copied.modules(), fresh.modules(), strict=True):
        assert vars(module).keys() == vars(other).keys()
        assert list(module._parameters) == list(other._parameters)
        assert all(map(torch.equal, module._parameters.values(), other._parameters.values()))


# --------------------------------------------------------------------------------------------------------- refusals


class Picking(Mixing):
    """Computes with those features alone that are large in some sample."""

    def forward(self, x):
        x = x.flatten(1)
        return self.head(x).index_fill(1, self.head(x).flatten().topk(1)[1] % 4, 0.0)


class Masking(Mixing):
    def forward(self, x):
        x = x.flatten(1)
        x[x > 2] = x[x > 2].sqrt()
        return self.head(x)


class Reading(Mixing):
    def forward(self, x):
        return self.head(x.flatten(1)) * (2 if max(x.detach().flatten().tolist()) > 0.5 else 1)


class Summing(Mixing):
    """A sample's output depends on those before it."""

    def forward(self, x):
        return self.head(x.flatten(1)).cumsum(0)


class Counting(Mixing):
    """Does something else for many samples."""

    def forward(self, x):
        found = self.head(x.flatten(1))
        return found.relu() if len(x) > 3 else found


class Lookalike(Mixing):
    """Holds a second view of a weight where nobody can replace it."""

    def __init__(self):
        super().__init__()
        self.body, self.view = nn.Linear(432, 432), None

    def forward(self, x):
        if self.view is None:
            self.view = self.head.weight.detach().view(4, -1)
        return self.head(self.body(x.flatten(1))) + self.body(x.flatten(1)) @ self.view.T


class Checkpointed(Mixing):
    """Runs its body again on the way down, when the weights are others."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(432, 432)

    def forward(self, x):
        return self.head(checkpoint(self.body, x.flatten(1), use_reentrant=False))


class Functional(nn.Module):
    """Calls none of its modules."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(432, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = F.linear(x.flatten(1), self.body.weight, self.body.bias).relu()
        return F.linear(x, self.head.weight, self.head.bias)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Branching, "looks at values that depend on the inputs .aten._local_scalar_dense"),
        (Masking, "looks at values that depend on the inputs .aten.index"),
        (Reading, "looks at values that depend on the inputs .tolist"),
        (Mixing, "aten.sub.Tensor reads a value of all samples"),
        (Picking, "reads a value of all samples"),
        (Summing, "depend on one another"),
        (Counting, "something else for another number of samples"),
        (Lookalike, "'head.weight' is read past the module that holds it"),
        (Checkpointed, "runs parts of itself again"),
        (Functional, "'Functional' reads the weights of all units itself"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_may_not_be_the_same_for_every_sample_is_refused(make, reason):
    torch.manual_seed(0)
    model = make()
    model(IMAGES)
    with pytest.raises(NotTraceable, match=reason):
        FullBatch(model, IMAGES, units(model, IMAGES), model)


def test_rows_that_turn_out_otherwise_end_the_walk():
    with pytest.raises(NotTraceable, match="another number of rows than before"):
        walked("sized", networks={"sized": (Sized, IMAGES)}, paths=(FullBatch,))


class Beside(nn.Module):
    """A part that uses its child's weight by a function call."""

    def __init__(self):
        super().__init__()
        self.part, self.head = Residual(), nn.Linear(4, 4)
        self.part.forward = self.by_function

    def by_function(self, x):
        assert isinstance(x, torch.Tensor)
        part = self.part
        return part.head(F.conv2d(x, part.stem.weight, part.stem.bias).relu().amax((2, 3))[:, :1].expand(-1, 8))

    def forward(self, x):
        return self.head(self.part(x))


def test_a_childs_weight_that_its_parent_reads_is_replaced_around_the_parent():
    engine, *found = walked("beside", networks={"beside": (Beside, IMAGES)}, paths=(FullBatch,))
    divided = {engine.path._names[module]: {p.name for p in held} for module, held in engine.path.divided.items()}
    assert divided == {name: {"weight", "bias"} for name in ("part", "part.head", "head")}
    assert_equal_at_all_depths(engine, *found)


# ---------------------------------------------------------------------------------------------------- whole results


@pytest.fixture
def untraceable(monkeypatch):
    def refuse(self, *arguments):
        raise NotTraceable("on purpose")

    monkeypatch.setattr(TwoStream, "__init__", refuse)


def assert_same_results(model, images, **options):
    fast, slow = (check(model, images, engine=engine, **options) for engine in ("auto", "plain"))
    walked = {name for name, path in fast.engine.items() if path == "full_batch"}
    assert any(bool(curve.values.isfinite().any()) for curve in fast.curves.values())
    for key, curve in fast.curves.items():
        assert torch.allclose(curve.values, slow.curves[key].values, atol=1e-4, equal_nan=True), key
    assert {name: verdict.outcome for name, verdict in fast.verdicts.items()} == {
        name: verdict.outcome for name, verdict in slow.verdicts.items()
    }
    return walked


@pytest.mark.usefixtures("untraceable")
def test_a_resnet_has_the_same_result_on_this_path():
    torch.manual_seed(0)
    methods = {name: name for name in ("gradient", "guided_backprop", "gradcam")} | {"noisy": smoothgrad(n_samples=2)}
    images = torch.rand(3, 3, 32, 32)
    found = assert_same_results(models.resnet18(num_classes=4), images, methods=methods, max_steps=5, trials=1)
    assert found >= methods.keys()


@pytest.mark.usefixtures("untraceable")
def test_a_trained_network_has_the_same_verdicts_on_this_path(digits_network):
    model, images, target = digits_network
    options = {"methods": ("gradient", "guided_backprop", "gradcam"), "trials": 3, "repeats": 2, "progress": False}
    fast, slow = (
        parameter_randomization_test(model, images[:12], target[:12], engine=engine, **options)
        for engine in ("auto", "plain")
    )
    assert {fast.engine[name] for name in options["methods"]} == {"full_batch"}
    assert {fast.verdicts[name].outcome.value for name in options["methods"]} >= {"PASS", "FAIL"}
    for name, verdict in fast.verdicts.items():
        assert verdict.outcome is slow.verdicts[name].outcome
        assert verdict.psi == pytest.approx(slow.verdicts[name].psi, abs=1e-4, nan_ok=True)
