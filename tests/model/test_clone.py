import threading
import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities.compile import from_compiled
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from lightning_sanity import SaliencySanityCallback, parameter_randomization_test
from lightning_sanity.cli import demo
from lightning_sanity.model import CloneError
from lightning_sanity.model.clone import check_fidelity, check_liveness, clone, eager, evaluating, launder


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))

    def forward(self, x):
        return self.layers(x)


def test_clone_made_in_inference_mode_can_take_part_in_autograd():
    model = Net()
    with torch.inference_mode():
        inputs = torch.randn(3, 4)
        with torch.inference_mode(False), torch.enable_grad():
            copied = clone(model)
            value = launder(inputs).requires_grad_()
            copied(value).sum().backward()
    assert value.grad.abs().sum() > 0


def test_clone_shares_no_memory_with_its_model():
    model = Net()
    with torch.no_grad():
        for parameter in clone(model).parameters():
            parameter.zero_()
    assert all(parameter.abs().sum() > 0 for name, parameter in model.named_parameters() if name.endswith("0.weight"))


def test_clone_of_a_model_whose_compiled_forward_is_closed_over_the_original_is_live():
    model = Net().eval()
    original = model.forward
    model.forward = lambda x: original(x)  # what Lightning leaves behind after torch.compile(module)
    copied, inputs = clone(model), torch.randn(3, 4)
    check_liveness(copied, copied(inputs), lambda: copied(inputs))


def test_liveness_check_names_a_dead_copy():
    model, inputs = Net().eval(), torch.randn(3, 4)
    dead = clone(Net())
    with pytest.raises(CloneError, match="the copy is dead"):
        check_liveness(dead, model(inputs), lambda: model(inputs))


def test_a_head_of_zeros_says_nothing_of_a_copy():
    model, inputs = nn.Linear(4, 3), torch.randn(2, 4)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    check_liveness(model, model(inputs), lambda: model(inputs))


def test_liveness_check_restores_the_weights():
    copied, inputs = clone(Net()), torch.randn(3, 4)
    before = {name: p.detach().clone() for name, p in copied.named_parameters()}
    check_liveness(copied, copied(inputs), lambda: copied(inputs))
    assert all(torch.equal(p, before[name]) for name, p in copied.named_parameters())


def test_fidelity_check_refuses_another_output():
    with pytest.raises(CloneError, match="does not reproduce"):
        check_fidelity(torch.zeros(2, 3), torch.ones(2, 3), lambda: torch.ones(2, 3))


def test_a_model_that_draws_in_eval_mode_is_told_from_a_copy_that_lacks_something():
    with pytest.raises(CloneError, match=r"random in eval mode: two passes differ by up to 2\. .* forward= with"):
        check_fidelity(torch.zeros(2, 3), torch.ones(2, 3), lambda: torch.full((2, 3), 3.0))


def test_clone_names_the_attribute_that_cannot_be_copied():
    model = Net()
    model.layers.lock = threading.Lock()
    with pytest.raises(CloneError, match=r"attribute 'layers\.lock'"):
        clone(model)


def test_clone_fn_replaces_the_copying():
    model = Net()
    model.lock = threading.Lock()

    def rebuild(module):
        twin = Net()
        twin.load_state_dict(module.state_dict())
        return twin

    assert torch.equal(clone(model, rebuild).layers[0].weight, model.layers[0].weight)


def test_clone_copies_a_module_that_caches_an_activation():
    class Caching(Net):
        def forward(self, x):
            self.cached = super().forward(x)
            return self.cached

    model = Caching().eval()
    model(torch.randn(3, 4))
    assert not clone(model).cached.requires_grad


class Gathering(nn.Linear):
    """Merges a part of its weight, and keeps a copy, on its way into eval mode; parts them on its way back."""

    def __init__(self):
        super().__init__(3, 3)
        self.part, self.kept, self.merged = nn.Parameter(torch.eye(3)), {}, False

    def train(self, mode=True):
        super().train(mode)
        self.kept = {} if mode else {"weight": self.weight.detach().clone()}
        if self.merged == mode:
            self.weight.data += -self.part.data if mode else self.part.data
            self.merged = not mode
        return self


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_undoes_what_a_module_does_on_its_way_into_eval_mode(training):
    model = nn.Sequential(Gathering()).train(training)
    before, kept = model[0].weight.detach().clone(), model[0].kept
    for _ in range(2):
        with evaluating(model):
            assert not model[0].training
            assert model[0].merged
    assert torch.equal(model[0].weight, before)
    assert model[0].kept is kept
    assert model[0].merged is not training
    assert model[0].training is training


def test_evaluating_restores_every_flag():
    model = Net()
    model.layers[1].eval()
    flags = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == flags


