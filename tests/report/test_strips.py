"""Maps that are rows of numbers, and slices of volumes: what is kept of them, and how it is shown."""

import pytest
import torch
from made_figures import in_rows
from made_texts import faults
from torch import nn

import lightning_sanity
from lightning_sanity.explanation.tokens import Tokens
from lightning_sanity.report import cards, figures, html, strips
from lightning_sanity.result import SanityResult
from lightning_sanity.result.pictures import of_maps, slices

WORDS = ("<pad>", "the", "cat", "sat", "on", "mats")


KINDS = ("signal", "tokens", "table")


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_strips_neither_touch_nor_are_cut(kind):
    assert faults(figures.maps(in_rows(kind))) == []
    assert faults(cards.maps(in_rows(kind), 0), 350) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_keeps_rows_and_words(kind, tmp_path):
    kept = SanityResult.from_json(in_rows(kind).to_json(tmp_path / "result.json")).pictures
    assert (kept.kind, kept.words) == (in_rows(kind).pictures.kind, in_rows(kind).pictures.words)
    assert torch.equal(kept.maps["gradient"], in_rows(kind).pictures.maps["gradient"])


def test_the_page_colours_every_word_after_every_step():
    page = html.render(in_rows("tokens"))
    assert page.count(">word9</span>") >= 4  # trained and three steps


def test_the_page_draws_every_channel_of_a_signal():
    assert html.render(in_rows("signal")).count('<svg class="trace"') >= 1
    assert len(strips.trace(in_rows("signal").pictures, 0)) == 2


def test_the_features_shown_are_the_largest_of_the_trained_model():
    result = in_rows("table", 20)
    shown = [name for name, _ in strips.features(result.pictures, "gradient", 0)]
    order = result.pictures.maps["gradient"][0, 0, 0].abs().int().argsort(descending=True, stable=True)
    assert shown == [f"feature {place + 1}" for place in order[:8].tolist()]


def test_the_end_of_a_sentence_of_which_no_map_speaks_is_left_out():
    result = in_rows("tokens")
    for maps in result.pictures.maps.values():
        maps[:, :, :, 7:] = 0
    assert [word for word, _ in strips.spoken(result.pictures, "gradient", 0)[0]] == [f"word{k}" for k in range(7)]


def test_a_table_keeps_the_gradient_of_the_model():
    torch.manual_seed(0)
    model, values = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).eval(), torch.randn(6, 5)
    result = lightning_sanity.parameter_randomization_test(
        model, values, torch.zeros(6, dtype=torch.long), methods="gradient", trials=1, progress=False
    )
    given = values.clone().requires_grad_()
    model(given)[:, 0].sum().backward()
    kept = result.pictures.maps["gradient"][:, 0, 0].float()
    assert torch.corrcoef(torch.stack([kept.flatten(), given.grad[: len(kept)].flatten()]))[0, 1] > 0.9
    assert [row.abs().argmax() for row in kept] == [row.abs().argmax() for row in given.grad[: len(kept)]]


def test_tokens_keep_their_words():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 8), nn.Flatten(), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 2)).eval()
    ids = torch.randint(1, 6, (6, 4))
    result = lightning_sanity.parameter_randomization_test(
        model, ids, methods="gradient", trials=1, progress=False, tokens=Tokens(words=WORDS)
    )
    assert result.pictures.kind == "tokens"
    assert result.pictures.words[0] == tuple(WORDS[k] for k in ids[0].tolist())


def test_maps_of_a_volume_are_its_slices():
    volume = torch.randn(2, 8, 5, 6)
    assert torch.equal(of_maps(volume.flatten(1, 2), (8, 5, 6)), torch.cat([volume[:, k] for k in (2, 4, 6)], -1))
    assert slices(volume).shape == (2, 5, 18)
