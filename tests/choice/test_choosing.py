"""The front door: which method to show, on real digits."""

import time
from dataclasses import replace

import pytest
import torch

from lightning_sanity import (
    Budget,
    Outcome,
    SaliencySanityCallback,
    attribution,
    choose_methods,
    parameter_randomization_test,
)
from lightning_sanity.attribution import input_plus_gradient
from lightning_sanity.choice.ranking import literature, sentence, standing_of
from lightning_sanity.result.choice import Choice, Standing
from tests.made_choices import CANDIDATES, answer, digits, fitted, network, probe, trained


def test_what_is_recommended_passed_and_beats_both_baselines():
    choice = answer()
    row = choice[choice.recommended]
    assert row.standing is Standing.RECOMMENDED
    assert row.verdict.outcome is Outcome.PASS
    assert any(score.beats_baselines for score in row.scores.values())


def test_every_candidate_has_one_row_with_a_reason():
    choice = answer()
    assert {row.method for row in choice} >= set(CANDIDATES)
    assert len({row.method for row in choice}) == len(choice.table)
    assert all(row.reason for row in choice)


def test_what_the_test_refuses_is_never_recommended():
    choice = answer()
    failed = {row.method for row in choice if row.verdict is not None and row.verdict.outcome is Outcome.FAIL}
    assert failed >= {"input_x_gradient", "guided_backprop"}
    assert failed.isdisjoint(choice.recommended_set)


def test_what_cannot_be_run_stands_under_its_reason():
    row = answer()["cam"]
    assert row.standing is Standing.INAPPLICABLE
    assert "global average pooling" in row.reason


def test_verdicts_are_those_of_the_test_itself():
    """Methods that ran all trials, and those that an early look settled, come out as in the whole test."""
    images, labels = probe()
    names = [row.method for row in answer() if row.verdict is not None]
    given = {"trials": 10, "max_steps": 8, "labels": labels, "pictures": False, "progress": False}
    whole = parameter_randomization_test(trained(), images, methods=names, **given)
    assert {name: answer()[name].verdict.outcome for name in names} == {
        name: whole.verdicts[name].outcome for name in names
    }


def test_the_same_seed_gives_the_same_answer_bit_for_bit():
    images, labels = probe(12)
    given = {"candidates": ["gradient", "gradcam"], "labels": labels, "profile": False, "progress": False, "trials": 3}
    one, two = (choose_methods(trained(), images, **given).to_dict() for _ in range(2))
    timed = ("seconds", "created", "environment")
    assert {k: v for k, v in one.items() if k not in timed} == {k: v for k, v in two.items() if k not in timed}


def test_the_model_and_the_streams_are_left_alone():
    images, labels = probe(12)
    model = trained().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    try:
        choose_methods(model, images, candidates=["gradient"], labels=labels, profile=False, progress=False, trials=3)
        assert torch.equal(torch.rand(3), expected)
        assert model.training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    finally:
        model.eval()


def test_an_untrained_network_gets_no_recommendation_before_any_method_runs():
    images, labels = probe()

    def never(model, inputs, target):
        raise AssertionError("no method may run")

    for told in ({"labels": labels}, {}):
        choice = choose_methods(network(3), images, candidates={"never": never}, progress=False, **told)
        assert choice.recommended is None
        assert choice["never"].reason == "nothing to explain"


def test_a_network_of_permuted_labels_is_at_chance():
    images, labels = digits()
    shuffled = labels[:1400][torch.randperm(1400, generator=torch.Generator().manual_seed(1))]
    model = fitted(network(), images[:1400], shuffled, steps=60)
    unseen, truth = probe(48)
    choice = choose_methods(model, unseen, truth, candidates=["gradient"], labels=truth, progress=False)
    assert choice.recommended is None
    assert "of 48 labels" in choice.reason


