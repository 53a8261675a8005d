"""Re-initialisation on real architectures: everything that is used changes, in the order of its use."""

import made_families
import pytest
import torch
from made_exotic import (
    EXOTIC,
    VECTORS,
    SharedBlock,
    lora,
    mlp,
    pruned,
)
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from lightning_sanity import parameter_randomization_test
from lightning_sanity.model.clone import clone
from lightning_sanity.model.clone import weights_digest as digest
from lightning_sanity.model.graph import trace
from lightning_sanity.randomization import units
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
    for step in planned.steps:  # these networks use every weight once
        tops = [max(graph.mixing[weight][-1] for weight in unit.weights) for unit in step.units]
        assert tops == sorted(tops, reverse=True)


def test_auxiliary_heads_are_listed_as_unused():
    model, inputs = network("inception_v3")
    planned = randomised(model, inputs)[1]
    assert {name.split(".")[0] for name in planned.unused} == {"AuxLogits"}


@pytest.mark.parametrize(
    ("name", "blocks"), [("resnet18", 10), ("inception_v3", 17), ("vit_b_32", 14), ("mobilenet_v3_small", 15)]
)
def test_blocks_are_those_of_the_architecture(name, blocks):
    model, inputs = network(name)
    assert len(randomised(model, inputs, granularity="block")[1].steps) == blocks


# ------------------------------------------------------------------------------------------------- exotic networks


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


# --------------------------------------------------------------------------------------------- running statistics


@pytest.mark.parametrize("affine", [True, False])
def test_statistics_belong_to_the_layer_whose_values_they_normalise(affine):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=affine), nn.ReLU(), nn.Linear(6, 2)).eval()
    found = {unit.name: unit.statistics for unit in units(model, torch.randn(2, 4))}
    assert found == {"3": (), "0": ("1.running_mean", "1.running_var")}


def test_statistics_before_any_layer_belong_to_the_first():
    model = nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    found = {unit.name: unit.statistics for unit in units(model, torch.randn(2, 4))}
    assert found == {"3": (), "1": ("0.running_mean", "0.running_var")}


def test_statistics_without_weights_are_reset_as_those_with():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False), nn.ReLU(), nn.Linear(6, 2))
    for _ in range(20):
        model(3 + torch.randn(32, 4))
    result = parameter_randomization_test(
        model.eval(), 3 + torch.randn(6, 4), methods="gradient", trials=1, norm_stats="reset", controls=False
    )
    assert not any("running" in note for note in result.coverage.notes)


class Aside(nn.Module):
    """A branch with statistics of its own, and another head that normalises, too."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False)), nn.Linear(4, 6)
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 2)
        self.other = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))

    def forward(self, x):
        hidden = torch.tanh(self.norm(self.left(x) + self.right(x)))
        return {"logits": self.head(hidden), "site": self.other(hidden)}


STATISTICS = {
    "after a layer": (lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)), (4,)),
    "before every layer": (lambda: nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2)), (4,)),
    "at the very end": (lambda: nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2, affine=False)), (4,)),
    "two in a row": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False), nn.BatchNorm1d(3), nn.Linear(3, 2)),
        (4,),
    ),
    "of every sample": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.InstanceNorm2d(3, track_running_stats=True), nn.Flatten(), nn.Linear(48, 2)
        ),
        (1, 6, 6),
    ),
    "of a volume": (
        lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2, affine=False), nn.Flatten(), nn.Linear(16, 2)),
        (1, 3, 3, 3),
    ),
    "of several processes": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.SyncBatchNorm(6, affine=False), nn.Linear(6, 2)),
        (4,),
    ),
    "beside, and in another head": (Aside, (4,)),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_are_found_wherever_they_are(name):
    build, shape = STATISTICS[name]
    model = build().eval()
    planned = plan(model, trace(model, (torch.randn(3, *shape),)))
    found = [statistic for unit in planned.drawn for statistic in unit.statistics]
    buffers = [key for key, _ in model.named_buffers() if key.rpartition(".")[2] in ("running_mean", "running_var")]
    assert sorted(found) == sorted(buffers)
