"""Question: does an ensemble get the index of its members?

Up to eight networks are trained on the digits, each with a seed of its own, and tested alone and as an ensemble that
averages their scores, on the same samples. Parallel layers become random together, so an ensemble has the
steps of one member and should have its index: within .05 of the members' mean for the gradient and Grad-CAM. Guided
Backprop and input x gradient should fail on it as they do on a member.

    python benchmarks/ensembles.py [--sizes 3 8] [--trials 20] [--samples 32] [--seeds 0 1 2]
        [--network plain_relu] [--json]
"""

from __future__ import annotations

import statistics

import torch
from measuring import parser, publish
from measuring.studied import NETWORKS, Ensemble, fitted

from lightning_sanity import parameter_randomization_test

METHODS = ("gradient", "gradcam", "guided_backprop", "input_x_gradient")
GOAL = {"gradient": 0.05, "gradcam": 0.05}


def together(members, network):
    """Their ensemble."""
    made = Ensemble(NETWORKS[network].make, len(members))
    for place, member in enumerate(members):
        made.members[place].load_state_dict(member.state_dict())
    return made.eval()


def tested(model, inputs, target, given, seed):
    options = {"trials": given.trials, "seed": seed, "progress": False, "pictures": False}
    return parameter_randomization_test(model, inputs, target, methods=METHODS, **options)


def agreed(models, inputs, count):
    """Samples of which all models say the same."""
    with torch.no_grad():
        said = torch.stack([model(inputs).argmax(1) for model in models])
    same = (said == said[0]).all(0).nonzero()[:count, 0]
    return inputs[same], said[0][same]


def rows(given):
    members, images = [], None
    for seed in range(max(given.sizes)):
        model, inputs, *_ = fitted(given.network, seed, given.epochs)
        members.append(model.eval())
        images = inputs if images is None else images
    inputs, target = agreed(members, images, given.samples)
    for seed in given.seeds:
        alone = [tested(member, inputs, target, given, seed) for member in members[: given.alone]]
        for size in given.sizes:
            found = tested(together(members[:size], given.network), inputs, target, given, seed)
            assert len(found.units) == len(alone[0].units), "an ensemble has other steps than a member"
            yield {
                "seed": seed,
                "members": size,
                "valid": found.valid,
                "methods": {
                    name: {
                        "ensemble": found.verdicts[name].psi,
                        "low": found.verdicts[name].psi_low,
                        "high": found.verdicts[name].psi_high,
                        "members": statistics.fmean(one.verdicts[name].psi for one in alone),
                        "outcome": found.verdicts[name].outcome.value,
                    }
                    for name in METHODS
                },
            }


def described(row):
    lines = [f"seed {row['seed']}, {row['members']} members, {'valid' if row['valid'] else 'NOT VALID'}"]
    for name, v in row["methods"].items():
        difference = v["ensemble"] - v["members"]
        goal = f", goal {GOAL[name]}" if name in GOAL else ""
        lines.append(
            f"    {name:17s} {v['ensemble']:.2f} [{v['low']:.2f}, {v['high']:.2f}] {v['outcome']}, "
            f"a member {v['members']:.2f}: {difference:+.3f}{goal}"
        )
    return "\n".join(lines)


def main(arguments=None):
    made = parser(__doc__)
    made.add_argument("--sizes", type=int, nargs="+", default=[3, 8])
    made.add_argument("--trials", type=int, default=20)
    made.add_argument("--samples", type=int, default=32)
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--network", default="plain_relu", choices=list(NETWORKS))
    made.add_argument("--alone", type=int, default=3, help="members that are tested alone")
    given = made.parse_args(arguments)
    torch.set_num_threads(1)
    given.epochs = 1 if given.equality_only else None
    if given.equality_only:
        given.sizes, given.seeds, given.trials, given.samples, given.alone = [1], [0], 1, 8, 1
    publish(given, rows(given), described)


if __name__ == "__main__":
    main()
