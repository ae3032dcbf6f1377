from __future__ import annotations

import pytest

from cxr_ray.html import Html, data_uri, element, esc, figures, join, page, section, table, themed_svg, words

HOSTILE = "\"'><script>alert(1)</script>&"


@pytest.mark.parametrize(
    "markup",
    [
        esc(HOSTILE),
        element("p", HOSTILE),
        element("p", title=HOSTILE),
        join([HOSTILE], between=HOSTILE),
        section(HOSTILE, HOSTILE),
        figures([(HOSTILE, HOSTILE, HOSTILE)]),
        table(HOSTILE, [HOSTILE], [[HOSTILE]], footer=[[HOSTILE]]),
        themed_svg('<svg viewBox="0 0 1 1"></svg>', HOSTILE),
        page(HOSTILE, HOSTILE),
    ],
)
def test_text_is_escaped_wherever_it_enters(markup: str) -> None:
    assert "<script" not in markup
    assert "\"'>" not in markup
    assert "&lt;script&gt;" in markup


def test_markup_is_not_escaped_twice() -> None:
    assert element("p", element("b", "a & b"), Html("<i>c</i>")) == "<p><b>a &amp; b</b><i>c</i></p>"


def test_attributes_that_are_none_or_false_are_left_out() -> None:
    made = element("img", alt="", class_="wide", aria_label="film", hidden=True, title=None, open=False)
    assert made == '<img alt="" class="wide" aria-label="film" hidden>'


def test_a_table_names_its_columns_rows_and_scrolling_box() -> None:
    made = table("scores", ["class", "F1"], [["normal", 1], ["covid", element("td", 2, class_="wrong")]])
    assert made.count('scope="col"') == 2
    assert made.count('scope="row"') == 2
    assert '<td class="wrong">2</td>' in made
    assert 'role="region" aria-label="scores" tabindex="0"' in made


def test_a_drawing_takes_the_colours_of_the_page_and_keeps_its_own_names() -> None:
    svg = (
        '<?xml version="1.0"?><svg viewBox="0 0 2 1"><metadata>made by http://x</metadata><g id="axes_1">'
        '<path id="m1" style="fill: #0f6f6b"/><use xlink:href="#m1"/></g></svg>'
    )
    made = themed_svg(svg, "curve")
    assert "http" not in made
    assert "var(--accent)" in made
    assert '<use href="#m1"/>' in made
    assert "axes_1" not in made
    assert made.startswith('<svg viewBox="0 0 2 1" role="img" aria-label="curve"')


def test_a_page_may_fetch_nothing() -> None:
    assert "default-src &#x27;none&#x27;; img-src data:" in page("t", Html("<p>b</p>"))


def test_slugs_become_words_and_pictures_become_addresses() -> None:
    assert words("viral_pneumonia") == "viral pneumonia"
    assert data_uri(b"\x89PNG") == "data:image/png;base64,iVBORw=="
