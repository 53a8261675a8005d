"""What a shell completes, asked of a real one that has read the script which shtab makes of the parser."""

import shutil
import subprocess

import pytest

from lightning_sanity.cli import parser

shtab = pytest.importorskip("shtab")
ASKED = """
source "$1"; shift
call=$(complete -p lightning-sanity | sed 's/.* -F \\([^ ]*\\).*/\\1/')
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
"$call" lightning-sanity "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("completion")
    (made / "completion").write_text(shtab.complete(parser(), "bash"))
    (made / "best.ckpt").touch()
    (made / "results").mkdir()
    (made / "results" / "result.json").touch()
    return made


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("ga", {"gate"}),
        ("gate --min", {"--min-psi", "--min-trials", "--min-samples"}),
        ("gate res", {"results"}),
        ("gate results --weights b", {"best.ckpt"}),
        ("check --ckpt b", {"best.ckpt"}),
        ("check --out ", {"results"}),
        ("report results/", {"results/result.json"}),
    ],
)
def test_bash_offers_commands_options_files_and_folders(line, offered, folder):
    words = ["bash", "-c", ASKED, "bash", "completion", "lightning-sanity", *line.split(" ")]
    asked = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True)
    assert asked.stderr == ""
    assert {word.rstrip("/ ") for word in asked.stdout.split("\n")} - {""} == offered


@pytest.mark.parametrize("shell", shtab.SUPPORTED_SHELLS)
def test_the_script_of_every_shell_names_every_command_and_no_python_object(shell):
    made = shtab.complete(parser(), shell)
    assert all(name in made for name in ("gate", "check", "random-labels", "--weights"))
    assert "<function" not in made
