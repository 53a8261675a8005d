"""Models that people really use, built small from their configurations, as they are."""

import pytest
import torch
from measuring import models as made
from measuring.families import families
from torch import nn
from torch.nn import functional as F

from lightning_sanity import parameter_randomization_test
from lightning_sanity.explanation import Tokens, targets
from lightning_sanity.explanation.tokens import token_scores

FAMILIES = families()
TEN = (
    "BERT",
    "RoBERTa",
    "GPT-2, next word",
    "Llama",
    "Mixtral",
    "ALBERT",
    "BERT, LoRA",
    "ViT",
    "PatchTST",
    "timm ConvNeXt",
)
QUICK = {"methods": "gradient", "trials": 1, "repeats": 1, "controls": False, "pictures": False, "progress": False}


def judged(family, model, samples=4, **options):
    target = torch.arange(samples) % made.CLASSES if isinstance(family.target, str) else family.target
    return parameter_randomization_test(model, family.inputs(samples), target, **{**QUICK, "max_steps": 2, **options})


@pytest.fixture(scope="module")
def family_of():
    pytest.importorskip("transformers")
    pytest.importorskip("timm")
    pytest.importorskip("peft")
    built = {}

    def find(name):
        if name not in built:
            built[name] = made.built(FAMILIES[name])
        return FAMILIES[name], built[name]

    return find


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks transformers for it
@pytest.mark.parametrize("name", TEN)
def test_a_family_runs_as_it_is_and_nothing_of_it_stays_trained(name, family_of):
    family, model = family_of(name)
    result = judged(family, model)
    assert result.settings["steps"] == (family.steps or result.settings["steps"])
    assert result.coverage.share == 1
    assert result.coverage.hidden == ()
    assert result.curves["gradient", "spearman"].values.isfinite().any()


@pytest.mark.parametrize("name", ["GPT-2, next word", "PatchTST"])
def test_a_factory_of_the_architecture_draws_every_family(name, family_of):
    family, model = family_of(name)
    result = judged(family, model, reinitialize=family.build)
    assert result.coverage.share == 1


def test_a_language_models_head_has_another_turn_than_its_table(family_of):
    family, model = family_of("GPT-2, next word")
    found = judged(family, model, order="cascading", max_steps=None)
    turns = {name: place for place, step in enumerate(found.coverage.units) for name in step.parameters}
    assert turns["lm_head.weight"] == 0
    assert turns["transformer.wte.weight"] == len(found.units) - 1
    assert model.lm_head.weight is model.transformer.wte.weight


def padded(family, side):
    given = family.inputs(4)
    ids, mask = given["input_ids"], given["attention_mask"].bool()
    if side == "left":
        order = mask.int().argsort(dim=1, stable=True)  # padding first
        ids, mask = ids.gather(1, order), mask.gather(1, order)
    return {"input_ids": ids, "attention_mask": mask.long()}


