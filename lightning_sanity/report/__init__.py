"""What people look at: figures, the page, Markdown, and what goes to the user's loggers.

figures.py        the figures of a result
verdicts.py, curves.py, maps.py, strips.py, tokens.py, chart.py, label_figures.py, psi.py   one kind of figure each
style.py, palette.py, thumbnails.py   how they look
html.py           the self-contained page, from report.html.j2
first_screen.py   who failed, passed or is open, what to do, and whether to trust the run
similarity_charts.py   its charts of similarity
gallery.py        its pictures
templates.py      the templates of pages; house.css.j2 is what the smaller ones share
markdown.py       the same in brief
text.py           the same in words: the terminal's table and a notebook's
columns.py        tables of a terminal, no wider than it is
comparison_text.py  results side by side, in words
comparison_page.py  the same as a page, from comparison.html.j2
choice_text.py    which method to show, in words
choice_page.py    the same as a page, from choice.html.j2
loggers.py        what goes to the user's loggers, to each in its native form
dashboards.py     TensorBoard, W&B, MLflow, Comet
shown.py          what they are shown of a measurement
cards.py          figures as narrow as a dashboard's card
decided.py        the number that decided, or why none did
wording.py        names and sentences of figures and page
illustrated.py    which kept picture illustrates, and what blank maps say
reproduction.py   the call that repeats a result
learned.py        what the models of a data randomization test learned
"""
