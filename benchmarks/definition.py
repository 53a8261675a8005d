"""Question: are curves and floors those of the definition, for every kind of network and every way of walking?

Each of some forty small networks, and of thirty whose samples meet, is walked in every order, by layers and where it
has them by blocks and by names, by every engine and method; a slow reference (``tests/reference_walk.py``) says what is
right. Printed is the largest difference per network; anything but rounding ends the run.

    python benchmarks/definition.py [--trials 2] [--only "image" ...]
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

ORDERS = ("cascading", "bottom_up", "independent", "full")
ENGINES = ("auto", "plain", "folded")
FEW = ("three layers",)


def main() -> None:
    from made_comparisons import ROUNDING, TOLERANCE, defined, largest_difference, measured, methods_for, network
    from made_kinds import KINDS, MEETING

    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--trials", type=int, default=2)
    asked.add_argument("--only", nargs="*", default=[*KINDS, *MEETING])
    asked.add_argument("--equality-only", action="store_true", help="a few networks, one trial")
    given = asked.parse_args()
    names, trials = (FEW, 1) if given.equality_only else (given.only, given.trials)
    worst, compared, walks = 0.0, 0, 0
    for name in names:
        kind, methods, found = network(name)[0], methods_for(name), {}
        granularities = ["layer", *["block"] * bool(kind.blocks), *["list"] * bool(kind.listed)]
        for order, granularity in product(ORDERS, granularities):
            tables = defined(name, order, granularity, methods, trials)
            for engine in ENGINES:
                result = measured(name, order, granularity, engine, methods, trials)
                found[order, granularity, engine] = largest_difference(result, tables)
                compared += 2 * sum(curve.values.numel() for curve in result.curves.values())
                walks += 1
        worst = max(worst, *found.values())
        print(f"{name:42} {len(found):3} ways   {max(found.values()):.1e}", flush=True)
        within = {engine: ROUNDING if engine == "folded" else TOLERANCE for engine in ENGINES}
        wrong = [way for way, difference in found.items() if not difference < within[way[2]]]
        if wrong:
            raise SystemExit(f"{name}: not as defined: {wrong}")
    print(f"{len(names)} networks, {walks} walks, {compared} similarities and floors: largest difference {worst:.1e}")


if __name__ == "__main__":
    main()
