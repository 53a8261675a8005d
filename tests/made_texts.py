"""What is wrong with the texts of a figure: two that touch, one that is cut, one that is too small."""

from itertools import combinations

SMALLEST = 9.0  # pixels of a text at the size at which a figure is shown


def texts(figure):
    """Every visible text with its box in pixels."""
    from matplotlib.text import Text

    figure.canvas.draw()
    found = {id(text): text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()}
    for axes in figure.axes:  # labels of ticks beyond the ends exist and are not drawn
        for axis, ends in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            for place, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True):
                if not min(ends) <= place <= max(ends) or not axes.axison:
                    found.pop(id(label), None)
    return [(text, text.get_window_extent()) for text in found.values()]


def faults(figure, shown=None):
    """In words; none if every text can be read.

    Args:
        figure: What is shown.
        shown: How wide it is shown, in pixels; as wide as it is if None.
    """
    width, height = figure.bbox.size
    drawn, found = texts(figure), []
    scale = 1.0 if shown is None else shown / width
    for text, box in drawn:
        words = text.get_text()
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1:
            found.append(f"cut: {words}")
        if text.get_fontsize() * figure.dpi / 72 * scale < SMALLEST:
            found.append(f"small: {words}")
    for (one, a), (other, b) in combinations(drawn, 2):
        if one.get_rotation() or other.get_rotation():
            continue  # the box of a slanted text is larger than the text
        wide, tall = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        if wide > 1 and tall > 0.2 * min(a.height, b.height):
            found.append(f"touching: {one.get_text()} | {other.get_text()}")
    return found
