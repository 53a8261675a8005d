"""Shared walks give what one pass per depth gives, on whatever can be traced; what cannot says so and stays plain."""

import logging

import pytest
import torch
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

from lightning_sanity.attribution import resolve
from lightning_sanity.engine.path import NotTraceable, named_tensors
from lightning_sanity.engine.plan import Plan
from lightning_sanity.engine.streams import Trained, TwoStream
from lightning_sanity.randomization import units
from lightning_sanity.randomization.twins import Reinitializer
from lightning_sanity.randomization.unit import ORDERS
from lightning_sanity.resources.memory import Meter


@pytest.mark.parametrize("name", NETWORKS)
def test_every_depth_equals_a_pass_of_its_own(name):
    assert_equal_at_all_depths(*walked(name))


@pytest.mark.parametrize("order", [order for order in ORDERS if order != "cascading"])
@pytest.mark.parametrize("name", ["residual", "shared module", "tokens"])
def test_every_order_equals_passes_of_its_own(name, order):
    assert_equal_at_all_depths(*walked(name, order=order))


@pytest.mark.parametrize("methods", [SUITE, SUMMED, ("gradcam",)], ids=["one pass", "many copies", "layer only"])
def test_every_method_equals_its_plain_self(methods):
    assert_equal_at_all_depths(*walked("residual", methods))


def test_the_maps_are_bit_identical_where_the_batch_does_not_change_rounding():
    _engine, trial, what, prepared, steps, redraw, copied = walked("residual")
    function = prepared["gradient"][1]
    for depth, step in enumerate(steps):
        assert torch.equal(trial.attributions["gradient"][depth], plain(function, what, step, redraw, copied)[0])


def test_methods_of_equal_needs_share_their_walks(monkeypatch):
    asked, observe = [], Trained.observe

    def counting(trained, target, rules, at_input):
        asked.append((list(rules), set(at_input)))
        return observe(trained, target, rules, at_input)

    monkeypatch.setattr(Trained, "observe", counting)
    walked("residual", SUITE)
    assert asked == [(["deconvnet", "gradient", "guided"], {"deconvnet", "gradient", "guided"})]


def test_class_activation_maps_go_down_to_their_layer_only(monkeypatch):
    seen, observe = [], Trained.observe

    def looking(*arguments):
        seen.append(observe(*arguments))
        return seen[-1]

    monkeypatch.setattr(Trained, "observe", looking)
    walked("residual", ("gradcam", "guided_backprop"))
    assert seen[0]["gradient"].gradient is None
    assert seen[0]["guided"].gradient is not None


@pytest.mark.parametrize("methods", [("gradient",), SUITE], ids=["gradient", "suite"])
def test_later_trials_share_the_trained_stream_and_change_nothing(monkeypatch, methods):
    made = []

    class Counted(Trained):
        def __init__(self, *arguments):
            made.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr("lightning_sanity.engine.streams.Trained", Counted)
    engine, *_ = walked("residual", methods)
    saved = {key: tensor.detach().clone() for key, tensor in named_tensors(engine.model)}
    made.clear()
    redraw = Reinitializer("normal", "normal", 0, "auto").start_trial
    engine.trial(redraw(1), saved)
    shared = engine.trial(redraw(2), saved)
    assert not made  # the proof of the first trial lent the model random weights and wrote to none
    engine._kept.clear()
    anew = engine.trial(redraw(2), saved)
    assert len(made) == 1
    for name in methods:
        assert all(map(torch.equal, shared.attributions[name], anew.attributions[name]))


def test_a_trained_stream_is_walked_anew_after_weights_were_written(monkeypatch):
    engine, first_trial, *_ = walked("residual")
    saved = {key: tensor.detach().clone() for key, tensor in named_tensors(engine.model)}
    redraw = Reinitializer("normal", "normal", 0, "auto").start_trial(0)
    engine.trial(redraw, saved)
    with torch.no_grad():
        engine.model.head.weight.mul_(1.0)
    again = engine.trial(redraw, saved)
    assert all(map(torch.equal, first_trial.attributions["gradient"], again.attributions["gradient"]))


