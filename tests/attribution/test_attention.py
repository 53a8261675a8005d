"""Attention rollout and gradient attention on a vision transformer."""

import pytest
import reference
import torch
from made_networks import cnn, vit
from torch.nn import functional as F

from lightning_sanity.attribution import resolve
from lightning_sanity.attribution.attention import captured_attention
from lightning_sanity.attribution.gradient_cam import gradcam
from lightning_sanity.attribution.layers import last_map


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32), torch.tensor([0, 1])


def test_attention_rollout_matches_the_slow_version(images):
    model, (x, target) = vit(), images
    with torch.no_grad():
        tokens = torch.cat([model.class_token.expand(2, -1, -1), model._process_input(x)], 1)
        tokens, weights = tokens + model.encoder.pos_embedding, []
        for layer in model.encoder.layers:
            normed = layer.ln_1(tokens)
            weights.append(layer.self_attention(normed, normed, normed, average_attn_weights=False)[1])
            tokens = layer(tokens)
    found = resolve("attention_rollout")(model, x, target)
    for sample in range(2):
        drawn = reference.rollout([layer[sample] for layer in weights])[0, 1:].reshape(1, 1, 4, 4)
        expected = F.interpolate(drawn, size=(32, 32), mode="bilinear", align_corners=False)
        torch.testing.assert_close(found[sample], expected[0], atol=1e-6, rtol=1e-4)


def test_gradient_attention_depends_on_the_class_and_rollout_does_not(images):
    model, (x, target) = vit(), images
    for name, same in (("attention_rollout", True), ("gradient_attention", False)):
        method = resolve(name)
        assert method.refuses(model, x, target) is None
        a, b = method(model, x, target), method(model, x, target + 2)
        assert torch.allclose(a, b) == same, name
        assert bool((a >= 0).all())


def test_capturing_attention_changes_no_output(images):
    model = vit()
    with torch.no_grad():
        before = model(images[0])
        with captured_attention(model) as weights:
            during = model(images[0])
    torch.testing.assert_close(during, before)
    assert [tuple(w.shape) for w in weights] == [(2, 2, 17, 17)] * 3
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_gradcam_explains_transformer_tokens_without_configuration(images):
    model = vit()
    assert last_map(model, images[0]).name == "encoder.layers.encoder_layer_2.ln_1"
    assert gradcam()(model, *images).shape == (2, 1, 32, 32)


def test_attention_is_refused_where_there_is_none(images):
    assert "no nn.MultiheadAttention ran" in resolve("attention_rollout").refuses(cnn(), *images)
