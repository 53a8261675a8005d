import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader

from lightning_sanity import SaliencySanityCallback, SanityResult
from lightning_sanity.cli import demo, main

pytestmark = [
    # Lightning 2.6 calls jsonargparse in a way that newer ones deprecate.
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:saliency maps failed"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
]

QUIET = ["--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false"]
EXAMPLE = Path(__file__).parents[2] / "examples" / "lightning_cli.yaml"


class Digits(LightningDataModule):
    def setup(self, stage):
        self.training, self.validation = demo.digits()

    def train_dataloader(self):
        return DataLoader(self.training, 256)

    def val_dataloader(self):
        return DataLoader(self.validation, 256)


def inverted(model, inputs, target) -> torch.Tensor:
    return -inputs


@pytest.fixture(autouse=True)
def _no_arguments_of_pytest(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the example writes its checkpoint to the current folder
    monkeypatch.setattr(sys, "argv", ["program"])


def run(tmp_path, config=EXAMPLE):
    quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    cli = LightningCLI(
        demo.DigitsClassifier,
        Digits,
        args=["fit", f"--config={config}", "--trainer.max_epochs=1", f"--trainer.default_root_dir={tmp_path}", *quiet],
        save_config_callback=None,
        seed_everything_default=0,
    )
    return next(callback for callback in cli.trainer.callbacks if isinstance(callback, SaliencySanityCallback)).result


def test_the_example_configures_methods_with_parameters(tmp_path):
    result = run(tmp_path)
    assert result.settings["methods"] == ["gradient", "guided_backprop", "ig"]
    assert result.settings["granularity"] == "block"
    assert result.verdicts["ig"].psi > 0.65


def test_a_function_is_named_by_its_import_path(tmp_path):
    config = yaml.safe_load(EXAMPLE.read_text())
    config["trainer"]["callbacks"][0]["init_args"]["methods"] = {"own": f"{__name__}.inverted"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    result = run(tmp_path, tmp_path / "own.yaml")
    assert result.verdicts["own"].psi == pytest.approx(0, abs=1e-6)


def test_random_labels_are_configured_around_a_data_module(tmp_path):
    config = tmp_path / "random.yaml"
    config.write_text(
        "data:\n"
        "  class_path: lightning_sanity.RandomLabelDataModule\n"
        "  init_args:\n"
        f"    datamodule: {{class_path: {__name__}.Digits}}\n"
        "    mode: uniform\n"
        "    target_key: 1\n"
        "    splits: [train]\n"
    )
    cli = LightningCLI(
        demo.DigitsClassifier,
        args=["fit", f"--config={config}", *QUIET, "--trainer.max_epochs=1", f"--trainer.default_root_dir={tmp_path}"],
        save_config_callback=None,
        seed_everything_default=0,
    )
    assert isinstance(cli.datamodule.datamodule, Digits)
    assert 0.05 < cli.datamodule.label_agreement["train"] < 0.15


def test_the_printed_configuration_of_the_example_reads_as_itself(tmp_path, capsys):
    def printed(config):
        with pytest.raises(SystemExit):
            LightningCLI(demo.DigitsClassifier, Digits, args=["fit", f"--config={config}", "--print_config"])
        return capsys.readouterr().out

    once = printed(EXAMPLE)
    (tmp_path / "printed.yaml").write_text(once)
    assert printed(tmp_path / "printed.yaml") == once
    example, whole = (
        next(entry for entry in yaml.safe_load(text)["trainer"]["callbacks"] if "SaliencySanity" in entry["class_path"])
        for text in (EXAMPLE.read_text(), once)
    )
    assert {key: whole["init_args"][key] for key in ("probe", "granularity", "trials", "criterion", "on_fail")} == {
        key: example["init_args"][key] for key in ("probe", "granularity", "trials", "criterion", "on_fail")
    }
    assert set(whole["init_args"]["methods"]) == {"gradient", "guided_backprop", "ig"}


@pytest.mark.slow
def test_random_labels_trains_both_kinds_from_a_configuration(tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: {class_path: lightning_sanity.cli.demo.DigitsClassifier, init_args: {learning_rate: 0.002}}\n"
        f"data: {{class_path: {__name__}.Digits}}\n"
        "trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false}\n"
    )
    arguments = ["--methods", "gradient", "--models", "1", "--samples", "8", "--out", str(tmp_path / "labels")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = main(["random-labels", "--config", str(config), *arguments])
    assert code == 3  # one epoch is not enough to learn labels by heart
    result = SanityResult.from_json(tmp_path / "labels" / "result.json")
    assert result.settings["test"] == "data_randomization"
    assert result.settings["model"] == "DigitsClassifier"
    record = (tmp_path / "labels" / "true-labels-0" / "run.json").stat().st_mtime_ns
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["random-labels", "--config", str(config), *arguments]) == 3
    assert (tmp_path / "labels" / "true-labels-0" / "run.json").stat().st_mtime_ns == record  # not trained again


def test_random_labels_needs_a_configuration(capsys):
    assert main(["random-labels"]) == 2
    assert "needs --config" in capsys.readouterr().err
