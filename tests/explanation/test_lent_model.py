"""What a guest does to the model that it was lent: undone, and said."""

import copy

import pytest
import torch
from made_guests import (
    ENDLESS,
    HOSTILE,
    NONSENSE,
    changes_the_default_dtype,
    fills_buffers,
    guest,
    hides_warnings,
    hooks_a_parameter,
    hooks_every_module,
    leaves_gradients,
    negates_the_data_of_weights,
    negates_weights,
    registers_a_hook,
    replaces_a_forward,
    replaces_a_module,
    replaces_a_parameter,
    replaces_the_code_of_a_class,
    thaws_and_freezes,
    trains,
    turns_gradients_off,
)
from made_networks import convolutional


def test_everything_is_where_it_was():
    model = convolutional()
    before = copy.deepcopy(model.state_dict())
    places = {name: (id(value), value.data_ptr()) for name, value in model.state_dict(keep_vars=True).items()}
    modules = dict(model.named_modules())
    for hostile in (each for each in HOSTILE if each not in ENDLESS):
        try:
            guest(model, method=lambda model, x, target, act=hostile: act(model, x, target) or x)
        except (KeyError, RuntimeError, SystemExit, ValueError):
            assert hostile in NONSENSE
    after = model.state_dict(keep_vars=True)
    assert {name: (id(value), value.data_ptr()) for name, value in after.items()} == places
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(found is modules[name] for name, found in model.named_modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training or module._forward_hooks or module._backward_hooks for module in modules.values())


@pytest.mark.parametrize(
    ("hostile", "said"),
    [
        (registers_a_hook, "hooks of '1'"),
        (trains, "the mode of 'Sequential'"),
        (negates_weights, "values of '8.weight'"),
        (negates_the_data_of_weights, "values of '8.weight'"),
        (replaces_a_parameter, "parameters of '8'"),
        (replaces_a_module, "submodules of 'Sequential'"),
        (fills_buffers, "values of '1.running_mean'"),
        (leaves_gradients, "the gradient of '0.weight'"),
        (thaws_and_freezes, "requires_grad of '0.bias'"),
        (hooks_a_parameter, "tensor hooks of '4.weight'"),
        (hooks_every_module, "torch's hooks on all modules"),
        (changes_the_default_dtype, "the default dtype"),
        (turns_gradients_off, "the grad mode"),
        (replaces_a_forward, "attribute forward of '2'"),
        (replaces_the_code_of_a_class, "forward of ReLU"),
        (hides_warnings, "the warning filters"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_what_a_guest_changed_is_said(hostile, said):
    _, notes = guest(convolutional(), method=lambda model, x, target: hostile(model, x, target) or x)
    assert f"changed {said}, which was put back after the call" in " ".join(notes)


def test_nothing_is_said_of_a_guest_that_leaves_nothing():
    _, notes = guest(convolutional(), method=lambda model, x, target: x * model(x).sum())
    assert notes == ()
