import hashlib
import json
import time
import warnings

import pytest
from made_results import FAILING, NOW, OPEN, PASSING, made

from lightning_sanity.release import Policy, gate, promote_mlflow, promote_wandb
from lightning_sanity.release.record import statement

PASS, FAIL, OPEN_ = (gate(made({"gradcam": similarity})) for similarity in (PASSING, FAILING, OPEN))


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A client of an MLflow store in files, with two versions of a model."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow = pytest.importorskip("mlflow")
        client = mlflow.MlflowClient(tracking_uri=tmp_path.as_uri(), registry_uri=tmp_path.as_uri())
        client.create_registered_model("digits")
        for _ in range(2):
            client.create_model_version("digits", source=tmp_path.as_uri())
        yield client


def aliases(client):
    return {alias: str(version) for alias, version in client.get_registered_model("digits").aliases.items()}


def test_mlflow_alias_goes_to_a_version_that_passed(registry):
    assert promote_mlflow(PASS, "digits", 2, client=registry)
    assert aliases(registry) == {"saliency-checked": "2"}


@pytest.mark.parametrize("decision", [FAIL, OPEN_], ids=["fail", "inconclusive"])
def test_mlflow_alias_stays_where_it_was_on_anything_else(registry, decision):
    promote_mlflow(PASS, "digits", 1, client=registry)
    assert not promote_mlflow(decision, "digits", 2, client=registry)
    assert aliases(registry) == {"saliency-checked": "1"}


def test_mlflow_alias_is_taken_from_a_version_that_no_longer_passes(registry):
    promote_mlflow(PASS, "digits", 1, client=registry)
    promote_mlflow(FAIL, "digits", 1, client=registry)
    assert aliases(registry) == {}


def test_mlflow_tags_say_why(registry):
    promote_mlflow(FAIL, "digits", 1, client=registry)
    tags = registry.get_model_version("digits", "1").tags
    assert tags["sanity.outcome"] == "FAIL"
    assert "below 0.65" in tags["sanity.reason"]
    assert tags["sanity.weights_digest"] == "f" * 64


def test_a_record_marks_as_its_decision_does_and_is_found_again_by_its_digest(registry):
    record = json.loads(json.dumps(statement(PASS, Policy(), now=NOW)))
    assert promote_mlflow(record, "digits", 2, client=registry)
    assert not promote_mlflow(statement(FAIL, Policy()), "digits", 1, client=registry)
    tags = registry.get_model_version("digits", "2").tags
    shortest = json.dumps(record, sort_keys=True, separators=(",", ":"))
    assert tags["sanity.record_sha256"] == hashlib.sha256(shortest.encode()).hexdigest()
    assert (tags["sanity.outcome"], tags["sanity.decided"]) == ("PASS", NOW.isoformat())
    assert aliases(registry) == {"saliency-checked": "2"}


@pytest.mark.slow  # starts a service of its own
@pytest.mark.parametrize(("decision", "marked"), [(PASS, True), (FAIL, False)], ids=["pass", "fail"])
def test_wandb_alias_is_logged_only_on_a_pass(tmp_path, monkeypatch, decision, marked):
    monkeypatch.setenv("WANDB_SILENT", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wandb = pytest.importorskip("wandb")
        with wandb.init(project="test", dir=tmp_path, mode="offline") as run:
            artifact = wandb.Artifact("digits", type="model")
            with artifact.new_file("weights.txt") as file:
                file.write("0.1")
            assert promote_wandb(decision, artifact, run=run) is marked
    record, deadline = next(tmp_path.rglob("*.wandb")), time.monotonic() + 30
    while b"outcome" not in record.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)  # the service writes at its leisure
    written = record.read_bytes()
    assert (b"saliency-checked" in written) is marked
    assert f'"outcome":"{decision.outcome.value}"'.encode() in written


class Logged:
    """An artifact of the public interface, which only a server has: what is set before it is saved."""

    def __init__(self, *aliases):
        self.aliases, self.metadata, self.saved = list(aliases), {"epoch": 3}, None

    def save(self):
        self.saved = list(self.aliases)


def test_wandb_alias_of_a_logged_artifact_comes_and_goes():
    artifact = Logged("v3")
    assert promote_wandb(PASS, artifact)
    assert artifact.saved == ["v3", "saliency-checked"]
    assert not promote_wandb(OPEN_, artifact)
    assert artifact.saved == ["v3"]
    assert artifact.metadata["epoch"] == 3
    assert artifact.metadata["sanity"]["outcome"] == "INCONCLUSIVE"


def test_a_missing_library_is_one_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(ModuleNotFoundError, match="mlflow is not installed: pip install mlflow"):
        promote_mlflow(PASS, "digits", 1)
