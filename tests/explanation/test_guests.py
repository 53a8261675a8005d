"""A method that is not ours may do what it likes: it costs its own verdict only."""

import io
import os
import random
import time
import warnings

import numpy as np
import pytest
import torch
from made_guests import ENDLESS, HOSTILE, INPUTS, NONSENSE, TARGET, guest, negates_weights
from made_networks import convolutional, images
from torch import nn
from torch.nn import functional as F

from lightning_sanity import Outcome, data_randomization_test, parameter_randomization_test
from lightning_sanity.attribution import Method, resolve, resolve_all, smoothed
from lightning_sanity.explanation.guests import Guests

NEIGHBOURS = {"gradient": "gradient", "smoothgrad": resolve("smoothgrad"), "gradcam": "gradcam"}


def walked(methods, model=None, **options):
    model = convolutional() if model is None else model
    options = {"trials": 1, "repeats": 1, "controls": False, "pictures": False} | options
    return parameter_randomization_test(model, INPUTS, TARGET, methods=methods, **options)


def textbook(model, x, target):
    """As tutorials write it: the gradient is accumulated on the input itself."""
    x.requires_grad_()
    model(x).gather(1, target[:, None]).sum().backward()
    return x.grad


def settings():
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        np.geterr(),
        list(warnings.filters),
        os.getcwd(),
        nn.ReLU.forward,
        F.linear,
        dict(nn.modules.module._global_forward_hooks),
    )


@pytest.fixture(scope="module")
def alone():
    return walked(NEIGHBOURS)


def test_enough_hostile_guests_are_invited():
    assert len(HOSTILE) >= 25


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda each: each.__name__)
def test_neighbours_of_a_hostile_guest_measure_what_they_measure_alone(alone, hostile):
    def method(model, x, target):
        returned = hostile(model, x, target)
        return torch.ones_like(INPUTS) * torch.arange(16) if returned is None else returned

    brief = Method("brief", method, stochastic=True, max_seconds=0.2 if hostile in ENDLESS else 60)
    before = settings()
    result = walked({"visitor": brief, **NEIGHBOURS, "the last": brief})
    assert settings() == before
    for key, curve in alone.curves.items():
        for part in ("values", "floor", "ceiling"):
            mine, theirs = getattr(result.curves[key], part), getattr(curve, part)
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True, msg=f"{key} {part}")
    torch.testing.assert_close(result.output_change.agreement, alone.output_change.agreement, rtol=0, atol=0)
    assert all(repr(result.verdicts[name]) == repr(alone.verdicts[name]) for name in NEIGHBOURS)
    failed = ["method '" in result.verdicts[name].reason for name in ("visitor", "the last")]
    assert failed == [hostile in NONSENSE] * 2


# ------------------------------------------------------------------------------------------------ what a guest is given


def test_the_textbook_gradient_is_the_gradient():
    found = walked({"textbook": textbook, "gradient": "gradient"})
    for key in ("spearman", "ssim"):
        mine, ours = found.curves["textbook", key].values, found.curves["gradient", key].values
        torch.testing.assert_close(mine, ours, rtol=0, atol=1e-6)


def test_inputs_and_target_are_fresh_leaves_at_every_call():
    seen = []

    def looks(model, x, target):
        seen.append((x, x.clone(), target))
        assert x.is_leaf
        assert not x.requires_grad
        assert x.grad is None
        x.zero_(), target.zero_()
        return torch.rand_like(x)

    walked({"looks": looks})
    assert len(seen) > 3
    assert all(bool(given.any()) for _, given, _ in seen)
    assert len({id(x) for x, *_ in seen}) == len({id(target) for *_, target in seen}) == len(seen)


