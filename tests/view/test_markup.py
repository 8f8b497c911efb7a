"""Text of models is shown and never runs: whatever it is, no script, no handler and no foreign file comes of it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentrl.view.markup import LONGEST_MARKDOWN, markdown, mathematics, pretty_json, readable, visible, visible_token

ELEMENTS = {
    *("p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a", "span", "div"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
    *("math", "semantics", "annotation", "mrow", "mi", "mn", "mo", "mtext", "mspace", "ms", "mfrac", "msqrt", "mroot"),
    *("mstyle", "merror", "mpadded", "mphantom", "msub", "msup", "msubsup", "munder", "mover", "munderover", "mtable"),
    *("mtr", "mtd", "menclose", "mfenced", "none", "mmultiscripts", "mprescripts"),
}
ATTRIBUTES = {
    *("class", "data-code", "title", "href", "rel", "target", "value", "start", "display", "mathvariant", "stretchy"),
    *("fence", "form", "largeop", "movablelimits", "displaystyle", "scriptlevel", "linethickness", "columnalign"),
    *("notation", "accent", "encoding"),
}
VOID = {"br", "hr"}
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg/onload=alert(1)>',
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1) 'y')",
    "[x](data:text/html,<script>alert(1)</script>)",
    "![x](http://example.com/x.png)",
    "<javascript:alert(1)>",
    "[a]: http://example.com\n[a]",
    "$\\href{javascript:alert(1)}{x}$",
    "$\\text{</mtext><script>alert(1)</script>}$",
    "\\(\\style{position:fixed}{x}\\)",
    '\\[\\class{x" onclick="alert(1)}{y}\\]',
    "$\\color{red\" onclick='x'}{y}$",
    "$$\n\\unicode{x3c}script\n$$",
    "```<b onclick=x>\n</code></pre><script>\n```",
    "| a |\n|:-:|\n| <b> |",
    "\u202egnp.exe\u2066 \x00 \x1b[31m \ud800 \u200b",
    "&lt;script&gt; &#60;script&#62;",
    "7. seven\n9. nine",
]
WORDS = st.one_of(
    st.sampled_from(HOSTILE),
    st.sampled_from([*"*_`$[]()<>!\\|#-+>~&\"'=\n\t :", "$$", "\\(", "\\)", "\\[", "\\]", "\n\n", "\\frac{a}{b}"]),
    st.text(),
)
TEXTS = st.lists(WORDS, max_size=8).map("".join)


class Page(HTMLParser):
    """What a browser would make of HTML, as far as it matters here."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.numbers = ""
        """The numbers of items in lists, which stand in no text."""
        self._open: list[str] = []
        self._code: str | None = None
        self._formula = 0
        self.feed(str(html))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        assert len(given) == len(attributes)
        self.elements.append((tag, given))
        self._code = given.get("data-code")
        self.text += str(given.get("value") or "") if tag == "li" else ""
        self._formula += tag == "math"
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert tag in VOID
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        self._formula -= tag == "math"

    def handle_data(self, data):
        if self._formula and self._open[-1] != "annotation":
            return
        self.text += chr(int(self._code, 16)) if self._code else data
        self._code = None

    def handle_comment(self, data):
        raise AssertionError(f"a comment hides {data!r}")

    handle_decl = unknown_decl = handle_pi = handle_comment


