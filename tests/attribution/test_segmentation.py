"""What is hidden together where there are no superpixels: windows, blocks, columns and tokens, against captum."""

import itertools

import pytest
import torch
from captum.attr import FeatureAblation, KernelShap, Occlusion
from torch import nn

from lightning_sanity import parameter_randomization_test
from lightning_sanity.attribution import available, resolve
from lightning_sanity.attribution.perturbation import CoinDraw, MaskDraw, occlusion, rise
from lightning_sanity.attribution.segmentation import regions
from lightning_sanity.attribution.superpixels import feature_ablation, kernel_shap, lime
from lightning_sanity.explanation import Tokens
from lightning_sanity.explanation.tokens import token_scores

SIDES = {"signal": (2, 12), "volume": (1, 4, 4, 6)}
PARTS = {"signal": 6, "volume": 8}  # of the 6 that are asked for
TARGET = torch.tensor([0, 2])


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def network(shape):
    size = int(torch.tensor(shape).prod())
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 8), nn.Tanh(), nn.Linear(8, 3)).double().eval()


def problem(kind):
    return network(SIDES[kind]), torch.rand(2, *SIDES[kind]).double()


def one_by_one(oracle, x, **given):
    found = [oracle.attribute(x[i : i + 1], target=int(TARGET[i]), **given) for i in range(len(x))]
    return torch.cat(found).double()


# ------------------------------------------------------------------------------------------------------------- parts


def test_a_signal_is_cut_into_equal_windows():
    labels = regions(torch.rand(3, 2, 20), 6)
    assert labels.shape == (3, 1, 20)
    assert set(torch.bincount(labels[0, 0]).tolist()) == {3, 4}
    assert bool((labels.diff(dim=2) >= 0).all())


def test_a_volume_is_cut_into_blocks_of_its_own_shape():
    labels = regions(torch.rand(1, 1, 6, 6, 12), 16)[0, 0]
    sizes = [len(labels[where].unique()) for where in (labels >= 0,)]
    assert sizes == [16]
    for block in labels.unique():
        d, h, w = (torch.nonzero(labels == block).amax(0) - torch.nonzero(labels == block).amin(0) + 1).tolist()
        assert d * h * w == int((labels == block).sum())  # a block, nothing else
        assert (d, h, w) == (3, 3, 3)


def test_a_short_signal_is_cut_into_its_positions_and_a_table_into_its_columns():
    assert torch.equal(regions(torch.rand(1, 4, 5), 50)[0, 0], torch.arange(5))
    assert torch.equal(regions(torch.rand(1, 5), 50)[0], torch.arange(5))


# ---------------------------------------------------------------------------------------- captum, on the same parts


@pytest.mark.parametrize("kind", SIDES)
def test_feature_ablation_equals_captum_on_windows_and_blocks(kind):
    model, x = problem(kind)
    mask = regions(x, 6)
    assert len(mask.unique()) == PARTS[kind]
    oracle = one_by_one(FeatureAblation(model), x, feature_mask=mask[:1], baselines=0.3)
    torch.testing.assert_close(feature_ablation(segments=6, baseline=0.3)(model, x, TARGET), oracle)


@pytest.mark.parametrize(("kind", "window", "stride"), [("signal", (2, 3), (2, 1)), ("volume", (1, 1, 1, 1), (1,) * 4)])
def test_occlusion_equals_captum_along_one_and_three_sides(kind, window, stride):
    model, x = problem(kind)
    oracle = one_by_one(Occlusion(model), x, sliding_window_shapes=window, strides=stride)
    torch.testing.assert_close(occlusion()(model, x, TARGET), oracle)


def test_occlusion_of_a_table_hides_one_column_at_a_time():
    model, x = network((7,)), torch.rand(2, 7).double()
    torch.testing.assert_close(occlusion()(model, x, TARGET), one_by_one(FeatureAblation(model), x))


