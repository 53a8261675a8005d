"""The guide names what exists. It is built, and its notebooks are run, beside the tests."""

import ast
import re
from pathlib import Path

import pytest

import lightning_sanity
from lightning_sanity import attribution

GUIDE = Path(__file__).parents[1] / "docs"
PAGES = sorted(GUIDE.rglob("*.md"))
if not PAGES:
    pytest.skip("the guide is not beside the tests", allow_module_level=True)


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(GUIDE).as_posix())
def test_every_code_block_is_python(page):
    for block in blocks(page, "python"):
        ast.parse(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(GUIDE).as_posix())
def test_what_is_imported_exists(page):
    for block in (*blocks(page, "python"), *blocks(page, r"\{code-cell\}")):
        for line in re.findall(r"^from lightning_sanity.*", block, flags=re.MULTILINE):
            exec(line, {})


def test_the_table_of_methods_names_methods():
    named = set(re.findall(r"^\| [^|]+ \| (.+?) \|", (GUIDE / "methods.md").read_text(), flags=re.MULTILINE))
    names = {name for cell in named for name in re.findall(r"`(\w+)`", cell)}
    assert names - set(attribution.available()) == set()


def test_every_file_of_the_library_that_the_guide_names_is_there():
    home = Path(lightning_sanity.__file__).parent
    named = {path for page in PAGES for path in re.findall(r"`(\w+/\w+\.py)`", page.read_text())}
    assert [path for path in sorted(named) if not (home / path).exists() and not (home.parent / path).exists()] == []


def test_every_public_name_stands_in_the_reference():
    reference = "\n".join(page.read_text() for page in (GUIDE / "api").glob("*.md"))
    missing = [
        name
        for name in lightning_sanity.__all__
        if not name.startswith("_")
        and not re.search(rf"\b{name}\b", reference)
        and name not in lightning_sanity.result.__all__ + lightning_sanity.randomization.__all__
    ]
    assert missing == []
