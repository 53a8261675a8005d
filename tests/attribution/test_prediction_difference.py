"""Prediction differences against a slow loop, their patches against the conditional Gaussian."""

import numpy as np
import pytest
import reference
import torch
from made_networks import classes, convolutional, images, seeded
from torch.nn import functional as F

from lightning_sanity.attribution.prediction_difference import PatchSampler, prediction_difference_analysis

QUICK = prediction_difference_analysis(window=4, stride=6, n_samples=2)


def test_prediction_difference_equals_the_slow_loop():
    model, x, target = convolutional(2).double(), images(2, 2, 8).double(), classes(2)
    method = prediction_difference_analysis(window=2, stride=2, context=1, n_samples=3)
    found = seeded(method, model, x, target)

    def probabilities(image):
        with torch.no_grad():
            return model(torch.from_numpy(image)[None])[0].softmax(0).numpy()

    for i in range(2):
        sampler = PatchSampler.fit(x[i : i + 1, None], 2, 1, 1e-2, True)
        torch.manual_seed(0)
        expected = reference.prediction_difference(
            probabilities,
            x[i].numpy(),
            int(target[i]),
            2,
            1,
            2,
            lambda top, left, sampler=sampler, i=i: sampler.draw(x[i : i + 1], top, left, 3)[0].numpy(),
        )
        torch.testing.assert_close(found[i], torch.from_numpy(expected).expand(2, 8, 8), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("corner", [(2, 3), (0, 0), (4, 1)])
def test_patches_follow_the_conditional_gaussian(corner):
    top, left = corner
    x = images(30, side=6).double()
    x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)  # neighbours alike
    sampler = PatchSampler.fit(x[None], 2, 1, 1e-1, True)
    drawn = sampler.draw(x[:1], top, left, 20000)[0].flatten(1)  # (S, 4)

    flat = sampler.patches[0].flatten(1).numpy()
    variance = flat.var(0).mean()
    covariance = np.cov(flat.T, bias=True) + 0.1 * variance * np.eye(16)
    known, values = [], []
    for row in range(4):
        for column in range(4):
            inside = 1 <= row <= 2 and 1 <= column <= 2
            y, z = top - 1 + row, left - 1 + column
            if not inside and 0 <= y < 6 and 0 <= z < 6:
                known.append(row * 4 + column)
                values.append(float(x[0, 0, y, z]))
    ring = [k for k in range(16) if k not in (5, 6, 9, 10)]
    missing = [k for k in ring if k not in known]
    kept = [k for k in range(16) if k not in missing]
    mean, spread = reference.conditional_gaussian(
        flat.mean(0)[kept], covariance[np.ix_(kept, kept)], [kept.index(k) for k in known], np.array(values)
    )
    scale = np.sqrt(np.diag(spread))
    assert np.abs(drawn.mean(0).numpy() - mean).max() < 0.05 * scale.max()
    np.testing.assert_allclose(np.cov(drawn.T.numpy()), spread, atol=0.05 * scale.max() ** 2)


def test_prediction_difference_of_a_given_set_ignores_the_batch():
    model, x, target = convolutional().double(), images(4).double(), classes(4)
    method = prediction_difference_analysis(window=4, stride=6, n_samples=2, images=images(9))
    together = seeded(method, model, x, target)
    torch.testing.assert_close(seeded(method, model, x[:1], target[:1]), together[:1])


def test_prediction_difference_copies_patches_when_marginal():
    model, x, target = convolutional().double(), images(2).double(), classes(2)
    method = prediction_difference_analysis(window=4, stride=6, n_samples=2, sampling="marginal")
    assert seeded(method, model, x, target).isfinite().all()
    sampler = PatchSampler.fit(x[:, None], 4, 1, 1e-2, False)
    drawn = sampler.draw(x, 3, 3, 5)
    windows = F.unfold(x, 4).transpose(1, 2)  # (N, L, 16)
    for i in range(2):
        assert all((windows[i] == patch.flatten()).all(1).any() for patch in drawn[i])


def test_prediction_difference_does_not_saturate():
    model, x, target = convolutional().double(), images(2).double(), classes(2)
    for parameter in model[-1].parameters():
        parameter.data *= 1e4  # probabilities are exactly 0 and 1 in floating point
    found = seeded(QUICK, model, x, target)
    assert found.isfinite().all()
    assert found.abs().max() > 60  # in bits; a rounded probability cannot show more than 53


def test_prediction_difference_survives_a_flat_image():
    found = seeded(QUICK, convolutional(), torch.ones(2, 1, 16, 16), classes(2))
    assert found.isfinite().all()


def test_prediction_difference_refuses_several_outputs_without_a_class():
    reason = QUICK.refuses(convolutional(), images(), None)
    assert "no class is given" in reason
