"""Raw audio is a signal of one channel, whatever its shape; the two sides of a spectrogram are of two kinds."""

import pytest
import torch
from made_layouts import Called, convolved, spectrogram, unsqueezed
from torch import nn

from lightning_sanity import parameter_randomization_test
from lightning_sanity.attribution import occlusion

SIDE = 256
HIDING = ("occlusion", "feature_ablation", "lime", "kernel_shap", "rise")
FEW = {"trials": 1, "controls": False, "progress": False, "pictures": False, "repeats": 1, "max_steps": 1}


def waves(samples=4):
    """No sample is 0, so that what is 0 has been hidden."""
    found = torch.randn(samples, SIDE, generator=torch.Generator().manual_seed(3))
    return torch.where(found >= 0, found + 0.1, found - 0.1)


NETWORKS = {
    "convolution": lambda x, inner: inner(x[:, None]),
    "spectrogram": lambda x, inner: inner(spectrogram(x)[:, None]),
}


def network(name, seen=None):
    torch.manual_seed(0)
    inner = convolved(1, 2 if name == "spectrogram" else 1)

    def run(x, inner):
        x = x.flatten(1)
        if seen is not None:
            seen.append(x.detach().clone())
        return NETWORKS[name](x, inner)

    return Called(run, inner).eval()


def stretches(rows):
    """Lengths of what is hidden in a row, and of what is shown between two hidden parts."""
    found = []
    for row in rows:
        hidden = (row == 0).int()
        if 0 < int(hidden.sum()) < len(row):
            _, lengths = torch.unique_consecutive(hidden, return_counts=True)
            found.append(lengths)
    return torch.cat(found)


@pytest.mark.parametrize("method", HIDING)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_hides_parts_of_raw_audio_hides_stretches_of_time(name, method):
    seen = []
    parameter_randomization_test(network(name, seen), waves(), torch.arange(4) % 3, methods=method, **FEW)
    lengths = stretches(torch.cat([rows for rows in seen if rows.shape[1] == SIDE])).float()
    assert lengths.numel() > 0
    assert float(lengths.quantile(0.05)) > 1


@pytest.mark.parametrize("name", NETWORKS)
def test_raw_audio_is_judged_as_with_its_channel(name):
    methods = ["occlusion", "feature_ablation", "gradient"]
    flat, channel = (
        parameter_randomization_test(network(name), given, torch.arange(4) % 3, methods=methods, **FEW)
        for given in (waves(), waves()[:, None])
    )
    assert flat.settings["axes"]["kind"] == channel.settings["axes"]["kind"] == "signal"
    assert flat.curves.keys() == channel.curves.keys()
    for key, curve in flat.curves.items():
        torch.testing.assert_close(curve.values, channel.curves[key].values, rtol=0, atol=1e-6, equal_nan=True)


def test_columns_of_a_table_are_hidden_one_by_one():
    seen = []
    model = Called(lambda x, first: (seen.append(x.detach().clone()), first(x))[1], nn.Linear(SIDE, 3)).eval()
    parameter_randomization_test(model, waves(), torch.arange(4) % 3, methods="occlusion", **FEW)
    hidden = torch.cat([(rows == 0).sum(1) for rows in seen])
    assert int(hidden.max()) == 1


# --------------------------------------------------------------------------------------------------------- spectrograms


def linear(shape):
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1], 3)).double()


@pytest.mark.parametrize(("window", "axis"), [((2, 12), 2), ((8, 3), 1)])
def test_a_window_over_a_whole_side_hides_bands_or_moments(window, axis):
    model, x, target = linear((8, 12)), torch.rand(2, 1, 8, 12).double(), torch.tensor([0, 2])
    found = occlusion(window=window, stride=window)(model, x, target)[:, 0]
    weights = model[1].weight.detach()[target].reshape(2, 8, 12)
    lost = (weights * x[:, 0]).sum(axis)  # of a linear model: of each band, or of each moment
    wide = window[2 - axis]
    lost = lost.unflatten(1, (-1, wide)).sum(2).repeat_interleave(wide, 1)
    torch.testing.assert_close(found, lost.unsqueeze(axis).expand_as(found))


def test_a_window_for_each_side_counts_in_the_order_of_the_users_axes():
    x = torch.rand(4, 9, 30)
    model = unsqueezed(convolved(1, 2)).eval()
    seen = []
    listening = Called(lambda x, inner: (seen.append(x.detach().clone()), inner(x))[1], model).eval()
    parameter_randomization_test(listening, x, torch.arange(4) % 3, methods=[occlusion(window=(3, 30))], **FEW)
    hidden = torch.cat([(rows == 0) for rows in seen])
    touched = hidden.flatten(1).any(1)
    assert int(hidden[touched].all(2).sum(1).max()) == 3  # bands, each over the whole time
    assert bool((hidden[touched].any(2) == hidden[touched].all(2)).all())


def test_bands_that_a_network_reads_as_channels_keep_their_place_where_that_is_asked():
    model, x, target = convolved(8, 1).eval(), torch.rand(4, 8, 12), torch.arange(4) % 3
    summed = parameter_randomization_test(model, x, target, methods="occlusion", **FEW)
    kept = parameter_randomization_test(model, x, target, methods="occlusion", channel_axis=None, **FEW)
    assert (summed.settings["axes"]["summed"], kept.settings["axes"]["summed"]) == (1, None)
    assert kept.curves.keys() == summed.curves.keys()
    assert kept.curves["occlusion", "spearman"].values.isfinite().all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"window": (2, 3, 4)}, r"window \(2, 3, 4\) has 3 numbers, and the input has the sides \(8, 12\)"),
        ({"window": (2, 13)}, "larger than the input"),
        ({"window": (4, 2), "stride": 3}, "stride 3 is larger than window 2"),
        ({"stride": (1, 2, 3)}, "stride .* has 3 numbers"),
    ],
)
def test_windows_that_do_not_fit_the_sides_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        occlusion(**given)(linear((8, 12)), torch.rand(2, 1, 8, 12).double(), torch.tensor([0, 2]))


@pytest.mark.parametrize("given", [{"window": (2, 0)}, {"stride": (1.5, 2)}, {"window": "22"}])
def test_sides_of_windows_are_whole_numbers(given):
    with pytest.raises(ValueError, match="must be a whole number"):
        occlusion(**given)


def test_windows_of_one_size_are_those_of_that_size_for_each_side():
    model, x, target = linear((8, 12)), torch.rand(2, 1, 8, 12).double(), torch.tensor([0, 2])
    one = occlusion(window=4, stride=2)(model, x, target)
    torch.testing.assert_close(occlusion(window=(4, 4), stride=[2, 2])(model, x, target), one, rtol=0, atol=0)
