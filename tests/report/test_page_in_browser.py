"""The report in a real browser: no message, no request, nothing cut off, in every size and light."""

import base64
import re

import pytest
import torch
from made_browser import BROWSER, TEXTS, chromium, show
from made_figures import EVIL, crowd, dead, in_rows, invalid, make_result

import lightning_sanity
from lightning_sanity.result import Outcome, Verdict

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
]


SHOWN = ["real", "crowded", "invalid", "dead", "signal", "table", "tokens"]


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("browser")) as opened:
        for domain in ("Page", "Runtime", "Log", "Network"):
            opened(f"{domain}.enable")
        yield opened


@pytest.fixture(scope="module")
def reports(tmp_path_factory, digits_network):
    """A real result and one with hostile names, as files."""
    folder = tmp_path_factory.mktemp("reports")
    model, images, _ = digits_network
    real = lightning_sanity.parameter_randomization_test(
        model, images[:8], methods=["gradient", "gradcam", "guided_backprop"], trials=3, progress=False
    )
    evil = make_result(
        methods={EVIL: Verdict(Outcome.FAIL, EVIL, 0.2, 0.1, 0.3, "ssim")}, units=[f"{EVIL}{k}" for k in range(5)]
    )
    long = make_result(units=[f"model.encoder.layers.encoder_layer_{k}.self_attention" for k in range(40)])
    units = [f"model.encoder.layers.encoder_layer_{k}.self_attention" for k in range(60)]
    return {
        "crowded": make_result(methods=crowd(12), units=units).to_html(folder / "crowded.html"),
        "dead": dead().to_html(folder / "dead.html"),
        "invalid": invalid().to_html(folder / "invalid.html"),
        "signal": in_rows("signal", 96).to_html(folder / "signal.html"),
        "table": in_rows("table", 30).to_html(folder / "table.html"),
        "tokens": in_rows("tokens", 40).to_html(folder / "tokens.html"),
        "real": real.to_html(folder / "real.html"),
        "evil": evil.to_html(folder / "evil <img src=x onerror=alert(1)>.html"),
        "long": long.to_html(folder / "long.html"),
    }


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["real", "evil", "long"])
def test_page_is_quiet_and_fits_its_window(tab, reports, name, scheme, width):
    show(tab, reports[name], width=width, scheme=scheme)
    requested = [
        event["params"]["request"]["url"] for event in tab.events if event["method"] == "Network.requestWillBeSent"
    ]
    said = [event for event in tab.events if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
    said += [event for event in tab.events if event["method"] == "Runtime.consoleAPICalled"]
    assert requested
    assert all(url.startswith(("file:", "data:")) for url in requested)
    assert said == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    light = tab.evaluate("parseInt(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")
    assert (light > 200) == (scheme == "light")


@pytest.mark.parametrize("media", ["", "print"])
@pytest.mark.parametrize("width", [1280, 768])
def test_names_of_controls_are_not_broken(tab, reports, width, media):
    show(tab, reports["real"], width=width, media=media)
    tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    lines = tab.evaluate("""[...document.querySelectorAll('.controls tbody th')].map(name => {
        const range = document.createRange();
        range.selectNodeContents(name);
        return range.getClientRects().length;
    })""")
    assert len(lines) == 4
    assert set(lines) == {1}


def test_hostile_names_run_nothing(tab, reports):
    show(tab, reports["evil"])
    assert tab.evaluate("[...document.images].filter(image => !image.src.startsWith('data:')).length") == 0
    assert EVIL in tab.evaluate("document.body.innerText")


_CONTRAST = """
(() => {
  const channel = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const ground = node => {
    for (; node; node = node.parentElement) {
      const colour = rgb(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  let worst = [21, ''];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.getClientRects().length) continue;
    const style = getComputedStyle(node);
    const ink = luminance(rgb(node.closest('svg') ? style.fill : style.color).slice(0, 3));
    const paper = luminance(ground(node));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (ratio < worst[0]) worst = [ratio, walker.currentNode.data];
  }
  return worst;
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast_enough(tab, reports, scheme):
    show(tab, reports["real"], scheme=scheme)
    ratio, text = tab.evaluate(_CONTRAST)
    assert ratio >= 4.5, f"'{text}'"


def test_everything_that_scrolls_can_be_reached_by_keyboard(tab, reports):
    show(tab, reports["long"], width=390)
    scrolling = (
        "[...document.querySelectorAll('*')].filter(n => n.scrollWidth > n.clientWidth + 1 && getComputedStyle(n)"
    )
    assert tab.evaluate(f"{scrolling}.overflowX == 'auto').length") > 0
    assert tab.evaluate(f"{scrolling}.overflowX == 'auto').every(n => n.tabIndex == 0)")


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
@pytest.mark.parametrize("name", ["long", *SHOWN])
def test_first_method_stands_on_the_first_screen(tab, reports, name, width, height):
    show(tab, reports[name], width=width)
    assert tab.evaluate("document.querySelector('table.verdicts tbody tr').getBoundingClientRect().bottom") <= height


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", SHOWN)
def test_no_text_of_a_page_touches_another_is_cut_or_is_too_small(tab, reports, name, width):
    show(tab, reports[name], width=width)
    seen = tab.evaluate(TEXTS)
    assert {key: seen[key] for key in ("overlap", "cut", "small")} == {"overlap": [], "cut": [], "small": []}


@pytest.mark.parametrize("name", SHOWN)
def test_page_is_short_on_a_phone(tab, reports, name):
    show(tab, reports[name], width=390)
    assert tab.evaluate("document.documentElement.scrollHeight") < 20000 / 3


def test_link_of_a_method_opens_its_section(tab, reports):
    show(tab, reports["crowded"])
    opened = "[...document.querySelectorAll('.method')].map(section => section.open)"
    assert tab.evaluate(opened) == [True] + 11 * [False]
    tab.evaluate("document.querySelectorAll('table.verdicts a')[5].click()")
    assert tab.evaluate(opened)[5]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_have_the_colours_of_the_page(tab, reports, scheme):
    show(tab, reports["tokens"], scheme=scheme)
    ratio, text = tab.evaluate(_CONTRAST)
    assert ratio >= 4.5, f"'{text}'"
    channels = "getComputedStyle(document.querySelector('{}')).backgroundColor.match(/\\d+/g).map(Number)"
    zero, paper = (tab.evaluate(channels.format(what)) for what in (".strips .s7", "body"))
    assert zero == pytest.approx(paper, abs=2)


def test_verdicts_of_a_void_run_have_no_colour(tab, reports):
    show(tab, reports["invalid"])
    colours = "[...document.querySelectorAll('.verdicts .badge')].map(badge => getComputedStyle(badge).color)"
    grey = tab.evaluate("getComputedStyle(document.querySelector('main .grey')).color")
    assert set(tab.evaluate(colours)) == {grey}


_BROKEN = """
(() => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, words = node.data.matchAll(/[A-Za-z]{2,12}/g);
    if (!node.parentElement.checkVisibility() || node.parentElement.closest('pre, code, dd, svg')) continue;
    for (const word of words) {
      const range = document.createRange();
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      const lines = new Set([...range.getClientRects()].map(box => Math.round(box.top)));
      if (range.getBoundingClientRect().right > 0 && lines.size > 1) found.push(word[0]);
    }
  }
  return found;
})()
"""


@pytest.mark.parametrize("name", SHOWN)
def test_phone_breaks_no_word_and_scrolls_nothing_sideways(tab, reports, name):
    show(tab, reports[name], width=390)
    assert tab.evaluate(_BROKEN) == []
    wide = "[...document.querySelectorAll('table, .scroll, svg, img')].filter(n => n.checkVisibility())"
    assert tab.evaluate(f"{wide}.filter(n => n.getBoundingClientRect().right > 390).map(n => n.outerHTML)") == []


def test_folded_parts_are_printed(tab, reports):
    show(tab, reports["crowded"])
    folded = "[...document.querySelectorAll('details p')].filter(p => !p.checkVisibility()).length"
    assert tab.evaluate(folded) > 0
    show(tab, reports["crowded"], media="print")
    assert tab.evaluate(folded) == 0


def test_focus_is_visible(tab, reports):
    show(tab, reports["real"])
    for kind in ("keyDown", "keyUp"):
        tab("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the verdicts"
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"
    assert tab.evaluate("document.activeElement.getBoundingClientRect().left") >= 0


def test_dark_page_prints_on_white_paper(tab, reports):
    show(tab, reports["real"], scheme="dark", media="print")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    pdf = base64.b64decode(tab("Page.printToPDF", printBackground=True)["data"])
    assert pdf.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 20


def test_screenshots_of_light_and_dark_differ_where_maps_are(tab, reports):
    shades = []
    for scheme in ("light", "dark"):
        show(tab, reports["real"], scheme=scheme)
        box = tab.evaluate("(r => ({x: r.x, y: r.y, width: r.width, height: r.height, scale: 1}))"
                           "(document.querySelector('img.map').getBoundingClientRect())")  # fmt: skip
        shot = tab("Page.captureScreenshot", clip=box, captureBeyondViewport=True)["data"]
        shades.append(brightness(base64.b64decode(shot)))
    assert shades[0] > 128 > shades[1]


def brightness(png):
    from io import BytesIO

    from PIL import Image

    return float(
        torch.frombuffer(bytearray(Image.open(BytesIO(png)).convert("L").tobytes()), dtype=torch.uint8).float().mean()
    )
