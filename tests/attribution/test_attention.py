"""Attention rollout and gradient attention on a vision transformer."""

import pytest
import reference
import torch
from made_networks import cnn, vit
from torch import nn
from torch.nn import functional as F

from lightning_sanity.attribution import resolve
from lightning_sanity.attribution.attention import attention_of, captured_attention
from lightning_sanity.attribution.gradient_cam import gradcam
from lightning_sanity.attribution.layers import last_map
from lightning_sanity.explanation.tokens import token_scores
from lightning_sanity.model.clone import Adapted


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
        with captured_attention(model):
            during = model(images[0])
    torch.testing.assert_close(during, before)
    weights, readers = attention_of(model, images[0])
    assert [tuple(w.shape) for w in weights] == [(2, 2, 17, 17)] * 3
    assert readers.tolist() == [[True] + [False] * 16] * 2
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_gradcam_explains_transformer_tokens_without_configuration(images):
    model = vit()
    assert last_map(model, images[0]).name == "encoder.layers.encoder_layer_2.ln_1"
    assert gradcam()(model, *images).shape == (2, 1, 32, 32)


def test_attention_is_refused_where_there_is_none(images):
    assert "no attention weights" in resolve("attention_rollout").refuses(cnn(), *images)


# ------------------------------------------------------------------------------------------------- wherever it is


class Written(nn.Module):
    """A small transformer in somebody's own code; how it attends is given."""

    def __init__(self, attend, heads=2, pooled="class"):
        super().__init__()
        self.attend, self.heads, self.pooled = attend, heads, pooled
        self.patches, self.token = nn.Conv2d(3, 16, 8, 8), nn.Parameter(torch.randn(1, 1, 16))
        self.mix = nn.ModuleList(nn.Linear(16, 48) for _ in range(3))
        self.out = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(16, 5)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        if self.pooled == "class":
            tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        for mix, out in zip(self.mix, self.out, strict=True):
            q, k, v = mix(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            tokens = tokens + out(self.attend(self.norm(q), self.norm(k), v).transpose(1, 2).flatten(2))
        return self.head(tokens[:, 0] if self.pooled == "class" else tokens.mean(1))


def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def by_hand(q, k, v):
    weights = F.dropout((q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1), 0.1, training=False)
    return torch.matmul(weights, v)


def by_einsum(q, k, v):
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bhqk,bhkd->bhqd", nn.Softmax(-1)(scores), v)


def by_folded_heads(q, k, v):
    scores = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT) * q.shape[-1] ** -0.5
    return torch.bmm(torch.softmax(scores, 2), v.flatten(0, 1)).unflatten(0, q.shape[:2])


@pytest.mark.parametrize("method", ["last_attention", "attention_rollout", "gradient_attention"])
@pytest.mark.parametrize("attend", [fused, by_hand, by_einsum, by_folded_heads])
def test_attention_is_the_same_however_it_is_computed(images, attend, method):
    torch.manual_seed(0)
    model = Written(by_hand).eval()
    expected = resolve(method)(model, *images)
    model.attend = attend
    assert resolve(method).refuses(model, *images) is None
    torch.testing.assert_close(resolve(method)(model, *images), expected, rtol=0, atol=1e-5)
    assert bool(expected.any())


def test_attention_of_scores_from_all_tokens_is_read_from_all_tokens(images):
    torch.manual_seed(0)
    model = Written(fused, pooled="mean").eval()
    weights, readers = attention_of(model, images[0])
    assert bool(readers.all())
    drawn = weights[-1].mean((1, 2)).reshape(2, 1, 4, 4)
    expected = F.interpolate(drawn, (32, 32), mode="bilinear")
    torch.testing.assert_close(resolve("last_attention")(model, *images), expected)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": torch.rand(5, 5) > 0.4},
        {"attn_mask": torch.randn(1, 1, 5, 5)},
        {"attn_mask": torch.arange(5)[:, None] > torch.arange(5)},  # the first token may attend to nothing
        {"enable_gqa": True},
    ],
    ids=["plain", "causal", "scaled", "masked", "biased", "nothing", "grouped"],
)
def test_captured_attention_is_that_of_the_fused_kernel(given):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    if not given.get("enable_gqa"):
        k, v = k.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1)
    expected = F.scaled_dot_product_attention(q, k, v, **given)
    with captured_attention(nn.Identity()) as weights:
        found = F.scaled_dot_product_attention(q, k, v, **given)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(weights[0].sum(-1), (weights[0] != 0).any(-1).float())


