import copy
from datetime import datetime, timedelta, timezone
from itertools import combinations, product

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from scipy.stats import t as student
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sanity import (
    Criterion,
    Outcome,
    RandomLabelDataModule,
    SanityResult,
    data_randomization_test,
    targets,
)
from lightning_sanity.attribution.controls import edge_detector
from lightning_sanity.attribution.gradients import gradient
from lightning_sanity.cli import demo
from lightning_sanity.data_randomization import Memorization
from lightning_sanity.explanation.tokens import token_scores
from lightning_sanity.report import figures
from lightning_sanity.report.label_figures import label_maps
from lightning_sanity.result.dri import label_permutation, label_sensitivity

KNOWN = Memorization((1.0,) * 3, (0.99,) * 3, (0.1,) * 3, test_samples=400, chance=0.1)
MEASURES = ("spearman", "spearman_support", "spearman_signed", "ssim")


@pytest.fixture(scope="module")
def kinds(digits_network):
    """Three networks that answer almost alike, trained on digits, three with other weights, and 24 images."""
    trained, images, _ = digits_network
    alike = []
    for seed in range(3):
        torch.manual_seed(seed)
        alike.append(copy.deepcopy(trained))
        hidden, last = alike[-1].classifier[1], alike[-1].classifier[3]
        order = torch.randperm(64)
        hidden.weight.data, hidden.bias.data = hidden.weight.data[order], hidden.bias.data[order]
        last.weight.data = last.weight.data[:, order]
        for parameter in alike[-1].parameters():
            parameter.data += 0.03 * parameter.std() * torch.randn_like(parameter) if parameter.numel() > 1 else 0
    other = []
    for seed in range(3):
        torch.manual_seed(10 + seed)
        other.append(demo.DigitsClassifier().eval())
    return alike, other, images[:24]


def compare(kinds, methods="gradient", **changes):
    return data_randomization_test(*kinds, methods=methods, **{"memorization": KNOWN, "repeats": 1, **changes})


@pytest.fixture(scope="module")
def result(kinds):
    return compare(kinds, ["gradient", "guided_backprop"])


# ---------------------------------------------------------------------------------------------------------- identities


def test_curves_have_a_row_per_pair_of_models(result):
    curve = result.curves["gradient", "ssim"]
    assert result.units == ("random labels",)
    assert curve.values.shape == curve.floor.shape == (9, 1, 24)
    assert curve.ceiling.shape == (3, 24)


def test_a_result_carries_its_date_so_that_a_gate_can_ask_for_its_age(result):
    now = datetime.now(timezone.utc)
    assert timedelta(0) <= now - datetime.fromisoformat(result.created) < timedelta(hours=1)


def test_a_map_that_ignores_the_model_has_index_zero(result):
    for control in ("edge_detector", "input_copy"):
        verdict = result.verdicts[control]
        assert verdict.outcome is Outcome.FAIL
        assert verdict.psi == pytest.approx(0, abs=0.01)
        assert verdict.p_dependence == 1


def test_a_map_that_follows_the_weights_passes_and_noise_is_inconclusive(result):
    assert result.valid, result.validity
    assert result.verdicts["gradient"].outcome is Outcome.PASS
    assert result.verdicts["gradient"].p_dependence == pytest.approx(1 / 20)
    assert result.verdicts["random"].outcome is Outcome.INCONCLUSIVE


def test_the_same_model_twice_is_no_evidence_and_has_index_zero(kinds):
    result = data_randomization_test(kinds[0][0], kinds[0][0], kinds[2], methods="gradient", memorization=None)
    verdict = result.verdicts["gradient"]
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.psi == pytest.approx(0, abs=1e-6)
    assert "random-label model 0 is true-label model 0: their weights differ by 0" in verdict.reason
    assert not result.valid


def test_similarities_equal_a_slow_computation(kinds, result):
    true, permuted, images = kinds
    target = torch.stack([model(images).softmax(1) for model in true]).mean(0).argmax(1)

    def maps(model):
        inputs = images.clone().requires_grad_()
        model(inputs).gather(1, target[:, None]).sum().backward()
        return inputs.grad.flatten(1).numpy()

    found = {"values": list(product(true, permuted)), "ceiling": list(combinations(true, 2))}
    for name, pairs in found.items():
        rows = [[spearmanr(a, b)[0] for a, b in zip(maps(one), maps(two), strict=True)] for one, two in pairs]
        measured = getattr(result.curves["gradient", "spearman_signed"], name)
        assert np.allclose(measured.reshape(len(pairs), -1).numpy(), rows, atol=1e-4)


