"""Token ids explained at their embeddings, on real sentences."""

import copy

import pytest
import sentences
import torch
from made_examples import load
from torch import nn

from lightning_sanity import Outcome, parameter_randomization_test, similarity
from lightning_sanity.attribution import integrated_gradients
from lightning_sanity.explanation import Tokens
from lightning_sanity.explanation.tokens import token_scores
from lightning_sanity.report import tokens as pictures

LOCAL_AND_GLOBAL = [integrated_gradients(6, multiply_by_inputs=whole, tolerance=1.0) for whole in (True, False)]


@pytest.fixture(scope="module")
def network():
    """A transformer trained on real sentences, and sentences it has not seen."""
    data = sentences.sentences(per_source=300, length=14)
    return sentences.train(data.part(0, 700), steps=120), data.part(700, len(data))


@pytest.fixture(scope="module")
def result(network):
    model, data = network
    settings = {"granularity": "block", "trials": 4}
    return parameter_randomization_test(model, data.ids[:24], methods=["gradient", *LOCAL_AND_GLOBAL], **settings)


def test_the_sentences_are_real_and_of_three_sources(network):
    model, data = network
    assert sorted(set(data.labels.tolist())) == [0, 1, 2]
    assert float((model(data.ids).argmax(1) == data.labels).float().mean()) > 0.6


def full(result, method, measure):
    return result.curves[method.name, measure].values[:, -1]


def test_summed_over_dimensions_a_multiplier_keeps_nothing_of_a_sentence(result):
    """Kokhlikyan et al. 2021: what keeps an image's map alive is lost in the sum, for both variants alike."""
    whole, local = LOCAL_AND_GLOBAL
    assert full(result, whole, "cosine_signed").abs().nanmedian() < 0.5
    for method in (whole, local):
        assert full(result, method, "spearman_signed").nanmedian().abs() < 0.25
        assert full(result, method, "spearman").nanmedian().abs() < 0.25


def test_controls_of_text_come_out_right(result):
    assert result.valid, result.validity
    assert [result.verdicts[name].outcome for name in ("edge_detector", "input_copy")] == [Outcome.FAIL] * 2
    assert result.verdicts["gradient"].outcome is not Outcome.FAIL
    assert result.verdicts["random"].outcome is Outcome.INCONCLUSIVE


def test_the_embedding_table_is_randomised_last_and_proven_changed(result):
    assert result.units[-1] == "embedding"
    assert result.coverage.share == 1.0
    assert not result.coverage.unused


def test_text_is_compared_by_cosine_spearman_and_euclidean_without_being_asked(result):
    assert result.settings["tokens"]["reduce"] == "sum"
    measures = {measure for method, measure in result.curves if method == "gradient"}
    assert measures == {"spearman", "spearman_signed", "cosine_signed", "euclidean_signed"}


def test_the_embedded_input_is_that_of_the_model_at_hand(network):
    model, data = network
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.embedding.weight.mul_(2)
    ids, target = data.ids[:4], torch.zeros(4, dtype=torch.long)
    embedded = other.embedding(ids).detach().requires_grad_()
    handle = other.embedding.register_forward_hook(lambda module, args, output: embedded)
    (slope,) = torch.autograd.grad(other(ids)[:, 0].sum(), embedded)
    handle.remove()
    expected = (slope * embedded).sum(2).detach() * (ids != 0)
    found, _ = token_scores(other, ids, target, method="input_x_gradient")
    assert torch.allclose(found, nn.functional.normalize(expected, dim=1), atol=1e-5)


def test_padding_changes_no_score_and_no_similarity(network):
    model, data = network
    ids = data.ids[:8]
    wider = torch.cat([ids, torch.zeros(8, 6, dtype=torch.long)], 1)
    longer = copy.deepcopy(model)
    longer.position = nn.Parameter(torch.cat([model.position, torch.randn(6, 32)]))
    narrow, kept = token_scores(model, ids, method="gradient")
    wide, wide_kept = token_scores(longer, wider, method="gradient")
    assert torch.allclose(narrow, wide[:, :14], atol=1e-5)
    assert torch.equal(kept, wide_kept[:, :14])
    noise = torch.randn(8, 14)
    for name in ("spearman", "spearman_signed", "cosine_signed", "euclidean_signed", "pearson"):
        measure = similarity.resolve(name)
        short = similarity.within(measure, kept[:, None])(narrow[:, None], noise[:, None])
        padded = torch.cat([noise, torch.randn(8, 6)], 1)
        long = similarity.within(measure, wide_kept[:, None])(wide[:, None], padded[:, None])
        assert torch.allclose(short, long, atol=1e-4), name


