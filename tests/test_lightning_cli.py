import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader

from lightning_sanity import SaliencySanityCallback, demo

pytestmark = [
    # Lightning 2.6 calls jsonargparse in a way that newer ones deprecate.
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:saliency maps failed"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
]

QUIET = ["--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false"]
EXAMPLE = Path(__file__).parent.parent / "examples" / "lightning_cli.yaml"


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
def _no_arguments_of_pytest(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program"])


def run(tmp_path, *arguments):
    cli = LightningCLI(
        demo.DigitsClassifier,
        Digits,
        args=[
            "fit",
            f"--config={EXAMPLE}",
            "--trainer.max_epochs=1",
            f"--trainer.default_root_dir={tmp_path}",
            *QUIET,
            *arguments,
        ],
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
    path = f"{__name__}.inverted"
    result = run(tmp_path, "--trainer.callbacks.methods={own: " + path + "}")
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
