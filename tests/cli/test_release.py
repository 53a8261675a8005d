import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_results import FAILING, OPEN, PASSING, made, void

import lightning_sanity
from lightning_sanity import SanityResult
from lightning_sanity.cli import main, terminal


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A folder with a result of every kind."""
    path = tmp_path_factory.mktemp("kinds")
    made().to_json(path / "pass.json")
    made({"gradcam": PASSING, "lime": FAILING}).to_json(path / "fail.json")
    made({"gradcam": OPEN}, weights_digest="0" * 64).to_json(path / "open.json")
    void(made(), "the control 'random' passed").to_json(path / "invalid.json")
    made(probe_digest="b" * 64, weights_digest="b" * 64).to_json(path / "other_probe.json")
    (path / "damaged.json").write_text((path / "pass.json").read_text()[:-100])
    made({"gradcam": PASSING, "rise": PASSING}).to_json(path / "more.json")
    tampered = json.loads(made({"gradcam": FAILING}).to_json(path / "tampered.json").read_text())
    tampered["verdicts"]["gradcam"]["outcome"] = "PASS"
    (path / "tampered.json").write_text(json.dumps(tampered))
    (path / "foreign.json").write_text('{"name": "package"}')
    newer = json.loads((path / "pass.json").read_text()) | {"version": 4}
    (path / "newer.json").write_text(json.dumps(newer))
    (path / "policy.yaml").write_text("require: [gradcam]\nmin_trials: 20\n")
    (path / "empty").mkdir()
    return path


@pytest.fixture
def folder(kinds, tmp_path, monkeypatch):
    """A copy of it as the current folder."""
    shutil.copytree(kinds, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("gate pass.json", 0, "PASS: passed: gradcam (PSI"),
        ("gate fail.json", 1, "FAIL: lime: the map keeps too much of itself"),
        ("gate open.json", 3, "INCONCLUSIVE: gradcam: PSI"),
        ("gate invalid.json", 3, "INCONCLUSIVE: validity: the run is not valid: the control 'random' passed"),
        ("gate nothing.json", 1, "FAIL: result: there is no result at 'nothing.json': never ran is not a pass"),
        ("gate empty", 1, "FAIL: result: there is no result in 'empty': never ran is not a pass"),
        ("gate damaged.json", 2, "'damaged.json' is not JSON"),
        ("gate foreign.json", 2, "not a lightning_sanity result"),
        ("gate newer.json", 2, "result has schema version 4; this library reads up to 3: upgrade it"),
        ("gate pass.json fail.json", 1, "FAIL: lime"),
        ("gate fail.json --require gradcam", 0, "PASS"),
        ("gate pass.json --require gradcam,rise", 1, "FAIL: rise: required but not measured"),
        ("gate open.json --min-psi 0.5", 0, "PASS"),
        ("gate pass.json --policy policy.yaml", 3, "INCONCLUSIVE: trials: measured with 6 trials, the policy"),
        ("gate pass.json --policy policy.yaml --min-trials 3", 0, "PASS"),
        ("gate pass.json --policy nothing.yaml", 2, "nothing.yaml"),
        ("gate pass.json --baseline nothing.json", 2, "nothing.json"),
        ("gate pass.json --baseline open.json", 0, "PASS"),
        ("gate open.json --baseline pass.json --min-psi 0.5", 1, "FAIL: gradcam against the baseline: worse by more"),
        ("gate pass.json --baseline other_probe.json", 3, "measured on another probe"),
        ("gate pass.json --weights nothing.ckpt", 2, "there is no checkpoint file 'nothing.ckpt'"),
        ("gate pass.json --weights policy.yaml", 2, "cannot be read as a checkpoint"),
        ("gate pass.json --max-age 1s", 1, "FAIL: age: the result is"),
        ("gate pass.json --max-age soon", 2, "a span of time is a number and one of"),
        ("gate pass.json --min-psi nan", 2, "min_psi must be a number between 0 and 1"),
        ("gate pass.json --github-summary", 2, "GITHUB_STEP_SUMMARY is not set"),
        ("gate", 2, "usage: lightning-sanity gate"),
        ("gate pass.json --bogus", 2, "unrecognized arguments: --bogus (lightning-sanity gate --help lists"),
        ("compare pass.json pass.json", 0, "PASS: no method is worse by more than 0.1"),
        ("compare pass.json open.json", 1, "FAIL: gradcam: worse by more than 0.1"),
        ("compare open.json pass.json", 0, "PASS"),
        ("compare pass.json other_probe.json", 3, "INCONCLUSIVE: measured on another probe"),
        ("compare fail.json pass.json", 3, "INCONCLUSIVE: lime: the result does not hold it"),
        ("compare pass.json fail.json", 1, "FAIL: lime: new since the first result: the map keeps too much"),
        ("compare pass.json more.json", 0, "PASS: no method is worse"),
        ("compare pass.json tampered.json", 2, "'tampered.json' contradicts itself: 'verdicts.gradcam."),
        ("gate tampered.json", 2, "'tampered.json' contradicts itself: 'verdicts.gradcam.outcome' is PASS"),
        ("gate pass.json other_probe.json", 2, "the results are about 2 models"),
        ("gate pass.json other_probe.json --several-models", 0, "PASS"),
        ("compare pass.json nothing.json", 2, "nothing.json"),
        ("report damaged.json", 2, "'damaged.json' is not JSON"),
        ("report nowhere", 2, "there is no result at 'nowhere'"),
        ("check", 2, "check needs the checkpoint"),
        ("check os:getcwd --ckpt nothing.ckpt --data os:getcwd", 2, "there is no checkpoint file"),
    ],
)  # fmt: skip
def test_exit_code_and_reason(command, code, says, folder, capsys):
    assert main(command.split()) == code
    printed = capsys.readouterr()
    out = printed.err if code == 2 else printed.out
    assert says in out
    if code == 2 and not out.startswith("usage"):
        assert out.startswith("lightning-sanity: ")
        assert out.count("\n") == 1


@pytest.mark.parametrize("command", ["gate", "compare", "report", "check", "demo", "methods"])
def test_every_command_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"lightning-sanity {command}" in capsys.readouterr().out


def test_gate_writes_what_build_systems_read(folder, monkeypatch, capsys):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    (folder / "summary.md").write_text("before\n")
    assert main(["gate", "fail.json", "--junit", "out/gate.xml", "--json", "gate.json", "--github-summary"]) == 1
    suite = ElementTree.parse("out/gate.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    assert suite.find("testcase[@name='lime']/failure").get("message").startswith("the map keeps too much")
    decision = json.loads((folder / "gate.json").read_text())
    assert (decision["outcome"], decision["exit_code"]) == ("FAIL", 1)
    assert [check["name"] for check in decision["checks"]] == ["gradcam", "lime"]
    summary = (folder / "summary.md").read_text()
    assert summary.startswith("before\n### ❌ Saliency maps: FAIL")
    assert re.search(r"\| ❌ FAIL \| lime \| 0\.11 \[0\.10, 0\.12\] \| the map keeps", summary.replace("\xa0", " "))


@pytest.mark.parametrize(("result", "code"), [("pass.json", 0), ("fail.json", 1)])
def test_quiet_is_an_exit_code_and_files(result, code, folder, capsys):
    assert main(["gate", result, "-q", "--json", "decision.json"]) == code
    assert capsys.readouterr() == ("", "")
    assert json.loads((folder / "decision.json").read_text())["exit_code"] == code


def test_inconclusive_is_an_error_in_junit_and_never_a_skip(folder):
    main(["gate", "open.json", "--junit", "gate.xml"])
    suite = ElementTree.parse("gate.xml").getroot()[0]
    assert (suite.get("errors"), suite.get("skipped")) == ("1", "0")


def test_files_of_an_earlier_decision_do_not_survive_an_unreadable_result(folder):
    main(["gate", "pass.json", "--junit", "gate.xml"])
    main(["gate", "damaged.json", "--junit", "gate.xml"])
    assert not (folder / "gate.xml").exists()


OVERWRITING = {
    "the result by --json": "gate pass.json --json pass.json",
    "the checkpoint by --junit": "gate pass.json --weights best.ckpt --junit best.ckpt",
    "the baseline by --junit": "gate pass.json --baseline other_probe.json --junit ./other_probe.json",
    "the policy by the summary": "gate pass.json --policy policy.yaml --github-summary=policy.yaml",
    "a checkpoint that a policy names": "gate pass.json --policy weights.yaml --json best.ckpt",
    "a baseline that a policy names": "gate pass.json --policy weights.yaml --junit fail.json",
    "a result of a folder": "gate . --json fail.json",
    "a result by its link": "gate link.json --json pass.json",
    "a link to the result": "gate pass.json --json link.json",
    "an unreadable result": "gate damaged.json --json damaged.json",
    "one output by another": "gate pass.json --json out --junit out",
    "a page over the result": "report pass.json -o pass.json",
    "a summary over the result": "report pass.json --markdown link.json",
    "a page over a summary": "report pass.json -o out --markdown out",
    "a folder": "gate pass.json --json empty",
    "a device": "gate pass.json --junit /dev/null",
    "a pipe": "report pass.json -o pipe",
    "the output of the process": "gate pass.json --json /dev/stdout",
}


@pytest.mark.parametrize("command", OVERWRITING.values(), ids=OVERWRITING)
def test_no_output_takes_the_place_of_an_input_or_of_no_file(command, folder, capsys):
    (folder / "best.ckpt").write_bytes(b"weights")
    (folder / "weights.yaml").write_text("weights: best.ckpt\nbaseline: fail.json\n")
    (folder / "link.json").symlink_to("pass.json")
    os.mkfifo(folder / "pipe")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert main(command.split()) == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    ["gate|", "gate|pass.json|", "gate|pass.json|--weights|", "gate|pass.json|--baseline| ", "gate|x|--policy|",
     "gate|pass.json|--junit|", "gate|pass.json|--json|", "compare|pass.json|", "report|", "report|pass.json|-o|",
     "check|os:getcwd|--ckpt|x|--out|"],
)  # fmt: skip
def test_an_empty_path_is_an_unset_variable_and_wrong_usage(command, folder, capsys):
    assert main(command.split("|")) == 2
    assert "the path is empty: is a variable unset?" in capsys.readouterr().err


def test_names_from_a_file_cannot_forge_a_line_or_a_tag(folder, capsys):
    name = "x\n::error::forged \x1b[31m | <img src=x> \ud800"
    result = made({"gradcam": FAILING})
    verdicts = {name: replace(result.verdicts["gradcam"], reason=f"because {name}")}
    curves = {(name, "spearman"): result.curves["gradcam", "spearman"]}
    settings, grounds = {**result.settings, "methods": [name], "controls": []}, {name: result.grounds["gradcam"]}
    replace(result, verdicts=verdicts, curves=curves, settings=settings, grounds=grounds).to_json("forged.json")
    outputs = ["--junit", "gate.xml", "--github-summary=summary.md", "--json", "gate.json"]
    assert main(["gate", "forged.json", *outputs]) == 1
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert not any(line.startswith("::error") for line in printed.splitlines())
    ElementTree.parse("gate.xml")
    assert "<img" not in (folder / "summary.md").read_text()


def test_compare_shows_both_and_the_change(folder, capsys):
    main(["compare", "pass.json", "open.json"])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("gradcam"))
    assert row.split()[1:5] == ["1.00", "PASS", "0.65", "INCONCLUSIVE"]
    assert "-0.35 [" in row


def test_report_takes_the_newest_result_of_a_folder_as_gate_does(tmp_path):
    for step in (4, 8):
        replace(made(), step=step).to_json(tmp_path / "sanity" / f"step={step}.json")
        replace(made(), step=step).to_json(tmp_path / "sanity" / "latest.json")
    assert main(["report", str(tmp_path / "sanity"), "-o", str(tmp_path / "page.html")]) == 0
    assert "step 8" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_report_of_a_folder_with_none_or_several_results_says_so(tmp_path, capsys):
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 2
    assert "there is no result in" in capsys.readouterr().err
    for name in ("one", "two"):
        made().to_json(tmp_path / f"{name}.json")
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 2
    assert "holds several results, name one" in capsys.readouterr().err


def test_report_writes_a_page_and_a_summary(folder):
    assert main(["report", "fail.json", "-o", "out/page.html", "--markdown", "summary.md"]) == 0
    assert "<html" in (folder / "out" / "page.html").read_text()
    assert "lime" in (folder / "summary.md").read_text()


# ------------------------------------------------------------------------------------------------------- never a crash

WORDS = ["gate", "compare", "report", "methods", "check", "pass.json", "fail.json", "damaged.json", "foreign.json",
         "nothing.json", "empty", ".", "policy.yaml", "--policy", "--require", "gradcam", "--min-psi", "0.5", "nan",
         "-1", "1e999", "--min-trials", "--min-samples", "99999999999999999999", "--weights", "--max-age", "7d",
         "999999w", "--baseline", "other_probe.json", "--max-drop", "--junit", "--json", "out", "--github-summary",
         "-o", "--markdown", "--help", "--version", "--", "-", "", "--config", "--ckpt", "--data", "--methods",
         "--trials", "--seed", "--model-class", "no.such:module", "json:loads"]  # fmt: skip


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    arguments=st.lists(
        st.one_of(st.sampled_from(WORDS), st.text(st.characters(exclude_characters="/\\"), max_size=6)), max_size=7
    ),
    command=st.sampled_from(["gate", "gate", "compare", "report", "check", "methods", ""]),
)
def test_any_arguments_end_in_an_exit_code(arguments, command, folder, capsys):
    assert main([*([command] if command else []), *arguments]) in (0, 1, 2, 3)
    assert "Traceback" not in capsys.readouterr().err


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(raw=st.binary(max_size=20), cut=st.integers(0, 9000), command=st.sampled_from(["gate", "compare"]))
def test_any_file_ends_in_an_exit_code(raw, cut, command, folder, capsys):
    whole = (folder / "pass.json").read_bytes()
    (folder / "any.json").write_bytes(whole[:cut] + raw + whole[cut + len(raw) :])
    arguments = ["any.json"] if command == "gate" else ["pass.json", "any.json"]
    assert main([command, *arguments]) in (0, 1, 2, 3)
    assert "Traceback" not in capsys.readouterr().err


def test_an_interrupt_is_an_exit_code_and_not_a_traceback(folder, monkeypatch, capsys):
    def interrupted(data):
        raise KeyboardInterrupt

    monkeypatch.setattr(SanityResult, "from_dict", interrupted)
    assert main(["gate", "pass.json"]) == 2
    assert capsys.readouterr().err == "lightning-sanity: interrupted\n"


def test_an_unexpected_error_is_one_line_unless_asked(folder, monkeypatch, capsys):
    def broken(data):
        raise RuntimeError("a bug")

    monkeypatch.setattr(SanityResult, "from_dict", broken)
    assert main(["gate", "pass.json"]) == 2
    assert capsys.readouterr().err == "lightning-sanity: RuntimeError: a bug (LIGHTNING_SANITY_DEBUG=1 shows where)\n"
    monkeypatch.setenv("LIGHTNING_SANITY_DEBUG", "1")
    with pytest.raises(RuntimeError, match="a bug"):
        main(["gate", "pass.json"])


@pytest.mark.slow  # processes of their own
@pytest.mark.parametrize("ending", [">&-", "2>&- >&-", ">/dev/full"])
def test_an_output_that_takes_nothing_does_not_change_the_exit_code(ending, folder):
    command = f"{sys.executable} -m lightning_sanity gate open.json {ending}"
    package = str(Path(lightning_sanity.__file__).parent.parent)
    done = subprocess.run(
        ["bash", "-c", command], env={**os.environ, "PYTHONPATH": package}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (3, "")


@pytest.mark.slow  # a process of its own
def test_a_broken_pipe_does_not_change_the_exit_code(folder):
    script = "from lightning_sanity.cli import entry_point; input(); entry_point()"
    package = str(Path(lightning_sanity.__file__).parent.parent)
    process = subprocess.Popen(
        [sys.executable, "-c", script, "gate", "open.json"],
        env={**os.environ, "PYTHONPATH": package},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()  # before anything is printed
    complaints = process.communicate(b"go\n")[1]
    assert (process.returncode, complaints) == (3, b"")


def test_a_table_on_a_terminal_reads_no_markup(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    drawn = terminal.table(["outcome", "check"], [["PASS", "[bold]gradcam[/bold]"]])
    assert "[bold]gradcam[/bold]" in drawn
    assert "\x1b[32mPASS" in drawn
