"""A 1-D convolutional network on heartbeats: is the beat narrow, wide, or followed by a second wave?

python examples/time_series.py --out time_series
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from lightning_sanity import parameter_randomization_test
from lightning_sanity.report import figures


def beats(count, generator):
    """Signals (N, 2, 96) of two leads with one beat of three kinds somewhere, and the kind."""
    kinds = torch.randint(3, (count,), generator=generator)
    centre = 20 + 50 * torch.rand(count, 1, generator=generator)
    away = torch.arange(96) - centre
    width = torch.tensor([2.0, 6.0, 2.0])[kinds][:, None]
    beat = torch.exp(-((away / width) ** 2)) - 0.3 * torch.exp(-(((away + 2 * width) / width) ** 2))
    beat += (kinds == 2)[:, None] * 0.8 * torch.exp(-(((away - 14) / 3) ** 2))
    leads = torch.stack([beat, -0.5 * beat], 1)
    return leads + 0.1 * torch.randn(leads.shape, generator=generator), kinds


def network():
    body = [nn.Conv1d(2, 16, 7, padding=3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(16, 16, 7, padding=3), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 3))


def train(model, generator, steps):
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        signals, kinds = beats(32, generator)
        loss = F.cross_entropy(model(signals), kinds)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def main(out="time_series", steps=150, trials=5, samples=16, methods=("gradient", "integrated_gradients", "gradcam")):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = train(network(), generator, steps)
    result = parameter_randomization_test(model, beats(samples, generator)[0], methods=methods, trials=trials)
    Path(out).mkdir(exist_ok=True, parents=True)
    figures.curves(result).savefig(Path(out) / "time_series.png", dpi=100)
    for name, verdict in result.verdicts.items():
        print(f"{name:22s} {verdict.outcome.value:13s} {verdict.reason}")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="time_series")
    main(**vars(parser.parse_args()))
