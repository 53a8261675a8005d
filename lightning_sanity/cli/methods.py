"""The command ``methods``: the attribution methods by kind, for people and as JSON."""

from __future__ import annotations

import argparse
import json
from typing import Any

from lightning_sanity import attribution
from lightning_sanity.cli.terminal import say

_KINDS = {
    "gradients": "gradients",
    "path": "gradients along a path from a baseline",
    "guided": "gradients with altered rectifiers",
    "differences": "differences from a baseline, passed back",
    "relevance": "relevance, passed back",
    "class_activation": "class activation maps",
    "gradient_cam": "class activation maps",
    "attention": "attention",
    "perturbation": "hiding parts of the input",
    "prediction_difference": "hiding parts of the input",
    "superpixels": "hiding parts of the input",
    "optimized": "masks found by optimisation",
    "regions": "regions of an image",
    "controls": "controls: their verdict is known beforehand, and they never gate",
}
"""What the modules of ``attribution`` hold."""
_COLUMNS = """\
signed: whether the sign of an attribution means for or against the explained class
random: whether two runs with other seeds differ
cost:   about how many forward and backward passes over a batch one explanation takes; 0 never looks at the model
needs:  the extra to install, pip install "lightning-sanity[...]"
"""


def add_to(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    parser = commands.add_parser(
        "methods",
        help="list the attribution methods",
        description="Lists the attribution methods by kind.",
        epilog=f"columns:\n{_COLUMNS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="as JSON, one object per method")
    parser.set_defaults(run=_methods)


def _methods(arguments: argparse.Namespace) -> int:
    rows = [
        {**row, "cost": row.pop("passes"), "kind": _KINDS.get(row["kind"], "others")} for row in attribution.table()
    ]
    if arguments.json:
        say(json.dumps(rows, indent=1))
        return 0
    width = max(len(row["name"]) for row in rows) + 2
    lines = [f"  {'name':{width}}{'signed':8s}{'random':8s}{'cost':8s}{'needs':8s}what it is"]
    for kind in dict.fromkeys([*_KINDS.values(), "others"]):
        members = [row for row in rows if row["kind"] == kind]
        lines += ["", kind, *(_line(row, width) for row in members)] if members else []
    say("\n".join([*lines, "", _COLUMNS.rstrip()]))
    return 0


def _line(row: dict[str, Any], width: int) -> str:
    signed, random = ("yes" if row[key] else "no" for key in ("signed", "stochastic"))
    needs = row["needs"] or "-"
    return f"  {row['name']:{width}}{signed:8s}{random:8s}{row['cost']:<8.3g}{needs:8s}{row['summary']}"
