"""Does any edit of a result that is no pass let the gate say yes?

    python benchmarks/tampering.py --mutations 10000 --seed 1

Results that fail, are open or void, some made and some measured: every edit of one place in their files, exhaustively,
then handfuls of such edits at random, then files of 200 MB and 10,000 levels. Each is judged by the whole command, of
which exit code, output, processor time, peak memory and a watched folder are kept.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measuring.hostile import large_json
from measuring.readers import READERS, measured
from measuring.watched import Account, tried, watched_folder

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from made_edits import at, edited, single_edits
from made_results import FAILING, OPEN, PASSING, made, made_of_labels, void

SMALL = {"trials": 2, "samples": 4, "probe_ids": (1, 2, 3, 4), "trained_maps": {}, "diagnostics": {}}
SHORT = 97  # one edit of so many where only the proof is asked for


def results(folder: Path) -> dict[str, Any]:
    """What must never pass, as plain data."""
    found = {
        "one of two fails": made({"gradcam": PASSING, "lime": FAILING}, **SMALL),
        "open": made({"gradcam": PASSING, "lime": OPEN}, **SMALL),
        "void": void(made({"gradcam": PASSING}, **SMALL), "the control 'random' passed"),
        "by labels": made_of_labels({"gradcam": PASSING, "lime": FAILING}),
    }
    plain = {name: json.loads(json.dumps(result.to_dict())) for name, result in found.items()}
    return {**plain, "measured": json.loads((folder / "failed.json").read_text())}


def handfuls(edits: list[Any], data: Any, draw: random.Random, most: int) -> Iterator[Any]:
    """Copies of the data after two to eight edits each, every other time by values of the kind that was there."""
    alike = [(path, value) for path, value in edits if type(value) is type(at(data, path))]
    for number in range(most):
        changed = copy.deepcopy(data)
        for path, value in draw.sample(alike if number % 2 else edits, draw.randint(2, 8)):
            try:
                edited(changed, path, value)
            except (KeyError, IndexError, TypeError):  # an edit before took the place away
                continue
        yield changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=10_000, help="handfuls in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--equality-only", action="store_true", help="a few of each, without the large files")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    short, draw, broken = arguments.equality_only, random.Random(arguments.seed), []
    with watched_folder() as folder:
        reader = READERS["result"](folder, measured(folder))

        def judged(account: Account, raw: bytes, what: object) -> None:
            problem = tried(raw, reader, folder, account)
            account.broken += [f"{what}: {problem}"[:300]] if problem else []

        held = results(folder)
        for name, data in held.items():
            single, several, edits = Account(), Account(), single_edits(data)
            for path, value in edits[:: SHORT if short else 1]:
                raw = json.dumps(edited(copy.deepcopy(data), path, value)).encode()
                judged(single, raw, f"{path} := {str(value)[:40]}")
            most = 4 if short else arguments.mutations // len(held)
            for changed in handfuls(edits, data, draw, most):
                judged(several, json.dumps(changed).encode(), "several edits")
            single.tell(f"{name}, single")
            several.tell(f"{name}, several")
            broken += single.broken + several.broken
        if not short:
            sizes = Account()
            for number, raw in enumerate(large_json(json.dumps(held["measured"]).encode())):
                judged(sizes, raw, f"large file {number}")
            sizes.tell("200 MB, 10,000 levels")
            broken += sizes.broken
    assert not broken


if __name__ == "__main__":
    main()
