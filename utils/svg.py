"""Line charts and scatter plots as inline SVG, in the colours of the page around them.

The page's style sheet sets ``color``, by which axes and words are drawn, and may style the classes ``grid``, ``line``,
``dashed`` and ``swatch``.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from utils.markup import Markup, element

WIDTH, HEIGHT = 640, 340  # of a chart, in units that the page scales
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 46  # margins, for the axes' words
ABOUT_TICKS = 6
GOLDEN_ANGLE = 137.508  # degrees; multiples of it are hues that stay apart, however many there are


class Line(NamedTuple):
    """One line of a chart: points (x, y), all finite, in order."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str
    dashed: bool = False


class Dot(NamedTuple):
    """One point of a scatter plot, finite; a hollow square, in which a circle fits, where ``square``."""

    name: str
    x: float
    y: float
    color: str
    square: bool = False


def hue(number: int) -> str:
    """A colour for the ``number``-th of any number of things, legible on white and on black."""
    return f"hsl({number * GOLDEN_ANGLE % 360:.0f}, 65%, 50%)"


def line_chart(lines: Sequence[Line], *, xlabel: str, ylabel: str, top: float) -> Markup:
    """Lines between 0 and ``top`` over whole numbers x, each with its name where the pointer rests on it.

    "" where there is no point.
    """
    xs = [x for line in lines for x, _ in line.points]
    if not xs:
        return Markup()
    frame = _Frame((min(xs), max(xs)), (0, top), finest=1)
    return frame.drawn([_line(line, frame) for line in lines if line.points], xlabel, ylabel)


def scatter_chart(dots: Sequence[Dot], *, xlabel: str, ylabel: str) -> Markup:
    """Dots, each with its name where the pointer rests on it; "" where there is none."""
    if not dots:
        return Markup()
    frame = _Frame(_around([dot.x for dot in dots]), _around([dot.y for dot in dots]))
    return frame.drawn([_dot(dot, frame) for dot in dots], xlabel, ylabel)


def swatch(color: str) -> Markup:
    """A small square of a colour, to stand before the name of what has that colour; style it by its class."""
    square = element("rect", width=10, height=10, fill=color)
    return element("svg", square, viewBox="0 0 10 10", class_="swatch", aria_hidden="true")


class _Frame:
    """The rectangle between the axes: from values to places in the picture; ``finest`` is the least step of x."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], finest: float = 0):
        self.x, self.y = (_wide(*ends) for ends in (x, y))
        self.finest = finest

    def place(self, x: float, y: float) -> tuple[float, float]:
        across, up = ((value - low) / (high - low) for value, (low, high) in zip((x, y), (self.x, self.y), strict=True))
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def drawn(self, shapes: Sequence[Markup], xlabel: str, ylabel: str) -> Markup:
        """The whole picture: grid and axes below, shapes above."""
        right, bottom = self.place(self.x[1], self.y[0])
        parts = []
        for value in _ticks(*self.x, self.finest):
            x, _ = self.place(value, self.y[0])
            parts.append(_rule(x, TOP, x, bottom))
            parts.append(_words(f"{value:g}", x, bottom + 16, "middle"))
        for value in _ticks(*self.y):
            _, y = self.place(self.x[0], value)
            parts.append(_rule(LEFT, y, right, y))
            parts.append(_words(f"{value:g}", LEFT - 6, y + 4, "end"))
        parts.append(_words(xlabel, (LEFT + right) / 2, HEIGHT - 8, "middle"))
        middle = (TOP + bottom) / 2
        parts.append(_words(ylabel, 14, middle, "middle", transform=f"rotate(-90 14 {middle:g})"))
        return element("svg", *parts, *shapes, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=ylabel)


def _line(line: Line, frame: _Frame) -> Markup:
    places = [frame.place(x, y) for x, y in line.points]
    style = "line dashed" if line.dashed else "line"
    path = element(
        "polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places), fill="none", stroke=line.color, class_=style
    )
    x, y = places[-1]  # a line of one point would not be seen
    return element(
        "g", element("title", line.name), path, element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3, fill=line.color)
    )


def _dot(dot: Dot, frame: _Frame) -> Markup:
    x, y = frame.place(dot.x, dot.y)
    title = element("title", dot.name)
    if dot.square:
        place, side = {"x": f"{x - 7:.1f}", "y": f"{y - 7:.1f}"}, {"width": 14, "height": 14}
        return element("rect", title, **place, **side, fill="none", stroke=dot.color, stroke_width=2)
    return element("circle", title, cx=f"{x:.1f}", cy=f"{y:.1f}", r=5, fill=dot.color)


def _rule(x1: float, y1: float, x2: float, y2: float) -> Markup:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return element("line", **{key: f"{value:.1f}" for key, value in ends.items()}, stroke="currentColor", class_="grid")


def _words(text: str, x: float, y: float, anchor: str, **attributes) -> Markup:
    return element(
        "text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, fill="currentColor", font_size=12, **attributes
    )


def _around(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis with room beside the outermost values."""
    room = max((max(values) - min(values)) / 10, 1)
    return min(values) - room, max(values) + room


def _wide(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float, finest: float = 0) -> list[float]:
    """Round numbers from low to high, about ABOUT_TICKS of them: multiples of 1, 2 or 5 times a power of ten."""
    rough = max((high - low) / ABOUT_TICKS, finest)
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
