"""Real results show what they say: judged anew they come out as they were judged, and nothing in them contradicts."""

import json
from dataclasses import replace

import pytest
import torch
from made_results import FAILING, OPEN, PASSING, made, void
from torch import nn

from lightning_sanity import Criterion, Outcome, SanityResult, parameter_randomization_test
from lightning_sanity.data_randomization import Memorization, data_randomization_test
from lightning_sanity.parameter_randomization.multi_input import multi_input_randomization_test
from lightning_sanity.release import gate
from lightning_sanity.result.evidence import contradictions, judged_anew, not_recomputable


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3)).eval()


class Pair(nn.Module):
    """Two inputs."""

    def __init__(self):
        super().__init__()
        self.one, self.two = network(0), network(1)

    def forward(self, one, two):
        return self.one(one) + self.two(two)


class Constant(nn.Module):
    """Its output hardly hangs on its parameters."""

    def __init__(self):
        super().__init__()
        self.net = network(0)

    def forward(self, x):
        return 1e3 * x.flatten(1)[:, :3] + self.net(x)


def broken(model, inputs, target):
    raise ValueError("this method is broken")


IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
QUICK = {"trials": 2, "repeats": 1, "progress": False}
MANY = Memorization((1.0,) * 3, (1.0,) * 3, (0.3,) * 3, test_samples=100, chance=0.33)

MADE = {
    "a cascade": lambda: parameter_randomization_test(network(0), IMAGES, methods=["gradient", "smoothgrad"], **QUICK),
    "independent": lambda: parameter_randomization_test(network(0), IMAGES, order="independent", **QUICK),
    "without controls": lambda: parameter_randomization_test(network(0), IMAGES, controls=False, **QUICK),
    "one trial": lambda: parameter_randomization_test(network(0), IMAGES, **{**QUICK, "trials": 1}),
    "a method that is broken": lambda: parameter_randomization_test(
        network(0), IMAGES, methods={"mine": broken, "gradient": "gradient"}, **QUICK
    ),
    "a method that does not apply": lambda: parameter_randomization_test(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), IMAGES, methods=["gradcam", "gradient"], **QUICK
    ),
    "nothing changed": lambda: parameter_randomization_test(Constant(), IMAGES, methods=["gradient"], **QUICK),
    "16 bit": lambda: parameter_randomization_test(network(0).bfloat16(), IMAGES.bfloat16(), **QUICK),
    "two inputs": lambda: multi_input_randomization_test(
        Pair(), (IMAGES, IMAGES.flip(0)), methods=["gradient", "input_x_gradient"], **QUICK
    ),
    "labels": lambda: data_randomization_test(network(0), network(1), IMAGES, methods=["gradient"], repeats=1),
    "labels, learned": lambda: data_randomization_test(
        [network(k) for k in range(3)], [network(k) for k in range(3, 6)], IMAGES, methods=["gradient"], repeats=1,
        memorization=MANY,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_a_real_result_is_judged_anew_as_it_was_judged(name):
    result = SanityResult.from_dict(json.loads(json.dumps(MADE[name]().to_dict())))
    assert list(contradictions(result)) == []
    anew = judged_anew(result)
    assert anew.keys() == result.verdicts.keys()
    if result.valid:
        for method, verdict in anew.items():
            assert verdict.outcome is result.verdicts[method].outcome
            assert verdict.psi_of.keys() == result.verdicts[method].psi_of.keys()
    assert not any(words.startswith("the verdict") for words in not_recomputable(result))
    assert gate(result).exit_code != 0 or result.passed


def test_one_input_of_several_may_void_the_run():
    both = MADE["two inputs"]()
    one = {name: verdict for name, verdict in both.verdicts.items() if name.endswith("[0]")}
    void_one = {name: replace(verdict, outcome=Outcome.INCONCLUSIVE) for name, verdict in one.items() if verdict.gated}
    result = replace(both, verdicts={**both.verdicts, **void_one}, valid=False, validity="0: a control came out wrong")
    assert list(contradictions(result)) == []
    assert gate(result).exit_code == 3


@pytest.mark.parametrize("similarity", [PASSING, OPEN, FAILING])
@pytest.mark.parametrize("criterion", [Criterion(), Criterion(min_psi=0.3), Criterion(min_separation=0.7)], ids=str)
def test_a_made_result_does_not_contradict_itself(similarity, criterion):
    result = made({"gradcam": similarity, "lime": 1 - similarity}, criterion=criterion)
    for each in (result, void(result, "a control came out wrong")):
        assert list(contradictions(each)) == []


def test_another_criterion_judges_the_same_numbers_otherwise():
    result = made({"gradcam": OPEN})
    found = [judged_anew(result, Criterion(min_psi=bar))["gradcam"].outcome.value for bar in (0.5, 0.65, 0.8)]
    assert found == ["PASS", "INCONCLUSIVE", "FAIL"]


def test_numbers_of_another_version_are_not_compared_and_never_better_than_they_were():
    old = made({"gradcam": FAILING}, environment={"lightning-sanity": "0.0.9"})
    praised = replace(old, verdicts={**old.verdicts, "gradcam": made().verdicts["gradcam"]})
    assert list(contradictions(praised)) == []
    assert gate(praised).exit_code == 1
    blamed = replace(made(environment={}), verdicts={**made().verdicts, "gradcam": old.verdicts["gradcam"]})
    assert gate(blamed).exit_code == 1
    assert "the stored verdicts, of another version of the library" in gate(blamed).trusted
