"""Names that fit: every step keeps a name of its own, however alike the modules are called."""

import pytest

from lightning_sanity.report.wording import ordered, step_names


def resnet50():
    blocks = [(stage, block) for stage, count in ((4, 3), (3, 6), (2, 4), (1, 3)) for block in reversed(range(count))]
    layers = ("bn3", "conv3", "bn2", "conv2", "bn1", "conv1")
    return ["fc", *(f"layer{stage}.{block}.{layer}" for stage, block in blocks for layer in layers), "bn1", "conv1"]


def densenet121():
    blocks = [(block, layer) for block, count in ((4, 16), (3, 24), (2, 12), (1, 6)) for layer in range(count, 0, -1)]
    layers = ("conv2", "norm2", "conv1", "norm1")
    inner = [f"features.denseblock{block}.denselayer{layer}.{name}" for block, layer in blocks for name in layers]
    return ["classifier", "features.norm5", *inner, "features.norm0", "features.conv0"]


def efficientnet():
    places = [(stage, block, part) for stage in range(7, 0, -1) for block in range(3) for part in range(3, -1, -1)]
    inner = [f"features.{stage}.{block}.block.{part}.{leaf}" for stage, block, part in places for leaf in (1, 0)]
    return ["classifier.1", "features.8.1", "features.8.0", *inner, "features.0.1", "features.0.0"]


def bert():
    leaves = [
        "output.LayerNorm",
        "output.dense",
        "intermediate.dense",
        "attention.output.LayerNorm",
        "attention.output.dense",
        "attention.self.value",
        "attention.self.key",
    ]
    inner = [f"bert.encoder.layer.{block}.{leaf}" for block in range(11, -1, -1) for leaf in leaves]
    return ["classifier", "bert.pooler.dense", *inner, "bert.embeddings.LayerNorm"]


def language_model():
    leaves = ("mlp.down_proj", "mlp.up_proj", "self_attn.o_proj", "self_attn.q_proj", "input_layernorm")
    inner = [f"model.model.layers.{block}.{leaf}" for block in range(31, -1, -1) for leaf in leaves]
    return ["model.lm_head", "model.model.norm", *inner, "model.model.embed_tokens"]


MODELS = [resnet50, densenet121, efficientnet, bert, language_model]


@pytest.mark.parametrize("limit", [18, 14])
@pytest.mark.parametrize("units", MODELS, ids=lambda model: model.__name__)
def test_steps_keep_names_of_their_own(units, limit):
    names = step_names(units(), limit)
    assert len(set(names)) == len(units())
    assert max(map(len, names)) <= limit


@pytest.mark.parametrize("units", MODELS, ids=lambda model: model.__name__)
def test_longer_names_differ_even_without_their_number(units):
    words = [name.split(" ", 1)[-1] for name in step_names(units(), 18)]
    assert len(set(words)) == len(words)


def test_numbers_are_those_of_the_steps():
    assert [int(name.split()[0]) for name in step_names(bert(), 14)] == list(range(1, 1 + len(bert())))


def test_short_names_stay_as_they_are():
    assert step_names(["fc2", "fc1", "features.0"], 14) == ["fc2", "fc1", "features.0"]


def test_what_all_long_names_share_is_left_out():
    units = [f"model.encoder.layers.{k}.self_attention" for k in range(3)]
    assert step_names(units, 14) == ["1 layers.0", "2 layers.1", "3 layers.2"]


def test_methods_stand_in_the_order_of_their_urgency():
    from made_figures import make_result

    from lightning_sanity.result import Outcome, Verdict

    methods = {
        "passing": Verdict(Outcome.PASS, "", 0.8, 0.7, 0.9, "ssim"),
        "undefined": Verdict(Outcome.INCONCLUSIVE, ""),
        "open": Verdict(Outcome.INCONCLUSIVE, "", 0.6, 0.5, 0.7, "ssim"),
        "control": Verdict(Outcome.FAIL, "", 0.0, 0.0, 0.0, "ssim", gated=False),
        "bad": Verdict(Outcome.FAIL, "", 0.5, 0.4, 0.6, "ssim"),
        "worst": Verdict(Outcome.FAIL, "", 0.1, 0.0, 0.2, "ssim"),
    }
    expected = ["worst", "bad", "open", "undefined", "passing", "control"]
    assert ordered(make_result(methods=methods, curves={}, pictures=None)) == expected
