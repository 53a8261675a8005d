"""What the guide and the README say is so. The guide is built, and its notebooks are run, beside the tests."""

import ast
import importlib
import inspect
import re
import shlex
from functools import reduce
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_sanity
from lightning_sanity import attribution, parameter_randomization_test
from lightning_sanity.cli import demo, parser
from lightning_sanity.explanation import targets
from lightning_sanity.release.policy import read_policy

GUIDE = Path(__file__).parents[1] / "docs"
PAGES = sorted(GUIDE.rglob("*.md"))
if not PAGES:
    pytest.skip("the guide is not beside the tests", allow_module_level=True)
every_page = pytest.mark.parametrize(
    "page", [*PAGES, GUIDE.parent / "README.md"], ids=lambda page: page.relative_to(GUIDE.parent).as_posix()
)


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def words(page):
    """Code within sentences and tables."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))


def imported(page):
    """The names of the library, and those of it that a page's blocks import."""
    public = (lightning_sanity, attribution)
    names = {name: getattr(module, name) for module in public for name in module.__all__}
    for block in (*blocks(page, "python"), *blocks(page, r"\{code-cell\}")):
        for line in re.findall(r"^from lightning_sanity.*", block, flags=re.MULTILINE):
            exec(line, names)
    return names


def calls(source, names):
    """The calls of the library's functions in a piece of code, each with its function."""
    nodes = list(ast.walk(ast.parse(source)))
    own = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for call in filter(lambda node: isinstance(node, ast.Call), nodes):
        first, *rest = ast.unparse(call.func).split(".") if isinstance(call.func, (ast.Name, ast.Attribute)) else [""]
        if first in names.keys() - own and callable(function := reduce(getattr, rest, names[first])):
            yield call, function


def binds(call, function):
    """Raises unless the function could be called so; a call with an ellipsis leaves something out."""
    given = {keyword.arg: ... for keyword in call.keywords if keyword.arg is not None}
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    if any(isinstance(value, ast.Constant) and value.value is ... for value in values):
        inspect.signature(function).bind_partial(**given)
    else:
        inspect.signature(function).bind(*call.args, **given)


@every_page
def test_every_code_block_is_python(page):
    for block in blocks(page, "python"):
        ast.parse(block)


@every_page
def test_what_is_imported_exists(page):
    assert imported(page)


@every_page
def test_functions_are_called_with_arguments_that_they_have(page):
    names = imported(page)
    expressions = [word for word in words(page) if re.fullmatch(r"[\w.]+\(.+\)", word)]
    for source in (*blocks(page, "python"), *expressions):
        for call, function in calls(source, names):
            binds(call, function)


@every_page
def test_an_argument_named_in_a_sentence_is_one_of_something(page):
    functions = [
        *(getattr(lightning_sanity, name) for name in lightning_sanity.__all__),
        *(getattr(attribution, name) for name in attribution.__all__),
        *(getattr(targets, name) for name in ("class_mask", "position", "box")),
    ]
    known = {"monitor", "dirpath", "return_dict"}  # of Lightning's ModelCheckpoint, and of transformers
    for function in functions:
        if inspect.isfunction(function) or (inspect.isclass(function) and inspect.isfunction(function.__init__)):
            known |= set(inspect.signature(function).parameters)
    named = {match[1] for word in words(page) if (match := re.match(r"(\w+)=(?!=)", word))}
    assert named - known == set()


@every_page
def test_commands_have_the_options_that_are_written(page):
    shell = "\n".join((*blocks(page, "bash"), *blocks(page, "yaml"))).replace("\\\n", " ")
    lines = [*re.findall(r"(?m)^.*?\blightning-sanity ([a-z][^#&|\n]*)", shell)]
    lines += [word.removeprefix("lightning-sanity ") for word in words(page) if word.startswith("lightning-sanity ")]
    for line in lines:
        if line.split()[0] in ("demo", "check", "gate", "report", "compare", "methods", "random-labels"):
            _, rest = parser().parse_known_args(shlex.split(line))
            assert [word for word in rest if word.startswith("-")] == []


