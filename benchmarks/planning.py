"""Question: what do the units of a ResNet-50 and one twin cost, beside one gradient attribution?

Planning (tracing one forward pass of one sample and grouping), plus re-initialising every unit once, against one
captum gradient of 8 images at 224 px. In turn in one process; medians.

    python benchmarks/planning.py [--repeats 5] [--json]
"""

from __future__ import annotations

import torch
from captum.attr import Saliency
from measuring import interleaved, parser, publish, ratio, shown, spread
from torchvision.models import resnet50

from lightning_sanity.model.clone import clone
from lightning_sanity.randomization import reinitialize_, units
from lightning_sanity.resources.random_streams import generator


def attribution(model, inputs):
    Saliency(model).attribute(inputs.clone().requires_grad_(), target=0, abs=False)


def planning_and_twin(model, inputs):
    planned = units(model, inputs[:1])
    for unit in planned:
        reinitialize_(model, unit, "normal", generator(0, 0, unit.name))
    return planned


def line(row):
    gradient, twin = shown(row["attribution_seconds"]), shown(row["planning_and_twin_seconds"])
    return f"units and one twin {twin} s, one gradient of 8 images at 224 px {gradient} s: ratio {shown(row['ratio'])}"


def main():
    given = parser(__doc__, repeats=5).parse_args()
    torch.manual_seed(0)
    model, inputs = resnet50().eval(), torch.rand(8, 3, 224, 224)
    copied = clone(model)
    planned = planning_and_twin(copied, inputs)
    assert {name for unit in planned for name in unit.parameters} == {name for name, _ in model.named_parameters()}
    pairs = zip(model.named_parameters(), copied.parameters(), strict=True)
    assert [name for (name, a), b in pairs if torch.equal(a, b)] == []
    if given.equality_only:
        print(f"{len(planned)} units, every parameter changed")
        return
    sides = {
        "attribution": lambda: attribution(model, inputs),
        "planning_and_twin": lambda: planning_and_twin(copied, inputs),
    }
    times = interleaved(sides, given.repeats)
    row = {f"{side}_seconds": spread(found) for side, found in times.items()}
    publish(given, [row | {"ratio": ratio(times, "planning_and_twin", "attribution")}], line)


if __name__ == "__main__":
    main()