def test_the_index_is_its_formula(result):
    for measure in MEASURES:
        curve = result.curves["guided_backprop", measure]
        tables = curve.values, curve.floor, curve.ceiling
        same, unrelated, seeds = ((t.abs() if measure == "spearman_signed" else t).nanmean() for t in tables)
        expected = float((seeds - same) / (seeds - unrelated))
        assert result.verdicts["guided_backprop"].psi_of[measure][0] == pytest.approx(expected, abs=1e-4)


def test_the_order_of_models_does_not_matter(kinds, result):
    turned = compare((kinds[0][::-1], kinds[1][::-1], kinds[2]), controls=False)
    assert turned.verdicts["gradient"].psi == pytest.approx(result.verdicts["gradient"].psi, abs=1e-5)


def test_the_same_seed_gives_the_same_result(kinds):
    few = kinds[0][:1], kinds[1][:1], kinds[2][:6]
    one, two = (compare(few, "smoothgrad", controls=False, seed=3, memorization=None) for _ in range(2))
    assert torch.equal(one.curves["smoothgrad", "ssim"].values, two.curves["smoothgrad", "ssim"].values)
    assert one.verdicts == two.verdicts


def test_models_and_random_streams_are_left_as_they_were(kinds):
    before = [{key: value.clone() for key, value in model.state_dict().items()} for model in (*kinds[0], *kinds[1])]
    stream = torch.get_rng_state()
    kinds[1][0].train()
    compare(kinds, controls=False)
    assert kinds[1][0].training
    kinds[1][0].eval()
    assert torch.equal(torch.get_rng_state(), stream)
    for model, saved in zip((*kinds[0], *kinds[1]), before, strict=True):
        assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())


# ---------------------------------------------------------------------------------------------------------- statistics


def test_interval_agrees_with_a_slow_jackknife():
    values, floor, seeds = 0.3 + 0.2 * torch.rand(6, 1, 12), 0.1 * torch.rand(6, 1, 12), 0.6 + 0.2 * torch.rand(3, 12)
    pairs, everything = list(combinations(range(3), 2)), [list(range(size)) for size in (3, 2, 12)]

    def index(a, b, n):
        again = np.mean([seeds[k][n].mean() for k, pair in enumerate(pairs) if set(pair) <= set(a)])
        rows = [2 * i + j for i, j in product(a, b)]
        unrelated = floor[rows][:, 0, n].mean()
        return float((again - values[rows][:, 0, n].mean()) / (again - unrelated))

    variances = []
    for factor, items in enumerate(everything):
        without = [
            index(*(items[:k] + items[k + 1 :] if f == factor else each for f, each in enumerate(everything)))
            for k in items
        ]
        variances.append((len(items) - 1) * np.var(without))
    freedom = sum(variances) ** 2 / sum(v**2 / (len(items) - 1) for v, items in zip(variances, everything, strict=True))
    reach = student.ppf(0.975, freedom) * np.sqrt(sum(variances))
    found = label_sensitivity(values, floor, seeds, (3, 2)).psi
    assert found.value == pytest.approx(index(*everything), abs=1e-6)
    assert [found.low, found.high] == pytest.approx([found.value - reach, found.value + reach], abs=1e-5)
    assert found.trial_share == pytest.approx(sum(variances[:2]) / sum(variances), abs=1e-5)


def test_one_model_of_a_kind_leaves_samples_and_the_other_kind_to_chance():
    values, floor, again = torch.rand(3, 1, 12), torch.rand(3, 1, 12) / 9, torch.ones(1, 12)
    alone = label_sensitivity(values[:1], floor[:1], again, (1, 1)).psi
    assert alone.trial_share == 0
    assert alone.low < alone.value < alone.high
    assert label_sensitivity(values, floor, again, (1, 3)).psi.trial_share > 0


