"""Relevance is conserved by every rule, goes to what carried the signal, and passes no unknown operation unseen."""

import pytest
import torch
from made_networks import cnn
from reference import error
from torch import nn
from torch.nn import functional as F

from lightning_sanity.attribution import resolve
from lightning_sanity.attribution.relevance import excitation_backprop, lrp_alpha_beta, lrp_epsilon, lrp_z_plus

EXACT = lrp_epsilon(1e-12)


class Calls(nn.Module):
    """Features, a function of them, and a head without a bias."""

    def __init__(self, between, channels=4):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.between = between
        self.gate = nn.Linear(4, 4)
        self.head = nn.Linear(channels, 3, bias=False)

    def forward(self, x):
        found = self.between(self, self.first(x))
        return self.head(found.flatten(2).mean(2) if found.ndim == 4 else found)


def squeezed(net, h):
    return h * torch.sigmoid(net.gate(F.adaptive_avg_pool2d(h, 1).flatten(1)))[:, :, None, None]


def attended(net, h):
    rows = h.flatten(2).transpose(1, 2)
    return F.scaled_dot_product_attention(rows, rows, rows).transpose(1, 2).reshape(h.shape)


def attended_by_hand(net, h):
    rows = h.flatten(2).transpose(1, 2)
    weights = torch.softmax(torch.bmm(rows, rows.transpose(1, 2)), -1)
    return torch.bmm(weights, rows).transpose(1, 2).reshape(h.shape)


def in_place(net, h):
    h = h.relu_()
    h += 0.5 * h
    return F.silu(h, inplace=True)


def gelu_by_hand(net, h):
    return 0.5 * h * (1 + torch.tanh(0.8 * (h + 0.045 * h**3)))


CONSERVING = {
    "rectifier": lambda net, h: F.relu(h),
    "smooth activations": lambda net, h: F.hardswish(F.gelu(F.silu(h))),
    "leaky rectifier": lambda net, h: F.leaky_relu(h, 0.2),
    "activation by hand": gelu_by_hand,
    "sum": lambda net, h: h + F.relu(h) - 0.5 * h.flip(3),
    "sum with itself": lambda net, h: h + h,
    "concatenation": lambda net, h: torch.cat([h[:, :2], h[:, 2:].tanh()], 1),
    "squeeze and excitation": squeezed,
    "product": lambda net, h: h * h.roll(1, 2),
    "square": lambda net, h: h * h,
    "power": lambda net, h: h**3,
    "maximum": lambda net, h: torch.maximum(h, h.roll(1, 2)),
    "max pooling": lambda net, h: F.max_pool2d(h, 2),
    "average pooling": lambda net, h: F.avg_pool2d(h, 3, 2, 1),
    "interpolation": lambda net, h: F.interpolate(h, scale_factor=2, mode="bilinear", align_corners=False),
    "layer normalisation": lambda net, h: F.layer_norm(h, h.shape[1:]),
    "group normalisation": lambda net, h: F.group_norm(h, 2),
    "instance normalisation": lambda net, h: F.instance_norm(h) + h,
    "normalisation by hand": lambda net, h: h / (h.square().mean((1, 2, 3), keepdim=True) + 1).sqrt(),
    "attention": attended,
    "attention by hand": attended_by_hand,
    "gated linear unit": lambda net, h: torch.cat([F.glu(h, 1), F.glu(h, 1)], 1),
    "in place": in_place,
    "batch normalisation": lambda net, h: F.batch_norm(h, torch.zeros(4).double(), torch.full((4,), 2.0).double()),
    "padding, shuffling": lambda net, h: F.pixel_unshuffle(F.pixel_shuffle(F.pad(h, (1, 1, 1, 1)), 2), 2),
    "product of matrices": lambda net, h: h @ torch.linspace(-1, 1, 64).reshape(8, 8).double(),
    "sum by names": lambda net, h: torch.einsum("nchw,cd->ndhw", h, torch.eye(4).double() + 0.1),
}


def made(between, **kwargs):
    torch.manual_seed(4)
    return Calls(between, **kwargs).double().eval(), torch.randn(2, 3, 8, 8).double(), torch.tensor([0, 2])


@pytest.mark.parametrize("name", CONSERVING)
def test_relevance_in_is_relevance_out(name):
    model, x, target = made(CONSERVING[name])
    assert EXACT.refuses(model, x, target) is None
    explained = model(x).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(EXACT(model, x, target).sum((1, 2, 3)), explained, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("rule", [lrp_z_plus(), lrp_alpha_beta(), excitation_backprop()], ids=lambda rule: rule.name)
def test_signed_rules_conserve_too(rule):
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 4, bias=False)
    )
    x, target = torch.rand(2, 3, 8, 8).double(), torch.tensor([1, 3])
    model = model.double()
    with torch.no_grad():
        model[0].weight.abs_()  # positive contributions everywhere: else a share has nobody to go to
        model[0].weight[:, 0].neg_()
        model[4].weight[:, ::2].neg_()
    whole = 1.0 if rule.name == "excitation_backprop" else model(x).gather(1, target[:, None])[:, 0]
    found = rule(model, x, target).sum((1, 2, 3))
    torch.testing.assert_close(found, torch.ones_like(found) * whole, rtol=1e-3, atol=1e-6)