@pytest.mark.parametrize("name", ["residual", "branches"])
def test_maps_do_not_depend_on_the_budget(name):
    whole = walked(name)[1].attributions["gradient"]
    few = walked(name, budget=20_000)[1].attributions["gradient"]
    for a, b in zip(whole, few, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_budget_below_one_sample_splits_the_depths():
    engine = walked("residual", budget=8_000)[0]
    plans = list(engine._plans(engine._random, (), True))
    assert len(plans) > 1
    assert sorted(depth for plan in plans for depth in plan.chosen) == list(range(len(engine.steps)))
    assert all(plan.bytes_per_sample() <= 8_000 or len(plan.chosen) == 1 for plan in plans)


class Deep(nn.Module):
    """Equal layers, each of which is a unit."""

    def __init__(self, layers):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def planned(layers):
    copied, inputs = Deep(layers).eval(), torch.randn(4, 8)
    found = units(copied, inputs)
    network = TwoStream(copied, inputs, found, copied)
    return Plan(network, [frozenset(range(d + 1)) for d in range(len(found))], tuple(range(len(found)))), inputs


def test_blocks_hold_every_depth_once_in_order_and_keep_to_their_room():
    plan, _ = planned(30)
    for room in (0, plan.least_per_sample() + 500, plan.bytes_per_sample(), 2**62):
        blocks = plan.blocks(room)
        assert [depth for block in blocks for depth in block.chosen] == list(plan.chosen)
        most = max(plan._trained_bytes + sum(block._depth_bytes.values()) for block in blocks)
        assert most <= max(min(room, plan.bytes_per_sample()), plan.least_per_sample())
    assert len(plan.blocks(0)) == 30
    assert 1 < len(plan.blocks(2**62)) < 10


def test_blocks_see_what_one_walk_over_all_depths_sees():
    plan, inputs = planned(30)
    plan.network.start_trial()
    target = torch.tensor([0, 1, 2, 3])
    split, whole = Trained(plan, inputs, room=0), Trained(plan, inputs)
    whole._blocks = [plan]
    ours, expected = (stream.observe(target)["gradient"] for stream in (split, whole))
    assert torch.allclose(ours.gradient, expected.gradient, rtol=1e-5, atol=1e-8)
    assert torch.allclose(ours.outputs, expected.outputs, rtol=1e-5, atol=1e-7)


def test_what_a_walk_keeps_grows_as_the_network_and_no_faster():
    def peak(layers):
        plan, inputs = planned(layers)
        plan.network.start_trial()
        with Meter() as meter:
            Trained(plan, inputs).observe(torch.tensor([0, 1, 2, 3]))
        return meter.peak

    assert peak(96) <= 4 * 1.25 * peak(24)


def test_what_a_walk_keeps_is_about_what_it_says():
    """Saved tensors, each counted once, stay within the estimate that the budget is divided by."""
    copied, face, inputs = explained("residual")
    found = units(copied, inputs)
    network = TwoStream(face, inputs, found, copied)
    plan = Plan(network, [frozenset(range(d + 1)) for d in range(len(found))], tuple(range(len(found))))
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    weights = {
        tensor.untyped_storage().data_ptr()
        for m in (network.trained, network.random)
        for tensor in [*m.parameters(), *m.buffers()]
    }
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        Trained(plan, inputs).observe(torch.zeros(5, dtype=torch.long))
    held = sum(size for pointer, (size, _) in kept.items() if pointer not in weights)
    assert held <= 1.25 * 5 * plan.bytes_per_sample()


def test_the_clone_carries_its_trained_weights_afterwards():
    _engine, *_, copied = walked("residual", SUITE)
    fresh = explained("residual")[0]
    assert all(
        torch.equal(a, b) for a, b in zip(copied.state_dict().values(), fresh.state_dict().values(), strict=True)
    )
    assert copied.relu.inplace, "in-place activations stay switched off"


@pytest.mark.parametrize(
    ("make", "reason", "path", "said"),
    [
        (Branching, "control flow", "plain", ("plain loop: two_stream: ", "; full_batch: ")),
        (Mixing, "depend on one another", "plain", ("plain loop: its samples depend on one another",)),
    ],
)
def test_a_network_that_cannot_be_taken_apart_goes_another_way(make, reason, path, said, caplog):
    torch.manual_seed(0)
    model = make()
    with pytest.raises(NotTraceable, match=reason):
        TwoStream(model, IMAGES, units(model, IMAGES), model)
    with caplog.at_level(logging.DEBUG, "lightning_sanity"):
        result = check(model)
    assert result.engine["gradient"] == path
    assert all(words in caplog.text for words in said)
    assert ("plain loop: " in caplog.text) == bool(said)


@pytest.mark.parametrize("name", ["residual", "several inputs", "LightningModule with a dictionary"])
def test_a_result_is_the_same_with_both_engines(name):
    torch.manual_seed(0)
    make, inputs, *_ = NETWORKS[name]
    model = make()
    fast, slow = (check(model, inputs, methods="gradient", engine=engine) for engine in ("auto", "plain"))
    assert fast.engine["gradient"] == "two_stream"
    assert slow.settings["engine"]["gradient"] == "plain"
    assert fast.coverage == slow.coverage
    for key, curve in fast.curves.items():
        assert torch.allclose(curve.values, slow.curves[key].values, atol=1e-5, equal_nan=True)
    assert torch.allclose(fast.output_change.correlation, slow.output_change.correlation, atol=1e-5)


def test_a_users_own_function_stays_plain_beside_shared_walks():
    def mine(model, inputs, target):
        return resolve("gradient")(model, inputs, target)

    result = check(Residual(), methods={"gradient": "gradient", "mine": mine})
    assert result.engine == result.engine | {"gradient": "two_stream", "mine": "plain"}
    same = [result.curves[name, "spearman"].values for name in ("gradient", "mine")]
    assert torch.allclose(*same, atol=1e-6, equal_nan=True)


def test_a_map_that_differs_from_the_plain_one_goes_back_to_the_plain_loop(monkeypatch, caplog):
    observe = Trained.observe

    def wrong(*arguments):
        seen = observe(*arguments)
        if "guided" in seen:
            seen["guided"].gradient.mul_(1.001)
        return seen

    monkeypatch.setattr(Trained, "observe", wrong)
    with caplog.at_level(logging.DEBUG, "lightning_sanity"):
        result = check(Residual(), methods=("gradient", "guided_backprop"))
    assert result.engine == result.engine | {
        "gradient": "two_stream",
        "guided_backprop": "plain",
    }
    assert "differs" in caplog.text
    expected = check(Residual(), methods=("guided_backprop",), engine="plain")
    assert set(result.verdicts) >= set(expected.verdicts)


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match="unknown engine 'fast'; choose from: auto, folded, plain"):
        check(Residual(), engine="fast")
