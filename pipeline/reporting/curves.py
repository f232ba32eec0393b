"""Curves over the KL to a base, as inline SVG, drawn without a library."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mav.pipeline.comparison.intervals import Estimate
from mav.pipeline.reporting.plots import text

_WIDTH: Final = 460
_HEIGHT: Final = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 30, 44
_TICKS: Final = 5
_LETTER: Final = 7
"""Most that a letter of a point's name is wide on average, also where letters are large."""
COLOURS: Final = 6
"""Colours `--c0` to `--c5` that a page gives the series."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """A point of a plot.

    Attributes:
        x: Position, such as the KL.
        y: Height, such as the reward.
        label: Its name.
    """

    x: Estimate
    y: Estimate
    label: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points joined by a line from left to right, such as a head's at all strengths.

    Attributes:
        name: Its name in the legend; none for a single point.
        points: The points.
    """

    name: str
    points: Sequence[CurvePoint]


def draw_curves(
    title: str, x_label: str, curves: Sequence[Curve], *, level: float | None = None
) -> str:
    """Return a plot as an `<svg>` element, or an empty string if no curve has a point.

    Args:
        title: Shown above it, and read by screen readers.
        x_label: Label of the horizontal axis.
        curves: What to draw.
        level: Height of a horizontal line, if any.
    """
    known = [
        Curve(name=curve.name, points=[p for p in curve.points if _is_known(p)]) for curve in curves
    ]
    points = [point for curve in known for point in curve.points]
    if not points:
        return ""
    across = _Axis.around([v for p in points for v in _ends(p.x)] + [0.0], _LEFT, _WIDTH - _RIGHT)
    levels = [] if level is None else [level]
    up = _Axis.around([v for p in points for v in _ends(p.y)] + levels, _HEIGHT - _BOTTOM, _TOP)
    parts = [*_frame(title, x_label, across, up)]
    if level is not None:
        at = up.place(level)
        parts.append(
            f'<line class="level" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
    for number, curve in enumerate(known):
        parts += _draw(curve, f"var(--c{number % COLOURS})", across, up)
    return (
        f'<svg class="curves" role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}">'
        f"<title>{text(title)}</title>{''.join(parts)}</svg>"
    )


@dataclass(frozen=True)
class _Axis:
    """Numbers from low to high, at places from first to last."""

    low: float
    high: float
    first: float
    last: float
    step: float

    @classmethod
    def around(cls, values: Sequence[float], first: float, last: float) -> "_Axis":
        low, high = min(values), max(values)
        wide = (high - low) or max(abs(high), 1.0)
        step = _round_step(wide / _TICKS)
        begin = math.floor(low / step + 1e-9) * step
        end = math.ceil(high / step - 1e-9) * step
        return cls(begin, max(end, begin + step), first, last, step)

    def place(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.first + share * (self.last - self.first)

    def ticks(self) -> list[float]:
        count = round((self.high - self.low) / self.step)
        return [self.low + number * self.step for number in range(count + 1)]

    def label(self, value: float) -> str:
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        return f"{value + 0:.{digits}f}"


def _round_step(rough: float) -> float:
    """Return 1, 2 or 5 times a power of ten, at least as large as a step."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)


def _frame(title: str, x_label: str, across: _Axis, up: _Axis) -> list[str]:
    bottom = _HEIGHT - _BOTTOM
    parts = [f'<text class="title" x="{_LEFT}" y="16">{text(title)}</text>']
    for value in up.ticks():
        at = up.place(value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">'
            f"{up.label(value)}</text>"
        )
    for value in across.ticks():
        at = across.place(value)
        parts.append(
            f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{bottom}"/>'
            f'<text class="tick" x="{at:.1f}" y="{bottom + 15}" text-anchor="middle">'
            f"{across.label(value)}</text>"
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="tick" x="{middle:.1f}" y="{_HEIGHT - 8}" text-anchor="middle">'
        f"{text(x_label)}</text>"
    )
    return parts


def _draw(curve: Curve, colour: str, across: _Axis, up: _Axis) -> list[str]:
    places = [
        (across.place(point.x.value or 0.0), up.place(point.y.value or 0.0), point)
        for point in curve.points
    ]
    parts = []
    if len(places) > 1:
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
        )
    for x, y, point in places:
        low, high = (up.place(end) for end in (_ends(point.y)[0], _ends(point.y)[-1]))
        left, right = (across.place(end) for end in (_ends(point.x)[0], _ends(point.x)[-1]))
        parts.append(
            f'<g stroke="{colour}" stroke-opacity="0.55">'
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
            f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/></g>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" fill="{colour}"><title>{text(point.label)}'
            f"</title></circle>"
            f"{_label(x, y, point.label)}"
        )
    return parts


def _label(x: float, y: float, name: str) -> str:
    """Return a point's name, to the right of it where there is room."""
    room = x + 6 + _LETTER * len(name) < _WIDTH
    place = f'x="{x + 6:.1f}"' if room else f'x="{x - 6:.1f}" text-anchor="end"'
    return f'<text class="point" {place} y="{y - 6:.1f}">{text(name)}</text>'


def _ends(estimate: Estimate) -> list[float]:
    return [one for one in (estimate.low, estimate.value, estimate.high) if one is not None]


def _is_known(point: CurvePoint) -> bool:
    return point.x.value is not None and point.y.value is not None
