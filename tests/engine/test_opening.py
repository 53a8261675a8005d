"""Token ids are walked at their embeddings, like any input; where these are random, random ones are walked."""

import pytest
import torch
from torch import nn

from lightning_sanity import parameter_randomization_test
from lightning_sanity.engine.opening import Opening
from lightning_sanity.engine.streams import RandomStream, Trained
from lightning_sanity.explanation import Tokens

IDS = torch.randint(1, 20, (6, 7), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(7) < torch.tensor([[7], [7], [5], [4], [6], [3]])).long()
INPUTS = {"input_ids": IDS * MASK, "attention_mask": MASK}
CLASSES = torch.arange(6) % 3


class Encoder(nn.Module):
    """Positions and a normalisation behind the table, torch's own layers, keyword inputs."""

    def __init__(self):
        super().__init__()
        self.table, self.positions = nn.Embedding(20, 16), nn.Embedding(7, 16)
        self.norm = nn.LayerNorm(16)
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 2)
        self.head = nn.Linear(16, 3)

    def forward(self, *, input_ids, attention_mask):
        x = self.norm(self.table(input_ids) + self.positions(torch.arange(input_ids.shape[1])))
        x = self.layers(x, src_key_padding_mask=attention_mask == 0)
        return self.head((x * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True))


class Recurrent(nn.Module):
    """A gated network over the words, samples second."""

    def __init__(self):
        super().__init__()
        self.table, self.layers, self.head = nn.Embedding(20, 8), nn.GRU(8, 6, 2), nn.Linear(6, 3)

    def forward(self, input_ids, attention_mask):
        x = self.layers(self.table(input_ids).transpose(0, 1))[0].transpose(0, 1)
        return self.head(x[torch.arange(len(x)), attention_mask.sum(1) - 1])


class Convolved(nn.Module):
    """Rectified words, with a feature map."""

    def __init__(self):
        super().__init__()
        self.table, self.conv, self.head = nn.Embedding(20, 8), nn.Conv1d(8, 6, 3, padding=1), nn.Linear(6, 3)
        self.relu = nn.ReLU()

    def forward(self, input_ids, attention_mask):
        x = self.table(input_ids) * attention_mask[..., None]
        return self.head(self.relu(self.conv(x.transpose(1, 2))).mean(2))


def hugging(kind):
    """A small network of transformers with weights that tell sentences apart."""
    transformers = pytest.importorskip("transformers")
    sizes = {
        "Bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
        "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8, "bos_token_id": 0, "eos_token_id": 0},
    }
    config = getattr(transformers, f"{kind}Config")(vocab_size=20, num_labels=3, pad_token_id=0, **sizes[kind])
    return getattr(transformers, f"{kind}ForSequenceClassification")(config)


NETWORKS = {
    "torch": Encoder,
    "recurrent": Recurrent,
    "convolved": Convolved,
    "bert": lambda: hugging("Bert"),
    "gpt2": lambda: hugging("GPT2"),
}


def made(name):
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5)
    return model


def run(model, engine, **options):
    given = {"methods": "gradient", "trials": 1, "repeats": 1, "progress": False, "pictures": False}
    given |= {"similarities": ("cosine", "pearson"), "tokens": Tokens(reduce="norm"), "max_steps": None}
    return parameter_randomization_test(model, INPUTS, CLASSES, engine=engine, **given | options)


def assert_equal_by_both(model, **options):
    """With the engine, which walks in two streams, and without."""
    fast, slow = (run(model, engine, **options) for engine in ("auto", "plain"))
    names = {name for name, _ in slow.curves} - {"random", "edge_detector", "input_copy"}
    assert {fast.engine[name] for name in names} == {"two_stream"}
    assert fast.curves.keys() == slow.curves.keys()
    for key, curve in fast.curves.items():
        assert torch.allclose(curve.values, slow.curves[key].values, atol=1e-5, equal_nan=True), key
    assert torch.allclose(fast.output_change.correlation, slow.output_change.correlation, atol=1e-5, equal_nan=True)
    assert fast.coverage.share == slow.coverage.share == 1.0
    return fast


@pytest.mark.parametrize("name", NETWORKS)
def test_text_has_the_same_result_by_shared_walks(name):
    assert_equal_by_both(made(name))


@pytest.mark.parametrize("order", ["bottom_up", "independent", "full"])
def test_every_order_has_the_same_result(order):
    assert_equal_by_both(made("convolved"), order=order)


def test_every_method_of_text_equals_its_plain_self():
    methods = ("input_x_gradient", "integrated_gradients_local", "smoothgrad", "guided_backprop", "gradcam")
    assert_equal_by_both(made("convolved"), methods=methods)


def test_embeddings_that_several_units_make_are_random_with_each_of_them():
    found = assert_equal_by_both(made("torch"), tokens=Tokens(embedding="norm", reduce="norm"))
    assert found.settings["tokens"]["embedding"] == "norm"


def test_an_embedding_is_random_at_the_depths_of_its_own_units_alone(monkeypatch):
    seen, parts = [], Opening.parts

    def looking(*arguments):
        found = list(parts(*arguments))
        seen.append([(depths, what.inputs[0]) for what, depths in found])
        return found

    monkeypatch.setattr(Opening, "parts", looking)
    result = run(made("torch"), "auto", controls=False)
    ((trained, mine), (random, theirs)) = seen[-1]
    assert random == (len(result.units) - 1,)
    assert trained == tuple(range(len(result.units) - 1))
    assert not torch.allclose(mine, theirs)


def test_all_trials_share_one_trained_stream(monkeypatch):
    counts = {"trained": 0, "random": 0}

    def counting(kind, made):
        def begin(*arguments):
            counts[kind] += 1
            made(*arguments)

        return begin

    monkeypatch.setattr(Trained, "__init__", counting("trained", Trained.__init__))
    monkeypatch.setattr(RandomStream, "__init__", counting("random", RandomStream.__init__))
    run(made("recurrent"), "auto", trials=4)
    one = counts["trained"]
    run(made("recurrent"), "auto", trials=5)
    assert counts["trained"] - one == one + 1  # a further trial begins anew with its random embeddings alone
