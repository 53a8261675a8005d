"""Question: does a page say its answer at a glance, in every size and light, for every kind of result?

Makes twelve kinds of results, comparisons of every kind, and step summaries as GitHub shows them; shows their pages in
a headless Chromium at 1280, 768 and 390 pixels in light, dark and print, photographs them, and counts: texts that
overlap, are cut, or are smaller than 9 pixels; what scrolls sideways; how far down the first method stands; how long
the page is; what axe-core finds. Figures and cards are drawn beside the pages, their texts measured likewise. Looking
at the pictures is the reader's part: --beside lays those of an earlier run next to this one's.

    npm pack axe-core && tar xzf axe-core-*.tgz
    python benchmarks/at_a_glance.py --out glance --axe package/axe.min.js [--kinds photographs text] [--json]
    git stash; python benchmarks/at_a_glance.py --out before; git stash pop
    python benchmarks/at_a_glance.py --out after --beside before
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from measuring import parser, publish

from lightning_sanity import parameter_randomization_test
from lightning_sanity.cli import demo, photos
from lightning_sanity.explanation.tokens import Tokens
from lightning_sanity.release import decision, gate
from lightning_sanity.report import cards, comparison_page, figures
from lightning_sanity.result import SanityResult, comparison

for folder in ("tests", "examples"):
    sys.path.append(str(Path(__file__).parent.parent / folder))

if True:  # these stand in the folders above
    import made_compared
    import made_results
    import sentences
    import tabular
    import time_series
    import volume
    from made_browser import TEXTS, chromium, show
    from made_figures import make_result, nothing_defined
    from made_texts import faults

WIDTHS = (1280, 768, 390)
LIGHTS = (("light", "light", ""), ("dark", "dark", ""), ("print", "light", "print"))
MANY = (
    "gradient", "smoothgrad", "integrated_gradients", "input_x_gradient", "gradcam", "guided_backprop",
    "guided_gradcam", "deconvnet", "occlusion", "layercam", "deeplift", "lrp_epsilon",
)  # fmt: skip
THREE = ("gradient", "integrated_gradients", "guided_backprop")

GITHUB = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>summary</title>
<meta name="viewport" content="width=device-width"><style>
body {{ font: 14px/1.5 -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; color: #1f2328;
  margin: 0 auto; max-width: 900px; padding: 16px; overflow-wrap: break-word; }}
.scroll {{ overflow: auto; }} table {{ border-collapse: collapse; width: max-content; max-width: 100%; }}
th, td {{ padding: 6px 13px; border: 1px solid #d1d9e0; }} tr:nth-child(2n) {{ background: #f6f8fa; }}
</style></head><body><main><h1>Run of a workflow</h1><h2>Summary of a job</h2>{body}</main></body></html>
"""  # GitHub's own style, in short; it makes tables scroll, reachable by keyboard
AXE = """
axe.run(document, {resultTypes: ['violations']}).then(found => JSON.stringify(found.violations.map(
  one => one.id + ': ' + one.nodes.slice(0, 3).map(node => node.target.join(' ')).join(', '))))
"""


def digits(methods, **options):
    """A result on the demo's network."""
    network, validation = _digits_network()
    return parameter_randomization_test(
        network, validation.tensors[0][:16], methods=methods, trials=3, progress=False, **options
    )


def _digits_network(made={}):  # noqa: B006  # trained once
    if not made:
        train, validation = demo.digits()
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        made["network"] = demo.train(train, validation, epochs=3, seed=0, **quiet)[0], validation
    return made["network"]


def photographs():
    """A pretrained network on photographs."""
    images = photos.standardised(photos.photographs(128))
    return parameter_randomization_test(
        photos.pretrained(), images, methods=photos.METHODS, trials=3, max_steps=6, progress=False
    )


def text():
    """A transformer on sentences."""
    data = sentences.sentences()
    model = sentences.train(data.part(0, 1400), 200)
    ids = data.part(1400, 1416).ids
    methods = ("gradient", "integrated_gradients", "input_x_gradient")
    said = Tokens(words=data.words)
    return parameter_randomization_test(model, ids, methods=methods, trials=3, progress=False, tokens=said)


