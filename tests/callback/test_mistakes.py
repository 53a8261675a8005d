"""Mistakes on purpose: when each is told, and whether the words name what is wrong, its value, and what to do."""

import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from made_first_runs import Small, patches, quick_trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_sanity import Criterion, Outcome, SaliencySanityCallback, SanityResult

QUICK = {
    "methods": ["gradient"],
    "probe": 8,
    "trials": 2,
    "repeats": 1,
    "controls": False,
    "log_images": False,
    "report": False,
}


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(1, 8, 8), 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"methods": "salency"}, ("attribution method 'salency'", "did you mean gradient?", "pass a function")),
        ({"methods": "Grad-CAM"}, ("'Grad-CAM'", "did you mean gradcam?")),
        ({"methods": ["gradient", "ig"]}, ("'ig'", "did you mean integrated_gradients?")),
        ({"methods": {1: "gradient"}}, ("a name, a string", "one name is 1")),
        ({"methods": {}}, ("methods as a dictionary", "it is empty")),
        ({"methods": None}, ("methods must be a name, a function, or several", "not None")),
        ({"methods": []}, ("no attribution method given", "choose from")),
        ({"methods": ["gradient", "gradient"]}, ("two methods are called 'gradient'", "a dictionary")),
        ({"similarities": ["spearmn"]}, ("similarity 'spearmn'", "did you mean spearman")),
        ({"similarities": [0.5]}, ("a similarity is a name", "0.5")),
        ({"granularity": "layers"}, ("granularity 'layers'", "did you mean layer?", "list of module names")),
        ({"granularity": []}, ("granularity must be 'layer', 'block', or a list of names, not []",)),
        ({"granularity": ["net.("]}, ("'net.(' is no regular expression", "subpattern")),
        ({"probe": 1}, ("probe must be an integer of at least 2, not 1", "16 to 64 are usual")),
        ({"probe": True}, ("probe must be a number of samples", "True or False")),
        ({"probe": "val"}, ("probe must be a number of samples, tensors", "'val'")),
        ({"probe": np.zeros((4, 1, 8, 8))}, ("probe must be", "tensors", "not a ndarray")),
        ({"probe": torch.zeros(1, 1, 8, 8)}, ("probe has 1 sample", "at least 2")),
        ({"probe": TensorDataset(torch.zeros(1, 1, 8, 8))}, ("probe has 1 sample",)),
        ({"probe": patches(batch=1)}, ("probe has 1 sample", "compared with another sample's")),
        ({"probe": Endless()}, ("a Endless has no length", "pass a loader")),
        ({"probe": (torch.zeros(4, 3), torch.zeros(5, 3))[:0]}, ("cannot tell inputs from labels", "tensors")),
        ({"repeats": 0}, ("repeats must be an integer of at least 1, not 0",)),
        ({"trials": "many"}, ("trials must be an integer of at least 1, not 'many'",)),
        ({"max_steps": 0}, ("max_steps must be an integer of at least 1, not 0",)),
        ({"norm_stats": "kept"}, ("norm_stats 'kept'", "did you mean keep?", "recalibrate")),
        ({"reinitialize": "norml"}, ("reinitialize: unknown", "'norml'", "did you mean normal?", "twin factory")),
        ({"reinitialize": 3}, ("reinitialize must be one of", "not 3")),
        ({"seed": 1.5}, ("seed must be an integer, not 1.5",)),
        ({"layer": 3}, ("layer must be the name of a module", "not 3")),
        ({"max_time": "1h"}, ("max_time must be a number above 0, not '1h'",)),
        ({"trails": 3}, ("argument 'trails'", "did you mean trials?")),
        ({"every_n_validation": 2}, ("argument 'every_n_validation'",)),
        (
            {"criterion": {"min_psi": 0.7}},
            ("criterion must be a Criterion such as Criterion(min_psi=0.7)", "{'min_psi'"),
        ),
        ({"controls": 1}, ("controls must be True or False, not 1",)),
        ({"verbose": "no"}, ("verbose must be True or False, not 'no'",)),
        ({"target": "label"}, ("target must be a class index", "'labels'", "not 'label'")),
        ({"forward": "scores"}, ("forward must be a function", "'scores'")),
        ({"on_fail": "warning"}, ("on_fail 'warning'", "did you mean warn?", "stop, raise")),
        ({"diagnostics": ["entropie"]}, ("diagnostic 'entropie'", "did you mean entropy?")),
        ({"name": 3}, ("name must be a string", "3")),
        ({"baseline": 3}, ("baseline must be the path of a result file", "3")),
    ],
)
def test_told_by_the_constructor(arguments, words):
    with pytest.raises(MisconfigurationException) as raised:
        SaliencySanityCallback(**{**QUICK, **arguments})
    for part in words:
        assert part in str(raised.value)


