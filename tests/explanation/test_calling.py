"""What is said where a model cannot be called as it is: our way out first, which then works."""

import pytest
import torch
from torch import nn

from lightning_sanity import parameter_randomization_test
from lightning_sanity.explanation import targets
from lightning_sanity.explanation.tokens import token_scores
from lightning_sanity.model import CloneError

FEW = {"methods": "gradient", "trials": 2, "repeats": 1, "controls": False, "pictures": False, "progress": False}


class Strict(nn.Module):
    """Wants a mask, and says so in the words of a library, over several lines."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x, mask=None):
        if mask is None:
            raise RuntimeError("mask is required\n\nSee https://example.org\n" + "trace " * 400)
        return {"head": self.layer(x * mask), "length": len(x)}


class Locked(nn.Linear):
    def __deepcopy__(self, memo):
        raise TypeError("cannot pickle\n'_thread.lock' object")


def masked(model, x):
    return model(x, torch.ones_like(x))["head"]


def rows():
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def test_a_model_that_wants_more_is_told_of_forward_first():
    model = Strict().eval()
    with pytest.raises(ValueError, match="Strict cannot be explained") as raised:
        parameter_randomization_test(model, rows(), torch.arange(4) % 3, **FEW)
    said = str(raised.value)
    assert said.index("Pass forward=") < said.index("RuntimeError: mask is required See")
    assert "\n" not in said
    assert len(said) < 600
    found = parameter_randomization_test(model, rows(), torch.arange(4) % 3, forward=masked, **FEW)
    assert found.curves["gradient", "spearman"].values.isfinite().any()


def test_the_choice_of_a_target_says_the_same():
    with pytest.raises(ValueError, match=r"Pass forward=.* It raised RuntimeError: mask is required"):
        parameter_randomization_test(Strict().eval(), rows(), targets.position(-1), **FEW)


def test_scores_of_tokens_say_the_same():
    with pytest.raises(ValueError, match=r"Pass forward=.* It raised RuntimeError: mask is required"):
        token_scores(Strict().eval(), torch.randint(3, (4, 6)))


def head(outputs):
    return outputs["scores"][:, 0]


def test_a_target_that_the_outputs_do_not_hold_is_told_what_they_hold():
    def run(model, x):
        return model(x, torch.ones_like(x))

    model = Strict().eval()
    with pytest.raises(ValueError, match=r"target 'head' cannot be taken") as raised:
        parameter_randomization_test(model, rows(), head, forward=run, **FEW)
    said = str(raised.value)
    assert "dict with 'head', 'length'" in said
    assert said.index("pass a function") < said.index("KeyError: 'scores'")
    assert "forward=" not in said  # the model itself can be called
    found = parameter_randomization_test(model, rows(), lambda out: out["head"][:, 0], forward=run, **FEW)
    assert found.curves["gradient", "spearman"].values.isfinite().any()


def test_a_target_of_another_shape_is_told_so_and_nothing_of_the_call():
    with pytest.raises(ValueError, match=r"must return one floating-point number per sample") as raised:
        parameter_randomization_test(nn.Linear(6, 3).eval(), rows(), lambda out: out, **FEW)
    assert "forward=" not in str(raised.value)


def test_a_model_that_cannot_be_copied_is_told_of_clone_fn_first():
    model = nn.Sequential(Locked(6, 3)).eval()
    with pytest.raises(CloneError, match="cannot copy") as raised:
        parameter_randomization_test(model, rows(), torch.arange(4) % 3, **FEW)
    said = str(raised.value)
    assert said.index("clone_fn=") < said.index("TypeError: cannot pickle '_thread.lock' object")

    def copied(module):
        made = nn.Sequential(nn.Linear(6, 3))
        made.load_state_dict(module.state_dict())
        return made

    found = parameter_randomization_test(model, rows(), torch.arange(4) % 3, clone_fn=copied, **FEW)
    assert found.curves["gradient", "spearman"].values.isfinite().any()


def test_a_method_without_a_gradient_is_told_what_to_use_first():
    class Hard(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            return self.layer(x.detach())

    few = {**FEW, "methods": ["gradient", "occlusion"]}
    verdicts = parameter_randomization_test(Hard().eval(), rows(), torch.arange(4) % 3, **few).verdicts
    said = verdicts["gradient"].reason
    assert "occlusion" in said
    assert "RuntimeError" not in said or said.index("occlusion") < said.index("RuntimeError")
    assert verdicts["occlusion"].psi == verdicts["occlusion"].psi  # the way out works
