"""Question: do caches of published architectures, filled by a first pass, keep trained weights in use at any step?

Small configurations of real classes of timm, with drawn weights: the whole walk of each with its caches filled, beside
that of the same weights without caches. Printed are the steps, how many similarities are exactly 1 where the network
without caches changes (right: 0), and the largest difference of curves.

    pip install timm
    python benchmarks/published.py [--only levit_128s ...]
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def main() -> None:
    from made_published import ARCHITECTURES, compared

    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--only", nargs="*", default=list(ARCHITECTURES))
    asked.add_argument("--equality-only", action="store_true", help="one architecture, two steps")
    given = asked.parse_args()
    if importlib.util.find_spec("timm") is None:
        print("timm is not installed")
        return
    for name in ["convit_tiny"] if given.equality_only else given.only:
        found, expected, kept = compared(name, max_steps=2 if given.equality_only else None)
        same = wrong = 0
        largest = 0.0
        for key, curve in expected.curves.items():
            one, other = found.curves[key].values, curve.values
            same += int((one == 1).sum())
            wrong += int(((one == 1) & (other < 1 - 1e-6)).sum())
            largest = max(largest, float((one - other).abs().nan_to_num(0.0).max()))
        print(
            f"{name:34} {len(found.units):3} steps, {kept} caches filled, exactly 1: {same}, wrongly: {wrong}, "
            f"largest difference {largest:.1e}, engine {found.engine['gradient']}",
            flush=True,
        )
        assert not wrong


if __name__ == "__main__":
    main()