@pytest.mark.parametrize("kind", SIDES)
def test_kernel_shap_agrees_with_captum_on_windows_and_blocks(kind):
    model, x = problem(kind)
    found = kernel_shap(segments=6, n_samples=300)(model, x, TARGET)
    given = {"feature_mask": regions(x[:1], 6), "n_samples": 400, "perturbations_per_eval": 100}
    oracle = one_by_one(KernelShap(model), x, **given)
    assert (found - oracle).abs().max() < 0.05 * found.abs().max()


@pytest.mark.parametrize("kind", SIDES)
def test_lime_without_ridge_finds_the_parts_of_a_linear_model(kind):
    x = torch.rand(2, *SIDES[kind]).double()
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 3)).double()
    labels = regions(x, 6).expand_as(x)
    product = x * model[1].weight[TARGET].reshape(x.shape).detach()
    sums = torch.zeros(2, PARTS[kind]).double().scatter_add_(1, labels.flatten(1), product.flatten(1))
    found = lime(segments=6, n_samples=60, ridge=0.0)(model, x, TARGET)
    torch.testing.assert_close(found, sums.gather(1, labels.flatten(1)).reshape(x.shape))


# -------------------------------------------------------------------------------------------------------------- RISE


def test_masks_of_a_signal_are_the_rows_of_a_picture_that_is_the_same_in_every_row():
    cells, shifts = (torch.rand(9, 3) < 0.5).float(), torch.randint(4, (9,))
    signal = MaskDraw(cells, shifts[:, None], (10,)).masks(0, 9)
    flat = torch.stack([torch.zeros_like(shifts), shifts], 1)
    picture = MaskDraw(cells[:, None].expand(9, 3, 3), flat, (5, 10)).masks(0, 9)
    solid = MaskDraw(cells[:, None, None].expand(9, 3, 3, 3), torch.cat([flat[:, :1], flat], 1), (4, 5, 10)).masks(0, 9)
    torch.testing.assert_close(picture, signal[:, None].expand(9, 5, 10))
    torch.testing.assert_close(solid, signal[:, None, None].expand(9, 4, 5, 10))


def test_rise_over_every_coin_of_a_table_is_its_definition(monkeypatch):
    coins = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).double()  # (16, 4)
    monkeypatch.setattr(CoinDraw, "random", lambda count, p, labels: CoinDraw(coins, labels))
    model, x = network((4,)), torch.rand(2, 4).double()
    with torch.no_grad():
        outputs = torch.stack([model(x * coin).gather(1, TARGET[:, None])[:, 0] for coin in coins])  # (16, 2)
    expected = torch.einsum("kn,kf->nf", outputs, coins) / (16 * 0.5)
    torch.testing.assert_close(rise(n_masks=16, max_batch=5)(model, x, TARGET), expected)


@pytest.mark.parametrize("kind", SIDES)
def test_rise_finds_where_a_signal_or_a_volume_matters(kind):
    x = torch.rand(2, *SIDES[kind]) + 1

    class End(nn.Module):
        def forward(self, value):
            return value[..., -2:].flatten(1).sum(1)

    found = rise(n_masks=300, grid=4, center=True)(End(), x, None)
    assert found.shape == x.shape
    assert float(found[..., -2:].mean()) > 4 * float(found[..., :2].abs().mean())


# -------------------------------------------------------------------------------------------------------------- text