@pytest.mark.parametrize("name", ["spearman", "spearman_signed", "pearson", "cosine", "cosine_signed", "euclidean"])
def test_a_similarity_within_a_mask_is_that_of_what_is_inside(name):
    maps, others = torch.randn(2, 3, 1, 20)
    mask = torch.zeros(3, 1, 20, dtype=torch.bool)
    mask[..., 4:15] = True
    measure = similarity.resolve(name)
    inside = measure(maps[..., 4:15], others[..., 4:15])
    assert torch.allclose(similarity.within(measure, mask)(maps, others), inside, atol=1e-6)


def test_windows_have_no_meaning_within_a_mask():
    with pytest.raises(ValueError, match="similarity 'ssim' has no meaning on part of a map; choose from: spearman"):
        similarity.within(similarity.resolve("ssim"), torch.ones(1, 8, 8, dtype=torch.bool))


def test_special_tokens_do_not_count(network):
    model, data = network
    special = int(data.ids[0, 0])
    scores, kept = token_scores(model, data.ids[:8], method="gradient", tokens=Tokens(ignore=[special]))
    assert not kept[data.ids[:8] == special].any()
    assert scores[~kept].eq(0).all()


def test_the_norm_over_dimensions_has_no_sign(network):
    model, data = network
    scores, kept = token_scores(model, data.ids[:8], method="gradient", tokens=Tokens(reduce="norm"))
    assert (scores[kept] > 0).all()


class Normalised(nn.Module):
    """What BERT (``before``) and GPT-2 have in common: a number added to all dimensions of a token is lost."""

    def __init__(self, before):
        super().__init__()
        first, then = (nn.LayerNorm(8), nn.Identity()) if before else (nn.Identity(), nn.LayerNorm(8))
        self.embedding, self.before, self.then = nn.Embedding(30, 8), first, then
        self.inner, self.norm, self.head = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, ids):
        x = self.before(self.embedding(ids))
        return self.head(self.norm(x + torch.tanh(self.inner(self.then(x)))).tanh().mean(1))


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_sums_cancel_scores_are_norms_and_the_result_says_so(before, dtype):
    torch.manual_seed(0)
    model, ids = Normalised(before).to(dtype).eval(), torch.randint(30, (6, 5))
    by_itself, _ = token_scores(model, ids, method="gradient")
    asked_for, _ = token_scores(model, ids, method="gradient", tokens=Tokens(reduce="norm"))
    assert torch.equal(by_itself, asked_for)
    if dtype is torch.float32:
        result = parameter_randomization_test(model, ids, methods="gradient", trials=1, controls=False)
        assert result.settings["tokens"] == {"embedding": "embedding", "reduce": "norm"}
        assert any("scores of tokens are norms" in note for note in result.coverage.notes)


def test_a_sum_that_cancels_is_zero_and_never_a_verdict():
    torch.manual_seed(0)
    model, ids = Normalised(True).eval(), torch.randint(30, (6, 5))
    tokens = Tokens(reduce="sum")
    assert token_scores(model, ids, method="gradient", tokens=tokens)[0].eq(0).all()
    assert token_scores(model, ids, method="occlusion", tokens=tokens)[0].ne(0).all()
    result = parameter_randomization_test(model, ids, methods="gradient", trials=2, tokens=tokens)
    assert result.verdicts["gradient"].outcome is Outcome.INCONCLUSIVE
    assert any("use Tokens(reduce='norm')" in note for note in result.coverage.notes)


def test_signed_scores_are_to_be_had_behind_the_normalisation():
    torch.manual_seed(0)
    model, ids = Normalised(True).eval(), torch.randint(30, (6, 5))
    scores, _ = token_scores(model, ids, method="gradient", tokens=Tokens(embedding="before"))
    assert (scores < 0).any()


class Recurrent(nn.Module):
    def __init__(self, words):
        super().__init__()
        self.embedding, self.recurrent, self.head = (
            nn.Embedding(words, 8),
            nn.LSTM(8, 8, batch_first=True),
            nn.Linear(8, 3),
        )

    def forward(self, ids, lengths):
        hidden = self.recurrent(self.embedding(ids))[0]
        return self.head(hidden[torch.arange(len(ids)), lengths - 1])


