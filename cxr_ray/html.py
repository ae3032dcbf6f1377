"""The shell that every page for people shares: escaped elements, one style sheet, light and dark, no script.

A page is one file: pictures and style lie inside it, and its Content-Security-Policy lets it fetch nothing.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

# Name of a colour: its value on light and on dark paper. Charts use the same names (`themed_svg`).
PALETTE = {
    "paper": ("#fcfcfa", "#14171a"),
    "card": ("#f3f4f1", "#1c2025"),
    "ink": ("#1b2024", "#e7eaec"),
    "muted": ("#5c656d", "#9ba6af"),
    "line": ("#dfe2de", "#30363c"),
    "accent": ("#0f6f6b", "#52b9ab"),
    "error": ("#b14e25", "#e5905f"),
}
LIGHT = {name: light for name, (light, _) in PALETTE.items()}

_VOID = frozenset({"br", "img", "link", "meta", "source"})
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Html(str):
    """Text that is markup already; every other string is escaped where it enters a page."""

    __slots__ = ()


def esc(value: object) -> Html:
    """A value as page text: `Html` as it is, None as nothing, anything else escaped, quotes too."""
    if isinstance(value, Html):
        return value
    return Html("" if value is None else html.escape(str(value)))


def element(tag: str, /, *children: object, **attributes: object) -> Html:
    """One element with its children, all escaped.

    Args:
        tag: Its name.
        children: `Html`, or values that become text.
        attributes: ``class_`` stands for ``class`` and ``aria_label`` for ``aria-label``; None and False leave
            the attribute out, True gives it no value.
    """
    parts = [f"<{tag}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        parts.append(f" {attribute}" if value is True else f' {attribute}="{esc(str(value))}"')
    parts.append(">")
    if tag not in _VOID:
        parts.extend((*(esc(child) for child in children), f"</{tag}>"))
    return Html("".join(parts))


def join(parts: Iterable[object], between: str = "") -> Html:
    """Parts one after the other, each escaped."""
    return Html(esc(between).join(esc(part) for part in parts))


def words(slug: str) -> str:
    """A class or split as people write it: ``lung_opacity`` becomes ``lung opacity``."""
    return slug.replace("_", " ")


def data_uri(content: bytes, media_type: str = "image/png") -> str:
    """A picture's bytes as an address that holds them."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def table(
    caption: str,
    headers: Sequence[object],
    rows: Sequence[Sequence[object]],
    *,
    footer: Sequence[Sequence[object]] = (),
    class_: str | None = None,
) -> Html:
    """A table that scrolls inside its own box where the screen is too narrow for it.

    Args:
        caption: What the table holds, for those who cannot see what stands around it.
        headers: One a column. Here and in the rows, a ready ``<td>`` or ``<th>`` (`Html`) is taken whole.
        rows: Cells; the first of each row is the row's header.
        footer: Rows that sum up the others.
        class_: Style class of the table.
    """
    head = element("thead", element("tr", *(_cell("th", text, scope="col") for text in headers)))
    body = element("tbody", *(_row(row) for row in rows))
    foot = element("tfoot", *(_row(row) for row in footer)) if footer else Html("")
    whole = element("table", element("caption", caption), head, body, foot, class_=class_)
    # Focusable, so that it can be scrolled from the keyboard; a focusable region needs a name.
    return element("div", whole, class_="scroll", role="region", aria_label=caption, tabindex=0)


def figures(items: Iterable[tuple[object, object, object]]) -> Html:
    """The numbers a page is about, large: (value, name, note) each."""
    cards = (
        element(
            "div",
            element("dt", name),
            element("dd", value, class_="value"),
            element("dd", note, class_="note"),
        )
        for value, name, note in items
    )
    return element("dl", *cards, class_="figures")


def facts(items: Iterable[tuple[object, object]]) -> Html:
    """Names and values in two columns, one below the other on a narrow screen."""
    return element("dl", *(element("div", element("dt", k), element("dd", v)) for k, v in items), class_="facts")


