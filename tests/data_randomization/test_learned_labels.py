import pytest
import torch
from torch import nn

from lightning_sanity.data_randomization import Memorization, memorization
from lightning_sanity.data_randomization.learned_labels import agreement, chance, independent_samples, tally_of
from lightning_sanity.data_randomization.tallies import score


class Says(nn.Module):
    """Says the class that is written into the first pixel."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.scale * nn.functional.one_hot(x[:, 0].long(), 4).float()


def test_accuracies_are_those_of_the_labels_each_model_was_given():
    labels = torch.arange(400) % 4
    permuted = labels[torch.randperm(400)]
    told = labels[:, None].float()
    found = memorization([Says()], [Says()], (told, labels), [permuted], (told, labels))
    assert found.true_train == (1.0,)
    assert found.permuted_train == pytest.approx((float((labels == permuted).float().mean()),))
    assert found.permuted_test == (1.0,)
    assert found.chance == pytest.approx(0.25)


def test_a_model_is_looked_at_in_eval_mode_and_left_in_its_own():
    model = Says().train()
    sums = tally_of(model, torch.tensor([[0.0], [1.0], [1.0]]), torch.tensor([0, 1, 2]), rows=2)
    assert sums["classes"].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert score(sums).value == pytest.approx(2 / 3)
    assert model.training


def test_chance_follows_the_frequencies_of_the_classes():
    trained = torch.diag(torch.tensor([90, 10]))
    assert chance(trained, torch.diag(torch.tensor([50, 50]))) == pytest.approx(0.5)
    assert chance(trained, trained) == pytest.approx(0.82)


def test_independent_predictions_count_in_full_and_clustered_ones_do_not():
    torch.manual_seed(1)
    labels, guesses = torch.randint(10, (2, 4000))
    counts = torch.bincount(labels * 10 + guesses, minlength=100).reshape(10, 10)
    assert independent_samples(counts) > 2500
    assert independent_samples(25 * torch.bincount((labels * 10 + guesses)[:160], minlength=100).reshape(10, 10)) < 300


def test_the_chance_interval_holds_models_that_know_nothing():
    known = Memorization((1,), (1, 1, 1), (0.1, 0.1, 0.1), 400, 0.1)
    low, high = known.chance_interval()
    hits = torch.distributions.Binomial(400, torch.tensor(0.1)).sample((20000,)) / 400
    assert ((hits < low) | (hits > high)).double().mean() < 0.01 / 3 + 0.002
    assert known.unmet(1, 3, 0.95) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"true_train": (1.2,)}, r"true_train must hold accuracies between 0 and 1, not 1\.2"),
        ({"chance": 0.0}, "chance must lie between 0 and 1"),
        ({"test_samples": -1}, "test_samples must not be negative"),
        ({"label_agreement": (1.1,)}, r"label_agreement must hold accuracies between 0 and 1, not 1\.1"),
    ],
)
def test_numbers_that_are_no_accuracies_are_refused(changes, message):
    given = {"true_train": (1,), "permuted_train": (1,), "permuted_test": (0.1,), "test_samples": 9, "chance": 0.1}
    with pytest.raises(ValueError, match=message):
        Memorization(**{**given, **changes})


def test_labels_and_models_must_agree_in_number():
    told, labels = torch.zeros(4, 1), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="2 random-label models need as many permuted_labels, not 1"):
        memorization([Says()], [Says(), Says()], (told, labels), [labels], (told, labels))
    with pytest.raises(ValueError, match="4 inputs need as many labels, not 3"):
        memorization([Says()], [Says()], (told, labels[:3]), [labels], (told, labels))


# ------------------------------------------------------------------------------------------- were the labels permuted?


def known(labels, assigned, **changes):
    """What is known of a model that learned ``assigned`` by heart."""
    found = agreement(labels, assigned)
    given = {"label_agreement": (found.share,), "label_chance": found.chance, "label_samples": found.samples}
    return Memorization((1.0,), (1.0,), **{**given, **changes})


FREQUENCIES = {
    "two classes": [0.5, 0.5],
    "three": [0.2, 0.3, 0.5],
    "ten": [0.1] * 10,
    "a hundred": [0.01] * 100,
    "80 to 20": [0.8, 0.2],
}


@pytest.mark.parametrize("frequencies", FREQUENCIES.values(), ids=FREQUENCIES)
def test_permuted_labels_are_called_unpermuted_in_one_of_a_hundred_draws_at_most(frequencies):
    rng, alarms = torch.Generator().manual_seed(0), 0
    for _ in range(150):
        labels = torch.multinomial(torch.tensor(frequencies), 200, True, generator=rng)
        alarms += known(labels, labels[torch.randperm(200, generator=rng)]).unmet(1, 1, 0.95) is not None
    assert alarms <= 4  # 1.5 expected at the stated level


@pytest.mark.parametrize("frequencies", FREQUENCIES.values(), ids=FREQUENCIES)
@pytest.mark.parametrize("kept", [1.0, 0.5])
def test_true_labels_and_half_permuted_ones_are_always_found_out(frequencies, kept):
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        labels = torch.multinomial(torch.tensor(frequencies), 400, True, generator=rng)
        assigned = labels.clone()
        moved = torch.randperm(400, generator=rng)[: round(400 * (1 - kept))]
        assigned[moved] = labels[moved[torch.randperm(len(moved), generator=rng)]]
        assert "were all its labels permuted?" in known(labels, assigned).unmet(1, 1, 0.95)


def test_labels_that_hardly_change_when_permuted_are_no_random_labels():
    labels = torch.tensor([0] * 980 + [1] * 20)
    reason = known(labels, labels[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]).unmet(1, 1, 0.95)
    assert "trained on 96% true labels by chance, so frequent is one class" in reason


def test_whether_labels_hardly_change_is_told_by_the_data_and_not_by_the_draw():
    rng = torch.Generator().manual_seed(0)
    for ones, said in ((8, True), (12, False)):  # of 200: labels that stay by chance are 92.3 % and 88.7 %
        labels = torch.tensor([0] * (200 - ones) + [1] * ones)
        reasons = [known(labels, labels[torch.randperm(200, generator=rng)]).unmet(1, 1, 0.95) for _ in range(20)]
        assert {"so frequent is one class" in (reason or "") for reason in reasons} == {said}


def test_several_models_that_learned_too_little_are_one_sentence():
    reason = Memorization((0.5, 1, 0.25), (1, 1, 0.75), (0.1,) * 3, 400, 0.1).unmet(3, 3, 0.95)
    assert reason == (
        "true-label model 0 learned only 50.0% of its training labels, model 2 only 25.0% (95% needed, accuracy: train "
        "them longer); random-label model 2 learned only 75.0% of its training labels (95% needed, accuracy: train it "
        "longer)"
    )


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 0.97])
def test_predictions_of_two_classes_tell_nothing_and_say_so(accuracy):
    two = Memorization((1,), (1,), (accuracy,), 400, 0.5)
    assert two.unmet(1, 1, 0.95) is None
    assert "predictions of few classes cannot tell" in two.untold()
    assert Memorization((1,), (1,), (0.1,), 400, 0.1).untold() is None


def test_test_accuracy_is_not_asked_where_the_labels_are_known():
    labels = torch.arange(400) % 10
    permuted = labels[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    odd = known(labels, permuted, permuted_test=(0.3,), test_samples=400, chance=0.1)
    assert odd.unmet(1, 1, 0.95) is None


def test_a_model_without_a_number_has_learned_nothing():
    assert "learned only nan%" in Memorization((float("nan"),), (1,), (0.1,), 400, 0.1).unmet(1, 1, 0.95)


@pytest.mark.parametrize("labels", [torch.eye(3)[torch.arange(60) % 3], torch.rand(60, 2), list("abc") * 20])
def test_labels_of_every_form_are_compared(labels):
    found = agreement(labels, labels)
    assert found.share == 1
    assert found.samples == 60
    assert agreement(labels, labels[:-1]) is None
