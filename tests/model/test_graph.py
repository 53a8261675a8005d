import torch
from torch import nn
from torch.nn import functional as F

from lightning_sanity.model.graph import trace


class Functional(nn.Module):
    """Weights that no module hook sees, a head declared first, a parameter that is never used."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.kernel = nn.Parameter(torch.randn(4, 1, 3, 3))
        self.scale = nn.Parameter(torch.ones(4, 1, 1, 1))
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        x = F.relu(F.conv2d(x, self.kernel * self.scale, padding=1))
        return self.head(x.mean((2, 3)))


def test_trace_finds_functional_uses_in_order_of_use():
    graph = trace(Functional().eval(), (torch.randn(2, 1, 8, 8),))
    assert sorted(graph.uses, key=graph.uses.get) == ["kernel", "scale", "head.weight", "head.bias"]


def test_trace_places_a_folded_parameter_where_it_meets_the_data():
    graph = trace(Functional().eval(), (torch.randn(2, 1, 8, 8),))
    assert graph.uses["scale"] == graph.uses["kernel"]


def test_trace_lists_every_use_of_a_shared_module():
    shared = nn.Linear(4, 4)
    graph = trace(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), shared), (torch.randn(2, 4),))
    assert len(graph.uses["0.weight"]) == 3


def test_trace_counts_rectifiers_however_they_are_called():
    class Rectifying(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.bounded = nn.ReLU(inplace=True), nn.ReLU6()

        def forward(self, x):
            x = self.module(x + 1)
            return self.bounded(torch.relu(x)) + F.gelu(x).clamp(min=0) + x.clamp(min=-1)

    assert trace(Rectifying(), (torch.randn(2, 4),)).rectifiers == 4


def test_trace_notes_spatial_outputs_but_not_pooled_ones():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    graph = trace(model, (torch.randn(2, 1, 8, 8),))
    assert [(s.module, s.shape) for s in graph.spatial] == [("0", (2, 4, 6, 6)), ("1", (2, 4, 6, 6))]


def test_trace_follows_control_flow_that_depends_on_the_data():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.high = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.high(x) if x.mean() > 0 else self.low(x)

    assert set(trace(Branching(), (torch.ones(1, 2),)).uses) == {"high.weight", "high.bias"}
    assert set(trace(Branching(), (-torch.ones(1, 2),)).uses) == {"low.weight", "low.bias"}


class Several(nn.Module):
    """Two heads, one of which is explained, and a value that goes through a tensor written piece by piece."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.other = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        features = torch.zeros(len(x), 4)
        features[:, :2], features[:, 2:] = self.body(x)[:, :2], x[:, 2:]
        return {"other": self.other(features), "head": self.head(features)}


def test_trace_knows_what_reaches_the_explained_output():
    model, inputs = Several(), (torch.randn(2, 4),)
    graph = trace(model, inputs, explained=lambda outputs: outputs["head"])
    assert all(name in graph.uses for name, _ in model.named_parameters())
    assert {name for name in graph.uses if graph.reaching(name)} == {
        f"{layer}.{kind}" for layer in ("body", "head") for kind in ("weight", "bias")
    }


def test_trace_takes_all_outputs_as_explained_by_default():
    graph = trace(Several(), (torch.randn(2, 4),))
    assert all(graph.reaching(name) for name in graph.uses)


def test_trace_takes_everything_as_explained_where_the_way_to_the_output_is_hidden():
    graph = trace(Several(), (torch.randn(2, 4),), explained=lambda outputs: torch.tensor(outputs["head"].tolist()))
    assert all(graph.reaching(name) for name in graph.uses)