def test_a_method_of_ones_own_may_be_recommended():
    """The gradient's magnitude under another name does as well as the gradient."""

    def mine(model, inputs, target):
        value = inputs.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(value).gather(1, target[:, None]).sum(), value)
        return gradient.abs()

    images, labels = probe()
    given = {"labels": labels, "profile": False, "progress": False}
    choice = choose_methods(trained(), images, candidates={"mine": mine, "copy": lambda m, x, t: x}, **given)
    assert choice["mine"].scores["fidelity"].value == pytest.approx(answer()["gradient"].scores["fidelity"].value)
    assert choice["copy"].verdict.outcome is Outcome.FAIL


def test_a_method_that_copies_the_input_on_one_class_is_found_by_groups():
    images, labels = digits()
    few = torch.cat([torch.where(labels[1400:] == each)[0][:4] + 1400 for each in range(10)])
    rare = images[few][labels[few] == 3]

    def planted(model, inputs, target):
        value = inputs.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(value).gather(1, target[:, None]).sum(), value)
        known = torch.stack([(rare == one).flatten(1).all(1).any() for one in inputs])
        return torch.where(known[:, None, None, None], inputs, gradient)

    given = {"labels": labels[few], "profile": False, "progress": False, "quality": "fidelity"}
    choice = choose_methods(
        trained(), images[few], candidates={"planted": planted, "gradient": "gradient"}, groups=labels[few], **given
    )
    row = choice["planted"]
    assert row.verdict.passed
    assert row.standing is Standing.FAILED
    assert "group '3'" in row.reason
    assert [group.name for group in choice.groups if "planted" in group.keeps] == ["3"]
    assert any("planted" in warning for warning in choice.warnings)
    assert choice.recommended != "planted"


def test_a_budget_in_explanations_is_kept_and_names_what_it_left():
    images, labels = probe(12)
    budget = Budget(explanations=12 * 40)
    given = {"candidates": ["gradient", "gradcam", "input_x_gradient"], "labels": labels, "trials": 3}
    choice = choose_methods(trained(), images, budget=budget, profile=False, progress=False, **given)
    left = [row.method for row in choice if row.standing is Standing.UNMEASURED]
    assert left
    assert choice.spent["explanations"] <= 1.1 * 12 * 40


def test_too_few_samples_are_said():
    images, labels = probe(6)
    given = {"candidates": ["gradient"], "labels": labels, "profile": False, "progress": False, "trials": 3}
    assert "6 samples decide little" in choose_methods(trained(), images, **given).reason


def test_masks_add_a_column_of_what_is_known():
    images, labels = probe(12)
    given = {"candidates": ["gradient"], "labels": labels, "profile": False, "progress": False, "trials": 3}
    choice = choose_methods(trained(), images, masks=images[:, 0] > 0.3, **given)
    assert 0 <= choice["gradient"].scores["localization"].value <= 1


def test_the_answer_is_a_method_for_the_callback():
    SaliencySanityCallback(methods=answer().recommended)
    assert attribution.resolve(answer().recommended).name == answer().recommended


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"quality": "fidelty"}, "did you mean fidelity"),
        ({"quality": "localization"}, "needs masks="),
        ({"order": "full"}, "must be 'cascading'"),
        ({"controls": False}, "cannot show that it worked"),
        ({"budget": -1}, "must be a positive number"),
        ({"candidates": "gradcm"}, "did you mean"),
        ({"groups": [1, 2]}, "groups must say one for each"),
        ({"trials": 1}, "trials"),
    ],
)
def test_wrong_arguments_say_what_would_be_right(given, said):
    images, _ = probe(12)
    with pytest.raises(ValueError, match=said):
        choose_methods(trained(), images, progress=False, **{"candidates": ["gradient"], **given})


def test_a_planted_copy_with_a_little_gradient_is_refused():
    images, labels = probe()
    given = {"labels": labels, "profile": False, "progress": False}
    planted = {"planted": input_plus_gradient(0.1), "gradient": "gradient"}
    choice = choose_methods(trained(), images, candidates=planted, **given)
    assert choice["planted"].standing is Standing.FAILED


