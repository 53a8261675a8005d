"""A multi-layer perceptron on a table: is a tumour malignant (569 real patients, 30 measurements)?

python examples/tabular.py --out tabular
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.nn import functional as F

from lightning_sanity import parameter_randomization_test
from lightning_sanity.report import figures


def patients():
    """Standardised measurements (569, 30) and what was found, shuffled."""
    raw = load_breast_cancer()
    table, labels = torch.tensor(raw.data).float(), torch.tensor(raw.target)
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    return ((table - table.mean(0)) / table.std(0))[order], labels[order]


def main(out="tabular", steps=200, trials=5, samples=32, methods=("gradient", "integrated_gradients", "occlusion")):
    torch.manual_seed(0)
    table, labels = patients()
    model = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=1e-2)
    for _ in range(steps):
        rows = torch.randint(400, (64,))
        loss = F.cross_entropy(model(table[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    probe, truth = table[400 : 400 + samples], labels[400 : 400 + samples]
    print(f"accuracy {float((model(table[400:]).argmax(1) == labels[400:]).float().mean()):.3f}")
    result = parameter_randomization_test(model.eval(), probe, truth, methods=methods, trials=trials)
    Path(out).mkdir(exist_ok=True, parents=True)
    figures.curves(result).savefig(Path(out) / "tabular.png", dpi=100)
    for name, verdict in result.verdicts.items():
        print(f"{name:22s} {verdict.outcome.value:13s} {verdict.reason}")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="tabular")
    main(**vars(parser.parse_args()))
