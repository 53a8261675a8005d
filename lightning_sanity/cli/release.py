"""The commands that read results one by one: ``gate`` and ``report``."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from lightning_sanity.cli.terminal import path, print_decision, say
from lightning_sanity.release import decision as forms
from lightning_sanity.release.finding import find, read
from lightning_sanity.release.gating import Check, Decision, gate
from lightning_sanity.release.model_card import merged, read_card
from lightning_sanity.release.policy import Policy, read_policy
from lightning_sanity.release.record import differences, read_record, statement
from lightning_sanity.release.shown import shown
from lightning_sanity.resources.files import check_outputs, write_whole
from lightning_sanity.resources.quoting import listed
from lightning_sanity.result.sanity_result import Outcome, SanityResult

_GATE_EPILOG = """\
exit codes:
  0  every required method passed, and everything else that was asked for holds
  1  a method failed or became worse, the result is too old or about other weights, a required method was not
     measured, or there is no result at all: never ran is not a pass
  2  wrong usage, or a file that exists but cannot be read (damaged, foreign, written by a newer version,
     contradicting itself), a baseline, policy or checkpoint that is missing, or results about different models
  3  nothing follows: a verdict is INCONCLUSIVE or cannot be decided anew, a control came out wrong, the baseline has
     another probe or is about these very weights, the test had fewer trials than asked for

Every verdict is decided anew from the numbers in the result; a word in it that they contradict makes it unreadable.
--min-psi is the way out of a FAIL that a threshold caused, and of no other. A result never lowers the bar for itself:
one that was measured with a laxer criterion than the default passes by the default, or by what is asked here.

examples:
  lightning-sanity gate lightning_logs/version_3/sanity
  lightning-sanity gate sanity --weights best.ckpt --require gradient,gradcam --max-age 7d
  lightning-sanity gate sanity --baseline accepted.json --max-drop 0.05 --junit gate.xml --github-summary
  lightning-sanity gate sanity --policy policy.yaml --weights best.ckpt
  lightning-sanity gate sanity --weights best.ckpt --record release.json --model-card README.md
  lightning-sanity gate sanity --weights best.ckpt --verify release.json
  lightning-sanity gate sanity --weights best.ckpt --choice choice/choice.json --shown gradcam

a policy file holds the same in YAML or TOML, options on the command line go first:
  require: [gradient, gradcam]
  min_trials: 20
  max_age: 7d