def test_permutation_probability_agrees_with_an_enumeration():
    likeness = torch.rand(5, 5)
    likeness = (likeness + likeness.T) / 2

    def gap(group):
        inside = [float(likeness[i, j]) for i, j in combinations(group, 2)]
        across = [float(likeness[i, j]) for i in group for j in range(5) if j not in group]
        return np.mean(inside) - np.mean(across)

    gaps = [gap(group) for group in combinations(range(5), 3)]
    assert label_permutation(likeness, 3) == pytest.approx(np.mean(np.array(gaps) >= gap((0, 1, 2)) - 1e-9))


def test_permutation_probability_is_least_where_true_label_models_stand_apart():
    likeness = torch.full((6, 6), 0.1)
    likeness[:3, :3] = 0.9
    assert label_permutation(likeness, 3) == pytest.approx(1 / 20)


def test_permutation_probability_of_many_models_is_drawn():
    likeness = torch.rand(30, 30)
    likeness = (likeness + likeness.T) / 2
    assert 0.01 < label_permutation(likeness, 15) < 0.99
    likeness[:15, :15] += 0.5
    assert label_permutation(likeness, 15) == pytest.approx(1 / 20_000)


# ------------------------------------------------------------------------------------------------------- preconditions


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"true_train": (1.0, 0.8, 1.0)}, "true-label model 1 learned only 80.0% of its training labels"),
        ({"permuted_train": (1.0, 1.0, 0.5)}, "random-label model 2 learned only 50.0% of its training labels"),
        ({"permuted_test": (0.1, 0.1, 0.9)}, "random-label model 2 has a test accuracy of 90.0%, not of chance"),
    ],
)
def test_models_that_did_not_learn_their_labels_void_the_run(kinds, changes, reason):
    result = compare(kinds, memorization=Memorization(**{**vars(KNOWN), **changes}), controls=False)
    assert not result.valid
    assert result.verdicts["gradient"].outcome is Outcome.INCONCLUSIVE
    assert reason in result.verdicts["gradient"].reason


def test_without_accuracies_neither_a_pass_nor_a_failure_stands(kinds):
    methods = {"gradient": "gradient", "edges": edge_detector().attribute}
    result = compare(kinds, methods, memorization=None, controls=False)
    for name, otherwise in (("gradient", "the map changes with the labels"), ("edges", "the same whatever labels")):
        assert result.verdicts[name].outcome is Outcome.INCONCLUSIVE
        assert "nothing shows that the models learned their labels" in result.verdicts[name].reason
        assert otherwise in result.verdicts[name].reason
    assert "nothing shows" in result.validity


def test_one_pair_of_models_never_passes(kinds):
    one = Memorization((1.0,), (1.0,), (0.1,), 400, 0.1)
    result = compare((kinds[0][0], kinds[1][0], kinds[2]), memorization=one)
    verdict = result.verdicts["gradient"]
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "train three of each kind" in verdict.reason
    assert verdict.psi > 0.8
    assert torch.equal(result.curves["gradient", "ssim"].ceiling, torch.ones(1, 24))
    assert verdict.p_dependence is None


def test_one_model_is_like_itself_under_one_seed_and_less_under_another(kinds):
    one = Memorization((1.0,), (1.0,), (0.1,), 400, 0.1)
    result = compare((kinds[0][0], kinds[1][0], kinds[2]), "smoothgrad", memorization=one, repeats=2, controls=False)
    assert bool((result.curves["smoothgrad", "spearman"].ceiling == 1).all())
    again = result.reproducibility["smoothgrad"]
    assert again.shape == (2, 24)
    assert 0.3 < again.mean() < 0.999


def memorised(seed):
    """A loader of a few digits in an order of its own, so that any network knows little of them."""
    data = DataLoader(TensorDataset(*(t[:64] for t in demo.digits()[0].tensors)), 16, shuffle=True)
    return RandomLabelDataModule(data, seed=seed, val_dataloaders=DataLoader(demo.digits()[1], 256))


