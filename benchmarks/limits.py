"""Question: does ``max_memory`` hold, and what does it cost?

Four networks, each unlimited and under four limits: the whole test, the gradient, eight samples, one trial. Memory is
what the process takes above what it held before (resident, in a fresh process of its own) as a share of the limit;
time is a ratio over the unlimited test, in turn in one process. Before, all similarities are compared with the
unlimited ones: equal to 1e-5, but for one pair in a hundred, because a rectifier whose input is zero but for rounding
may flip where a batch has another size. Where a limit cannot be kept, the row says the least that would do.

    python benchmarks/limits.py [--limits 32 64 128 256] [--networks resnet18 transformer perceptron unet] [--json]
"""

from __future__ import annotations

import torch
from growth import perceptron, transformer
from measuring import interleaved, parser, publish, ratio, shown
from measuring.memory import peak
from measuring.networks import resnet, unet

from lightning_sanity import parameter_randomization_test

MIB = 2**20
EQUAL = 1e-5
FLIPPED = 0.01
"""Share of the pairs that may differ by more."""
GOALS = {"time": 2.0, "resident": 1.15}


def _asked(make):
    torch.manual_seed(0)
    problem = make(64, 8)
    return problem.model, problem.inputs, problem.target


NETWORKS = {
    "resnet18": lambda: _asked(resnet),
    "transformer": lambda: (*transformer(12, 8), 0),
    "perceptron": lambda: (*perceptron(200, 8), 0),
    "unet": lambda: _asked(unet),
    "small": lambda: (*perceptron(20, 8), 0),
}
"""Model, inputs and target: 21, 98, 200, 13 and 20 units."""


def test(asked, limit):
    given = {"methods": "gradient", "trials": 1, "similarities": "spearman", "max_steps": None}
    given |= {"progress": False, "pictures": False, "max_memory": limit}
    return parameter_randomization_test(*asked, **given)


def prepare(network, limit):
    """The test as ``peak`` wants it, in a process of its own."""
    asked = NETWORKS[network]()
    return lambda: test(asked, limit)


def measured(network, limit, free, asked, given):
    """One row: a network under a limit beside the same without."""
    limited = test(asked, limit)
    pairs = torch.cat([(curve.values - free.curves[key].values).flatten() for key, curve in limited.curves.items()])
    off = float((pairs.abs() > EQUAL).float().mean())
    assert off <= FLIPPED, f"{network}, {limit // MIB} MiB: {off:.1%} of the similarities differ by more than {EQUAL}"
    refused = next((note for note in limited.notes if "max_memory was not kept" in note), None)
    found = {"network": network, "limit": limit // MIB, "differ": off, "refused": refused}
    found["engine"] = limited.settings["engine"]["gradient"]
    if given.equality_only:
        return found
    sides = {"limited": lambda: test(asked, limit), "free": lambda: test(asked, None)}
    found["time"] = ratio(interleaved(sides, given.repeats), "limited", "free")
    found["resident"] = peak(prepare, network, limit)["resident"]
    return found


def described(row):
    if row["limit"] is None:
        return f"{row['network']}, unlimited: resident {row['resident']:.0f} MB"
    if "time" not in row:
        return f"{row['network']}, {row['limit']} MiB: {row['differ']:.1%} of the similarities differ"
    share = row["resident"] / row["limit"]
    kept = row["refused"] or f"resident {row['resident']:.0f} MB, {share:.2f} of the limit"
    return f"{row['network']}, {row['limit']} MiB, {row['engine']}: {shown(row['time'])} of the unlimited; {kept}"


def rows(given):
    for network in given.networks:
        asked = NETWORKS[network]()
        free = test(asked, None)
        if not given.equality_only:
            yield {"network": network, "limit": None, "resident": peak(prepare, network, None)["resident"]}
        for limit in given.limits:
            yield measured(network, limit * MIB, free, asked, given)


def main(arguments=None):
    made = parser(__doc__)
    made.add_argument("--limits", type=int, nargs="+", default=[32, 64, 128, 256], help="MiB")
    made.add_argument("--networks", nargs="+", default=list(NETWORKS)[:4], choices=list(NETWORKS))
    given = made.parse_args(arguments)
    torch.set_num_threads(1)
    if given.equality_only:
        given.networks, given.limits = ["small"], [1, 8]
    publish(given, rows(given), described)


if __name__ == "__main__":
    main()