def assert_nothing_runs(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag in ELEMENTS
        assert set(attributes) <= ATTRIBUTES
        if "href" in attributes:
            assert tag == "a"
            assert re.match("(https?|mailto):", str(attributes["href"]), re.IGNORECASE)
            assert attributes["rel"] == "noopener noreferrer nofollow"


@given(TEXTS)
@example("".join(HOSTILE))
def test_plain_text_is_shown_whole_and_nothing_in_it_runs(text):
    page = Page(visible(text))
    assert page.text == text
    assert {tag for tag, _ in page.elements} <= {"span"}
    assert_nothing_runs(page)
    str(visible(text)).encode()


@given(TEXTS)
@example("\n\n".join(HOSTILE[:-3]))
@example("$a$ costs $5 and $6, \\(x\\)\\[y\\] $$z$$")
@example("> $$\n> x\n> $$\n\n- \\[\na\n\\]")
def test_markdown_shows_every_word_and_nothing_in_it_runs(text):
    html = markdown(text)
    page = Page(html)
    assert_nothing_runs(page)
    shown = iter(page.text)
    assert all(letter in shown for letter in text if letter.isalnum()), page.text
    str(html).encode()


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown(text):
    assert_nothing_runs(Page(markdown(text)))


@given(
    st.text(
        st.sampled_from("\\{}^_&$ab12+-<>\"'" + "frac sqrt left( right) text href color begin end matrix"), max_size=60
    )
)
def test_a_formula_is_mathml_or_its_source(source):
    page = Page(mathematics(source))
    assert_nothing_runs(page)
    assert page.text == source


def test_formulas_are_laid_out():
    html = markdown("so $x^2$ and \\(\\frac{a}{b}\\)\n\n$$\n\\int_0^1 x\n$$\n\n\\[ a \\]")
    assert [attributes["display"] for tag, attributes in Page(html).elements if tag == "math"] == [
        *("inline", "inline", "block", "block")
    ]
    assert "<mfrac>" in html
    assert "<msup>" in html


@pytest.mark.parametrize("text", ["it costs $5 and $6", "\\$a\\$", "$5-$6", "a $ b $ c", "$" * 50, "\\[ a"])
def test_what_is_no_formula_stays_text(text):
    assert "<math" not in markdown(text)


@pytest.mark.parametrize(
    "source", ["{" * 1999, "\\newcommand{\\a}{\\a\\a}\\a", "\\left(" * 200, "x^" * 900, "a" * 5000]
)
def test_a_formula_that_is_too_much_is_shown_as_it_is_written(source):
    assert Page(mathematics(source)).elements == [("code", {"class": "tex"})]


@pytest.mark.parametrize(
    "piece", ["[", "![", "*a ", "`a", "<", "$a", "_a", "> ", "- ", "[a](", "~~", "&a;", "| a ", "\\[", "\\(", "$$"]
)
def test_repeated_marks_do_not_keep_the_page_waiting(piece):
    """A reader whose work grows with the square of the text would never end here; no time is asserted."""
    text = piece * (LONGEST_MARKDOWN // 4 // len(piece))
    assert_nothing_runs(Page(markdown(text)))


def test_a_long_text_is_not_laid_out():
    text = "**a** " * (LONGEST_MARKDOWN // 6 + 1)
    page = Page(markdown(text))
    assert page.text == text
    assert [tag for tag, _ in page.elements] == ["div"]


def test_hidden_characters_are_shown_by_their_codes():
    assert Page(visible("a\u202eb\r\x00")).elements == [
        ("span", {"class": "code", "data-code": code, "title": f"character U+{code}"})
        for code in ("202E", "000D", "0000")
    ]
    assert Page(visible_token(" <b>\n\t")).text == " <b>\n\n\t"
    assert readable("a\u202e\tb\x1b") == "a\\u202e\tb\\u001b"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=30)
@given(JSON, st.booleans())
def test_pretty_json_is_the_same_json(value, is_ascii):
    text = json.dumps(value, ensure_ascii=is_ascii)
    pretty = pretty_json(text)
    assert pretty is not None
    assert json.loads(pretty) == value


def test_pretty_json_keeps_what_a_parser_would_lose():
    assert pretty_json('{"a": 1.50, "a": 10000000000000000000001, "b": {}}') == (
        '{\n  "a": 1.50,\n  "a": 10000000000000000000001,\n  "b": {}\n}'
    )
    assert pretty_json("[1, 2") is None
    assert pretty_json("[" * 100_000) is None
