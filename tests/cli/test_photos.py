import pytest
import torch

from lightning_sanity.cli import main, photos

pytest.importorskip("efficientnet_lite_pytorch")
CLASSES = {"cat": {281, 282, 285}, "espresso": {504, 967, 968}, "rocket": {657, 744}, "flower": {985}}
"""Of ImageNet: tabby, tiger and Egyptian cat; mug, espresso and cup; missile and projectile; daisy."""


def test_the_pretrained_network_knows_the_photographs():
    images = photos.photographs(224)
    scores = photos.pretrained()(photos.standardised(images))
    among = dict(zip(images, scores.topk(5).indices.tolist(), strict=True))
    assert [name for name, classes in CLASSES.items() if not classes & set(among[name])] == []


def test_photographs_are_colours_between_0_and_1():
    images = photos.photographs(64)
    assert {tuple(image.shape) for image in images.values()} == {(3, 64, 64)}
    assert all(bool(((image >= 0) & (image <= 1)).all()) for image in images.values())


@pytest.mark.slow
def test_guided_backprop_fails_on_photographs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(photos, "STEPS", 4)
    assert main(["demo", "--photos", "--out", str(tmp_path), "--trials", "2"]) == 0
    table = capsys.readouterr().out
    assert [line.split()[1] for line in table.splitlines() if line.startswith("guided_backprop ")][:1] == ["FAIL"]
    assert {"report.html", "result.json", "maps.png"} <= {path.name for path in tmp_path.iterdir()}


def test_without_the_packages_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ModuleNotFoundError, match=r"lightning-sanity\[photos\]"):
        photos.pretrained()


def test_standardised_images_have_the_statistics_that_the_network_expects():
    image = torch.tensor(photos.MEAN)[:, None, None].expand(3, 8, 8)
    assert torch.allclose(photos.standardised({"grey": image}), torch.zeros(1, 3, 8, 8), atol=1e-6)
