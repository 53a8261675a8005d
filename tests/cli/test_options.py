"""Every option of the test is listed, with its type and text, wherever a user looks for it."""

import re

import pytest
import yaml
from jsonargparse import ArgumentParser

from lightning_sanity import Criterion, SaliencySanityCallback, parameter_randomization_test
from lightning_sanity.cli import main
from lightning_sanity.cli.options import descriptions
from lightning_sanity.parameter_randomization.options import DEFAULTS, settled


def test_every_option_has_a_sentence():
    assert set(descriptions()) == set(DEFAULTS)
    assert all(len(text.split()) >= 4 and text.endswith((".", "``)")) for text in descriptions().values())


@pytest.mark.parametrize("function", [parameter_randomization_test, SaliencySanityCallback.__init__])
def test_signature_and_docstring_list_every_option(function):
    parameters = function.__signature__.parameters
    assert [name for name in DEFAULTS if name not in parameters] == []
    assert [name for name in DEFAULTS if f"    {name}: " not in function.__doc__] == []
    assert all(parameters[name].annotation is not parameters[name].empty for name in DEFAULTS)


def test_check_lists_every_option_with_its_type(capsys):
    assert main(["check", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for name, text in descriptions().items():
        assert f"--{name.replace('_', '-')}" in printed
        assert text.replace("``", "")[:40].split()[0] in printed
    assert "(integer; default: 3)" in printed


def test_check_spells_an_option_once_and_names_no_empty_default(capsys):
    assert main(["check", "--help"]) == 0
    said = capsys.readouterr().out
    assert not re.findall(r"^  (--[\w-]+) \S+, \1 ", said, flags=re.MULTILINE)
    assert "default: )" not in said


def test_the_configuration_of_a_trainer_lists_every_option(capsys):
    parser = ArgumentParser()
    parser.add_class_arguments(SaliencySanityCallback, "test")
    text = " ".join(parser.format_help().split())
    printed = yaml.safe_load(parser.dump(parser.parse_args([]), skip_unset=False))["test"]
    for name, default in DEFAULTS.items():
        assert f"--test.{name} " in text
        assert "type:" in text.split(f"--test.{name} ", 2)[-1][:2000]
        wanted = "auto" if name == "trials" else list(default) if isinstance(default, tuple) else default
        assert printed[name] == wanted


def test_an_unknown_option_is_refused_with_those_that_exist():
    with pytest.raises(
        TypeError, match=r"unexpected keyword argument 'trails'; did you mean trials\? options: .*trials"
    ):
        settled({"trails": 3}, "f()")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trials", "many"], "--trials must be an integer, not 'many'"),
        (["--controls", "maybe"], "--controls must be yes or no"),
        (["--criterion", "psi=0.5"], "names of min_psi"),
        (["--order", "sideways"], "unknown order 'sideways'"),
    ],
)
def test_check_says_what_is_wrong_with_an_option(words, message, tmp_path, capsys):
    (tmp_path / "w.pt").write_bytes(b"")
    code = main(["check", "torch.nn:Flatten", "--ckpt", str(tmp_path / "w.pt"), "--data", "a:b", *words])
    assert code == 2
    assert re.search(re.escape(message), capsys.readouterr().err)


def test_a_criterion_is_read_by_its_names():
    from lightning_sanity.cli.options import _built

    assert _built("--criterion", Criterion, "min_psi=0.7, alpha=0.01") == Criterion(min_psi=0.7, alpha=0.01)