def test_a_wrong_criterion_is_told_by_itself():
    with pytest.raises(ValueError, match="min_psi must be a number between 0 and 1, not 65"):
        Criterion(min_psi=65)


class Untouched(pl.Callback):
    """Fails the test if a training batch is seen."""

    def on_train_batch_start(self, *_):
        pytest.fail("told only after training began")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layer": "net.9"}, ("layer 'net.9' is not a module of the model", "did you mean")),
        ({"layer": "nets.1"}, ("layer 'nets.1'", "did you mean net.1?")),
        ({"layer": nn.ReLU()}, ("the module given as layer, a ReLU, is no part of the explained", "give its name")),
        ({"granularity": ["head"]}, ("'head' matches no module", "there are net, net.0")),
        ({"granularity": ["net.1", "Net.3"]}, ("'Net.3' matches no module", "did you mean net.3?")),
        ({"baseline": "nowhere.json"}, ("`baseline` cannot be read", "nowhere.json")),
        ({"reference_checkpoint": "nowhere.ckpt"}, ("`reference_checkpoint` cannot be read", "nowhere.ckpt")),
    ],
)
@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_told_at_the_start(tmp_path, stage, arguments, words):
    run = quick_trainer(tmp_path, SaliencySanityCallback(**{**QUICK, **arguments}), Untouched())
    with pytest.raises(MisconfigurationException) as raised:
        getattr(run, stage)(Small(), *[patches()] * (2 if stage == "fit" else 1))
    for part in words:
        assert part in str(raised.value)


def test_a_monitor_of_values_that_get_old_is_told_at_the_start(tmp_path):
    measured = SaliencySanityCallback(**QUICK, every_n_validations=2)
    run = quick_trainer(tmp_path, measured, EarlyStopping("sanity/passed"), Untouched())
    with pytest.raises(MisconfigurationException, match="Use every_n_validations=1"):
        run.fit(Small(), patches(), patches())


def keeping(network):
    def method(model, inputs, target):
        explained = inputs.clone().requires_grad_()
        return torch.autograd.grad(network(explained).gather(1, target[:, None]).sum(), explained)[0]

    return method


def watching(network):
    """Waits for what a layer gives, but of another model than the one it is given."""

    def method(model, inputs, target):
        seen = []
        handle = network.net[1].register_forward_hook(lambda *call: seen.append(call[-1]))
        model(inputs)
        handle.remove()
        return (seen[0] if seen else None).abs()

    return method


def gradient(model, inputs, target):
    return keeping(model)(model, inputs, target)


class Hard(Small):
    """A threshold in the middle."""

    def forward(self, images):
        return self.net[3]((self.net[:3](images) > 0).float())


class Whole(nn.Module):
    def forward(self, values):
        return (values > 0).long()


class Steps(Small):
    def __init__(self):
        super().__init__()
        self.net[2] = Whole()

    def forward(self, images):
        return self.net[3](self.net[:3](images).float())


class Frozen(Small):
    def forward(self, images):
        with torch.no_grad():
            features = self.net[:3](images)
        return self.net[3](features)


class Rows(Small):
    """Returns three rows of scores per sample."""

    def forward(self, images):
        return self.net(images)[:, None].expand(-1, 3, -1)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


class OneClass(Small):
    """Not trained: the same class for all."""

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.net[3].bias[2] += 100

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-6)


class Deaf(Small):
    """Not trained: it gives the same scores to all."""

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.net[3].weight.zero_()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-9)


