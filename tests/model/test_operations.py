"""What an operation does with a weight, whatever the weight's shape."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_sanity.model.graph import trace


class Reads(nn.Module):
    """Combines its input with one parameter."""

    def __init__(self, shape, combine):
        super().__init__()
        self.weight, self.combine = nn.Parameter(torch.rand(shape)), combine

    def forward(self, x):
        return self.combine(x, self.weight)


def attend(x, weight):
    return F.scaled_dot_product_attention(weight.expand(len(x), -1, -1), x, x)


MIXING = {
    "linear to one": ((1, 4), F.linear),
    "product with a vector": ((4,), torch.matmul),
    "rank one": ((4, 1), torch.matmul),
    "einsum": ((1, 4), lambda x, w: torch.einsum("nti,oi->nto", x, w)),
    "convolution to one": ((1, 3, 1), F.conv1d),
    "transposed convolution": ((3, 1, 1), F.conv_transpose1d),
    "lookup": ((5, 1), lambda x, w: F.embedding(x.argmax(-1), w)),
    "indexing": ((5, 1), lambda x, w: w[x.argmax(-1)]),
    "distances": ((1, 4), torch.cdist),
    "learned query": ((1, 1, 4), attend),
    "outer product": ((2, 1, 4), lambda x, w: (x[:, None] * w).sum(-1)),
}
OTHERS = {
    "layer scale": ((3, 1), torch.mul),
    "scale per value": ((3, 4), torch.mul),
    "positions": ((1, 3, 4), torch.add),
    "class token": ((1, 1, 4), lambda x, w: torch.cat([w.expand(len(x), -1, -1), x], 1)),
    "bias of a linear layer": ((2,), lambda x, w: F.linear(x, torch.ones(2, 4), w)),
    "normalisation": ((3, 4), lambda x, w: F.layer_norm(x, (3, 4), w)),
    "slope": ((3,), F.prelu),
    "temperature": ((), torch.div),
    "attention bias": ((1, 3, 3), lambda x, w: F.scaled_dot_product_attention(x, x, x, attn_mask=w)),
}


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_channels_is_a_weight_of_any_shape(name):
    graph = trace(Reads(*MIXING[name]), (torch.rand(2, 3, 4),))
    assert graph.mixing["weight"]


@pytest.mark.parametrize("name", OTHERS)
def test_what_scales_shifts_or_joins_is_none(name):
    graph = trace(Reads(*OTHERS[name]), (torch.rand(2, 3, 4),))
    assert "weight" in graph.uses
    assert "weight" not in graph.mixing


def test_a_weight_that_is_made_first_mixes_as_what_it_becomes():
    def normalised(x, weight):
        return F.linear(x, weight / weight.norm(dim=1, keepdim=True))

    assert trace(Reads((2, 4), normalised), (torch.rand(2, 3, 4),)).mixing