def test_parameters_require_a_gradient_where_the_users_do():
    model = convolutional()
    model[0].requires_grad_(False)
    flags = {}

    def looks(model, x, target):
        flags.update({name: parameter.requires_grad for name, parameter in model.named_parameters()})
        return textbook(model, x, target)

    walked({"looks": looks}, model)
    assert flags == {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def grad_cam_by_tensor_hooks(model, x, target):
    """As the usual libraries do: a gradient is caught where the layer's output requires one."""
    kept, gradients = [], []

    def watch(module, given, output):
        kept.append(output)
        output.register_hook(gradients.append)

    handle = model[5].register_forward_hook(watch)
    model(x).gather(1, target[:, None]).sum().backward()
    handle.remove()
    weights = gradients[0].mean((2, 3), keepdim=True)
    return (weights * kept[0]).sum(1).relu().detach().numpy()  # (N, h, w)


def test_a_grad_cam_by_hooks_is_ours_though_the_input_asks_for_no_gradient():
    found = walked({"theirs": grad_cam_by_tensor_hooks, "ours": resolve("gradcam", "5")})
    mine, ours = found.curves["theirs", "spearman"].values, found.curves["ours", "spearman"].values
    torch.testing.assert_close(mine, ours, rtol=0, atol=1e-4, equal_nan=True)
    assert "returned maps of 8 x 8, which were interpolated to 16 x 16" in " ".join(found.coverage.notes)


def test_a_guest_sees_the_weights_of_the_depth():
    seen = []

    def looks(model, x, target):
        seen.append(float(model[-1].weight.detach().sum()))
        return textbook(model, x, target)

    walked({"looks": looks})
    assert len(set(seen)) == 2  # trained, and random from the first step on


def test_tensors_that_share_memory_share_it_for_the_guest():
    model = convolutional()
    model.view = model[-1].weight.data.view(-1)
    alike = []

    def writes(model, x, target):
        model.view.zero_()
        alike.append(bool((model[-1].weight == 0).all()))
        return x

    guest(model, method=writes)
    assert alike == [True]
    assert model[-1].weight.any()
    assert model.view.data_ptr() == model[-1].weight.data_ptr()


def test_a_guest_may_draw_and_the_streams_go_on_as_if_it_had_not():
    model = convolutional()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    guest(model, method=lambda model, x, target: torch.rand_like(x) + np.random.rand() + random.random())
    assert (torch.rand(1), np.random.rand(), random.random()) == expected


def test_a_guest_may_pickle_the_model():
    def saved(model, x, target):
        kept = io.BytesIO()
        torch.save(model, kept)
        kept.seek(0)
        return textbook(torch.load(kept, weights_only=False), x, target)

    found = walked({"saved": saved, "gradient": "gradient"}, max_steps=2)
    mine, ours = found.curves["saved", "spearman"].values, found.curves["gradient", "spearman"].values
    torch.testing.assert_close(mine, ours, rtol=0, atol=1e-6)


def test_methods_of_this_library_are_called_directly():
    ours = resolve_all([resolve("gradient"), resolve("lime"), resolve("random"), "gradcam"])
    assert Guests([]).invite(ours) == ours


def test_a_method_around_a_foreign_one_is_a_guest():
    assert resolve(textbook).foreign
    assert Method("mine", textbook).foreign
    assert smoothed(resolve(textbook)).foreign


@pytest.mark.parametrize("part", ["prepare", "refuses"])
def test_a_method_that_fails_before_it_attributes_costs_its_own_verdict_only(part):
    def fails(*_):
        raise KeyError("layer4")

    broken = Method("broken", textbook, **{part: fails})
    result = walked({"broken": broken, "gradient": "gradient"})
    assert result.verdicts["broken"].outcome is Outcome.INCONCLUSIVE
    assert "raised KeyError: 'layer4'" in result.verdicts["broken"].reason
    assert ("gradient", "spearman") in result.curves


def test_guests_of_the_other_test_are_guarded_too():
    other = convolutional()
    nn.init.normal_(other[-1].weight)
    options = {"repeats": 1, "controls": False, "pictures": False}
    methods = {"visitor": lambda model, x, target: negates_weights(model, x, target) or x, "gradient": "gradient"}
    found = data_randomization_test(convolutional(), other, INPUTS, TARGET, methods=methods, **options)
    alone = data_randomization_test(convolutional(), other, INPUTS, TARGET, methods=["gradient"], **options)
    assert torch.equal(found.curves["gradient", "spearman"].values, alone.curves["gradient", "spearman"].values)
    assert "method 'visitor' changed values of '8.weight'" in " ".join(found.coverage.notes)


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 6), nn.Linear(6, 3)

    def forward(self, ids):
        return self.head(torch.tanh(self.embedding(ids)).mean(1))


def test_a_textbook_method_explains_tokens_at_their_embeddings():
    ids = torch.stack([torch.randperm(20)[:7] for _ in range(6)])

    def textbook(model, inputs, target):
        embeddings, *rest = inputs
        embeddings.requires_grad_()
        model(embeddings, *rest).gather(1, target[:, None]).sum().backward()
        return embeddings.grad

    methods = {"textbook": textbook, "gradient": "gradient"}
    options = {"trials": 1, "repeats": 1, "controls": False, "engine": "plain"}
    found = parameter_randomization_test(Reader(), ids, torch.arange(6) % 3, methods=methods, **options)
    mine, ours = found.curves["textbook", "spearman"].values, found.curves["gradient", "spearman"].values
    torch.testing.assert_close(mine, ours, rtol=0, atol=1e-6, equal_nan=True)


def test_a_guest_that_hangs_leaves_half_of_the_limited_time_to_its_neighbours():
    def once_more(model, x, target):
        if model[-1].weight[0, 0] != trained:
            time.sleep(60)
        return textbook(model, x, target)

    model = convolutional()
    trained = model[-1].weight[0, 0].clone()
    began = time.perf_counter()
    result = walked({"visitor": once_more, "gradient": "gradient"}, model, max_seconds=2)
    assert time.perf_counter() - began < 4
    assert "did not return within" in result.verdicts["visitor"].reason
    assert ("gradient", "spearman") in result.curves


def test_captum_and_zennit_are_guests_where_they_are_brought_and_not_where_they_are_ours():
    from captum import attr
    from zennit.composites import EpsilonPlus

    assert resolve(attr.Saliency).guarded
    assert resolve(attr.LayerGradCam).guarded
    assert resolve(EpsilonPlus()).guarded
    assert not any(resolve(name).guarded for name in ("integrated_gradients", "lrp_epsilon", "gradient"))


def test_a_captum_class_that_fails_behind_its_hooks_harms_nobody(alone):
    from captum import attr

    class Fails(attr.GuidedBackprop):
        def attribute(self, inputs, target=None):
            self.model.apply(self._register_hooks)
            raise RuntimeError("out of luck")

    model = convolutional()
    result = walked({"broken": Fails, **NEIGHBOURS}, model)
    assert "out of luck" in result.verdicts["broken"].reason
    for key, curve in alone.curves.items():
        torch.testing.assert_close(result.curves[key].values, curve.values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("method", ["edge_detector", "input_copy", "random", "constant"])
def test_controls_of_images_in_bytes_are_those_of_the_same_numbers(method):
    pixels = (images(3) * 255).to(torch.uint8)
    torch.manual_seed(0)
    found = resolve(method)(None, pixels, None)
    torch.manual_seed(0)
    torch.testing.assert_close(found, resolve(method)(None, pixels.float(), None))
