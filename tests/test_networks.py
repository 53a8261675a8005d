"""Re-initialisation on real architectures: everything that is used changes, in the order of its use."""

import made_families
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from lightning_sanity.model.clone import clone
from lightning_sanity.model.clone import weights_digest as digest
from lightning_sanity.model.graph import trace
from lightning_sanity.randomization.strategies import redraw
from lightning_sanity.randomization.unit import plan
from lightning_sanity.resources.random_streams import generator

QUICK = ("resnet18", "inception_v3", "mobilenet_v3_small", "densenet121", "convnext_tiny", "swin_t", "vit_b_32")
REST = (
    "alexnet",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "regnet_y_400mf",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_v2_t",
    "vgg11_bn",
    "wide_resnet50_2",
)
NETWORKS = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)]


def network(name):
    """It, and two images."""
    model, side = made_families.build(name, 10)
    return model, (torch.rand(2, 3, side, side),)


def randomised(model, inputs, seed=0, granularity="layer"):
    """A clone at full depth, its plan and the changes of each unit."""
    copied = clone(model)
    planned = plan(copied, trace(copied, inputs), granularity)
    changes = {unit.name: redraw("normal")(copied, unit, generator(seed, unit.name)) for unit in planned.units}
    return copied, planned, changes


def assert_everything_used_changes(model, inputs):
    before = digest(model)
    graph = trace(clone(model), inputs)
    copied, planned, changes = randomised(model, inputs)
    assert digest(model) == before, "the original was touched"
    used = {name for name, p in copied.named_parameters() if name in graph.uses}
    assert {name for unit in planned.units for name in unit.parameters} == used
    assert set(planned.unused) == {name for name, _ in copied.named_parameters()} - used
    kept = [c.parameter for unit in changes.values() for c in unit if not c.relative > 0]
    assert kept == []
    assert [name for name, unit in changes.items() if not unit] == [], "a step without a change"
    with torch.no_grad():
        assert not torch.equal(copied(*inputs), clone(model)(*inputs))
    assert digest(copied) == digest(randomised(model, inputs)[0]), "the same seed gave other weights"
    return planned, graph


@pytest.mark.parametrize("name", NETWORKS)
def test_everything_used_changes(name):
    model, inputs = network(name)
    planned, graph = assert_everything_used_changes(model, inputs)
    # A unit stands at the last use of its weights; these networks use every weight once, so first use is last use.
    tops = [
        max(graph.uses[p][-1] for p in unit.parameters if model.get_parameter(p).ndim > 1) for unit in planned.units
    ]
    assert tops == sorted(tops, reverse=True)


def test_auxiliary_heads_are_listed_as_unused():
    model, inputs = network("inception_v3")
    planned = randomised(model, inputs)[1]
    assert {name.split(".")[0] for name in planned.unused} == {"AuxLogits"}


@pytest.mark.parametrize(
    ("name", "blocks"), [("resnet18", 10), ("inception_v3", 17), ("vit_b_32", 15), ("mobilenet_v3_small", 15)]
)
def test_blocks_are_those_of_the_architecture(name, blocks):
    model, inputs = network(name)
    assert len(randomised(model, inputs, granularity="block")[1].units) == blocks


# ------------------------------------------------------------------------------------------------- exotic networks


class SequenceEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 3)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.embedding, self.encoder = nn.Embedding(11, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, tokens):
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.recurrent, self.head = kind(4, 8, num_layers=2, bidirectional=True, batch_first=True), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.recurrent(x)[0][:, -1])


class TiedDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.middle, self.decoder = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens):
        return self.decoder(self.middle(self.embedding(tokens).mean(1)))


class HeadFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Linear(8, 3), nn.Linear(6, 8)

    def forward(self, x):
        return self.head(F.relu(self.body(x)))


class LowRank(nn.Module):
    """An adapter on a frozen layer."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(0.1 * torch.randn(2, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, 2))

    def forward(self, x):
        return self.base(x) + x @ self.lora_a.T @ self.lora_b.T


class SharedBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.block, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.first(x))
        for _ in range(3):
            x = F.relu(self.block(x))
        return self.head(x)


class Listed(nn.Module):
    """Parameters in a list and a dictionary."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(6, 6)) for _ in range(2)])
        self.named = nn.ParameterDict({"out": nn.Parameter(torch.randn(3, 6))})

    def forward(self, x):
        for weight in self.weights:
            x = F.relu(x @ weight.T)
        return x @ self.named["out"].T


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.filter, self.head = nn.Parameter(torch.randn(4, dtype=torch.complex64)), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=6))