@pytest.mark.parametrize(
    ("model", "arguments", "words"),
    [
        (Hard, {}, ("'gradient'", "no gradient", "hard step")),
        (Steps, {}, ("No gradient reaches the input through 'net.2'", "hard step: it gives int64", "occlusion")),
        (Frozen, {}, ("through 'net.", "switched off (torch.no_grad)", "occlusion")),
        (Small, {"methods": {"mine": lambda m, x, t: None}}, ("'mine' returned NoneType", "is its return missing?")),
        (Small, {"methods": {"mine": lambda m, x, t: {"map": x}}}, ("'mine' returned dict", "return the entry")),
        (Small, {"methods": {"mine": lambda m, x, t: x.repeat(1, 1, 1, 2)}}, ("returned shape (8, 1, 8, 16)",)),
        (Small, {"methods": {"mine": lambda m, x, t: x[0]}}, ("shape (1, 8, 8)", "the batch dimension is missing")),
        (Small, {"methods": {"mine": lambda m, x, t: (1 * x.requires_grad_()).grad.abs()}}, ("unless x is a leaf",)),
        (Small, {"methods": {"mine": watching(Small())}}, ("take the layer from the model that it is given",)),
        (
            Small,
            {"methods": {"mine": keeping(Small())}},
            ("mine", "the same whatever the weights are", "first argument"),
        ),
        (OneClass, {}, ("predicts class 2 for all 8 samples", "is it trained yet?", "target='labels'")),
        (Deaf, {"target": 1}, ("hardly reacts to its input", "8 samples", "Train it longer")),
        (Rows, {}, ("could not be run", "(8, 3, 4)", "target=")),
        (
            Small,
            {"probe": torch.rand(8, 1, 9, 9)},
            ("The probe is float32 (8, 1, 9, 9)", "batch float32 (16, 1, 8, 8)"),
        ),
        (Small, {"probe": torch.ones(8, 1, 8, 8).byte()}, ("The probe is uint8", "batch float32", "float() / 255")),
        (Small, {"target": 7}, ("target 7 is out of range", "4 classes, 0 to 3")),
        (Small, {"similarities": ["ssim"], "probe": torch.rand(8, 64)}, ("'ssim' means nothing here",)),
        (Small, {"methods": ["gradcam"]}, ("gradcam", "not applicable", "no spatial feature map")),
        (Small, {"methods": ["guided_backprop"], "trials": 1}, ("one trial is not evidence", "trials=5")),
    ],
)
def test_told_by_the_first_validation_once(tmp_path, model, arguments, words):
    torch.manual_seed(3)
    measured = SaliencySanityCallback(**{**QUICK, **arguments})
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        quick_trainer(tmp_path, measured, limit_train_batches=2).fit(model(), patches(), patches())
    said = [str(one.message) for one in found if "randomization test" in str(one.message)]
    assert len(said) == 1  # and not again at the second
    assert "step 2" in said[0] or "could not be run" in said[0]
    for part in words:
        assert part in said[0]


@pytest.mark.parametrize(
    ("model", "arguments", "words"),
    [
        (Rows, {}, ("(8, 3, 4)", "target=")),
        (Small, {"probe": torch.rand(8, 1, 9, 9)}, ("float32 (8, 1, 9, 9)", "batch float32 (16, 1, 8, 8)")),
        (Small, {"target": 7}, ("target 7 is out of range",)),
        (Small, {"similarities": ["ssim"], "probe": torch.rand(8, 64)}, ("'ssim' means nothing here",)),
    ],
)
def test_told_by_the_dry_validation_before_training(tmp_path, model, arguments, words):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")

        class Start(pl.Callback):
            told = ()

            def on_train_start(self, *_):
                self.told = [str(one.message) for one in found if "cannot be run as things are" in str(one.message)]

        start = Start()
        measured = SaliencySanityCallback(**{**QUICK, **arguments})
        run = quick_trainer(tmp_path, measured, start, max_epochs=1, limit_train_batches=1, num_sanity_val_steps=1)
        run.fit(model(), patches(), patches())
    assert len(start.told) == 1
    for part in words:
        assert part in start.told[0]
    assert not [one for one in found if "could not be run" in str(one.message)]  # the same is not said again


def test_the_dry_validation_says_nothing_of_what_training_may_mend(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", ".*randomization test cannot")
        measured = SaliencySanityCallback(**QUICK)
        run = quick_trainer(tmp_path, measured, max_epochs=1, limit_train_batches=1, num_sanity_val_steps=1)
        run.fit(OneClass(), patches(), patches())


class TwoOutputs(Small):
    """Only when it is trained do the labels tell which output holds the scores."""

    def __init__(self):
        super().__init__()
        self.other = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

    def forward(self, images):
        return {"here": self.net(images), "there": self.other(images)}

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0])["here"], batch[1])


