"""Size against latency as an SVG file: no library, readable on light and dark ground."""

import math
from collections.abc import Sequence

from bert_miniatures.choose.picking import Budget, Row, fits
from bert_miniatures.choose.timing import layer_parameters

__all__ = ["svg"]

_WIDTH, _HEIGHT = 760, 470
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 20, 44, 56
_STYLE = """
svg { font: 13px system-ui, sans-serif; background: #fff }
text { fill: #222 } .grid { stroke: #ddd } .limit { stroke: #b3261e; stroke-dasharray: 5 4 }
.front { fill: none; stroke: #888 } .fp32 { fill: #1f5fa8; stroke: #1f5fa8 } .int8 { fill: #c05a00; stroke: #c05a00 }
.modelled { fill: none; stroke-width: 1.6 } .best { fill: none; stroke: #222; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
svg { background: #16181c } text { fill: #e6e6e6 } .grid { stroke: #3a3d44 } .front { stroke: #888 }
.fp32 { fill: #7db4f0; stroke: #7db4f0 } .int8 { fill: #f0a35e; stroke: #f0a35e } .best { stroke: #e6e6e6 }
.modelled { fill: none } .limit { stroke: #ff8a80 } }
"""


def svg(rows: Sequence[Row], frontier: Sequence[Row], budget: Budget, best: Row | None) -> str:
    """Draw all rows: p95 to the right, parameters of the layers upwards, both in powers of ten.

    Circles are fp32, squares int8; filled ones are measured, hollow ones modelled; a ring is the recommended one.
    """
    x = _Axis(
        [1000 * row.p95 for row in rows] + ([1000 * budget.latency] if budget.latency else []), _LEFT, _WIDTH - _RIGHT
    )
    y = _Axis([layer_parameters(row.model) / 1e6 for row in rows], _HEIGHT - _BOTTOM, _TOP)

    def at(row: Row) -> tuple[float, float]:
        return x(1000 * row.p95), y(layer_parameters(row.model) / 1e6)

    parts = [*_frame(x, y), *_limit(x, budget)]
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in map(at, frontier))
    parts.append(f'<polyline class="front" points="{path}"/>')
    for row in rows:
        parts.append(_mark(row, *at(row), faint=not fits(row, budget)))
    if best is not None:
        px, py = at(best)
        parts.append(f'<circle class="best" cx="{px:.1f}" cy="{py:.1f}" r="10"/>')
        parts.append(f'<text x="{px + 14:.1f}" y="{py + 4:.1f}">{best.name}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">'
    title = "<title>The 24 BERT miniatures: parameters of the layers against latency</title>"
    return f"{head}{title}<style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"


class _Axis:
    """Numbers to positions, by their logarithm."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = math.log10(min(values)), math.log10(max(values))
        room = 0.05 * (high - low) or 0.1
        self.low, self.high, self.start, self.end = low - room, high + room, start, end

    def __call__(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        found = [step * 10.0**power for power in powers for step in (1, 2, 5)]
        return [value for value in found if self.low <= math.log10(value) <= self.high]


def _frame(x: _Axis, y: _Axis) -> list[str]:
    parts = []
    for value in x.ticks():
        at = x(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{value:g}</text>')
    for value in y.ticks():
        at = y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 12}" text-anchor="middle">p95 of one text, ms</text>')
    parts.append(f'<text x="{_LEFT - 60}" y="20">parameters of the layers, millions</text>')
    return parts + _legend(_WIDTH - _RIGHT)


def _legend(right: int) -> list[str]:
    return [
        f'<circle class="fp32" cx="{right - 250}" cy="16" r="5"/>',
        f'<text x="{right - 240}" y="20">fp32</text>',
        f'<rect class="int8" x="{right - 200}" y="11" width="10" height="10"/>',
        f'<text x="{right - 184}" y="20">int8</text>',
        f'<circle class="fp32 modelled" cx="{right - 134}" cy="16" r="5"/>',
        f'<text x="{right - 124}" y="20">hollow: modelled</text>',
    ]


def _limit(x: _Axis, budget: Budget) -> list[str]:
    if budget.latency is None:
        return []
    at = x(1000 * budget.latency)
    return [f'<line class="limit" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>']


def _mark(row: Row, px: float, py: float, *, faint: bool) -> str:
    kind = f"{row.precision}{'' if row.is_measured else ' modelled'}"
    pale = ' opacity="0.35"' if faint else ""
    told = f"<title>{row.name}: p95 {1000 * row.p95:.3g} ms, {row.memory / 1e6:.0f} MB, {row.rate:.0f} texts/s</title>"
    if row.precision == "fp32":
        return f'<circle class="{kind}" cx="{px:.1f}" cy="{py:.1f}" r="5"{pale}>{told}</circle>'
    return f'<rect class="{kind}" x="{px - 5:.1f}" y="{py - 5:.1f}" width="10" height="10"{pale}>{told}</rect>'