class Words(nn.Module):
    """Sums a number per token, padding included."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 6, padding_idx=0)
        self.each, self.head = nn.Linear(6, 5), nn.Linear(5, 3)
        with torch.no_grad():
            self.embedding.weight[0] = torch.randn(6)

    def forward(self, ids):
        return self.scores(self.embedding(ids))

    def scores(self, embedded):
        return self.head(torch.tanh(self.each(embedded)).sum(1))


@pytest.fixture
def sentences():
    ids = torch.randint(1, 20, (3, 7))
    ids[0, 4:], ids[2, 5:] = 0, 0
    return Words().eval(), ids, torch.tensor([0, 1, 2])


@pytest.mark.parametrize("name", ["feature_ablation", "occlusion"])
def test_a_token_is_hidden_with_all_its_dimensions_as_by_captum(sentences, name):
    model, ids, target = sentences
    embedded = model.embedding(ids).detach()
    mask = torch.arange(7)[None, :, None].expand(1, 7, 6)
    lost = FeatureAblation(model.scores).attribute(embedded, target=target, feature_mask=mask).detach()
    expected = lost.sum(2) * (ids != 0)
    found, _ = token_scores(model, ids, target, method=name)
    torch.testing.assert_close(found, nn.functional.normalize(expected, dim=1))


def values_of_tokens(model, ids, target, hidden):
    """What each token adds to the explained output, which is a sum over tokens."""
    weight = model.head.weight[target].detach()
    one = (torch.tanh(model.each(model.embedding(ids))) * weight[:, None]).sum(2)
    nothing = (torch.tanh(model.each(hidden)) * weight).sum(1)
    return nn.functional.normalize(((one - nothing[:, None]) * (ids != 0)).detach(), dim=1)


@pytest.mark.parametrize("method", [kernel_shap(n_samples=200), lime(n_samples=60, ridge=0.0)])
def test_surrogates_give_every_token_what_it_adds_and_never_hide_padding(sentences, method):
    model, ids, target = sentences
    found, _ = token_scores(model, ids, target, method=method)
    torch.testing.assert_close(found, values_of_tokens(model, ids, target, torch.zeros(6)), rtol=1e-3, atol=1e-4)


def test_the_embedding_of_the_padding_may_stand_for_a_hidden_token(sentences):
    model, ids, target = sentences
    padding = model.embedding.weight[0].detach()
    found, _ = token_scores(model, ids, target, method=feature_ablation(baseline=padding[:, None]))
    torch.testing.assert_close(found, values_of_tokens(model, ids, target, padding), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [rise(n_masks=40), lime(n_samples=40), kernel_shap(n_samples=30)])
def test_a_sentence_is_asked_the_same_beside_longer_ones(sentences, method):
    model, ids, target = sentences
    together, _ = token_scores(model, ids, target, method=method)
    alone, _ = token_scores(model, ids[2:], target[2:], method=method)
    torch.testing.assert_close(alone, together[2:], rtol=1e-4, atol=1e-5)


def test_windows_that_were_asked_for_stay_windows(sentences):
    model, ids, target = sentences
    found, _ = token_scores(model, ids[1:2], target[1:2], method=occlusion(window=7, stride=7))
    assert found.unique().numel() == 1


def test_methods_that_hide_run_through_a_cascade_of_text(sentences):
    model, ids, _ = sentences
    methods = ["occlusion", "feature_ablation", lime(n_samples=30), kernel_shap(n_samples=30), rise(n_masks=30)]
    result = parameter_randomization_test(
        model, ids, 1, methods=methods, trials=1, repeats=1, controls=False, tokens=Tokens()
    )
    assert {name for name, measure in result.curves if measure == "cosine_signed"} == {
        "occlusion", "feature_ablation", "lime", "kernel_shap", "rise",
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- what has no meaning


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 12), (2, 1, 4, 4, 4)])
def test_only_methods_that_need_a_picture_refuse_other_inputs(shape):
    hiding = ("occlusion", "feature_ablation", "lime", "kernel_shap", "rise")
    pictures = ("prediction_difference_analysis", "meaningful_perturbation", "extremal_perturbation", "xrai")
    assert {*hiding, *pictures} < set(available())
    reasons = {name: resolve(name).refuses(nn.Identity(), torch.rand(shape), None) for name in (*hiding, *pictures)}
    assert [reasons[name] for name in hiding] == [None] * 5
    assert all("not (N, C, H, W)" in reasons[name] for name in pictures)
