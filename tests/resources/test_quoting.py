"""Errors of other libraries in our messages."""

import pytest

from lightning_sanity.resources.quoting import quoted


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ValueError("of one\n  and another\tline"), "ValueError: of one and another line"),
        (KeyError("layer4"), "KeyError: 'layer4'"),
        (NotImplementedError(), "NotImplementedError"),
    ],
)
def test_an_error_is_quoted_on_one_line(error, shown):
    assert quoted(error) == shown


def test_a_long_error_is_cut_and_says_so():
    shown = quoted(RuntimeError("size " * 1000))
    assert shown.startswith("RuntimeError: size size")
    assert shown.endswith(" ...")
    assert len(shown) < 350