def signal():
    """A network on heartbeats."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    model = time_series.train(time_series.network(), draw, 150)
    probe = time_series.beats(16, draw)[0]
    return parameter_randomization_test(model, probe, methods=THREE, trials=3, progress=False)


def table():
    """A perceptron on patients."""
    torch.manual_seed(0)
    rows, labels = tabular.patients()
    model = torch.nn.Sequential(
        torch.nn.Linear(30, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2)
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(model(rows[:400]), labels[:400])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return parameter_randomization_test(model.eval(), rows[400:416], methods=THREE, trials=3, progress=False)


def volumes():
    """A network on volumes."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    model = volume.train(volume.network(), draw, 60)
    probe = volume.volumes(16, draw)[0]
    return parameter_randomization_test(model, probe, methods=("gradient", "gradcam"), trials=3, progress=False)


def labels():
    """The data randomization test on digits."""
    import random_labels

    with tempfile.TemporaryDirectory() as folder:
        return random_labels.main(folder, models=3, samples=32, size=300, methods=THREE, max_epochs=60)


class Deep(torch.nn.Module):
    """Sixty layers with long names."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(1, 2, 3, padding=1)
        layers = {
            f"encoder_layer_{k}": torch.nn.ModuleDict({"self_attention": torch.nn.Linear(32, 32)}) for k in range(57)
        }
        self.encoder = torch.nn.ModuleDict({"layers": torch.nn.ModuleDict(layers)})
        self.mix, self.head = torch.nn.Linear(512, 32), torch.nn.Linear(32, 10)

    def forward(self, images):
        """Scores ``(N, 10)``."""
        hidden = self.mix(self.stem(images).relu().flatten(1))
        for layer in self.encoder["layers"].values():
            hidden = hidden + 0.3 * layer["self_attention"](hidden).relu()
        return self.head(hidden)


def deep():
    """Twelve methods, sixty steps."""
    torch.manual_seed(1)  # 0 draws a first layer that is dead
    images, targets = demo.digits()[0].tensors
    model = Deep()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(150):
        rows = torch.arange(64) + 64 * (step % 20)
        loss = torch.nn.functional.cross_entropy(model(images[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return parameter_randomization_test(model.eval(), images[:16], methods=MANY, trials=2, progress=False)


def void():
    """A run whose re-initialisation is none: all weights are positive, so that all outputs rise and fall together."""

    def positive(module):
        for parameter in module.parameters(recurse=False):
            torch.nn.init.uniform_(parameter, 0.01, 0.1)

    return digits(THREE, reinitialize=positive)


KINDS = {
    "one method": lambda: digits(["gradcam"]),
    "four methods": lambda: digits(["gradient", "gradcam", "guided_backprop", "guided_gradcam"]),
    "twelve methods": lambda: digits(MANY),
    "sixty steps": deep,
    "invalid": void,
    "undefined": nothing_defined,
    "photographs": photographs,
    "text": text,
    "signal": signal,
    "table": table,
    "volume": volumes,
    "labels": labels,
}


def summary(results):
    """A step summary of the gate as GitHub shows it."""
    from markdown_it import MarkdownIt

    body = MarkdownIt().enable("table").render(decision.markdown(gate(results)))
    opened = '<div class="scroll" tabindex="0" role="region" aria-label="Checks"><table>'
    return GITHUB.format(body=body.replace("<table>", opened).replace("</table>", "</table></div>"))


def mixed(seed=0):
    """A result with methods of every outcome."""
    levels = {"gradient": 0.1, "guided_backprop": 0.9, "integrated_gradients": 0.415, "gradcam": 0.1}
    return made_results.made(levels, weights_digest=str(seed) * 64)


SUMMARIES = {
    "summary": lambda: summary([mixed()]),
    "summary of two tests": lambda: summary(
        [mixed(), made_results.made_of_labels({"gradcam": 0.1}, weights_digest="0" * 64)]
    ),
    "summary without a result": lambda: summary("sanity"),
    "summary of twelve": lambda: summary(made_compared.many()[0]),
}


def compared_page(kind):
    """The page of a comparison."""
    results = made_compared.KINDS[kind]()
    return comparison_page.render(comparison.compared(results), [f"run {k}/latest.json" for k in range(len(results))])


PAGES = {f"compare {kind}": lambda kind=kind: compared_page(kind) for kind in made_compared.KINDS} | SUMMARIES
"""Pages that are of no single result."""


def beside(before, after, out):
    """Two pictures next to each other, the earlier one on the left."""
    from PIL import Image, ImageDraw

    pictures = [Image.open(path).convert("RGB") for path in (before, after)]
    width, height = sum(one.width for one in pictures) + 24, max(one.height for one in pictures) + 24
    sheet = Image.new("RGB", (width, height), "#808080")
    draw, left = ImageDraw.Draw(sheet), 0
    for name, picture in zip(("before", "after"), pictures, strict=True):
        draw.text((left + 8, 6), name, fill="#ffffff")
        sheet.paste(picture, (left, 24))
        left += picture.width + 24
    sheet.save(out)


def made(kind, folder):
    """The result of this kind; kept in the folder, so that a second look costs nothing."""
    path = folder / f"{kind.replace(' ', '_')}.json"
    if not path.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            KINDS[kind]().to_json(path)
    return SanityResult.from_json(path)


def seen(tab, page, shots, axe):
    """What the browser measures of a page in every size and light."""
    found = {}
    for width in WIDTHS:
        for light, scheme, media in LIGHTS:
            show(tab, page, width=width, scheme=scheme, media=media)
            numbers = tab.evaluate(TEXTS)
            if axe is not None:
                tab.evaluate(axe)
                answer = tab("Runtime.evaluate", expression=AXE, awaitPromise=True, returnByValue=True)
                numbers["axe"] = json.loads(answer["result"]["value"])
            found[f"{width} {light}"] = numbers
            height = min(numbers["long"], 5000)
            area = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
            picture = tab("Page.captureScreenshot", clip=area, captureBeyondViewport=True)["data"]
            (shots / f"{page.stem}-{width}-{light}.png").write_bytes(base64.b64decode(picture))
    return found


def drawn(result, shots, name):
    """What is wrong with the texts of every figure and card."""
    making = {"verdicts": figures.verdicts, "curves": figures.curves, "sensitivity": figures.sensitivity}
    making |= {f"card-{each}": getattr(cards, each) for each in ("verdicts", "sensitivity", "curves")}
    if result.pictures is not None and result.pictures.maps:
        making |= {"maps": figures.maps, "card-maps": lambda result: cards.maps(result, 0)}
    found = {}
    for kind, draw in making.items():
        figure = draw(result)
        figure.savefig(shots / f"{name}-{kind}.png", dpi=100)
        found[kind] = faults(figure)
    return found


def main():
    """Makes, shows, measures."""
    flags = parser(__doc__)
    flags.add_argument("--out", type=Path, default=Path("glance"))
    flags.add_argument("--axe", type=Path)
    flags.add_argument("--beside", type=Path, metavar="FOLDER", help="an earlier run, to be laid beside this one")
    every = [*KINDS, *PAGES]
    flags.add_argument("--kinds", nargs="*", choices=every, default=every)
    given = flags.parse_args()
    if given.equality_only:
        assert faults(figures.verdicts(make_result())) == []
        print("no text of a figure touches another")
        return
    given.out.mkdir(parents=True, exist_ok=True)
    axe = None if given.axe is None else given.axe.read_text(encoding="utf-8")
    found = {}
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as tab:
        tab("Page.enable")
        for kind in given.kinds:
            name = kind.replace(" ", "_")
            page = given.out.resolve() / f"{name}.html"
            if kind in KINDS:
                result = made(kind, given.out)
                result.to_html(page)
                found[kind] = {"page": seen(tab, page, given.out, axe), "figures": drawn(result, given.out, name)}
            else:
                page.write_text(PAGES[kind](), encoding="utf-8")
                found[kind] = {"page": seen(tab, page, given.out, axe), "figures": {}}
            if not given.json:
                _tell(kind, found[kind])
    if given.beside is not None:
        (given.out / "beside").mkdir(exist_ok=True)
        for earlier in sorted(given.beside.glob("*.png")):
            if (given.out / earlier.name).exists():
                beside(earlier, given.out / earlier.name, given.out / "beside" / earlier.name)
    if given.json:
        publish(given, [{"kind": kind} | numbers for kind, numbers in found.items()], str)


def _tell(kind, found):
    print(f"\n{kind}")
    for where, numbers in found["page"].items():
        wrong = {key: numbers[key] for key in ("overlap", "cut", "small", "axe") if numbers.get(key)}
        size = f"first row {numbers['first']}, {numbers['long']} px, {numbers['sideways']} sideways"
        print(f"  {where:12s} {size}  {wrong or ''}")
    for figure, wrong in found["figures"].items():
        if wrong:
            print(f"  {figure}: {wrong}")


if __name__ == "__main__":
    main()
