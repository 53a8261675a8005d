import pytest
import torch
from made_hidden import CACHES, Uncached, inside, rows, trained
from torch import nn
from torch.nn import functional as F

from lightning_sanity.model.caches import caches_of
from lightning_sanity.model.clone import clone
from lightning_sanity.model.hidden import reads_of


def found(model):
    copied, inputs = clone(model), rows()
    with torch.no_grad():
        copied(inputs)

    def look():
        reads = reads_of(copied, inputs, lambda: copied(inputs))
        return [each for each in reads.hidden if each.kind is None]

    return copied, caches_of(copied, look, model, lambda: copied(inputs))


@pytest.mark.parametrize("name", CACHES)
def test_an_emptied_cache_holds_what_the_weights_say_now(name):
    copied, caches = found(inside(CACHES[name]))
    copied.register_forward_pre_hook(caches)
    plain = inside(Uncached)
    for model in (copied, plain):
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter))
    with torch.no_grad():
        assert torch.equal(copied(rows()), plain(rows()))


def test_a_model_without_a_cache_has_none():
    _, caches = found(trained("attribute"))
    assert not caches


def test_a_trained_bias_that_a_layer_can_do_without_is_no_cache():
    class Biased(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight, self.shift)

    model = Biased(20, 4, bias=False).eval()
    model.shift = torch.randn(4)
    copied, caches = found(model)
    assert not caches
    assert torch.equal(copied.shift, model.shift)


def test_a_cache_is_filled_once_for_the_same_weights():
    copied, caches = found(inside(CACHES["ByAttribute"]))
    copied.register_forward_pre_hook(caches)
    with torch.no_grad():
        copied(rows())
        first = copied[2].stored
        copied(rows())
    assert copied[2].stored is first