def mlp(*wrap):
    layers = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
    for index in (0, 2):
        for wrapper in wrap:
            layers[index] = wrapper(layers[index])
    return nn.Sequential(*layers)


def pruned():
    model = mlp()
    prune.l1_unstructured(model[2], "weight", 0.5)
    return model


def lora():
    model = mlp()
    model[0], model[2] = LowRank(model[0]), LowRank(model[2])
    return model


def old_weight_norm():
    with pytest.warns(FutureWarning, match="weight_norm"):
        return mlp(torch.nn.utils.weight_norm)


def bags():
    return nn.Sequential(nn.EmbeddingBag(9, 4, sparse=True), nn.GroupNorm(2, 4), nn.Linear(4, 3))


def decoder():
    layers = [nn.Conv2d(3, 4, 3), nn.LayerNorm([4, 6, 6]), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3), nn.Flatten()]
    return nn.Sequential(*layers, nn.RMSNorm(128), nn.Linear(128, 3))


VECTORS, TOKENS = torch.randn(2, 6, generator=generator(0)), torch.randint(9, (2, 5), generator=generator(0))
EXOTIC = {
    "transformer encoder": (SequenceEncoder, TOKENS),
    "lstm": (Recurrent, torch.randn(2, 5, 4, generator=generator(0))),
    "gru": (lambda: Recurrent(nn.GRU), torch.randn(2, 5, 4, generator=generator(0))),
    "tied decoder": (TiedDecoder, TOKENS),
    "head first": (HeadFirst, VECTORS),
    "shared block": (SharedBlock, VECTORS),
    "pruned": (pruned, VECTORS),
    "lora": (lora, VECTORS),
    "weight_norm": (lambda: mlp(parametrizations.weight_norm), VECTORS),
    "old weight_norm": (old_weight_norm, VECTORS),
    "spectral_norm": (lambda: mlp(parametrizations.spectral_norm), VECTORS),
    "orthogonal": (lambda: mlp(parametrizations.orthogonal), VECTORS),
    "parameter list": (Listed, VECTORS),
    "complex": (Complex, VECTORS),
    "embedding bag": (bags, TOKENS),
    "transposed convolution": (decoder, torch.randn(2, 3, 8, 8, generator=generator(0))),
    "half precision": (lambda: mlp().to(torch.bfloat16), VECTORS.to(torch.bfloat16)),
    "quantisation stubs": (lambda: nn.Sequential(torch.ao.quantization.QuantStub(), mlp()), VECTORS),
}


@pytest.mark.parametrize("name", EXOTIC)
@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated")
def test_everything_used_changes_in_exotic_networks(name):
    make, inputs = EXOTIC[name]
    torch.manual_seed(0)
    assert_everything_used_changes(make().eval(), (inputs,))


@pytest.mark.parametrize(
    "wrapper", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
def test_the_effective_weight_of_a_parametrised_layer_changes(wrapper):
    torch.manual_seed(0)
    model = mlp(wrapper).eval()
    copied, _, changes = randomised(model, (VECTORS,))
    old, new = model[2].weight.detach(), copied[2].weight.detach()
    cosine = F.cosine_similarity(old.flatten(), new.flatten(), dim=0)
    assert cosine.abs() < 0.5
    raw = [c for unit in changes.values() for c in unit if "parametrizations" in c.parameter]
    assert all(c.relative > 0.5 for c in raw)


def test_an_orthogonal_weight_stays_orthogonal():
    copied, _, _ = randomised(mlp(parametrizations.orthogonal).eval(), (VECTORS,))
    weight = copied[2].weight.detach()
    assert torch.allclose(weight @ weight.T, torch.eye(8), atol=1e-5)


def test_a_spectrally_normalised_weight_keeps_unit_norm():
    copied, _, _ = randomised(mlp(parametrizations.spectral_norm).eval(), (VECTORS,))
    assert torch.linalg.matrix_norm(copied[2].weight.detach(), 2) == pytest.approx(1.0, abs=0.02)


def test_pruned_weights_stay_pruned():
    model = pruned().eval()
    copied, _, _ = randomised(model, (VECTORS,))
    copied(VECTORS)
    assert torch.equal(copied[2].weight == 0, model[2].weight == 0)


def test_a_shared_block_stands_at_its_topmost_use():
    planned = randomised(SharedBlock().eval(), (VECTORS,))[1]
    assert [unit.name for unit in planned.units] == ["head", "block", "first"]


def test_lora_randomises_the_frozen_base_too():
    planned = randomised(lora().eval(), (VECTORS,))[1]
    assert {"0.base.weight", "0.lora_a", "0.lora_b"} <= {name for unit in planned.units for name in unit.parameters}
