"""The house keeps its shape: imports go one way, and foreign libraries enter by their own doors."""

import ast
import re
from pathlib import Path

import pytest

import lightning_sanity

PACKAGE = Path(lightning_sanity.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# Lower floors first; a module may import from its own floor or a lower one, never from a higher one.
FLOORS = (
    (
        "_rng",
        "weights",
        "ranks",
        "normalization",
        "structural",
        "support",
        "hog",
        "similarity",
        "complexity",
        "result",
        "result_file",
        "pictures",
        "budget",
        "allowance",
        "settings",
        "memory",
        "shares",
        "drift",
        "scalars",
    ),
    (
        "graph",
        "units",
        "randomization",
        "twins",
        "smoothing",
        "shadow",
        "sharded",
        "probe",
        "statistics",
        "verdict",
        "attribution",
        "explanation",
        "quality",
        "faithfulness",
        "localization",
        "convergence",
        "diagnostics",
        "tracks",
        "labels",
        "loaders",
        "memorization",
        "bootstrap",
        "label_statistics",
        "measures",
        "targets",
        "question",
        "text",
    ),
    ("random_labels",),
    ("engine", "explainer"),
    ("division", "calibration", "room"),
    ("trained_model", "comparison"),
    ("cascade",),
    ("coverage", "validity", "preparation", "provenance"),
    ("randomization_tests", "data_randomization"),
    ("multi_input", "checkpoint", "noninferiority", "policy", "released", "trainer"),
    ("gate",),
    ("report", "datamodule", "callback", "testing", "registries"),
    ("label_experiment",),
    ("pytorch_lightning", "demo", "sentences", "cli", "__main__", "__init__"),
)


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0] if len(parts) > 1 else parts[-1]


def floor_of(name):
    return next(level for level, names in enumerate(FLOORS) if name in names)


def imports(path):
    """Top-level names of the modules a file imports, without those for type checkers only or inside functions."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            base = node.module
            found += [f"{base}.{alias.name}" for alias in node.names] if base == "lightning_sanity" else [base]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    own = floor_of(name_of(path))
    for module in imports(path):
        if module.startswith("lightning_sanity."):
            imported = module.split(".")[1]
            if (PACKAGE / f"{imported}.py").exists() or (PACKAGE / imported).is_dir():
                assert floor_of(imported) <= own, f"{path.name} imports {module} from a higher floor"


@pytest.mark.parametrize(
    ("library", "doors"),
    [
        ("lightning", {"callback", "trainer", "datamodule", "label_experiment", "report", "cli", "demo"}),
        ("captum", {"attribution", "explanation", "quality"}),
        ("zennit", {"attribution"}),
        ("matplotlib", {"report"}),
        ("jinja2", {"html"}),
    ],
)
def test_foreign_libraries_enter_by_their_doors(library, doors):
    pattern = re.compile(rf"^\s*(from|import) {library}[. ]", re.MULTILINE)
    users = {path for path in MODULES if pattern.search(path.read_text().split("TYPE_CHECKING:")[0])}
    assert {path.name for path in users if not {name_of(path), path.stem} & doors} == set()


def test_the_lowest_versions_that_are_tested_are_the_declared_ones():
    def versions(path, pattern):
        found = re.findall(pattern, (PACKAGE.parent / path).read_text(), re.MULTILINE)
        return {name: re.sub(r"(\.0)+$", "", version) for name, version in found}

    tools = {"hatchling", "pytest", "pytest-xdist", "jsonschema", "hypothesis", "ruff", "mypy"}
    declared = versions("pyproject.toml", r'"([a-z-]+)(?:\[\w+\])?>=([\d.]+)"')
    tested = versions(".ci/lowest.txt", r"^([a-z-]+)==([\d.]+)$")
    assert {name: version for name, version in declared.items() if name not in tools} == tested


def test_public_names_are_importable_and_complete():
    assert all(hasattr(lightning_sanity, name) for name in lightning_sanity.__all__)


def test_changelog_starts_with_the_version():
    changelog = (PACKAGE.parent / "CHANGELOG.md").read_text()
    assert re.search(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE).group(1) == lightning_sanity.__version__
