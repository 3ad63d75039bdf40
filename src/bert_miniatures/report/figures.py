"""Figures as SVG that belongs to the page: its text is text, its colours are the page's, light and dark."""

import html
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np

from bert_miniatures.errors import MissingExtra
from bert_miniatures.report.facts import Reliability
from bert_miniatures.report.markup import Html, joined, tag

__all__ = ["curves", "figure", "reliability", "scatter", "seeds", "sizes"]

# What matplotlib is told -> what the page calls it. Colours that no figure would have by chance.
INK, SOFT, LINE = "#010203", "#010204", "#010205"
SERIES = ("#010206", "#010207", "#010208", "#010209")
_NAMES = dict(
    zip((INK, SOFT, LINE, *SERIES), ("ink", "soft", "line", "accent", "second", "third", "fourth"), strict=True)
)
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_STYLES = ("-", "--", ":", "-.")
_POINTS = 120  # of a line; more cannot be seen and cost bytes
_numbers = count(1)


@contextmanager
def _axes(title: str, across: str, up: str, high: float) -> Iterator[tuple[Any, list[str]]]:
    """Yield axes and a list that the SVG is put into when they are drawn."""
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("a report", "report") from None
    style: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "bert-miniatures", "text.parse_math": False, "font.size": 9,
        "text.color": INK, "axes.labelcolor": SOFT, "axes.edgecolor": LINE, "xtick.color": SOFT, "ytick.color": SOFT,
        "grid.color": LINE, "axes.facecolor": "none", "figure.facecolor": "none", "legend.frameon": False,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.linewidth": 0.5,
        "axes.axisbelow": True, "legend.fontsize": 8, "font.family": "sans-serif",
    }  # fmt: skip
    out: list[str] = []
    with matplotlib.rc_context(style):
        drawn = Figure(figsize=(4.4, high), layout="constrained")
        FigureCanvasSVG(drawn)
        axes = drawn.add_subplot(xlabel=across, ylabel=up)
        axes.set_title(title, fontsize=9.5, loc="left", color=INK)
        yield axes, out
        text = io.StringIO()
        drawn.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    out.append(_belonging(text.getvalue()))