def test_bias_takes_its_share():
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, 1.0]]))
        model.bias.fill_(3.0)
    x = torch.tensor([[1.0, 1.0]])
    torch.testing.assert_close(lrp_epsilon(0)(model, x, None), torch.tensor([[2.0, 1.0]]))


def test_gates_get_nothing():
    """A signal that is scaled by a gate gets what it would get if the gate were a constant."""

    class Fixed(Calls):
        def forward(self, x):
            h = self.first(x)
            return self.head((h * self.scale).flatten(2).mean(2))

    model, x, target = made(squeezed)
    fixed = Fixed(squeezed).double()
    fixed.load_state_dict(model.state_dict())
    h = model.first(x)
    fixed.scale = (squeezed(model, h) / h).detach()
    torch.testing.assert_close(EXACT(model, x, target), EXACT(fixed, x, target), rtol=1e-5, atol=1e-9)


def test_folded_batch_normalisation_is_the_layer_it_would_be_merged_into():
    torch.manual_seed(1)
    norm, conv = nn.BatchNorm2d(6), nn.Conv2d(3, 6, 3)
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.normal_()
        norm.bias.normal_()
    rest = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    apart = nn.Sequential(conv, norm, *rest).double().eval()
    merged = nn.Sequential(torch.nn.utils.fuse_conv_bn_eval(apart[0], apart[1]), *rest).eval()
    x, target = torch.randn(2, 3, 8, 8).double(), torch.tensor([0, 3])
    for name in ("lrp_epsilon", "lrp_z_plus", "lrp_alpha_beta", "excitation_backprop"):
        method = resolve(name)
        assert error(method(apart, x, target), method(merged, x, target)) < 1e-9, name


def test_batch_normalisation_is_not_folded_into_a_layer_that_others_read():
    """With the layer's own result added, the fold would reach that, too."""
    norm = nn.BatchNorm2d(4).double().eval()
    with torch.no_grad():
        norm.running_var.fill_(9.0)
        norm.bias.fill_(0.0)
    model, x, target = made(lambda net, h: norm(h) + h)
    scaled, *_ = made(lambda net, h: h * (9 + norm.eps) ** -0.5 + h)
    torch.testing.assert_close(EXACT(model, x, target), EXACT(scaled, x, target), rtol=1e-6, atol=1e-9)


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, slope):
        return slope


UNKNOWN = {
    "logsumexp": lambda net, h: torch.logsumexp(h, (2, 3)),
    "softmax": lambda net, h: torch.softmax(h.mean((2, 3)), 1),
    "a function with a backward pass of its own": lambda net, h: Hidden.apply(h),
    "statistics of the batch": lambda net, h: F.batch_norm(h, None, None, training=True),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_has_no_rule_is_named_with_a_way_out(name):
    model, x, target = made(UNKNOWN[name])
    reason = lrp_epsilon().refuses(model, x, target)
    assert name in reason
    assert "pass " in reason


def test_what_relevance_does_not_come_to_needs_no_rule():
    model, x, target = made(lambda net, h: h / torch.logsumexp(h.square(), (1, 2, 3), keepdim=True))
    assert lrp_epsilon().refuses(model, x, target) is None


def test_a_hidden_function_at_the_end_is_seen():
    class Ends(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = cnn()

        def forward(self, x):
            return Hidden.apply(self.body(x))

    assert "of its own" in lrp_epsilon().refuses(Ends(), torch.randn(2, 3, 12, 12), None)


def test_the_network_is_left_as_it_was():
    model, x = cnn(), torch.randn(2, 3, 12, 12)
    model[0].weight.requires_grad_(False)
    before = [parameter.clone() for parameter in model.parameters()]
    lrp_z_plus()(model, x, torch.tensor([0, 1]))
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, *[True] * 5]
    assert all(torch.equal(now, was) for now, was in zip(model.parameters(), before, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_multi_head_attention_is_followed_inside():
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True, bias=False).double()

    class Attending(nn.Module):
        def __init__(self, weights):
            super().__init__()
            self.layer, self.weights, self.head = layer, weights, nn.Linear(8, 3, bias=False).double()

        def forward(self, x):
            return self.head(self.layer(x, x, x, need_weights=self.weights)[0].mean(1))

    x, target = torch.randn(2, 5, 8).double(), torch.tensor([0, 2])
    for weights in (False, True):  # by one call, and product by product
        model = Attending(weights)
        explained = model(x).gather(1, target[:, None])[:, 0]
        torch.testing.assert_close(EXACT(model, x, target).sum((1, 2)), explained, rtol=1e-6, atol=1e-8)
