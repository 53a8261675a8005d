"""Two inputs, two verdicts: which digit is on the image, and is the sum of the table beside it positive?

python examples/two_inputs.py --out two_inputs
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from lightning_sanity.cli import demo
from lightning_sanity.parameter_randomization import multi_input_randomization_test
from lightning_sanity.report import figures


class ImageAndTable(nn.Module):
    """Six classes: the digits 0, 1 and 2, each with a sum below or above zero."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.Flatten())
        self.image, self.table, self.head = nn.Linear(16 * 9, 16), nn.Linear(8, 16), nn.Linear(32, 6)

    def forward(self, image, table):
        return self.head(F.relu(torch.cat([self.image(self.features(image)), self.table(table)], 1)))


def main(out="two_inputs", steps=200, trials=5, samples=32, methods=("gradient", "integrated_gradients", "gradcam")):
    torch.manual_seed(0)
    images, digits = demo.digits()[0].tensors
    images, digits = images[digits < 3], digits[digits < 3]
    table = torch.randn(len(images), 8)
    classes = digits + 3 * (table.sum(1) > 0)
    model = ImageAndTable()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        rows = torch.randint(len(images), (128,))
        loss = F.cross_entropy(model(images[rows], table[rows]), classes[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    probe = {"image": images[:samples], "table": table[:samples]}
    result = multi_input_randomization_test(model.eval(), probe, methods=methods, trials=trials)
    Path(out).mkdir(exist_ok=True, parents=True)
    figures.verdicts(result).savefig(Path(out) / "two_inputs.png", dpi=100)
    for name, verdict in result.verdicts.items():
        print(f"{name:30s} {verdict.outcome.value:13s} {verdict.reason}")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="two_inputs")
    main(**vars(parser.parse_args()))
