"""Tables of the terminal: no word is cut, in any width, for any number of methods."""

import sys
import unicodedata
from dataclasses import replace

import pytest
from made_choices import choices
from made_results import FAILING, OPEN, PASSING, made, made_of_labels

from lightning_sanity.cli import main, terminal
from lightning_sanity.report import text
from lightning_sanity.report.choice_text import cells, headings
from lightning_sanity.report.columns import columns, fitted, paragraph
from lightning_sanity.result import Verdict

WIDTHS = (60, 72, 80, 100, 120)
LEVELS = (FAILING, PASSING, OPEN)
