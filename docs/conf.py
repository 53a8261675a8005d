"""The guide: ``sphinx-build -W docs build/docs``. Notebooks are executed while it is built; an error stops it."""

import re
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

from lightning_sanity import __version__

project = "lightning_sanity"
author = "the lightning_sanity developers"
release = version = __version__
copyright = author

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
]
intersphinx_mapping: dict[str, tuple[str, str]] = {}  # a build must not need the network
source_suffix = {".md": "myst-nb", ".rst": "restructuredtext"}
exclude_patterns = ["build"]
nitpicky = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_timeout = 240
nb_execution_raise_on_error = True
nb_execution_excludepatterns = ["*.rst"]

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"  # the others are options, described where they are stated
autodoc_member_order = "bysource"
autodoc_default_options = {"show-inheritance": False}
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
default_role = "code"  # docstrings write names between single backquotes

html_theme = "furo"
html_title = "lightning_sanity"
html_static_path = ["static"]
html_css_files = ["guide.css"]
html_show_sphinx = False
html_theme_options = {"top_of_page_buttons": []}
html_math_renderer = "mathml"
templates_path: list[str] = []


def _inline(page: HTML5Translator, formula: nodes.math) -> None:
    page.body.append(tex2mathml(formula.astext()))
    raise nodes.SkipNode


def _displayed(page: HTML5Translator, formula: nodes.math_block) -> None:
    page.body.append(re.sub("<math", '<math display="block"', tex2mathml(formula.astext()), count=1))
    raise nodes.SkipNode


# What the theme leaves out, and people who listen to a page or use no mouse need.
ACCESS = (
    ('role="heading"', 'role="heading" aria-level="2"'),
    ('<aside class="sidebar-drawer"', '<aside aria-label="Pages" class="sidebar-drawer"'),
    ('<aside class="toc-drawer', '<aside aria-label="On this page" class="toc-drawer'),
    ('<summary aria-label="Toggle hidden content"', "<summary"),
    ("<pre>", '<pre tabindex="0">'),
    ("<p><img", '<p tabindex="0"><img'),  # scrolls on a narrow screen
)


def _accessible(app: Sphinx, error: Exception | None) -> None:
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for as_it_comes, better in ACCESS:
            text = re.sub(re.escape(as_it_comes) + "(?! aria-level)", better, text)
        page.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Formulas as MathML, which browsers draw themselves: the usual renderer would load a script from elsewhere."""
    app.add_html_math_renderer("mathml", (_inline, None), (_displayed, None))
    app.connect("build-finished", _accessible)