def test_the_side_of_the_padding_changes_no_score_and_no_curve(family_of):
    """RoBERTa counts positions from the first real token; its own head reads the first position, padded or not."""
    family, model = family_of("RoBERTa")
    target = torch.arange(4) % 3

    def by_mean(net, input_ids, attention_mask):
        hidden = net.roberta(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mean = (hidden * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True)
        return net.classifier.out_proj(torch.tanh(net.classifier.dense(mean)))

    scores, curves = {}, {}
    for side in ("left", "right"):
        given = padded(family, side)
        found, kept = token_scores(model, given, target, method="gradient", forward=by_mean)
        scores[side] = [row[real] for row, real in zip(found, kept, strict=True)]
        assert torch.equal(kept, given["attention_mask"].bool())
        result = parameter_randomization_test(model, given, target, forward=by_mean, **QUICK)
        curves[side] = result.curves["gradient", "spearman"].values
    for left, right in zip(scores["left"], scores["right"], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(curves["left"], curves["right"], rtol=0, atol=0.02)


def test_special_tokens_are_left_out_where_they_are_named_and_count_otherwise(family_of):
    family, model = family_of("BERT")
    given, target = family.inputs(4), torch.arange(4) % 3
    _, every = token_scores(model, given, target, method="gradient")
    _, without = token_scores(model, given, target, method="gradient", tokens=Tokens(ignore=[made.END]))
    assert torch.equal(every, given["attention_mask"].bool())
    assert torch.equal(without, every & (given["input_ids"] != made.END))


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_position_of_a_padded_batch_is_its_last_word(side, family_of):
    family, model = family_of("GPT-2, next word")
    given = padded(family, side)
    found, kept = token_scores(model, given, targets.position(-1), method="gradient")
    last = torch.stack([row.nonzero().max() for row in kept])
    expected, _ = token_scores(model, given, lambda out: _at(out.logits, last), method="gradient")
    torch.testing.assert_close(found, expected)


def _at(logits, place):
    rows = torch.arange(len(logits))
    own = logits[rows, place]
    return own.gather(1, own.argmax(1, keepdim=True))[:, 0]


def test_the_score_is_found_behind_a_loss(family_of):
    family, model = family_of("BERT")
    alone = judged(family, model)
    behind = parameter_randomization_test(
        model,
        {**family.inputs(4), "labels": torch.arange(4) % 3, "return_dict": False},
        torch.arange(4) % 3,
        max_steps=2,
        **QUICK,
    )
    assert any("explained is the model's output '1'" in note for note in behind.coverage.notes)
    assert torch.equal(behind.curves["gradient", "spearman"].values, alone.curves["gradient", "spearman"].values)


# ------------------------------------------------------------------------------------------------- a refusal's way out


class Contrastive(nn.Module):
    """How alike every image of a batch is to every sentence of it, and the embeddings."""

    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(12, 6), nn.Linear(8, 6)

    def forward(self, pixel_values, words):
        image, text = F.normalize(self.image(pixel_values), dim=1), F.normalize(self.text(words), dim=1)
        return {"per_image": image @ text.T, "per_text": text @ image.T, "image": image, "text": text}


def pairs(samples=5):
    draw = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(samples, 12, generator=draw),
        "words": torch.randn(samples, 8, generator=draw),
    }


def test_a_matrix_of_images_and_texts_is_asked_for_and_then_explained_row_by_row():
    model = Contrastive()
    with pytest.raises(ValueError, match=r"'per_image' .*pass output="):
        parameter_randomization_test(model, pairs(), **QUICK)
    ours = parameter_randomization_test(model, pairs(), torch.arange(5), output="per_image", **QUICK)
    theirs = parameter_randomization_test(model, pairs(), lambda found: found["per_image"].diagonal(), **QUICK)
    assert any("depend on the other samples" in note for note in ours.coverage.notes)
    ours, theirs = (each.curves["gradient", "spearman"].values for each in (ours, theirs))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


class Finder(nn.Module):
    """Two boxes per image with a score each, in a list."""

    def __init__(self):
        super().__init__()
        self.boxes, self.scores = nn.Linear(12, 8), nn.Linear(12, 2)

    def forward(self, images):
        boxes = self.boxes(images).sigmoid().view(-1, 2, 2, 2).cumsum(2).flatten(2)
        return [{"boxes": b, "scores": s} for b, s in zip(boxes, self.scores(images).sigmoid(), strict=True)]


def test_detections_are_asked_for_and_then_explained():
    images = pairs()["pixel_values"]
    with pytest.raises(ValueError, match=r"the model returns detections.*target=targets\.box"):
        parameter_randomization_test(Finder(), images, **QUICK)
    wanted = torch.tensor([[0.2, 0.2, 1.2, 1.2]]).expand(5, 4)
    found = parameter_randomization_test(Finder(), images, targets.box(wanted), **QUICK)
    assert found.curves["gradient", "spearman"].values.isfinite().any()


def test_xlnet_is_explained_at_its_embeddings_by_ids_and_by_what_they_embed(family_of):
    family, model = family_of("XLNet")
    found = judged(family, model)
    assert found.settings["tokens"]["embedding"] == "transformer.word_embedding"
    assert found.curves["gradient", "spearman"].values.isfinite().any()
    given = dict(family.inputs(4))
    given["inputs_embeds"] = model.get_input_embeddings()(given.pop("input_ids")).detach()
    other = parameter_randomization_test(model, given, torch.arange(4) % made.CLASSES, **QUICK, max_steps=2)
    assert other.settings["axes"]["summed"] == 2
    assert other.curves["gradient", "spearman"].values.isfinite().any()


GRAPHS = ("PyG GCN", "PyG GAT", "PyG GraphSAGE", "PyG GIN", "PyG, graphs")


@pytest.mark.parametrize("name", GRAPHS)
def test_convolutions_over_graphs_run_with_their_edges_from_outside(name):
    pytest.importorskip("torch_geometric")
    family = FAMILIES[name]
    result = judged(family, made.built(family), samples=6, **family.options)
    assert result.settings["steps"] == family.steps
    assert result.coverage.share == 1
    alike = "the outputs for a sample depend on the other samples" in " ".join(result.coverage.notes)
    assert alike is (name != "PyG, graphs")  # nodes do, graphs laid side by side do not


def test_a_graph_as_one_object_is_refused_with_a_way_that_works():
    pytest.importorskip("torch_geometric")
    from torch_geometric.data import Data

    nodes, network = torch.randn(6, 8), made.built(FAMILIES["PyG GCN"])
    edges = torch.stack([torch.arange(6), torch.arange(1, 7) % 6])

    class OnData(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, data):
            return self.network(data.x, data.edge_index)

    with pytest.raises(ValueError, match=r"no tensor among the inputs, Data: .*forward=lambda model, x: model\(Data\("):
        parameter_randomization_test(OnData(), Data(nodes, edges), **QUICK)
    with pytest.raises(ValueError, match=r"the edges of a graph .* comes by forward="):
        parameter_randomization_test(network, (nodes, edges), **QUICK)
    result = parameter_randomization_test(
        OnData(), nodes, forward=lambda model, x: model(Data(x, edges)), max_steps=2, **QUICK
    )
    assert result.coverage.share == 1
