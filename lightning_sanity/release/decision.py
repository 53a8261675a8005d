"""A gate's decision in the forms that build systems read: JSON, JUnit XML, Markdown."""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from lightning_sanity.release.gating import Check, Decision
from lightning_sanity.report import decided
from lightning_sanity.report.markdown import MARKS, unbroken
from lightning_sanity.result.evidence import OF_LABELS
from lightning_sanity.result.sanity_result import Outcome

_LONGEST = 4000  # characters of a line


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
                **{name: _known(check, name) for name in ("psi", "psi_low", "psi_high")},
            }
            for check in decision.checks
        ],
    }


def _known(check: Check, name: str) -> float | None:
    value = math.nan if check.verdict is None else getattr(check.verdict, name)
    return value if math.isfinite(value) else None


def markdown(decision: Decision) -> str:
    """A heading and a table per result, the worst first, for a pull request or a step summary.

    A result's file is named once, above its checks; a method's number is the one that decided.
    """
    title = f"{MARKS[decision.outcome]} Saliency maps: {decision.outcome.value}"
    by_source: dict[str, list[Check]] = {}
    for check in decision.worst_first:
        by_source.setdefault(check.source, []).append(check)
    tables = [part for source, checks in by_source.items() for part in (*_of_source(source), _table(checks))]
    return "\n\n".join([f"### {title}", cell(decision.reason), *tables]) + "\n"


def _of_source(source: str) -> list[str]:
    return [f"**{cell(source)}**"] if source else []


def _table(checks: Sequence[Check]) -> str:
    index = " / ".join(dict.fromkeys("DRI" if each.test == OF_LABELS else "PSI" for each in checks if each.verdict))
    number = [f"{index} [95 %]"] if index else []
    rows = [["outcome", "check", *number, "why"], ["---"] * (3 + len(number))]
    for each in checks:
        shown = [] if not index else ["" if each.verdict is None else unbroken(decided.number(each.verdict))]
        rows.append(
            [unbroken(f"{MARKS[each.outcome]} {each.outcome.value}"), cell(each.title), *shown, cell(each.reason)]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


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


def cell(text: str) -> str:
    """Text that Markdown shows as it is: a bar would end a cell, a bracket begin a tag."""
    escaped = html.escape(one_line(text), quote=False)
    return "".join("\\" + c if c in r"\|`*_[]#!" else c for c in escaped)