@pytest.mark.parametrize("method", ["gradient", "integrated_gradients_local", "occlusion", "smoothgrad", "gradcam"])
def test_methods_run_on_an_lstm_with_lengths_and_a_mask(network, method):
    _, data = network
    ids = data.ids[:6]
    mask, model = ids != 0, Recurrent(len(data.words))
    given = {"ids": ids, "lengths": mask.sum(1), "mask": mask.long()}
    result = parameter_randomization_test(
        model,
        given,
        torch.arange(6) % 3,
        forward=lambda model, ids, lengths, mask: model(ids, lengths),
        explain="ids",
        methods=method,
        trials=1,
        order="full",
        controls=False,
    )
    assert (method, "cosine_signed") in result.curves, result.verdicts[method].reason
    assert result.coverage.share == 1.0


def test_a_model_that_embeds_twice_asks_which_embedding():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.head = nn.Embedding(9, 4), nn.Embedding(9, 4), nn.Linear(4, 3)

        def forward(self, ids):
            return self.head((self.one(ids) * self.other(ids)).mean(1))

    ids = torch.randint(9, (4, 5))
    with pytest.raises(
        ValueError, match=r"one module must embed the ids once, and there is 'model\.one', 'model\.other'"
    ):
        token_scores(Twice(), ids)
    scores, _ = token_scores(Twice(), ids, method="gradient", tokens=Tokens("other"))
    assert scores.shape == ids.shape


def test_tokens_of_numbers_are_refused(network):
    with pytest.raises(ValueError, match=r"tokens= needs ids \(N, T\) of an integer type"):
        parameter_randomization_test(nn.Linear(4, 3), torch.randn(4, 4), tokens=Tokens())


# -------------------------------------------------------------------------------------------------------- pictures


def test_every_word_is_drawn_in_the_colour_of_its_score():
    figure = pictures.draw([["good", "bad", "neither"]], torch.tensor([[1.0, -1.0, 0.0]]), ["a title"])
    colours = {text.get_text(): text.get_bbox_patch().get_facecolor() for text in figure.texts if text.get_bbox_patch()}
    (red, _, blue, _), (cold_red, _, cold_blue, _) = colours["good"], colours["bad"]
    assert red > blue
    assert cold_blue > cold_red
    assert min(colours["neither"]) > 0.98


@pytest.mark.parametrize("dark", [False, True])
def test_a_key_below_sentences_has_the_colours_of_their_words(dark):
    figure = pictures.draw([["good", "bad"]], torch.tensor([[1.0, -1.0]]), dark=dark)
    grounds = {text.get_text(): text.get_bbox_patch().get_facecolor() for text in figure.texts if text.get_bbox_patch()}
    (bar,) = figure.axes[0].collections
    against, *_, most = (tuple(colour) for colour in bar.get_facecolors())
    assert (against, most) == (grounds["bad"], grounds["good"])
    assert {"against", "for"} <= {text.get_text() for text in figure.axes[0].texts}


def test_long_sentences_are_broken_and_nothing_leaves_the_page():
    figure = pictures.draw([[f"word{k}" for k in range(60)]], torch.randn(1, 60))
    for text in figure.texts:
        extent = text.get_window_extent()
        assert extent.x0 >= 0
        assert extent.x1 <= figure.bbox.width
        assert extent.y0 >= 0


def test_html_of_a_sentence_escapes_its_words():
    page = pictures.html(["<b>", "two"], torch.tensor([0.5, -0.25]))
    assert "&lt;b&gt;" in page
    assert page.count("background:#") == 2


def test_words_without_scores_are_an_error():
    with pytest.raises(ValueError, match="sentence 0 has 2 words"):
        pictures.draw([["a", "b"]], torch.zeros(1, 1))


@pytest.mark.slow
def test_the_example_draws_text_beside_images(tmp_path):
    text, image = load("text").main(tmp_path, steps=80, epochs=2, trials=2, samples=12, points=16)
    assert text.valid
    assert image.valid
    names = ("integrated_gradients", "integrated_gradients_local")
    whole, local = (image.curves[name, "ssim"].mean.mean() for name in names)
    assert whole > local
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("text.png", "tokens.png"))


def test_a_network_may_view_its_embeddings():
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.body, self.head = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, ids):
            rows = self.words(ids).view(-1, 8)
            return self.head(torch.tanh(self.body(rows)).view(*ids.shape, 8).mean(1))

    ids = torch.randint(9, (5, 6))
    result = parameter_randomization_test(
        Viewing().eval(), ids, 0, methods="gradient", trials=1, controls=False, progress=False
    )
    assert result.curves["gradient", "spearman"].values.isfinite().all()


