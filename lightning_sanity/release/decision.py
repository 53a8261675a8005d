"""A gate's decision in the forms that build systems read: JSON, JUnit XML, Markdown."""

from __future__ import annotations

import html
import math
import unicodedata
from typing import Any
from xml.etree import ElementTree

from lightning_sanity.release.gating import Check, Decision
from lightning_sanity.result.sanity_result import Outcome

_LONGEST = 4000  # characters of a line
_MARKS = {Outcome.PASS: "✅", Outcome.FAIL: "❌", Outcome.INCONCLUSIVE: "❓"}


def one_line(text: str) -> str:
    """``text`` on one line of bounded length, without the characters that steer terminals and parsers.

    Names and reasons come from files. A control character in one could forge a line of a build log, and XML cannot
    hold it at all.
    """
    plain = " ".join(text[: 4 * _LONGEST].split())
    plain = plain if len(plain) <= _LONGEST else plain[: _LONGEST - 3] + "..."
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Cn") else c for c in plain)


def to_dict(decision: Decision) -> dict[str, Any]:
    """Plain JSON types."""
    return {
        "outcome": decision.outcome.value,
        "exit_code": decision.exit_code,
        "reason": decision.reason,
        "weights_digests": list(decision.weights_digests),
        "taken_on_trust": list(decision.trusted),
        "checks": [
            {
                "name": check.name,
                "outcome": check.outcome.value,
                "reason": check.reason,
                "source": check.source,
                "test": check.test,
                "psi": check.psi if math.isfinite(check.psi) else None,
            }
            for check in decision.checks
        ],
    }


def markdown(decision: Decision) -> str:
    """A heading and a table, for a pull request or a step summary."""
    rows = [["", "check", "why"], ["---"] * 3]
    rows += [[_MARKS[check.outcome], cell(_name(check)), cell(check.reason)] for check in decision.checks]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    title = f"{_MARKS[decision.outcome]} Saliency maps: {decision.outcome.value}"
    return f"### {title}\n\n{cell(decision.reason)}\n\n{table}\n"


def junit(decision: Decision) -> str:
    """One test case per check; what is inconclusive is an error, for a skipped case would look like a good one."""
    counts = {outcome: sum(check.outcome is outcome for check in decision.checks) for outcome in Outcome}
    suite = ElementTree.Element(
        "testsuite",
        name="lightning-sanity",
        tests=str(len(decision.checks)),
        failures=str(counts[Outcome.FAIL]),
        errors=str(counts[Outcome.INCONCLUSIVE]),
        skipped="0",
    )
    for check in decision.checks:
        source = one_line(check.source) or "result"
        case = ElementTree.SubElement(suite, "testcase", classname=source, name=one_line(check.title))
        if check.outcome is Outcome.PASS:
            ElementTree.SubElement(case, "system-out").text = one_line(check.reason)
        else:
            kind = "failure" if check.outcome is Outcome.FAIL else "error"
            ElementTree.SubElement(case, kind, type=check.outcome.value, message=one_line(check.reason))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _name(check: Check) -> str:
    return f"{check.title} ({check.source})" if check.source else check.title


def cell(text: str) -> str:
    """Text that Markdown shows as it is: a bar would end a cell, a bracket begin a tag."""
    escaped = html.escape(one_line(text), quote=False)
    return "".join("\\" + c if c in r"\|`*_[]#!" else c for c in escaped)
