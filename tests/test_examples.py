from pathlib import Path

import pytest
from made_examples import EXAMPLES, load
from matplotlib.figure import Figure
from matplotlib.text import Text

from lightning_sanity import attribution, parameter_randomization_test


@pytest.fixture
def words(monkeypatch):
    """The texts of every figure that an example saved, by the name of its file."""
    found = {}
    save = Figure.savefig

    def saved(figure, path, *args, **kwargs):
        save(figure, path, *args, **kwargs)
        texts = {text.get_text().strip() for text in figure.findobj(Text) if text.get_visible()}
        found[Path(path).name] = texts | {line for text in texts for line in text.splitlines()}

    monkeypatch.setattr(Figure, "savefig", saved)
    return lambda name: found[name]


@pytest.mark.filterwarnings("ignore:saliency maps failed")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_quickstart_prints_verdicts(tmp_path, capsys):
    result = load("quickstart").main(tmp_path, epochs=2)
    assert result.verdicts["gradient"].passed
    assert "guided_backprop" in capsys.readouterr().out


def test_every_method_writes_its_table_and_picture(words, tmp_path, capsys):
    names = ["gradient", "guided_backprop", "cam"]
    load("every_method").main(tmp_path, methods=names, trials=2, samples=8, epochs=2)
    table = (tmp_path / "every_method.md").read_text()
    assert all(f"| {name} |" in table for name in names)
    assert {"gradient", "guided_backprop", "cam"} <= words("every_method.png")


def test_the_page_of_every_method_lists_every_method():
    page = (EXAMPLES / "every_method.md").read_text()
    assert [name for name in attribution.available() if f"| {name} " not in page] == []


def test_random_labels_compares_both_kinds_of_models(words, tmp_path, capsys):
    settings = {"models": 1, "samples": 8, "size": 64, "max_epochs": 2, "methods": ["gradient", "gradcam"]}
    result = load("random_labels").main(tmp_path, **settings)
    assert result.settings["test"] == "data_randomization"
    assert "learned only" in result.validity  # two epochs are too few
    assert "| gradient | INCONCLUSIVE |" in capsys.readouterr().out
    assert {"gradient", "gradcam"} <= words("label_maps.png") & words("verdicts.png")


def test_orders_writes_its_figure(words, tmp_path):
    example = load("orders")
    results = example.main(tmp_path, trials=2, samples=6, epochs=1)
    assert set(results) == {"cascading", "bottom_up", "independent", "full"}
    assert {*example.ORDERS.values(), *example.METHODS} <= words("orders.png")


def test_two_tasks_tell_a_map_of_the_network_from_one_of_the_picture(words, tmp_path):
    rows = load("two_tasks").main(tmp_path, epochs=2, samples=16)
    assert rows["edge_detector"]["alike"] == pytest.approx(1)
    assert rows["gradient"]["alike"] < rows["input_x_gradient"]["alike"] < 1
    assert {"gradient", "edge_detector"} <= words("two_tasks.png")


def test_roar_writes_its_figure(words, tmp_path):
    found = load("roar").main(tmp_path, shares=(0.5,), epochs=1, seeds=1)
    assert set(found) == {"gradient", "integrated_gradients", "edge_detector", "random"}
    assert set(found) <= words("roar.png")


def test_smoothing_study_covers_the_cascade_of_both_networks(words, tmp_path):
    names, found = load("smoothing_study").main(tmp_path, samples=3, epochs=1)
    assert names[0] == "trained"
    assert {kind for _, kind in found} == {"original", "smoothed"}
    assert all(len(values) == len(names) for values in found.values())
    assert words("smoothing_study.png")


def test_pretrained_explains_ones_own_images(tmp_path, capsys):
    pytest.importorskip("efficientnet_lite_pytorch")
    from skimage import data, io

    for name in ("chelsea", "coffee", "rocket"):
        io.imsave(tmp_path / f"{name}.png", getattr(data, name)())
    result = load("pretrained").main([str(tmp_path)], tmp_path / "out", 64, trials=2, max_steps=3, methods=["gradcam"])
    assert result.curves["gradcam", "ssim"].values.shape == (2, 3, 3)
    assert "chelsea" in capsys.readouterr().out


def test_gallery_draws_the_cascade(words, tmp_path, capsys):
    pytest.importorskip("efficientnet_lite_pytorch")
    load("gallery").main(tmp_path, 64, trials=2, max_steps=3, methods=["gradient", "guided_backprop"])
    assert {"Gradient", "Backprop", "trained", "layers random"} <= words("cascade.png")


def test_nodes_of_a_graph_are_explained_by_their_own_scores(tmp_path):
    result = load("graph").main(tmp_path, nodes=30, steps=60, trials=2, methods="gradient")
    assert result.verdicts["gradient"].passed
    assert any("explained by its own score" in note for note in result.coverage.notes)
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_edges_among_the_inputs_are_refused_with_the_way_out():
    example = load("graph")
    features, labels, edges = example.digits(12)
    with pytest.raises(ValueError, match=r"found \{.*the edges of a graph.*forward=lambda"):
        parameter_randomization_test(example.GraphNetwork(), (features, edges), labels, methods="gradient")


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_choosing_writes_the_page_and_the_file_for_the_gate(tmp_path, capsys):
    choice = load("choosing").main(
        tmp_path, candidates=["gradient", "input_x_gradient"], epochs=2, samples=12, trials=3
    )
    assert {"choice.html", "choice.json"} <= {path.name for path in tmp_path.iterdir()}
    assert choice.reason[:20] in " ".join(capsys.readouterr().out.split())
    assert {group.name for group in choice.groups} == {"round", "other"}
