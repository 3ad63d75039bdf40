"""HTML that cannot be broken by a text: whatever is not `Html` already is escaped when it becomes part of it."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["Html", "joined", "page", "scrolled", "table", "tag"]

_EMPTY = {"meta", "br"}


class Html(str):
    """A piece of HTML; only the functions here make one from a text."""

    __slots__ = ()


def joined(parts: Iterable[Any]) -> Html:
    """Join pieces; texts among them are escaped, None is left out."""
    return Html("".join(p if isinstance(p, Html) else html.escape(str(p)) for p in parts if p is not None))


def tag(name: str, /, *parts: Any, **attributes: Any) -> Html:
    """Return an element; `class_` is the attribute class, and None leaves an attribute out.

    Example:
        >>> tag("p", "1 < 2", class_="small")
        '<p class="small">1 &lt; 2</p>'
    """
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{shown}>" + ("" if name in _EMPTY else f"{joined(parts)}</{name}>"))


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], *, numbers: bool = True) -> Html:
    """Return a table whose first column names the rows; the others are right-aligned where they are numbers."""
    top = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = [
        tag("tr", tag("th", row[0], scope="row"), *(c if str(c).startswith("<td") else tag("td", c) for c in row[1:]))
        for row in rows
    ]
    made = tag("table", tag("thead", top), tag("tbody", *body), class_="numbers" if numbers else "words")
    return scrolled(made, str(head[0]))


def scrolled(part: Html, name: str) -> Html:
    """Let a wide part scroll by itself, by keyboard too."""
    return tag("div", part, class_="wide", tabindex="0", role="region", aria_label=f"table: {name}")


_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #57606a; --line: #d5dae0; --tint: #f5f7f9;
  --accent: #0b62c4; --second: #b4460a; --third: #1a7f4b; --fourth: #7d3fb0 }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e6e9ed; --soft: #a2abb5; --line: #38404a;
  --tint: #1d232a; --accent: #6cb0ff; --second: #ffa36b; --third: #5fd39a; --fourth: #cf9bff } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 75rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0 }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; border-top: 1px solid var(--line); padding-top: 1rem }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem }
h1, h2, h3, li, p, figcaption, tbody th, .text { overflow-wrap: anywhere }
a { color: var(--accent) }
nav ul { columns: 18rem; padding-left: 1.2rem }
.soft, figcaption, caption { color: var(--soft); font-size: .875rem }
.warnings { border-left: .25rem solid var(--second); background: var(--tint); padding: .5rem 1rem; margin: 1rem 0 }
.warnings ul { margin: .25rem 0; padding-left: 1.2rem }
.wide { overflow-x: auto; margin: .5rem 0 }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
thead th { color: var(--soft); font-weight: 600; white-space: nowrap }
tbody th { font-weight: 600; min-width: 7.5rem }
.errors tbody th { min-width: 4.5rem }
.numbers td, .numbers thead th + th { text-align: right; white-space: nowrap }
.map td { min-width: 4.2rem; text-align: center !important; border: 2px solid var(--paper) }
.map thead th { white-space: normal }
.map tbody th { min-width: 9.5rem; position: sticky; left: 0; background: var(--paper) }
.map td.chosen { outline: 2px solid var(--ink); outline-offset: -3px; font-weight: 700 }
.map td.near::after { content: " \\2248" }
.text { min-width: 14rem; white-space: pre-wrap }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1rem }
figure { margin: 0; min-width: 0 }
figure svg { width: 100%; max-width: 30rem; height: auto; display: block }
figure svg text { fill: var(--ink) }
@media (max-width: 40rem) { .errors table, .errors tbody, .errors tr, .errors tbody th, .errors td { display: block }
  .errors thead { display: none } .errors th, .errors td { border: 0; padding: .1rem 0 }
  .errors tr { border-bottom: 1px solid var(--line); padding: .5rem 0 }
  .errors [data-name]::before { content: attr(data-name) ": "; color: var(--soft) } }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --tint: #fff;
  --accent: #0b62c4; --second: #b4460a; --third: #1a7f4b; --fourth: #7d3fb0 }
  nav { display: none } body { max-width: none; font-size: 10pt; print-color-adjust: exact }
  figure, tr, .warnings { break-inside: avoid } h2, h3 { break-after: avoid } .wide { overflow: visible } }
"""


def page(title: str, parts: Iterable[Any]) -> str:
    """Return a document that loads nothing: style is inside, and a policy forbids the rest."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        Html(f"<style>{_STYLE}</style>"),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', tag('main', *parts)), lang='en')}\n"