def test_settings_are_tried_beside_the_default_and_pass_the_same_test():
    images, labels = probe(16)
    given = {"candidates": ["smoothgrad"], "labels": labels, "profile": False, "progress": False, "trials": 4}
    choice = choose_methods(trained(), images, tune=True, max_steps=4, quality="deletion", **given)
    (tuned,) = choice.tuned
    tried = [row.method for row in choice if row.method != "smoothgrad"]
    assert tried == ["smoothgrad(noise=0.05)", "smoothgrad(noise=0.3)"]
    assert all(choice[name].verdict is not None for name in tried)
    assert tuned.chosen in ("smoothgrad", *tried)
    assert {*choice.recommended_set} <= {"smoothgrad", tuned.kept}
    assert (tuned.kept != "smoothgrad") == (tuned.gain[1] > 0)
    assert Choice.from_dict(choice.to_dict()).tuned == choice.tuned


def test_a_budget_in_seconds_tests_the_cheapest_and_names_the_rest():
    """A method that takes long after a cheap one: the cheap one is the answer, and the time is kept."""
    images, labels = probe(12)

    def slow(model, inputs, target):
        time.sleep(0.1)
        return inputs

    given = {"labels": labels, "profile": False, "progress": False, "quality": "deletion"}
    began = time.perf_counter()
    choice = choose_methods(trained(), images, candidates={"slow": slow, "gradient": "gradient"}, budget=8, **given)
    assert time.perf_counter() - began < 9
    assert choice["gradient"].verdict.passed
    assert choice["slow"].standing in (Standing.FAILED, Standing.UNMEASURED)


def test_dearer_methods_are_not_even_tried_while_cheaper_ones_wait():
    images, labels = probe(12)
    given = {"candidates": ["gradient", "gradcam", "rise"], "labels": labels, "trials": 3, "progress": False}
    choice = choose_methods(trained(), images, budget=Budget(explanations=1), **given)
    assert choice["rise"].reason == "not tried: the budget was spent on cheaper methods"
    assert choice["gradient"].standing is choice["rise"].standing is Standing.UNMEASURED
    assert "3 were not measured within the budget" in choice.reason


def test_without_labels_it_is_said_what_was_not_seen():
    images, labels = probe(12)
    given = {"candidates": ["gradient"], "budget": Budget(explanations=1), "progress": False}
    without = choose_methods(trained(), images, **given)
    assert "permuted labels" in " ".join(without.notes)
    for written in (str(without), without.to_markdown(), without._repr_html_()):
        assert "permuted labels" in " ".join(written.split())
    assert "permuted labels" not in str(choose_methods(trained(), images, labels=labels, **given))


def test_a_method_known_to_be_insensitive_is_barred_by_its_name_and_that_is_said():
    """One's own name for it lifts the bar: who does that has decided."""
    row = answer()["gradient"]
    rows = [replace(row, method=name) for name in ("guided_backprop", "guided_backprop(layer='a')", "my_guided")]
    said = sentence(rows, None, 24)
    assert "passed here, not recommended: guided_backprop, guided_backprop(layer='a') (insensitive" in said
    assert literature("my_guided") is None
    standing, reason = standing_of("guided_backprop", row.verdict, None)
    assert standing is Standing.PASSED
    assert "passed here, and is not recommended" in reason


def test_a_budget_too_short_by_estimate_still_tests_one_method():
    """The first maps promise more seconds than there are: the test of the cheapest one fits itself in."""
    images, labels = probe(12)

    def slow(model, inputs, target):
        time.sleep(0.01 * len(inputs))
        return inputs

    given = {"labels": labels, "profile": False, "progress": False, "quality": "deletion", "trials": 3}
    choice = choose_methods(trained(), images, candidates={"slow": slow, "dear": "rise"}, budget=2, **given)
    assert choice["slow"].verdict is not None
    assert choice["dear"].standing is Standing.UNMEASURED