class StepsFirst(nn.Module):
    """Turns its ids before it embeds them, as XLNet does."""

    def __init__(self, turn=True):
        super().__init__()
        self.embedding, self.steps, self.head = nn.Embedding(11, 6), nn.GRU(6, 8), nn.Linear(8, 3)
        self.turn = turn

    def forward(self, input_ids):
        embedded = self.embedding(input_ids.T) if self.turn else self.embedding(input_ids).transpose(0, 1)
        return self.head(self.steps(embedded)[0].mean(0))


@pytest.mark.parametrize("length", [4, 7])  # as many steps as samples, and more
@pytest.mark.parametrize("tokens", [None, Tokens("embedding")])
def test_a_model_that_embeds_steps_first_is_explained_as_one_that_embeds_samples_first(length, tokens):
    ids = torch.randint(1, 11, (4, length), generator=torch.Generator().manual_seed(length))
    methods = ["gradient", "input_x_gradient", "occlusion"]
    found = []
    for turn in (True, False):
        torch.manual_seed(0)
        model = StepsFirst(turn).eval()
        found.append(
            parameter_randomization_test(
                model, ids, torch.arange(4) % 3, methods=methods, tokens=tokens, trials=2, repeats=1, progress=False
            )
        )
    turned, straight = found
    assert turned.settings["tokens"] == straight.settings["tokens"]
    assert turned.curves.keys() == straight.curves.keys()
    for key, curve in straight.curves.items():
        torch.testing.assert_close(turned.curves[key].values, curve.values, rtol=0, atol=1e-5, equal_nan=True)


class TwoTables(nn.Module):
    """Words and their places within a sentence of its own, from two tables."""

    def __init__(self):
        super().__init__()
        self.embed = TwoTables.Sum()
        self.head = nn.Linear(6, 3)

    def forward(self, input_ids=None, inputs_embeds=None):
        embedded = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        return self.head(torch.tanh(embedded).mean(1))

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.kinds = nn.Embedding(11, 6), nn.Embedding(11, 6)

        def forward(self, ids):
            return self.words(ids) + self.kinds(ids)


def test_both_ways_out_of_ids_without_a_gradient_work():
    torch.manual_seed(0)
    model, ids, target = TwoTables().eval(), torch.randint(1, 11, (4, 7)), torch.arange(4) % 3
    few = {"methods": "gradient", "trials": 2, "repeats": 1, "progress": False, "controls": False}
    reason = parameter_randomization_test(model, {"input_ids": ids}, target, **few).verdicts["gradient"].reason
    assert "tokens=Tokens(embedding=...)" in reason
    assert "inputs_embeds" in reason
    named = parameter_randomization_test(model, {"input_ids": ids}, target, tokens=Tokens("embed"), **few)
    embeddings = model.embed(ids).detach()
    given = parameter_randomization_test(model, {"inputs_embeds": embeddings}, target, **few)
    for result, kind in ((named, "signal"), (given, "signal")):
        assert result.curves["gradient", "spearman"].values.isfinite().any(), kind
    assert given.settings["axes"]["summed"] == 2


class Meeting(nn.Module):
    """Sentences are seen beside the others of their batch."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, ids):
        x = torch.tanh(self.embed(ids)).mean(1)
        return self.head(x - x.mean(0))


def test_sentences_that_depend_on_one_another_are_explained_each_by_its_own_score():
    torch.manual_seed(0)
    model, ids = Meeting().eval(), torch.randint(0, 20, (4, 6))
    options = {"trials": 1, "progress": False, "controls": False}
    result = parameter_randomization_test(model, ids, torch.arange(4) % 3, methods=["gradient", "occlusion"], **options)
    assert any("depend on the other samples" in note for note in result.coverage.notes)
    assert {"gradient", "occlusion"} == {name for name, _ in result.curves}
    embeddings = model.embed(ids).detach().requires_grad_()
    x = torch.tanh(embeddings).mean(1)
    own = model.head(x - x.mean(0))[torch.arange(4), torch.arange(4) % 3]
    slopes = [torch.autograd.grad(score, embeddings, retain_graph=True)[0][place] for place, score in enumerate(own)]
    expected = torch.stack(slopes).sum(2).abs()
    found = result.trained_maps["gradient"].reshape(4, 6).float()
    assert torch.allclose(found / found.amax(1, keepdim=True), expected / expected.amax(1, keepdim=True), atol=0.01)
