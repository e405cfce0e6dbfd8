"""Lines over steps as SVG text: drawn in milliseconds, sharp at any size, in the page's own text color."""

import base64
import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 640, 200, 56, 34, 26, 12
_MOST = 600  # points of a line: more are not seen
_MOST_MARKS = 40
# A line is told from another by its dashes and its marks as well as by its color.
_STYLES = (("#388bfd", "", False), ("#e16f24", "6 4", True))


class Line(NamedTuple):
    """A name and values by step."""

    name: str
    points: dict[int, float]


def draw(title: str, lines: Sequence[Line], last_step: int, of_steps: str, log: bool = False) -> Markup:
    """A chart of the lines, from step 0 to `last_step`; with `log`, values above 0 on a logarithmic scale.

    The SVG has data-last-step and data-last-value, those of the first line's last point.
    """
    shown = [Line(line.name, _usable(line.points, log)) for line in lines]
    values = [value for line in shown for value in line.points.values()]
    if not values:
        return Markup("")
    low, high = _limits(values, log)
    last_step = max(last_step, *(max(line.points, default=0) for line in shown))

    def place(step, value):
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / max(last_step, 1)
        return x, _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - (_scaled(value, log) - low) / (high - low))

    parts = [*_axes(low, high, last_step, of_steps, log), *(_legend(shown) if len(shown) > 1 else ())]
    for line, style in zip(shown, _STYLES, strict=False):
        parts += _line(line, style, place)
    newest = max(shown[0].points, default="")
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" role="img" '
        'aria-label="{}" data-last-step="{}" data-last-value="{}" '
        'style="width:100%;max-width:{}px;height:auto;color:inherit;font:12px sans-serif">'
        '<text x="{}" y="15" fill="currentColor" font-weight="bold">{}</text>{}</svg>'
    ).format(
        _WIDTH,
        _HEIGHT,
        _in_words(title, shown),
        newest,
        shown[0].points.get(newest, ""),
        _WIDTH,
        _LEFT,
        title,
        Markup("").join(parts),
    )


def as_image(chart: Markup) -> Markup:
    """A chart as an `<img>`: what is saved in a notebook that is not trusted is shown without SVG of its own."""
    data = base64.b64encode(chart.replace("color:inherit", "color:#777").encode()).decode()  # on any background
    return Markup('<img alt="" src="data:image/svg+xml;base64,{}" style="width:100%;max-width:{}px">').format(
        data, _WIDTH
    )


def _usable(points, log):
    """Finite values, thinned to what can be seen; the last one stays."""
    usable = {step: v for step, v in points.items() if math.isfinite(v) and (v > 0 or not log)}
    steps = list(usable)
    return {step: usable[step] for step in steps[:: -(-len(steps) // _MOST) or 1] + steps[-1:]}


def _scaled(value, log):
    return math.log10(value) if log else value


def _limits(values, log):
    low, high = (_scaled(value, log) for value in (min(values), max(values)))
    low = low if log else min(0, low)
    return (low, high) if high > low else (low, low + 1)


def _axes(low, high, last_step, of_steps, log):
    for share in (0, 0.5, 1):
        y, value = _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - share), low + (high - low) * share
        text = f"{10**value if log else value:.3g}"
        yield Markup(
            '<line x1="{}" x2="{}" y1="{}" y2="{}" stroke="currentColor" stroke-opacity="0.25"/>'
            '<text x="{}" y="{}" text-anchor="end" fill="currentColor">{}</text>'
        ).format(_LEFT, _WIDTH - _RIGHT, y, y, _LEFT - 6, y + 4, text)
    for step, anchor, x in ((0, "start", _LEFT), (last_step, "end", _WIDTH - _RIGHT)):
        text = Markup('<text x="{}" y="{}" text-anchor="{}" fill="currentColor">{}</text>')
        yield text.format(x, _HEIGHT - 14, anchor, f"{of_steps} {step:,}" if step else "0")


def _legend(lines):
    x = _WIDTH - _RIGHT
    for line, (color, dashes, _) in list(zip(lines, _STYLES, strict=False))[::-1]:
        x -= 60 + 7 * len(line.name)
        yield Markup(
            '<line x1="{}" x2="{}" y1="11" y2="11" stroke="{}" stroke-width="2" stroke-dasharray="{}"/>'
            '<text x="{}" y="15" fill="currentColor">{}</text>'
        ).format(x, x + 28, color, dashes, x + 34, line.name)


def _line(line, style, place):
    color, dashes, marked = style
    places = [place(*point) for point in line.points.items()]
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield Markup('<polyline points="{}" fill="none" stroke="{}" stroke-width="2" stroke-dasharray="{}"/>').format(
        corners, color, dashes
    )
    if marked and len(places) <= _MOST_MARKS or len(places) == 1:
        for x, y in places:
            yield Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="{}"/>').format(x, y, color)


def _in_words(title, lines):
    """What a screen reader says of the chart."""
    last = [f"{line.name} {line.points[max(line.points)]:.4g}" for line in lines if line.points]
    return f"{title}: {', '.join(last)}"