class Block(nn.Module):
    def __init__(self, kind=""):
        super().__init__()
        self.kind, self.inner, self.head = kind, nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 3)
        self.calls, self.seen = 0, []
        if kind == "metric":
            self.accuracy = MulticlassAccuracy(3)
        if kind == "compiled submodule":
            self.inner = torch.compile(self.inner, backend="eager")
        if kind == "old weight_norm":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.head = torch.nn.utils.weight_norm(self.head)

    def forward(self, x):
        if self.kind.endswith("reentrant"):
            reentrant = self.kind == "checkpoint reentrant"
            # The data need a gradient for the reentrant kind to record one.
            x = self.head(checkpoint(self.inner, x, use_reentrant=reentrant))
        else:
            x = self.head(self.inner(x))
        if self.kind == "writing":
            self.calls += 1
            self.seen.append(x)
            self.cached = x
        if self.kind == "metric":
            self.accuracy.update(x, torch.zeros(len(x), dtype=torch.long))
        return x


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def compiled_by_lightning(model):
    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.block = model

        def forward(self, x):
            return self.block(x)

    return from_compiled(torch.compile(Module(), backend="eager"))


def with_closure_hook(model):
    outside = []
    model.head.register_forward_hook(lambda module, arguments, output: outside.append(float(output.detach().sum())))
    return model


def after_a_forward(model):
    model.train()(torch.randn(3, 4))  # leaves derived and cached tensors with a history
    return model.eval()


KINDS = {
    "compiled": ("", compiled),
    "compiled in place": ("", compiled_in_place),
    "compiled by Lightning": ("", compiled_by_lightning),
    "compiled submodule": ("compiled submodule", after_a_forward),
    "closure hook": ("", with_closure_hook),
    "caches and counters": ("writing", after_a_forward),
    "old weight_norm": ("old weight_norm", after_a_forward),
    "checkpoint reentrant": ("checkpoint reentrant", nn.Module.eval),
    "checkpoint not reentrant": ("checkpoint non-reentrant", nn.Module.eval),
    "metric": ("metric", after_a_forward),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_module_is_tested_on_a_live_copy_and_left_as_it_was(kind):
    name, prepare = KINDS[kind]
    model = prepare(Block(name).eval())
    images = torch.rand(6, 4)
    target = torch.tensor([0, 1, 2, 0, 1, 2])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    attributes = [{key: id(value) for key, value in vars(child).items()} for child in model.modules()]
    counts = [len(child.seen) for child in model.modules() if isinstance(child, Block)]
    total = [child.accuracy.tp.clone() for child in model.modules() if isinstance(child, Block) and name == "metric"]
    result = parameter_randomization_test(
        model, images, target, methods="gradient", trials=1, repeats=1, progress=False
    )
    assert result.coverage.share == 1.0
    assert float(result.curves["gradient", "spearman"].mean[-1]) < 0.95  # 1 on a dead copy
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    for child, attributes_before in zip(model.modules(), attributes, strict=True):
        now = {key: id(value) for key, value in vars(child).items() if key != "_hparams"}  # made by Lightning if asked
        assert now == attributes_before
    assert counts == [len(child.seen) for child in model.modules() if isinstance(child, Block)]
    metrics = [child for child in model.modules() if isinstance(child, MulticlassAccuracy)]
    assert all(torch.equal(before, metric.tp) for before, metric in zip(total, metrics, strict=True))


def test_a_forward_closed_over_another_object_is_detected_and_the_way_out_named():
    original = Block().eval()

    class Facade(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = original
            self.run = lambda x: original(x)

        def forward(self, x):
            return self.run(x)

    with pytest.raises(CloneError, match=r"the copy is dead.*clone_fn="):
        parameter_randomization_test(Facade(), torch.rand(4, 4), methods="gradient", progress=False)


def test_a_model_built_in_configure_model_is_tested(tmp_path):
    class Late(demo.DigitsClassifier):
        def __init__(self):
            super().__init__()
            self.classifier = None

        def configure_model(self):
            if self.classifier is None:
                self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(512, 10))

    _, validation = demo.digits()
    measured = SaliencySanityCallback("gradient", probe=4, trials=1, max_steps=1, report=False, log_images=False)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path, callbacks=[measured]
    )
    trainer.validate(Late(), DataLoader(validation, 397), verbose=False)
    assert "classifier.1" in measured.result.units[-1] or measured.result.coverage.share == 1.0


def test_checkpointed_parts_are_reentrant_again_afterwards():
    before = torch.utils.checkpoint.CheckpointFunction
    with pytest.raises(ZeroDivisionError), eager():
        1 / 0  # noqa: B018
    assert torch.utils.checkpoint.CheckpointFunction is before
