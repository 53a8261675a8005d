"""Families of torch_geometric, and what bitsandbytes makes of a network; see ``models``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from measuring.models import CLASSES, Family, numbers

FEATURES, WIDTH = 8, 16


class Nodes(nn.Module):
    """Two convolutions over a graph."""

    def __init__(self, kind: str, by_network: bool, **given: Any) -> None:
        super().__init__()
        convolution = getattr(importlib.import_module("torch_geometric.nn"), kind)

        def made(below: int, above: int) -> nn.Module:
            if by_network:
                return convolution(nn.Sequential(nn.Linear(below, WIDTH), nn.ReLU(), nn.Linear(WIDTH, above)), **given)
            return convolution(below, above, **given)

        self.first, self.last = made(FEATURES, WIDTH), made(WIDTH, CLASSES)

    def forward(self, nodes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """Scores of each node."""
        return self.last(self.first(nodes, edges).relu(), edges)


class Graphs(nn.Module):
    """A class for each graph of a batch, all of one structure."""

    def __init__(self) -> None:
        super().__init__()
        library = importlib.import_module("torch_geometric.nn")
        self.first, self.second = library.GCNConv(FEATURES, WIDTH), library.GCNConv(WIDTH, WIDTH)
        self.pool, self.head = library.global_mean_pool, nn.Linear(WIDTH, CLASSES)

    def forward(self, nodes: torch.Tensor, edges: torch.Tensor, graph: torch.Tensor) -> torch.Tensor:
        """Scores of each graph."""
        return self.head(self.pool(self.second(self.first(nodes, edges).relu(), edges).relu(), graph))


def _ring(nodes: int) -> torch.Tensor:
    """Edges from each node to both neighbours."""
    here = torch.arange(nodes)
    return torch.stack([here.repeat(2), torch.cat([(here + 1) % nodes, (here - 1) % nodes])])


def on_nodes(model: nn.Module, nodes: torch.Tensor) -> torch.Tensor:
    """Nodes are samples; their edges come from here."""
    return model(nodes, _ring(len(nodes)))


def on_graphs(model: nn.Module, nodes: torch.Tensor) -> torch.Tensor:
    """Graphs ``(N, nodes, features)`` are samples, laid side by side as one."""
    samples, size = nodes.shape[:2]
    edges = torch.cat([_ring(size) + size * k for k in range(samples)], 1)
    return model(nodes.flatten(0, 1), edges, torch.arange(samples).repeat_interleave(size))


def _packed(kind: str, **given: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = importlib.import_module("bitsandbytes")
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES))
        packed = getattr(library.nn, kind)(64, 64, **given)
        packed.load_state_dict(model[2].state_dict())
        model[2] = packed
        return model.to("cpu")

    return build


def libraries() -> dict[str, Family]:
    """By name; what is not installed says so in its row."""

    def nodes(kind: str, steps: int, by_network: bool = False, **given: Any) -> Family:
        options = {"forward": on_nodes}
        return Family(
            "torch_geometric", lambda: Nodes(kind, by_network, **given), numbers(FEATURES), steps, options=options
        )

    return {
        "PyG GCN": nodes("GCNConv", 2),
        "PyG GAT": nodes("GATConv", 2, heads=1),
        "PyG GraphSAGE": nodes("SAGEConv", 2),
        "PyG GIN": nodes("GINConv", 4, by_network=True),
        "PyG, graphs": Family(
            "torch_geometric", Graphs, numbers(10, FEATURES), 3, options={"forward": on_graphs, "feature_axis": 2}
        ),
        "int8 layers": Family("bitsandbytes", _packed("Linear8bitLt", has_fp16_weights=False), numbers(64), None),
        "NF4 layers": Family("bitsandbytes", _packed("LinearNF4"), numbers(64), None),
    }
