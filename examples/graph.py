"""Nodes of a graph: real digits, each joined to those that look most like it, classified by a graph network.

Rows are nodes; the edges lie beside them. What the network says of a node depends on its neighbours, so the graph is
never cut: every node is explained by its own score, and noise is added to features alone.

python examples/graph.py --out graph
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from lightning_sanity import parameter_randomization_test
from lightning_sanity.report import figures


def digits(nodes, neighbours=4):
    """Features ``(N, 64)``, classes, and edges ``(2, E)`` in both directions between digits that look alike."""
    raw = load_digits()
    order = torch.randperm(len(raw.target), generator=torch.Generator().manual_seed(0))[:nodes]
    features, labels = torch.tensor(raw.data, dtype=torch.float32)[order] / 16, torch.tensor(raw.target)[order]
    near = torch.cdist(features, features).fill_diagonal_(torch.inf).topk(neighbours, largest=False).indices
    edges = torch.stack([near.flatten(), torch.arange(nodes).repeat_interleave(neighbours)])
    return features, labels, torch.cat([edges, edges.flip(0)], 1).unique(dim=1)


class GraphConvolution(nn.Module):
    """A linear layer of the mean over a node and its neighbours, each weighted by the degrees of both.

    Kipf and Welling, "Semi-Supervised Classification with Graph Convolutional Networks", ICLR 2017 (arXiv:1609.02907).
    """

    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, nodes, edges):
        """New features of ``nodes (N, F)``, joined by ``edges (2, E)``, from the first row's node to the second's."""
        loops = torch.arange(len(nodes), device=nodes.device).expand(2, -1)
        source, target = torch.cat([edges, loops], 1)
        degree = torch.zeros(len(nodes), device=nodes.device).index_add(0, target, torch.ones_like(target).float())
        weight = (degree[source] * degree[target]).rsqrt()
        mixed = torch.zeros_like(nodes).index_add(0, target, weight[:, None] * nodes[source])
        return self.linear(mixed)


class GraphNetwork(nn.Module):
    """Two graph convolutions; scores of every node ``(N, 10)``."""

    def __init__(self, width=32):
        super().__init__()
        self.first, self.second = GraphConvolution(64, width), GraphConvolution(width, 10)

    def forward(self, nodes, edges):
        """Scores of ``nodes`` joined by ``edges``."""
        return self.second(torch.relu(self.first(nodes, edges)), edges)


def main(out="graph", nodes=60, steps=150, trials=5, methods=("gradient", "input_x_gradient", "occlusion")):
    torch.manual_seed(0)
    features, labels, edges = digits(nodes)
    model = GraphNetwork()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    known = torch.arange(nodes) % 4 != 0  # every fourth node is held out
    for _ in range(steps):
        loss = F.cross_entropy(model(features, edges)[known], labels[known])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy = (model.eval()(features, edges).argmax(1) == labels)[~known].float().mean()
    print(f"accuracy on held-out nodes {float(accuracy):.2f}")
    # The edges belong to no node, so they are no input with a row per sample.
    result = parameter_randomization_test(
        model, features, labels, forward=lambda network, rows: network(rows, edges), methods=methods, trials=trials
    )
    for name, verdict in result.verdicts.items():
        print(f"{name}: {verdict.outcome.value}, {verdict.reason}")
    Path(out).mkdir(exist_ok=True, parents=True)
    figures.curves(result).savefig(Path(out) / "curves.png", dpi=100)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="graph")
    main(**vars(parser.parse_args()))