"""


def add_to(commands: Any) -> None:
    """Add the two commands to a parser's subparsers."""
    _add_gate(commands)
    page = commands.add_parser(
        "report",
        help="write a result as a page",
        description="Writes a result as one self-contained HTML page, or as Markdown for a pull request.",
        epilog="example: lightning-sanity report sanity/latest.json -o report.html --markdown summary.md",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    page.add_argument("result", type=path, metavar="RESULT.json|DIR", help="of a folder, the newest result")
    page.add_argument("-o", "--output", type=path, metavar="FILE", help="the page (default: report.html)")
    page.add_argument("--markdown", type=path, metavar="FILE", help="a summary in Markdown")
    page.set_defaults(run=_report)


def _add_gate(commands: Any) -> None:
    parser = commands.add_parser(
        "gate",
        help="decide a release by a result: an exit code with a reason",
        description="Decides whether a model may be released, as far as its saliency maps go.",
        epilog=_GATE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "results",
        nargs="+",
        type=path,
        metavar="RESULT.json|DIR",
        help="all must pass, and be about one model; of a folder every file counts, of a callback's latest.json and "
        "step=<n>.json the newest, with --weights the newest about those weights",
    )
    asked = parser.add_argument_group("what is asked for")
    asked.add_argument("--policy", type=path, metavar="FILE", help="YAML or TOML with any of the following")
    asked.add_argument("--require", metavar="A,B", help="methods that must pass (default: all but controls)")
    asked.add_argument(
        "--tests",
        metavar="A,B",
        help="parameter_randomization, data_randomization or both: of each there "
        "must be a result, and every method must hold in it (default: the tests of the results)",
    )
    asked.add_argument("--min-psi", type=float, metavar="X", help="decide anew by this threshold")
    asked.add_argument("--min-trials", type=int, metavar="N", help="the test must have had so many")
    asked.add_argument("--min-samples", type=int, metavar="N", help="the test must have had so many")
    asked.add_argument("--weights", type=path, metavar="CKPT", help="the result must be about the weights in this file")
    asked.add_argument("--max-age", metavar="7d", help="oldest result accepted: a number and s, m, h, d or w")
    asked.add_argument("--baseline", type=path, metavar="B.json", help="result of an accepted model on the same probe")
    asked.add_argument(
        "--several-models",
        action="store_true",
        default=None,
        help="results may be about several models, each of which must meet all of this",
    )
    asked.add_argument(
        "--shown", metavar="METHOD", help="the method that is shown must be one that --choice recommends"
    )
    asked.add_argument("--choice", type=path, metavar="CHOICE.json", help="what lightning-sanity choose wrote")
    asked.add_argument("--verify", type=path, metavar="RECORD", help="a record of before must still say the same")
    asked.add_argument("--max-drop", type=float, metavar="X", help="by which a PSI may fall below it (default: 0.1)")
    written = parser.add_argument_group("what is written")
    written.add_argument(
        "-q", "--quiet", action="store_true", help="no decision on standard output: exit code and files"
    )
    written.add_argument("--junit", type=path, metavar="FILE", help="JUnit XML, one test case per check")
    written.add_argument("--json", type=path, metavar="FILE", help="the decision")
    written.add_argument("--record", type=path, metavar="FILE", help="an in-toto Statement, as signing tools take it")
    written.add_argument(
        "--model-card",
        type=path,
        metavar="README.md",
        help="an existing Hugging Face model card: its section and evaluation results are replaced or added",
    )
    written.add_argument(
        "--github-summary",
        nargs="?",
        const="",
        metavar="FILE",
        help="append Markdown to this file (default: $GITHUB_STEP_SUMMARY)",
    )
    parser.set_defaults(run=_gate)


def _gate(arguments: argparse.Namespace) -> int:
    summary = _summary_file(arguments.github_summary)
    policy = _policy(arguments)
    files = {"--junit": arguments.junit, "--json": arguments.json, "--record": arguments.record}
    read = [
        given
        for given in (
            *arguments.results,
            arguments.policy,
            arguments.verify,
            arguments.choice,
            policy.weights,
            policy.baseline,
        )
        if given
    ]
    check_outputs({**files, "--model-card": arguments.model_card, "--github-summary": summary}, read)
    card = None if arguments.model_card is None else read_card(arguments.model_card)
    try:
        decision = gate(arguments.results, policy)
        if arguments.shown is not None or arguments.choice is not None:
            decision = replace(decision, checks=(*decision.checks, shown(arguments.shown, arguments.choice, decision)))
        if arguments.verify is not None:
            decision = replace(decision, checks=(*decision.checks, _verified(arguments.verify, decision, policy)))
        record = statement(decision, policy) if arguments.record is not None or card is not None else {}
        card = None if card is None else merged(card, record)
    except BaseException:
        for stale in filter(None, files.values()):
            stale.unlink(missing_ok=True)  # that of an earlier run must not be taken for this one's
        raise
    if not arguments.quiet:
        print_decision(decision)
    if arguments.junit is not None:
        write_whole(arguments.junit, forms.junit(decision))
    if arguments.json is not None:
        write_whole(arguments.json, json.dumps(forms.to_dict(decision), indent=1) + "\n")
    if arguments.record is not None:
        write_whole(arguments.record, json.dumps(record, indent=1) + "\n")
    if card is not None:
        write_whole(arguments.model_card, card)
    if summary is not None:
        with summary.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(forms.markdown(decision))
    return decision.exit_code


def _verified(path: Path, decision: Decision, policy: Policy) -> Check:
    """Whether a record of before still says what is decided now."""
    changed = differences(read_record(path), decision, policy)
    if not changed:
        return Check("record", Outcome.PASS, "the record says what was decided now", str(path))
    others = [each for each in changed if each.startswith("predicate.policy")]
    advice = ""
    if any(each.startswith("predicate.policy.weights") for each in others):
        advice = "; the checkpoint is not the one of the record"
    elif others:
        advice = "; it was made under other rules: give the same --policy and options as then"
    reason = f"the record says otherwise: {listed(changed)}{advice}"
    return Check("record", Outcome.FAIL, reason, str(path))


def _summary_file(given: str | None) -> Path | None:
    if given is None:
        return None
    name = given or os.environ.get("GITHUB_STEP_SUMMARY", "")
    if not name:
        raise ValueError("--github-summary needs a file: GITHUB_STEP_SUMMARY is not set here")
    return Path(name)


def _policy(arguments: argparse.Namespace) -> Policy:
    policy = Policy() if arguments.policy is None else read_policy(arguments.policy)
    given: dict[str, Any] = {
        field.name: getattr(arguments, field.name)
        for field in fields(Policy)
        if getattr(arguments, field.name, None) is not None
    }
    for name in {"require", "tests"} & given.keys():
        given[name] = [each.strip() for each in given[name].split(",")]
    return replace(policy, **given)


def _only(path: Path) -> SanityResult:
    """The result in a file, or the newest of a folder that holds those of one callback."""
    if not path.exists():
        raise FileNotFoundError(f"there is no result at '{path}'")
    if not path.is_dir():
        return read(path)
    try:
        found, _ = find(path, ())
    except LookupError as error:
        raise FileNotFoundError(str(error)) from error
    if len(found) > 1:
        raise ValueError(f"'{path}' holds several results, name one: {', '.join(one.source for one in found)}")
    return found[0].result


def _report(arguments: argparse.Namespace) -> int:
    page = arguments.output or (Path("report.html") if arguments.markdown is None else None)
    check_outputs({"--output": page, "--markdown": arguments.markdown}, [arguments.result])
    result = _only(arguments.result)
    if page is not None:
        result.to_html(page)
        say(f"wrote {forms.one_line(str(page))}")
    if arguments.markdown is not None:
        from lightning_sanity.report.markdown import summary

        write_whole(arguments.markdown, summary(result))
        say(f"wrote {forms.one_line(str(arguments.markdown))}")
    return 0