def test_evidence_is_measured_on_the_data_module_of_the_training(kinds):
    data = [memorised(seed) for seed in range(3)]
    result = compare(kinds, memorization=data, controls=False)
    known = result.settings["memorization"]
    images, labels = (t[:64] for t in demo.digits()[0].tensors)
    for k in range(3):
        accuracy = float((kinds[0][k](images).argmax(1) == labels).float().mean())
        assert known["true_train"][k] == pytest.approx(accuracy)
        given = data[k].random_labels["train"][0].assigned
        learned = float((kinds[1][k](images).argmax(1) == given).float().mean())
        assert known["permuted_train"][k] == pytest.approx(learned)
        assert known["label_agreement"][k] == pytest.approx(float((given == labels).double().mean()))
    assert known["label_samples"] == 64
    assert "random-label model 0 learned only" in result.validity
    assert data[0].trainer is None


def test_data_without_random_labels_are_no_evidence(kinds):
    with pytest.raises(TypeError, match="the RandomLabelDataModule that the random-label models were trained with"):
        compare(kinds, memorization=pl.LightningDataModule())
    with pytest.raises(ValueError, match="2 data modules for 3 random-label models"):
        compare(kinds, memorization=[memorised(0), memorised(1)])


def test_validity_says_where_nothing_tells_whether_labels_were_random(kinds):
    two = Memorization((1.0,) * 3, (1.0,) * 3, (0.5,) * 3, test_samples=400, chance=0.5)
    result = compare(kinds, memorization=two)
    assert result.valid
    assert "whether the labels were random was not checked" in result.validity


def test_accuracies_must_fit_the_models(kinds):
    with pytest.raises(ValueError, match="3 true-label and 2 random-label models need as many accuracies"):
        compare((kinds[0], kinds[1][:2], kinds[2]))


# ----------------------------------------------------------------------------------------------------------- bad input


def test_models_of_another_architecture_are_refused(kinds):
    other = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    with pytest.raises(ValueError, match=r"one architecture: parameter '.*' is .* in the first and missing in model 1"):
        data_randomization_test(kinds[0][0], other, kinds[2])


@pytest.mark.parametrize(
    ("permuted", "error", "message"),
    [
        ([], ValueError, "random_label_model is empty"),
        (["x"], TypeError, "must be a torch.nn.Module or several, not str"),
    ],
)
def test_what_is_no_model_is_refused(kinds, permuted, error, message):
    with pytest.raises(error, match=message):
        data_randomization_test(kinds[0][0], permuted, kinds[2])


def test_a_target_out_of_range_is_refused(kinds):
    with pytest.raises(ValueError, match="target 12 is out of range"):
        compare(kinds, target=12)


def test_a_single_sample_is_inconclusive(kinds):
    verdict = compare((*kinds[:2], kinds[2][:1])).verdicts["gradient"]
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "at least 2 samples" in verdict.reason


def test_a_method_that_raises_is_inconclusive_and_the_others_go_on(kinds):
    def broken(model, inputs, target):
        raise KeyError("no such layer")

    verdicts = compare(kinds, {"broken": broken, "gradient": "gradient"}, controls=False).verdicts
    assert "method 'broken' failed. Call it on a few samples" in verdicts["broken"].reason
    assert verdicts["gradient"].outcome is Outcome.PASS


# ---------------------------------------------------------------------------------------------------------- the record


def test_every_model_explains_the_class_that_the_true_label_models_predict(kinds):
    seen = []

    def spy(model, inputs, target):
        seen.append(target.clone())
        return gradient().attribute(model, inputs, target)

    compare(kinds, {"spy": spy}, controls=False)
    expected = torch.stack([model(kinds[2]).softmax(1) for model in kinds[0]]).mean(0).argmax(1)
    assert all(torch.equal(target[:24], expected) for target in seen)


def test_parameters_that_both_kinds_share_are_named(kinds):
    true, permuted, images = kinds
    one_backbone = []
    for model in (*true, *permuted):
        one_backbone.append(copy.deepcopy(true[0]))
        one_backbone[-1].classifier.load_state_dict(model.classifier.state_dict())
    coverage = compare((one_backbone[:3], one_backbone[3:], images), controls=False).coverage
    assert "features.0.weight" in coverage.kept
    assert 0 < coverage.share < 1
    assert "the same in both kinds of models: features.0.weight" in coverage.notes[0]


