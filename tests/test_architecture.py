"""The house keeps its shape: imports go one way, and foreign libraries enter by their own doors."""

import ast
import re
from pathlib import Path

import pytest

import lightning_sanity

PACKAGE = Path(lightning_sanity.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# A package imports from those before it, never from one after it.
ORDER = (
    "resources",
    "model",
    "randomization",
    "similarity",
    "attribution",
    "result",
    "explanation",
    "engine",
    "parameter_randomization",
    "data_randomization",
    "quality",
    "choice",
    "report",
    "release",
    "callback",
    "cli",
)
UPWARD = {("result/sanity_result.py", "report"), ("result/choice.py", "report")}
"""``to_html`` and ``plot`` of a result or a choice draw on request: the one arrow back up, inside functions only."""


def relative(path):
    return path.relative_to(PACKAGE).as_posix()


def module_of(path):
    parts = ("lightning_sanity", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in MODULES}


def package_of(module):
    """The package of a module; None for the doors at the top."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ORDER else None


def imports(path, *, lazy):
    """Modules of ours that a file imports, without those for type checkers only; ``lazy`` looks inside functions."""
    tree = ast.parse(path.read_text())
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree) if lazy else tree.body:
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            deeper = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {deep if deep in FILES else node.module for deep in deeper.values()}
    return found & FILES.keys()


def test_every_package_has_its_place():
    on_disk = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert on_disk == set(ORDER)
    assert {path.stem for path in PACKAGE.glob("*.py")} == {
        "__init__",
        "__main__",
        "_version",
        "pytorch_lightning",
        "testing",
    }


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_go_one_way(path):
    own = package_of(module_of(path))
    for module in imports(path, lazy=True) if own else ():
        other = package_of(module)
        if (relative(path), other) not in UPWARD:
            assert other is not None or module == "lightning_sanity._version", (
                f"{relative(path)} imports a door: {module}"
            )
            assert other is None or ORDER.index(other) <= ORDER.index(own), f"{relative(path)} imports {module}"


def test_a_gate_knows_no_test():
    for path in (PACKAGE / "release").glob("*.py"):
        assert {package_of(module) for module in imports(path, lazy=True)} <= {
            "release",
            "report",  # how a number is written, so that a summary shows the one that figures and pages show
            "result",
            "model",
            "resources",
            None,
        }


def test_a_report_knows_no_test_either():
    for path in (PACKAGE / "report").glob("*.py"):
        assert not {package_of(module) for module in imports(path, lazy=True)} & {
            "parameter_randomization",
            "data_randomization",
        }


def test_what_both_tests_need_stands_above_both():
    for path in (PACKAGE / "data_randomization").glob("*.py"):
        assert "parameter_randomization" not in {package_of(module) for module in imports(path, lazy=True)}


def test_no_file_needs_itself():
    above = {module: imports(path, lazy=False) for module, path in FILES.items()}
    done = set()
    while ready := {module for module, needs in above.items() if module not in done and needs <= done}:
        done |= ready
    assert above.keys() - done == set()


@pytest.mark.parametrize("package", ORDER)
def test_a_package_lists_its_rooms(package):
    doc = ast.get_docstring(ast.parse((PACKAGE / package / "__init__.py").read_text()))
    missing = [p.name for p in (PACKAGE / package).glob("*.py") if p.name not in doc and p.name != "__init__.py"]
    assert missing == []


def test_no_module_bears_the_name_of_a_function_of_its_package():
    for package in ORDER:
        shown = getattr(__import__(f"lightning_sanity.{package}", fromlist=["x"]), "__all__", ())
        assert set(shown).isdisjoint(p.stem for p in (PACKAGE / package).glob("*.py"))


@pytest.mark.parametrize(
    ("library", "doors"),
    [
        ("lightning", {"callback", "data_randomization", "report", "cli"}),
        ("captum", {"attribution", "quality"}),
        ("zennit", {"attribution"}),
        ("matplotlib", {"report"}),
        ("jinja2", {"report"}),
        ("rich", {"cli"}),
    ],
)
def test_foreign_libraries_enter_by_their_doors(library, doors):
    pattern = re.compile(rf"^\s*(from|import) {library}[. ]", re.MULTILINE)
    users = {path for path in MODULES if pattern.search(path.read_text().split("TYPE_CHECKING:")[0])}
    assert {relative(path) for path in users if package_of(module_of(path)) not in doors} == set()


def test_a_reader_sees_public_names_and_packages_alone():
    shown = {name for name in dir(lightning_sanity) if not name.startswith("_")}
    assert shown <= {*lightning_sanity.__all__, *ORDER, "testing", "pytorch_lightning"}
    assert shown >= {*lightning_sanity.__all__, *ORDER} - {"__version__"}


def test_the_lowest_versions_that_are_tested_are_the_declared_ones():
    def versions(path, pattern):
        found = re.findall(pattern, (PACKAGE.parent / path).read_text(), re.MULTILINE)
        return {name: re.sub(r"(\.0)+$", "", version) for name, version in found}

    tools = {"hatchling", "pytest", "pytest-xdist", "jsonschema", "hypothesis", "ruff", "mypy", "deptry"}
    tools |= {"sphinx", "furo", "myst-nb", "sphinx-copybutton", "jupytext"}  # of the guide
    declared = versions("pyproject.toml", r'"([a-z0-9-]+)(?:\[\w+\])?>=([\d.]+)"')
    tested = versions(".ci/lowest.txt", r"^([a-z0-9-]+)==([\d.]+)$")
    assert {name: version for name, version in declared.items() if name not in tools} == tested


def test_public_names_are_importable_and_complete():
    assert all(hasattr(lightning_sanity, name) for name in lightning_sanity.__all__)


def test_changelog_starts_with_the_version():
    changelog = (PACKAGE.parent / "CHANGELOG.md").read_text()
    assert re.search(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE).group(1) == lightning_sanity.__version__
