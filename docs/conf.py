"""The guide: ``sphinx-build -W docs build/docs``. Notebooks are executed while it is built; an error stops it."""

import re

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
templates_path: list[str] = []


def _inline(page: HTML5Translator, formula: nodes.math) -> None:
    page.body.append(tex2mathml(formula.astext()))
    raise nodes.SkipNode


def _displayed(page: HTML5Translator, formula: nodes.math_block) -> None:
    page.body.append(re.sub("<math", '<math display="block"', tex2mathml(formula.astext()), count=1))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Formulas as MathML, which browsers draw themselves: the usual renderer would load a script from elsewhere."""
    app.add_html_math_renderer("mathml", (_inline, None), (_displayed, None))


html_math_renderer = "mathml"