def test_result_survives_json_with_the_digests_of_all_models(result, tmp_path):
    back = SanityResult.from_json(result.to_json(tmp_path / "result.json"))
    assert back.verdicts == result.verdicts
    assert torch.equal(back.curves["gradient", "ssim"].values, result.curves["gradient", "ssim"].values)
    assert back.settings["test"] == "data_randomization"
    assert len({*back.settings["weights_digests"], *back.settings["random_label_digests"]}) == 6
    assert back.settings["memorization"]["permuted_test"] == [0.1, 0.1, 0.1]


def test_the_threshold_is_the_criterions(kinds):
    strict = compare(kinds, "guided_backprop", criterion=Criterion(min_psi=0.0), controls=False)
    assert strict.verdicts["guided_backprop"].outcome is not Outcome.FAIL


def test_figures_speak_of_labels(result):
    text = [t.get_text() for t in figures.verdicts(result).findobj(match=lambda a: hasattr(a, "get_text"))]
    assert any("DRI with 95 % interval: 0 = the map ignores the labels" in line for line in text)
    maps = label_maps(result)
    words = [t.get_text() for t in maps.findobj(match=lambda a: hasattr(a, "get_text"))]
    assert words.count("true\nlabels") == words.count("random\nlabels") == 3
    assert any("DRI" in word for word in words)
    assert len(maps.axes[0].images) == 3 * (1 + 2 * len(result.verdicts))


def test_label_maps_refuses_results_without_pictures_or_of_another_test(kinds):
    with pytest.raises(ValueError, match="kept no pictures"):
        label_maps(compare(kinds, controls=False, pictures=False))


def test_progress_names_methods_until_nothing_is_left(kinds):
    ticks = []
    compare(kinds, ["gradient", "gradcam"], controls=False, progress=lambda *tick: ticks.append(tick))
    assert [label for *_, label in ticks] == ["gradient", "gradcam"]
    (done, total, _), (ended, whole, _) = ticks
    assert 0 < done < total
    assert ended == whole


# ------------------------------------------------------------------------------------------------- beyond one picture


def small(build):
    """Two true-label models and one of permuted labels, untrained: the comparison is what is looked at."""
    torch.manual_seed(0)
    models = [build().eval() for _ in range(3)]
    return models[:2], models[2:]


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.inner, self.head = nn.Embedding(20, 6, padding_idx=0), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, ids, scale=None):
        found = self.head(torch.tanh(self.inner(self.embedding(ids))).sum(1))
        return found if scale is None else found * scale[:, None]


def test_token_ids_are_compared_at_their_embeddings_without_the_padding():
    (one, other), (permuted,) = small(Words)
    ids = torch.randint(1, 20, (6, 9))
    ids[:, 7:] = 0
    scale = torch.rand(6) + 1
    given = (ids, scale)
    result = data_randomization_test([one, other], permuted, given, methods="gradient", controls=False)
    assert result.settings["tokens"] == {"embedding": "embedding", "reduce": "sum"}
    target = (one(*given).softmax(1) + other(*given).softmax(1)).argmax(1)
    mine, theirs = (token_scores(model, given, target, method="gradient")[0][:, :7] for model in (one, permuted))
    expected = nn.functional.cosine_similarity(mine, theirs)
    assert torch.allclose(result.curves["gradient", "cosine_signed"].values[0, 0], expected, atol=1e-5)


def test_a_region_is_the_same_for_all_models_and_for_unrelated_samples():
    true, permuted = small(lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1)))
    mask = torch.zeros(6, 8, 8)
    for sample in range(6):
        mask[sample, sample : sample + 2, 2:6] = 1
    images = torch.rand(6, 1, 8, 8)
    target = targets.class_mask(1, mask)
    result = data_randomization_test(true, permuted, images, target, methods=["gradient", region], controls=False)
    assert result.settings["target"] == "class 1 over its mask"
    assert ("gradient", "ssim") not in result.curves  # compared within the reach of the region alone
    # A map that shows the region is alike for all samples that are asked about that region.
    assert result.curves["region", "spearman"].floor.allclose(torch.tensor(1.0))


def region(model, inputs, target):
    return inputs[-1][:, None] + 1e-3 * torch.arange(64.0).reshape(8, 8)