def _belonging(svg: str) -> str:
    """Make matplotlib's SVG a part of a page: own ids, the page's colours and font, few digits."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    own = f"f{next(_numbers)}-"
    svg = re.sub(r'\bid="', f'id="{own}', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{own}", svg)
    for colour, name in _NAMES.items():
        svg = svg.replace(colour, f"var(--{name})")
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 system-ui, sans-serif", svg)
    svg = re.sub(r'\b(?:d|x|y|transform)="[^"]*"', lambda found: _LONG.sub(_short, found[0]), svg)
    svg = re.sub(r"<svg [^>]*?viewBox=\"([^\"]*)\"[^>]*>", r'<svg viewBox="\1" role="img">', svg, count=1)
    return re.sub(r">\s+<", "><", svg).strip()


_LONG = re.compile(r"-?\d+\.\d\d+")  # a tenth of a point is less than a pixel


def _short(number: re.Match[str]) -> str:
    return f"{float(number[0]):.1f}"


def figure(draw: Callable[[Any], None], title: str, across: str, up: str, said: str, high: float = 3.1) -> Html:
    """Return a figure: what `draw` puts on the axes, with a sentence below that says it in words.

    Args:
        high: inches; all figures are 4.4 wide.
    """
    with _axes(title, across, up, high) as (axes, out):
        draw(axes)
    label = html.escape(title)
    svg = out[0].replace('role="img">', f'role="img" aria-label="{label}">', 1)
    return tag("figure", Html(svg), tag("figcaption", said))


def _thinned(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    chosen = (
        np.unique(np.linspace(0, len(points) - 1, _POINTS).astype(int)) if len(points) > _POINTS else range(len(points))
    )
    return [points[i][0] for i in chosen], [points[i][1] for i in chosen]


def curves(
    lines: Mapping[str, Sequence[tuple[float, float]]], others: Sequence[Sequence[tuple[float, float]]], **words: str
) -> Html:
    """Draw lines with names, and others behind them without."""

    def draw(axes: Any) -> None:
        for points in others:
            axes.plot(*_thinned(points), color=LINE, linewidth=0.8)
        for i, (name, points) in enumerate(lines.items()):
            mark = {"marker": _MARKS[i % len(_MARKS)], "markersize": 4} if len(points) <= 12 else {}
            look = {"color": SERIES[i % len(SERIES)], "linestyle": _STYLES[(i // len(SERIES)) % len(_STYLES)]}
            axes.plot(*_thinned(points), label=name, linewidth=1.4, **look, **mark)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(lines) > 1:
            axes.legend(ncols=2 if len(lines) > 4 else 1)

    return figure(draw, **words)  # type: ignore[arg-type]


def reliability(found: Reliability, **words: str) -> Html:
    """Draw accuracy against confidence; the size of a point is the number of answers."""

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle="--", label="as sure as right")
        sizes = 12 + 160 * found.count / found.count.sum()
        axes.plot(found.sure, found.right, color=SERIES[0], linewidth=1)
        axes.scatter(found.sure, found.right, s=sizes, color=SERIES[0], alpha=0.75)
        axes.set(xlim=(0, 1.03), ylim=(-0.03, 1.03))
        axes.legend(loc="upper left")

    return figure(draw, **words)  # type: ignore[arg-type]


def scatter(gold: Any, predicted: Any, **words: str) -> Html:
    """Draw predicted against true scores; of many rows every so many."""
    step = max(1, len(gold) // 400)

    def draw(axes: Any) -> None:
        low, high = float(min(gold.min(), predicted.min())), float(max(gold.max(), predicted.max()))
        axes.plot([low, high], [low, high], color=SOFT, linewidth=1, linestyle="--")
        axes.scatter(gold[::step], predicted[::step], s=8, color=SERIES[0], alpha=0.6, linewidths=0)

    return figure(draw, **words)  # type: ignore[arg-type]


def seeds(cells: Mapping[str, Sequence[float]], **words: str) -> Html:
    """Draw the scores of each cell's seeds in a row of their own, with mean and standard deviation."""

    def draw(axes: Any) -> None:
        for i, values in enumerate(cells.values()):
            mean, spread = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            axes.plot([mean - spread, mean + spread], [i, i], color=SERIES[0], linewidth=4, alpha=0.35)
            axes.plot([mean], [i], marker="|", markersize=13, color=SERIES[0], markeredgewidth=2)
            axes.plot(values, [i] * len(values), linestyle="", marker="o", markersize=4, color=SERIES[1], alpha=0.8)
        axes.set_yticks(range(len(cells)), list(cells))
        axes.set_ylim(len(cells) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")

    return figure(draw, high=min(3.1, 1.0 + 0.3 * len(cells)), **words)


def sizes(
    ours: Mapping[str, Sequence[tuple[float, float]]], theirs: Mapping[str, Sequence[tuple[float, float]]], **words: str
) -> Html:
    """Draw score against millions of parameters: ours filled, the published ones hollow, a colour per task."""

    def draw(axes: Any) -> None:
        for i, (name, points) in enumerate(ours.items()):
            colour, mark = SERIES[i % len(SERIES)], _MARKS[i % len(_MARKS)]
            axes.plot(*zip(*sorted(points), strict=True), color=colour, marker=mark, markersize=5, label=name)
            if theirs.get(name):
                x, y = zip(*sorted(theirs[name]), strict=True)
                axes.plot(x, y, color=colour, marker=mark, markersize=5, markerfacecolor="none", linestyle=":")
        axes.set_xscale("log")
        every = sorted({x for points in (*ours.values(), *theirs.values()) for x, _ in points})
        axes.set_xticks(every, [f"{x:.3g}" for x in every])
        axes.minorticks_off()
        axes.legend(ncols=2 if len(ours) > 4 else 1)

    return figure(draw, **words)  # type: ignore[arg-type]


def row(parts: Sequence[Html]) -> Html:
    """Put figures side by side where there is room."""
    return tag("div", joined(parts), class_="figures")
