"""What the literature found on real data, as orderings that any correct implementation reproduces."""

import importlib
from pathlib import Path

import pytest
import torch

from lightning_sanity import Outcome, attribution, parameter_randomization_test, similarity
from lightning_sanity.cli import demo
from lightning_sanity.similarity import min_max

SEEDS = (0, 1, 2)
METHODS = {
    "gradient": "gradient",
    "smoothgrad": attribution.smoothgrad(n_samples=5),
    "gradcam": "gradcam",
    "integrated_gradients_local": attribution.integrated_gradients_local(n_steps=8),
    "guided_backprop": "guided_backprop",
    "guided_gradcam": "guided_gradcam",
    "input_x_gradient": "input_x_gradient",
    "integrated_gradients": attribution.integrated_gradients(n_steps=8),
}
PASSING, FAILING = tuple(METHODS)[:4], tuple(METHODS)[4:]


@pytest.fixture(scope="module")
def networks():
    """Per seed a CNN trained on digits; the first 24 validation images."""
    training, validation = demo.digits()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "limit_val_batches": 0}
    trained = {seed: demo.train(training, validation, epochs=6, seed=seed, **quiet)[0].eval() for seed in SEEDS}
    return trained, validation.tensors[0][:24]


@pytest.fixture(scope="module")
def studies(networks):
    """Per seed the whole cascade with five trials."""
    trained, images = networks
    return {
        seed: parameter_randomization_test(
            model, images, methods=METHODS, trials=5, seed=seed, pictures=False, progress=False
        )
        for seed, model in trained.items()
    }


def means(result, method, measure):
    return result.curves[method, measure].mean


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_controls_that_ignore_the_model_are_unchanged_at_every_step_and_measure(studies, seed):
    result = studies[seed]
    for name in ("edge_detector", "input_copy"):
        for measure in result.settings["similarities"]:
            values = result.curves[name, measure].values
            defined = values[~values.isnan()]  # a sample without a background has no support
            assert len(defined) > 0.5 * values.numel()
            assert defined.sub(1).abs().max() < 1e-6, (name, measure)
        assert result.verdicts[name].outcome is not Outcome.PASS


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_random_maps_resemble_nothing_and_never_pass(studies, seed):
    result = studies[seed]
    for measure in ("spearman", "spearman_signed"):
        assert means(result, "random", measure).abs().max() < 0.05
    assert result.verdicts["random"].outcome is Outcome.INCONCLUSIVE
    assert "no signal" in result.verdicts["random"].reason


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_sensitivity_orders_the_methods_as_the_literature_does(studies, seed):
    psi = {name: verdict.psi for name, verdict in studies[seed].verdicts.items()}
    assert min(psi[name] for name in PASSING) - max(psi[name] for name in FAILING) > 0.10, psi
    assert psi["gradient"] >= 0.85
    assert psi["guided_backprop"] <= 0.50
    assert psi["edge_detector"] <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_verdicts_on_trained_digits_agree_with_the_literature(studies, seed):
    result = studies[seed]
    outcomes = {name: verdict.outcome for name, verdict in result.verdicts.items()}
    assert result.valid, result.validity
    assert [name for name in PASSING if outcomes[name] is not Outcome.PASS] == []
    assert [name for name in FAILING if outcomes[name] is Outcome.PASS] == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_the_multiplier_keeps_the_magnitude_and_not_the_sign(studies, seed):
    result = studies[seed]
    whole, local = (
        means(result, name, "spearman").mean() for name in ("integrated_gradients", "integrated_gradients_local")
    )
    assert whole - local > 0.3
    for name in ("integrated_gradients", "integrated_gradients_local"):
        assert means(result, name, "spearman_signed").mean().abs() < 0.1
    assert means(result, "input_x_gradient", "spearman").mean() > 0.7
    assert means(result, "input_x_gradient", "spearman_signed").mean().abs() < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_guided_backprop_ignores_the_upper_layers(studies, seed):
    guided, plain = (means(studies[seed], name, "spearman") for name in ("guided_backprop", "gradient"))
    assert guided[0] - plain[0] > 0.2
    assert guided[0] - guided[-1] > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_full_randomization_alone_flatters_guided_backprop(studies, seed):
    verdict = studies[seed].verdicts["guided_backprop"]
    assert verdict.psi_last > verdict.psi


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_maps_that_ignore_the_upper_layers_ignore_the_class(networks, seed):
    trained, images = networks
    model = trained[seed]
    predicted = model(images).argmax(1)

    def between_classes(name, measure):
        method = attribution.resolve(name)
        found = []
        for offset in (1, 4, 7):
            maps = [method(model, images, (predicted + shift) % 10).sum(1) for shift in (0, offset)]
            found.append(similarity.resolve(measure)(*(m if "signed" in measure else m.abs() for m in maps)).nanmean())
        return float(torch.stack(found).mean())

    assert between_classes("guided_backprop", "spearman") > 0.6
    assert between_classes("edge_detector", "spearman") == pytest.approx(1)
    assert between_classes("gradient", "spearman") < 0.55
    assert between_classes("gradient", "spearman_signed") < 0.1


def test_random_maps_times_the_input_resemble_one_another_by_magnitude_only(digits_network):
    _, images, _ = digits_network
    u, v = torch.randn(2, *images.shape)
    a, b = (images * u).sum(1), (images * v).sum(1)
    assert similarity.spearman(a.abs(), b.abs()).mean() > 0.8
    assert similarity.spearman(a, b).mean().abs() < 0.05
    on_support = similarity.resolve("spearman_support")(a.abs(), b.abs(), images.sum(1) > 0)
    assert 0.2 < on_support.mean() < 0.6


def test_the_range_of_two_hides_the_noise_of_structural_similarity():
    a, b = (min_max(torch.randn(16, 64, 64)) for _ in range(2))
    gap = similarity.ssim(a, b, data_range=2.0) - similarity.ssim(a, b, data_range=1.0)
    assert gap.mean() > 0.03


def test_dead_maps_are_counted_and_left_out(digits_network):
    model, images, _ = digits_network
    result = parameter_randomization_test(model, images[:24], methods="gradcam", trials=4, repeats=1, pictures=False)
    rows = [row for row in result.to_records() if row["method"] == "gradcam" and row["similarity"] == "spearman"]
    assert sum(row["undefined"] for row in rows) > 0
    assert all(torch.tensor(row["mean"]).isfinite() for row in rows)
    assert torch.tensor(result.verdicts["gradcam"].psi).isfinite()


@pytest.mark.slow
def test_a_deeper_network_orders_the_methods_the_same_way(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    model, images, accuracy = importlib.import_module("measuring.studied").fitted("resnet", epochs=5)
    assert accuracy > 0.9
    result = parameter_randomization_test(
        model, images[:16], methods=METHODS, trials=3, max_steps=6, pictures=False, progress=False
    )
    psi = {name: verdict.psi for name, verdict in result.verdicts.items() if verdict.psi == verdict.psi}
    print(psi)
    assert result.valid
    assert min(psi[name] for name in PASSING if name in psi) - max(psi[name] for name in FAILING if name in psi) > 0.1
    assert psi["guided_backprop"] < 0.5 < 0.65 < psi["gradient"]