def test_the_dry_validation_waits_for_what_training_tells(tmp_path):
    measured = SaliencySanityCallback(**QUICK)
    run = quick_trainer(tmp_path, measured, max_epochs=8, check_val_every_n_epoch=8, num_sanity_val_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", ".*randomization test (cannot|could not)")
        run.fit(TwoOutputs(), patches(), patches())
    assert measured.result is not None


def test_the_dry_look_leaves_no_trace(tmp_path):
    found = []
    for callbacks in ([], [SaliencySanityCallback(**QUICK)]):
        pl.seed_everything(0, verbose=False)
        model = Small()
        run = quick_trainer(tmp_path, *callbacks, num_sanity_val_steps=2, max_epochs=1)
        run.fit(model, DataLoader(patches().dataset, 16, shuffle=True), patches())
        found.append([*model.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(
    "method",
    [
        lambda m, x, t: gradient(m, x, t).numpy(),
        lambda m, x, t: list(gradient(m, x, t)),
        lambda m, x, t: [one.numpy() for one in gradient(m, x, t)],
        lambda m, x, t: (gradient(m, x, t),),
        lambda m, x, t: (1e6 * gradient(m, x, t)).long(),
    ],
    ids=["array", "list", "list of arrays", "tuple of one", "integers"],
)
def test_what_can_be_converted_is(tmp_path, method):
    measured = SaliencySanityCallback(**{**QUICK, "methods": {"mine": method, "plain": gradient}, "target": "labels"})
    quick_trainer(tmp_path, measured).validate(Small(), patches(), verbose=False)
    assert measured.result.verdicts["mine"].psi == pytest.approx(measured.result.verdicts["plain"].psi, abs=1e-3)


def test_the_gradient_of_every_tutorial_is_the_gradient(tmp_path):
    def tutorial(model, inputs, target):
        inputs.requires_grad_()
        model(inputs).gather(1, target[:, None]).sum().backward()
        return inputs.grad

    def painting(model, inputs, target):
        inputs.zero_()
        return torch.rand(inputs.shape)

    methods = {"painting": painting, "tutorial": tutorial, "plain": gradient}
    measured = SaliencySanityCallback(**{**QUICK, "methods": methods, "target": "labels"})
    quick_trainer(tmp_path, measured).validate(Small(), patches(), verbose=False)
    assert measured.result.verdicts["tutorial"].psi == pytest.approx(measured.result.verdicts["plain"].psi)


def test_a_layer_can_be_given_itself(tmp_path):
    class Convolutional(Small):
        def __init__(self):
            super().__init__()
            layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()]
            self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 4))

    model = Convolutional()
    results = []
    for layer in (model.net[1], "net.1"):
        measured = SaliencySanityCallback(**{**QUICK, "methods": ["gradcam"], "layer": layer})
        quick_trainer(tmp_path, measured).validate(model, patches(), verbose=False)
        results.append(measured.result)
    assert results[0].verdicts["gradcam"] == results[1].verdicts["gradcam"]


@pytest.mark.parametrize("model", [OneClass, Deaf])
def test_nothing_is_explained_of_a_model_that_is_not_trained_yet(tmp_path, model):
    calls = []
    methods = {"mine": lambda model, inputs, target: calls.append(1) or inputs, "gradient": "gradient"}
    measured = SaliencySanityCallback(**{**QUICK, "methods": methods, "controls": True, "report": True})
    quick_trainer(tmp_path, measured).validate(model(), patches(), verbose=False)
    assert calls == []
    read = SanityResult.from_json(tmp_path / "sanity" / "latest.json")
    assert not read.valid
    assert {verdict.outcome for verdict in read.verdicts.values()} == {Outcome.INCONCLUSIVE}
    assert read.coverage.share == 1.0
    assert (tmp_path / "sanity" / "report.html").exists()


def test_labels_as_target_explain_what_is_not_predicted_yet(tmp_path):
    measured = SaliencySanityCallback(**QUICK, target="labels")
    quick_trainer(tmp_path, measured).validate(OneClass(), patches(), verbose=False)
    assert measured.result.valid
    assert ("gradient", "spearman") in measured.result.curves


def test_labels_as_target_need_labels(tmp_path):
    measured = SaliencySanityCallback(**{**QUICK, "probe": torch.rand(8, 1, 8, 8)}, target="labels")
    with pytest.warns(UserWarning, match="target='labels' needs one class index per sample"):
        quick_trainer(tmp_path, measured).validate(Small(), patches(), verbose=False)


@pytest.mark.parametrize("kind", ["integer multi-hot", "float multi-hot", "labels of tokens"])
def test_several_labels_of_a_sample_do_not_stop_the_probe(tmp_path, kind):
    class Many(Small):
        def training_step(self, batch, batch_idx):
            return nn.functional.binary_cross_entropy_with_logits(self(batch[0]), batch[1][:, :4].float())

    images = patches().dataset.tensors[0]
    labels = torch.randint(0, 2, (64, 9 if kind == "labels of tokens" else 4))
    data = DataLoader(TensorDataset(images, labels.float() if kind == "float multi-hot" else labels), 16)
    measured = SaliencySanityCallback(**QUICK, target=1)
    quick_trainer(tmp_path, measured).validate(Many(), data, verbose=False)
    assert measured.unmeasured is None
    assert len(measured.result.probe_ids) == 8
