"""Guests that do what they must not, each one forbidden thing, and one call of a guest."""

import os
import random
import sys
import time
import types
import warnings

import numpy as np
import torch
from made_networks import classes, images
from torch import nn
from torch.nn import functional as F

from lightning_sanity.attribution import resolve_all
from lightning_sanity.explanation.guests import Guests

INPUTS, TARGET = images(6), classes(6)


def guest(model, inputs=INPUTS, target=TARGET, *, method):
    """One call of a method as a guest, and what was said of it."""
    guests = Guests([(model, model)])
    found = guests.invite(resolve_all({"visitor": method}))["visitor"](model, inputs, target)
    return found, guests.notes


def registers_a_hook(model, x, target):
    model[1].register_forward_hook(lambda module, given, output: torch.rand_like(output))


def fails_behind_a_hook(model, x, target):
    model[1].register_full_backward_hook(lambda module, down, up: (down[0] * 0,))
    raise KeyError("a bug of its author's")


def clears_all_hooks(model, x, target):
    for module in model.modules():
        module._forward_hooks.clear()


def hooks_every_module(model, x, target):
    nn.modules.module.register_module_forward_hook(lambda module, given, output: output * 0)


def hooks_a_parameter(model, x, target):
    model[4].weight.register_hook(lambda gradient: gradient * 0)


def trains(model, x, target):
    model.train()
    model(x)


def negates_weights(model, x, target):
    with torch.no_grad():
        model[-1].weight.neg_()


def negates_the_data_of_weights(model, x, target):
    model[-1].weight.data.neg_()


def replaces_the_data_of_weights(model, x, target):
    model[-1].weight.data = torch.zeros(4, 32)


def replaces_a_parameter(model, x, target):
    model[-1].weight = nn.Parameter(torch.zeros(4, 32))


def replaces_a_module(model, x, target):
    model[2] = nn.Tanh()


def replaces_a_forward(model, x, target):
    model[2].forward = types.MethodType(lambda self, value: value * 0, model[2])


def halves_the_model(model, x, target):
    model.half()


def fills_buffers(model, x, target):
    model[1].running_mean.fill_(7)


def adds_a_module(model, x, target):
    model.append(nn.Softmax(1))


def thaws_and_freezes(model, x, target):
    for place, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(place % 2 == 0)


def overwrites_the_target(model, x, target):
    target.zero_()


def overwrites_the_inputs(model, x, target):
    x.zero_()


def leaves_gradients(model, x, target):
    model(x).sum().backward()


def seeds(model, x, target):
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def changes_the_threads(model, x, target):
    torch.set_num_threads(torch.get_num_threads() + 1)


def changes_the_default_dtype(model, x, target):
    torch.set_default_dtype(torch.float64)


def changes_the_default_device(model, x, target):
    torch.set_default_device("meta")
    raise RuntimeError("and fails")


def turns_gradients_off(model, x, target):
    torch.set_grad_enabled(False)


def demands_determinism(model, x, target):
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = True
    np.seterr(all="raise")


def exits(model, x, target):
    sys.exit(3)


def returns_a_word(model, x, target):
    return "saliency"


def returns_one_sample(model, x, target):
    return x[:1]


def replaces_the_code_of_a_class(model, x, target):
    nn.ReLU.forward = lambda self, value: value * 0


def replaces_a_function_of_torch(model, x, target):
    F.linear = lambda *given: torch.zeros(6, 4)


def hides_warnings(model, x, target):
    warnings.simplefilter("ignore")
    os.chdir("/")


def sleeps_for_ever(model, x, target):
    while True:
        time.sleep(9)


def computes_for_ever(model, x, target):
    while True:
        model(x).sum().backward()


HOSTILE = [value for name, value in list(globals().items()) if callable(value) and name.split("_")[0].endswith("s")]
HOSTILE = [each for each in HOSTILE if isinstance(each, types.FunctionType) and each.__module__ == __name__]
ENDLESS = {sleeps_for_ever, computes_for_ever}
NONSENSE = {fails_behind_a_hook, changes_the_default_device, exits, returns_a_word, returns_one_sample} | ENDLESS