def section(title: str, *children: object) -> Html:
    """A part of the page under a heading of the second order."""
    return element("section", element("h2", title), *children)


def themed_svg(svg: str, description: str) -> Html:
    """A drawing in `LIGHT` colours as part of a page, following the page's colours and font.

    Args:
        svg: An SVG document as matplotlib writes it, text as text.
        description: What it shows, for those who cannot see it.
    """
    inner = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    box = re.search(r'viewBox="([-\d. ]+)"', inner)
    inner = inner[inner.index(">") + 1 : inner.rindex("</svg>")]
    # Ids of groups would repeat from drawing to drawing; those of markers and clips are drawn from a salt.
    inner = re.sub(r'<g id="[^"]*"', "<g", inner).replace("xlink:href=", "href=")
    for name, colour in LIGHT.items():
        inner = inner.replace(colour, f"var(--{name})")
    view = box.group(1) if box else None
    return element("svg", Html(inner), viewBox=view, role="img", aria_label=description, class_="chart")


def page(title: str, body: str, *, style: str = "") -> str:
    """A whole page.

    Args:
        title: For the window and for bookmarks; escaped.
        body: What stands in ``<main>``: `Html`; plain text is escaped.
        style: Rules of this page alone (CSS, written in code, never from data).
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("link", rel="icon", href="data:,"),
        Html(f"<style>{_style()}{style}</style>"),
    )
    document = element("html", head, element("body", element("main", body)), lang="en")
    return f"<!doctype html>\n{document}\n"


def _row(cells: Sequence[object]) -> Html:
    first, *others = cells
    return element("tr", _cell("th", first, scope="row"), *(_cell("td", cell) for cell in others))


def _cell(kind: str, cell: object, **attributes: Any) -> Html:
    whole = isinstance(cell, Html) and cell.startswith(("<td", "<th"))
    return esc(cell) if whole else element(kind, cell, **attributes)


def _style() -> str:
    def variables(column: int) -> str:
        return "".join(f"--{name}:{pair[column]};--{name}-rgb:{_rgb(pair[column])};" for name, pair in PALETTE.items())

    return f":root{{{variables(0)}}}@media (prefers-color-scheme:dark){{:root{{{variables(1)}}}}}{_CSS}"


def _rgb(colour: str) -> str:
    return " ".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))


_CSS = """
:root{color-scheme:light dark}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%}
main{max-width:68rem;margin:0 auto;padding:clamp(1.25rem,4vw,3.5rem) clamp(1rem,4vw,2.5rem) 3rem}
h1,h2,h3{line-height:1.2;letter-spacing:-.012em;text-wrap:balance;overflow-wrap:anywhere;margin:0}
h1{font-size:clamp(1.7rem,4.5vw,2.5rem);font-weight:650}
h2{font-size:1.3rem;font-weight:650;margin-bottom:.6rem}
h3{font-size:1.02rem;font-weight:650;margin:2rem 0 .2rem}
p{margin:.4rem 0;max-width:44rem;overflow-wrap:anywhere}
section{margin-top:3.25rem}
.eyebrow{margin:0 0 .5rem;color:var(--accent);font-size:.82rem;font-weight:600;letter-spacing:.02em}
.lede{font-size:1.08rem;color:var(--muted);margin-top:.7rem}
.muted,.note,figcaption{color:var(--muted)}
.small,.note,figcaption{font-size:.875rem;line-height:1.45}
code,.mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;font-size:.85em;
overflow-wrap:anywhere}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,14rem),1fr));gap:1px;margin:2rem 0 0;
background:var(--line);border:1px solid var(--line);border-radius:.6rem;overflow:hidden}
.figures>div{background:var(--paper);padding:1.1rem 1.25rem 1.2rem}
.figures dt{font-size:.875rem;color:var(--muted)}
.figures dd{margin:0}
.figures .value{font-size:clamp(2.1rem,6vw,2.9rem);font-weight:600;line-height:1.15;letter-spacing:-.03em;
font-variant-numeric:tabular-nums}
.facts{margin:1rem 0;border-top:1px solid var(--line)}
.facts>div{display:grid;grid-template-columns:minmax(0,11rem) minmax(0,1fr);gap:.1rem 1.25rem;padding:.5rem 0;
border-bottom:1px solid var(--line)}
.facts dt{color:var(--muted)}
.facts dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin:1rem 0;max-width:100%}
.scroll:focus-visible{outline:2px solid var(--accent);outline-offset:3px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
caption{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
th,td{padding:.5rem .9rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,.text{text-align:left}
th:first-child{padding-left:0}
thead th{color:var(--muted);font-size:.875rem;font-weight:500;vertical-align:bottom}
tbody th,tfoot th{font-weight:500}
.wrap tbody th{white-space:normal;overflow-wrap:break-word;max-width:18rem}
tbody tr:last-child>*{border-bottom-color:var(--muted)}
tfoot td,tfoot th{border-bottom:0;font-weight:600}
table:not(:has(tfoot)) tbody tr:last-child>*{border-bottom-color:var(--line)}
.tag{display:inline-block;margin-left:.25rem;padding:.02rem .5rem;border:1px solid var(--line);border-radius:1rem;
color:var(--muted);font-size:.75rem;font-weight:500}
.matrix{width:auto;border-collapse:separate;border-spacing:3px}
.matrix th,.matrix td{border:0}
.matrix tbody th{position:sticky;left:0;background:var(--paper);padding:.4rem .9rem .4rem 0}
.matrix td{min-width:6.6rem;padding:.55rem .6rem;text-align:center;border-radius:.35rem;line-height:1.3;
background:rgb(var(--tone) / calc(.07 + .5*var(--share)))}
.matrix thead th{text-align:center;white-space:normal;max-width:6.6rem;padding:.3rem .2rem}
.matrix thead th:first-child{text-align:left}
.axis{display:block;white-space:nowrap}
.matrix td b{display:block;font-size:1.12rem;font-weight:600}
.matrix td span{font-size:.8rem}
.matrix td.none{color:var(--muted)}
.right{--tone:var(--accent-rgb)}
.wrong{--tone:var(--error-rgb)}
.charts,.films{display:grid;gap:1.5rem;margin-top:1.25rem}
.charts{grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr))}
.films{grid-template-columns:repeat(auto-fill,minmax(min(100%,18.5rem),1fr));gap:1.6rem 1.5rem}
figure{margin:0;min-width:0}
figcaption{margin-top:.5rem;overflow-wrap:anywhere}
figcaption b{color:var(--ink);font-weight:600}
.chart{display:block;width:100%;height:auto}
.chart text{font-family:inherit!important}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:3px;background:#000;border-radius:.45rem;overflow:hidden}
.pair img{display:block;width:100%;height:auto;aspect-ratio:1}
.callout{margin:1.2rem 0;padding:.8rem 1.1rem;max-width:46rem;background:var(--card);
border-radius:.5rem}
.callout.alarm b:first-child{color:var(--error)}
.callout>:first-child{margin-top:0}
.callout>:last-child{margin-bottom:0}
ul{padding-left:1.2rem;margin:.4rem 0;max-width:44rem}
li{overflow-wrap:anywhere}
details{margin:.8rem 0}
summary{cursor:pointer;width:fit-content;color:var(--accent);font-weight:500}
summary:focus-visible{outline:2px solid var(--accent);outline-offset:3px}
footer{margin-top:4rem;padding-top:1.2rem;border-top:1px solid var(--line)}
@media (max-width:34rem){.facts>div{grid-template-columns:minmax(0,6.5rem) minmax(0,1fr)}th,td{padding:.45rem .35rem}
table{font-size:.92rem}
section{margin-top:2.5rem}.figures>div{padding:.8rem 1rem .9rem}
.matrix td{min-width:4.4rem;padding:.5rem .3rem}.matrix tbody th{padding-right:.6rem}
.matrix thead th{font-size:.78rem}}
@media print{main{max-width:none;padding:0}figure,tr,.figures>div{break-inside:avoid}}
"""