def test_the_policy_is_one(tmp_path):
    policy, workflow = blocks(GUIDE / "release.md", "yaml")
    (tmp_path / "policy.yaml").write_text(policy)
    assert read_policy(tmp_path / "policy.yaml").require == ("gradcam",)
    (tmp_path / "policy.yaml").write_text(re.sub(r"# (?=baseline|max_drop)", "", policy))
    assert read_policy(tmp_path / "policy.yaml").baseline == tmp_path / "last_release.json"
    assert yaml.safe_load(workflow)["jobs"]


def test_methods_in_yaml_can_be_built():
    (block,) = blocks(GUIDE / "own.md", "yaml")
    method = yaml.safe_load(block)["methods"]["ig"]
    module, name = method["class_path"].rsplit(".", 1)
    assert callable(getattr(importlib.import_module(module), name)(**method["init_args"]))


@pytest.fixture
def run(digits_network, tmp_path, monkeypatch):
    """Runs blocks of a page in turn on a trained network of digits, with less training than printed."""
    monkeypatch.chdir(tmp_path)
    model, images, labels = digits_network
    names = {"model": model, "images": images[:24], "labels": labels[:24]}

    def these(page, *which, **more):
        names.update(more)
        for number in which:
            exec(blocks(GUIDE / page, "python")[number].replace("max_epochs=20", "max_epochs=1"), names)
        return names

    return these


@pytest.mark.filterwarnings(
    "ignore:saliency maps failed", "ignore:The number of training batches", "ignore:Trying to infer"
)
def test_the_callback_of_the_start_trains_and_reports(run, tmp_path):
    training, validation = demo.digits()
    data = L.LightningDataModule()
    data.train_dataloader = lambda: DataLoader(TensorDataset(*(t[:128] for t in training.tensors)), 64)
    data.val_dataloader = lambda: DataLoader(validation, 64)
    logged = run("start.md", 0, model=demo.DigitsClassifier(), data=data)["trainer"].callback_metrics
    assert (tmp_path / "lightning_logs/version_0/sanity/report.html").exists()
    table = re.findall(r"(?m)^\| `(sanity/[^`]+)`(?:, `(\w+)`)?", (GUIDE / "training.md").read_text())
    keys = {key for first, second in table for key in (first, f"{first.rsplit('/', 1)[0]}/{second}")}
    patterns = [key.replace("<method>", r"\w+").replace("<similarity>", "(ssim|spearman)") for key in keys]
    explained = re.compile("|".join(patterns))
    assert [key for key in logged if key.startswith("sanity/") and not explained.fullmatch(key)] == []


def test_the_call_of_the_start_passes(run):
    assert run("start.md", 1)["result"].verdicts.keys() >= {"gradient", "gradcam"}


def test_the_callbacks_of_the_training_page_fit_together(run):
    assert len(run("training.md", 0)["trainer"].callbacks) > 2


def test_methods_with_parameters_run(run):
    names = run("methods.md", 0)
    result = parameter_randomization_test(
        names["model"], names["images"][:4], methods=names["methods"], trials=1, max_steps=2, progress=False
    )
    assert "raised" not in result.summary()


class WithLayer4(nn.Module):
    """Named as the page's network is."""

    def __init__(self):
        super().__init__()
        self.layer4 = nn.Conv2d(1, 8, 3, stride=2)
        self.head = nn.Linear(8, 10)

    def forward(self, inputs):
        return self.head(torch.relu(self.layer4(inputs)).mean((2, 3)))


@pytest.mark.filterwarnings("ignore::UserWarning:captum")
@pytest.mark.parametrize(("block", "name"), [(1, "coarse"), (2, "their_gradcam")])
def test_one_layers_gradcam_of_another_library_is_a_method(run, block, name):
    if name == "their_gradcam":
        pytest.importorskip("pytorch_grad_cam")
    names = run("own.md", block, model=WithLayer4())
    result = parameter_randomization_test(
        names["model"], names["images"], methods=[names[name]], trials=1, target=names["labels"], progress=False
    )
    assert "raised" not in result.summary()


def test_a_function_is_a_method(run):
    verdicts = run("own.md", 0)["result"].verdicts
    assert verdicts["my_method"].psi == pytest.approx(verdicts["gradient"].psi, abs=1e-4)


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
