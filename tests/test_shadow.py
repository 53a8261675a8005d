import threading

import pytest
import torch
from torch import nn

from lightning_sanity.shadow import CloneError, check_fidelity, check_liveness, clone, evaluating, launder


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))

    def forward(self, x):
        return self.layers(x)


def test_clone_made_in_inference_mode_can_take_part_in_autograd():
    model = Net()
    with torch.inference_mode():
        inputs = torch.randn(3, 4)
        with torch.inference_mode(False), torch.enable_grad():
            copied = clone(model)
            value = launder(inputs).requires_grad_()
            copied(value).sum().backward()
    assert value.grad.abs().sum() > 0


def test_clone_shares_no_memory_with_its_model():
    model = Net()
    with torch.no_grad():
        for parameter in clone(model).parameters():
            parameter.zero_()
    assert all(parameter.abs().sum() > 0 for name, parameter in model.named_parameters() if name.endswith("0.weight"))


def test_clone_of_a_model_whose_compiled_forward_is_closed_over_the_original_is_live():
    model = Net().eval()
    original = model.forward
    model.forward = lambda x: original(x)  # what Lightning leaves behind after torch.compile(module)
    copied, inputs = clone(model), torch.randn(3, 4)
    check_liveness(copied, copied(inputs), lambda: copied(inputs))


def test_liveness_check_names_a_dead_copy():
    model, inputs = Net().eval(), torch.randn(3, 4)
    dead = clone(Net())
    with pytest.raises(CloneError, match="the copy is dead"):
        check_liveness(dead, model(inputs), lambda: model(inputs))


def test_liveness_check_restores_the_weights():
    copied, inputs = clone(Net()), torch.randn(3, 4)
    before = {name: p.detach().clone() for name, p in copied.named_parameters()}
    check_liveness(copied, copied(inputs), lambda: copied(inputs))
    assert all(torch.equal(p, before[name]) for name, p in copied.named_parameters())


def test_fidelity_check_refuses_another_output():
    with pytest.raises(CloneError, match="does not reproduce"):
        check_fidelity(torch.zeros(2, 3), torch.ones(2, 3))


def test_clone_names_the_attribute_that_cannot_be_copied():
    model = Net()
    model.layers.lock = threading.Lock()
    with pytest.raises(CloneError, match=r"attribute 'layers\.lock'"):
        clone(model)


def test_clone_fn_replaces_the_copying():
    model = Net()
    model.lock = threading.Lock()

    def rebuild(module):
        twin = Net()
        twin.load_state_dict(module.state_dict())
        return twin

    assert torch.equal(clone(model, rebuild).layers[0].weight, model.layers[0].weight)


def test_clone_copies_a_module_that_caches_an_activation():
    class Caching(Net):
        def forward(self, x):
            self.cached = super().forward(x)
            return self.cached

    model = Caching().eval()
    model(torch.randn(3, 4))
    assert not clone(model).cached.requires_grad


def test_evaluating_restores_every_flag():
    model = Net()
    model.layers[1].eval()
    flags = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == flags
