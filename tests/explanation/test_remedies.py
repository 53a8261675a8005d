"""Whatever a method fails with, its message says first what to do, and that works."""

import pytest
import torch
from made_networks import classes, convolutional, images

from lightning_sanity import parameter_randomization_test
from lightning_sanity.attribution import Method

FEW = {"trials": 1, "repeats": 1, "controls": False, "pictures": False}


def gradient(model, x, target):
    x.requires_grad_()
    (found,) = torch.autograd.grad(model(x).gather(1, target[:, None]).sum(), x)
    return found


def by_a_name(name):
    return lambda model, x, target: model.get_submodule(name)(x) if name else model.layer4(x)


def again(model, x, target, **kept):
    x.requires_grad_()
    score = model(x).gather(1, target[:, None]).square().sum()
    score.backward(**kept)
    score.backward()
    return x.grad


def as_array(model, x, target):
    x.requires_grad_()
    return (x * model(x).sum()).numpy()


def leafless(model, x, target):
    x = x.requires_grad_() * 1
    model(x).sum().backward()
    return x.grad * 2


def detached(model, x, target):
    with torch.no_grad():
        score = model(x).sum()
    return torch.autograd.grad(score, x.requires_grad_())[0]


def overwriting(model, x, target):
    x.requires_grad_()
    kept = (x * 2).exp()
    score = kept.sum()
    kept.mul_(0)
    return torch.autograd.grad(score, x)[0]


def unlucky(model, x, target):
    raise KeyError("a bug of its author's")


SAID = {
    "no such layer": (by_a_name(""), "Take layers from the model that it is given"),
    "no such name": (by_a_name("layer4"), "Take layers from the model that it is given"),
    "twice down": (again, "Run the model anew for each gradient, or keep its graph"),
    "to NumPy": (as_array, "Detach what goes to NumPy"),
    "no leaf": (leafless, "If it reads x.grad, None unless x is a leaf"),
    "no gradient": (detached, "The gradient is lost inside the method: under torch.no_grad"),
    "overwritten": (overwriting, "A module overwrites what the method still needs"),
    "anything else": (unlucky, "Call it on a few samples"),
}


def reason(method, model=None):
    model = convolutional() if model is None else model
    found = parameter_randomization_test(model, images(4), classes(4), methods={"mine": method}, **FEW)
    return found.verdicts["mine"].reason


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("case", SAID)
def test_what_to_do_stands_before_the_error(case):
    method, said = SAID[case]
    message = reason(method)
    assert said in message
    assert message.index(said) < message.index("It raised ")
    assert "Traceback" not in message


@pytest.mark.parametrize("case", SAID)
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_a_method_that_fails_while_it_is_prepared_says_the_same(case):
    method, said = SAID[case]

    def prepare(model, inputs):
        method(model, inputs, classes(len(inputs)))

    assert said in reason(Method("mine", gradient, prepare=prepare))


@pytest.mark.parametrize(
    "mended",
    [
        lambda model, x, target: again(model, x, target, retain_graph=True),
        lambda model, x, target: (x * model(x).sum()).detach().numpy(),
        gradient,
    ],
)
def test_what_the_message_says_works(mended):
    assert "It raised" not in reason(mended)