def eager_rollout(weights, row=0):
    return torch.stack(
        [reference.rollout([layer[sample] for layer in weights])[row] for sample in range(len(weights[0]))]
    )


def on_image(drawn, side):
    grid = drawn.reshape(len(drawn), 1, 4, 4)
    return F.interpolate(grid, (side, side), mode="bilinear")


@pytest.mark.parametrize("registers", [0, 4])
def test_rollout_of_a_timm_transformer_is_that_of_its_own_weights(registers):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 4}
    model = timm.models.VisionTransformer(**sizes, qk_norm=True, reg_tokens=registers).eval()
    x, weights = torch.randn(2, 3, 32, 32), []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, given, output: weights.append(output.detach()))
    model(x)
    for block in model.blocks:
        block.attn.fused_attn = True
        block.attn.attn_drop._forward_hooks.clear()
    expected = on_image(eager_rollout(weights)[:, 1 + registers :], 32)
    torch.testing.assert_close(resolve("attention_rollout")(model, x, None), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_rollout_of_a_hugging_face_vision_transformer_is_that_of_its_own_attentions(kernel):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, attn_implementation=kernel)
    model, x = transformers.ViTForImageClassification(config).eval(), torch.randn(2, 3, 32, 32)
    found = resolve("attention_rollout")(Adapted(model).eval(), x, None)
    last = resolve("last_attention")(Adapted(model).eval(), x, None)
    model.set_attn_implementation("eager")
    weights = [layer.detach() for layer in model(x, output_attentions=True).attentions]
    torch.testing.assert_close(found, on_image(eager_rollout(weights)[:, 1:], 32), rtol=0, atol=1e-5)
    torch.testing.assert_close(last, on_image(weights[-1].mean(1)[:, 0, 1:], 32), rtol=0, atol=1e-5)


def test_rollout_of_a_text_encoder_is_that_of_its_own_attentions():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=50, **sizes)).eval()
    ids, mask = torch.randint(5, 50, (3, 9)), torch.arange(9) < torch.tensor([[9], [7], [5]])
    given = {"input_ids": ids, "attention_mask": mask.long()}
    scores, counted = token_scores(model, given, method="attention_rollout")
    model.set_attn_implementation("eager")
    weights = [layer.detach() for layer in model(**given, output_attentions=True).attentions]
    expected = F.normalize(eager_rollout(weights) * counted, dim=1)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_the_last_token_of_a_causal_model_is_the_one_that_is_read():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, pad_token_id=0)
    model, ids = transformers.GPT2ForSequenceClassification(config).eval(), torch.randint(5, 50, (3, 9))
    _, readers = attention_of(Adapted(model).eval(), ids)
    assert readers.int().argmax(1).tolist() == [8] * 3
    assert readers.sum() == 3


def test_attention_over_windows_is_refused_by_name(images):
    torchvision = pytest.importorskip("torchvision")
    sizes = {"patch_size": [4, 4], "embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": [4, 4]}
    model = torchvision.models.SwinTransformer(**sizes, num_classes=5).eval()
    for method in ("last_attention", "attention_rollout", "gradient_attention"):
        assert "windowed attention (SwinTransformer)" in resolve(method).refuses(model, *images)


def test_linear_attention_is_refused_by_name(images):
    class LinearAttention(nn.Module):
        def forward(self, q, k, v):
            return q.softmax(-1) @ (k.softmax(-2).mT @ v)

    model = Written(LinearAttention()).eval()
    assert "linear attention (LinearAttention)" in resolve("attention_rollout").refuses(model, *images)
