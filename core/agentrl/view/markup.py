"""Text of models as HTML that shows it and never runs it.

Every function takes text that nobody vouches for. What comes out holds only elements and attributes that are written
here or are on a list here; characters that a browser would not show, or that would reorder what stands beside them,
are shown by their codes.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, MutableMapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline

__all__ = ["LONGEST_MARKDOWN", "markdown", "mathematics", "pretty_json", "readable", "visible", "visible_token"]

LONGEST_MARKDOWN = 20_000
"""Characters. A longer text is shown as plain text: nobody reads it for its layout, and laying it out takes seconds."""
_LONGEST_MATHEMATICS = 2_000
_DEEPEST_MATHEMATICS = 60
_MOST_ELEMENTS = 5_000

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufdd0-\ufdef\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e0fff]"
)
"""Control characters but for tab and line feed, marks that change the direction of text, characters that take no
space, halves of surrogate pairs, and codes that stand for no character."""
_LINE_BREAK = '<span class="code" data-code="000A" title="line feed">\u21b5</span>\n'
_TAB = '<span class="code" data-code="0009" title="tab">\u21e5</span>'
_NO_MARKDOWN = re.compile("[\x00\ud800-\udfff]")
"""What a reader of Markdown replaces, and what UTF-8 cannot carry."""
_CLOSINGS = {"$$": "$$", "$": "$", "\\(": "\\)", "\\[": "\\]"}
_DISPLAYED = ("$$", "\\[")
_LINKED = ("http", "https", "mailto")

_MATHML = frozenset(
    {
        *("math", "semantics", "annotation", "mrow", "mi", "mn", "mo", "mtext", "mspace", "ms", "mfrac", "msqrt"),
        *("mroot", "mstyle", "merror", "mpadded", "mphantom", "msub", "msup", "msubsup", "munder", "mover"),
        *("munderover", "mmultiscripts", "mprescripts", "mtable", "mtr", "mtd", "menclose", "mfenced", "none"),
    }
)
_MATHML_ATTRIBUTES: Mapping[str, re.Pattern[str]] = {
    "display": re.compile("block|inline"),
    "mathvariant": re.compile("[a-z-]{1,30}"),
    "stretchy": re.compile("true|false"),
    "fence": re.compile("true|false"),
    "form": re.compile("prefix|infix|postfix"),
    "largeop": re.compile("true|false"),
    "movablelimits": re.compile("true|false"),
    "displaystyle": re.compile("true|false"),
    "scriptlevel": re.compile("[+-]?[0-3]"),
    "linethickness": re.compile(r"[0-9.]{1,5}(em|ex|px|pt)?"),
    "columnalign": re.compile("((left|center|right) ?){1,20}"),
    "notation": re.compile("[a-z ]{1,60}"),
    "accent": re.compile("true|false"),
}
"""The attributes that are taken over, and what their values may be. Lengths and colours are not among them, by which
a formula could cover the page."""


def visible(text: str) -> Markup:
    """``text`` for the inside of an element: escaped, with what would be hidden shown by its code.

    Such a character becomes an element ``span`` of the class ``code`` with its symbol, or else its code point, whose
    attribute ``data-code`` holds the code point in hexadecimal. Line breaks and tabs stay as they are.
    """
    return Markup(_HIDDEN.sub(_shown, str(escape(text))))  # noqa: S704


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    symbol = chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else f"U+{code:04X}"
    return f'<span class="code" data-code="{code:04X}" title="character U+{code:04X}">{symbol}</span>'


def visible_token(text: str) -> Markup:
    """The text of a token for the inside of an element: as ``visible``, with its line breaks and tabs shown as well."""
    return Markup(str(visible(text)).replace("\n", _LINE_BREAK).replace("\t", _TAB))  # noqa: S704


def readable(text: str) -> str:
    """``text`` as plain text in which nothing is hidden, for attributes and for titles: codes as ``\\u202e``."""
    return _HIDDEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def pretty_json(text: str) -> str | None:
    """JSON text with a line for each member, and its numbers and strings exactly as they are spelled.

    ``None`` for a text that is no JSON, and for one that is nested too deeply to be read.
    """
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return None
    return "".join(_indented(text))


_JSON = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]\s*[\]}]|[\[\]{},:]|[^\s\[\]{},:"]+')


def _indented(text: str) -> list[str]:
    depth, out = 0, []
    for token in _JSON.findall(text):
        match token[0]:
            case "{" | "[" if len(token) > 1:
                out.append(token[0] + token[-1])
            case "{" | "[":
                depth += 1
                out += [token, "\n", "  " * min(depth, 40)]
            case "}" | "]":
                depth -= 1
                out += ["\n", "  " * min(depth, 40), token]
            case ",":
                out += [",\n", "  " * min(depth, 40)]
            case ":":
                out.append(": ")
            case _:
                out.append(token)
    return out


def markdown(text: str) -> Markup:
    """``text`` laid out as the Markdown and LaTeX that it is written in.

    HTML in it is shown as it is written. A link leads to http, https or mailto only, and its target stands beside it;
    an image is a link as well, so nothing is loaded. Text that is no Markdown, or is longer than
    ``LONGEST_MARKDOWN`` characters, keeps its lines as they are.
    """
    if len(text) > LONGEST_MARKDOWN or _NO_MARKDOWN.search(text):
        return Markup('<div class="plain">%s</div>') % visible(text)
    return Markup(_reader().render(text))  # noqa: S704


def mathematics(source: str, *, display: bool = False) -> Markup:
    """LaTeX as MathML, with ``source`` as its annotation; ``source`` itself where it cannot be read as a formula."""
    element = None if len(source) > _LONGEST_MATHEMATICS or _HIDDEN.search(source) else _formula(source, display)
    if element is None:
        return Markup('<code class="tex">%s</code>') % visible(source)
    return Markup('<math display="%s"><semantics>%s<annotation encoding="application/x-tex">%s</annotation>%s') % (
        "block" if display else "inline",
        Markup("".join(_mathml(child) for child in element)),  # noqa: S704
        source,
        Markup("</semantics></math>"),
    )


def _formula(source: str, display: bool) -> ElementTree.Element | None:
    from latex2mathml.converter import convert_to_element

    try:
        element = convert_to_element(source, display="block" if display else "inline")
        return element if _is_small(element) else None
    except Exception:  # Of any kind: what the converter cannot read is shown as it is written.
        return None


def _is_small(element: ElementTree.Element) -> bool:
    left, count = [(element, 1)], 0
    while left:
        each, depth = left.pop()
        count += 1
        if depth > _DEEPEST_MATHEMATICS or count > _MOST_ELEMENTS:
            return False
        left += [(child, depth + 1) for child in each]
    return True


def _mathml(element: ElementTree.Element) -> str:
    """The element with its name and attributes, as far as they are on the lists, and all of its text."""
    name = element.tag if element.tag in _MATHML else "mrow"
    attributes = "".join(
        f' {key}="{value}"'
        for key, value in element.attrib.items()
        if (allowed := _MATHML_ATTRIBUTES.get(key)) is not None and allowed.fullmatch(value)
    )
    # The converter writes some operators as the references of HTML.
    inside = visible(html.unescape(element.text or "")) + Markup("").join(
        Markup(_mathml(child)) + visible(html.unescape(child.tail or ""))  # noqa: S704
        for child in element
    )
    return f"<{name}{attributes}>{inside}</{name}>"


@cache
def _reader() -> MarkdownIt:
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": 20})
    reader.enable(["table", "strikethrough"])
    # A definition of a link would vanish from the text, and an entity would be another text than the one sampled.
    reader.disable(["reference", "entity"])
    reader.inline.ruler.before("escape", "formula", _formula_in_text)
    reader.block.ruler.at("table", _whole_table, {"alt": ["paragraph", "reference"]})
    reader.block.ruler.before("fence", "formula", _formula_of_lines, {"alt": ["paragraph", "reference", "blockquote"]})
    reader.validateLink = _is_linked  # type: ignore[method-assign]
    for name, rule in _RULES.items():
        reader.add_render_rule(name, lambda _, *given, rule=rule: rule(*given))
    return reader


def _whole_table(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    """Markdown's rule for tables, except that one is no table which would lose what stands beyond its columns."""
    from markdown_it.rules_block.table import escapedSplit, table

    known, parent = len(state.tokens), state.parentType
    if not table(state, first, last, silent):
        return False
    if silent:
        return True
    columns = sum(token.type == "th_open" for token in state.tokens[known:])
    lines = (
        state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]] for line in range(first, state.line)
    )
    if all(len(escapedSplit(line.strip().removeprefix("|").removesuffix("|"))) <= columns for line in lines):
        return True
    del state.tokens[known:]
    state.line, state.parentType = first, parent
    return False


def _formula_in_text(state: StateInline, silent: bool) -> bool:
    r"""Formulas as ``$…$``, ``$$…$$``, ``\(…\)`` and ``\[…\]``; amounts of money are none."""
    opening = next((each for each in _CLOSINGS if state.src.startswith(each, state.pos)), None)
    if opening is None:
        return False
    start, closing = state.pos + len(opening), _CLOSINGS[opening]
    end = state.src.find(closing, start, min(state.posMax, start + _LONGEST_MATHEMATICS))
    source = state.src[start:end] if end > start else ""
    if not source.strip() or (opening == "$" and not _is_formula(source, state.src[end + 1 : end + 2])):
        return False
    if not silent:
        token = state.push("display_formula" if opening in _DISPLAYED else "formula", "math", 0)
        token.content = source
    state.pos = end + len(closing)
    return True


def _is_formula(source: str, after: str) -> bool:
    """Pandoc's rule for what stands between two ``$``."""
    return not (source[0].isspace() or source[-1].isspace() or source.endswith("\\") or after.isdigit())


def _formula_of_lines(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    r"""Formulas on lines of their own, from ``$$`` or ``\[`` to its closing at the end of one."""
    if state.is_code_block(first):
        return False
    start = state.bMarks[first] + state.tShift[first]
    opening = state.src[start : start + 2]
    if opening not in _DISPLAYED:
        return False
    end = state.src.find(_CLOSINGS[opening], start + 2, start + 2 + _LONGEST_MATHEMATICS)
    line = next((line for line in range(first, last) if state.eMarks[line] >= end + 2), last)
    if end < 0 or line == last or state.src[end + 2 : state.eMarks[line]].strip():
        return False
    if not silent:
        token = state.push("display_formula", "math", 0)
        token.block = True
        token.content = state.getLines(first, line + 1, state.blkIndent, False).strip()[2:-2]
        token.map = [first, line + 1]
        state.line = line + 1
    return True


def _is_linked(url: str) -> bool:
    try:
        return urlsplit(url.strip()).scheme.lower() in _LINKED
    except ValueError:
        return False


Tokens = Sequence[Any]
Environment = MutableMapping[str, Any]


def _text(tokens: Tokens, index: int, options: object, environment: Environment) -> str:
    return str(visible(tokens[index].content))


def _code(tokens: Tokens, index: int, options: object, environment: Environment) -> str:
    return f"<code>{visible(tokens[index].content)}</code>"


def _block(tokens: Tokens, index: int, options: object, environment: Environment) -> str:
    named = f'<span class="language">{visible(info)}</span>' if (info := tokens[index].info.strip()) else ""
    return f"{named}<pre><code>{visible(tokens[index].content)}</code></pre>\n"


def _inline_formula(tokens: Tokens, index: int, options: object, environment: Environment) -> str:
    return str(mathematics(tokens[index].content))


def _display_formula(tokens: Tokens, index: int, options: object, environment: Environment) -> str:
    return str(mathematics(tokens[index].content, display=True))


def _link_open(tokens: Tokens, index: int, options: object, environment: Environment) -> str:
    environment.setdefault("links", []).append((tokens[index].attrs.get("href", ""), index))
    return _anchor(str(tokens[index].attrs.get("href", "")))


def _link_close(tokens: Tokens, index: int, options: object, environment: Environment) -> str:
    href, start = environment["links"].pop()
    title = str(tokens[start].attrs.get("title", ""))
    said = "".join(token.content for token in tokens[start + 1 : index])
    return f"</a>{_target(href, said, title)}"


def _image(tokens: Tokens, index: int, options: object, environment: Environment) -> str:
    token = tokens[index]
    href, title = str(token.attrs.get("src", "")), str(token.attrs.get("title", ""))
    return f"{_anchor(href)}[image: {visible(token.content)}]</a>{_target(href, '', title)}"


def _anchor(href: str) -> str:
    return f'<a href="{escape(href)}" rel="noopener noreferrer nofollow" target="_blank">'


def _target(href: str, said: str, title: str) -> str:
    """Where a link leads, which its text may not say."""
    told = " ".join(filter(None, ["" if said == href else href, f"“{title}”" if title else ""]))
    return f' <span class="target">({visible(told)})</span>' if told else ""


def _item(tokens: Tokens, index: int, options: object, environment: Environment) -> str:
    """An item of a list, with the number that is written before it."""
    info = tokens[index].info
    return f'<li value="{int(info)}">' if info.isascii() and info.isdigit() else "<li>"


def _cell(tokens: Tokens, index: int, options: object, environment: Environment) -> str:
    """A cell of a table, whose column a style would align: the page allows no styles in elements."""
    aligned = str(tokens[index].attrs.get("style", "")).removeprefix("text-align:")
    return f'<{tokens[index].tag} class="{aligned}">' if aligned in ("right", "center") else f"<{tokens[index].tag}>"


_RULES = {
    "text": _text,
    "code_inline": _code,
    "code_block": _block,
    "fence": _block,
    "formula": _inline_formula,
    "display_formula": _display_formula,
    "th_open": _cell,
    "td_open": _cell,
    "link_open": _link_open,
    "link_close": _link_close,
    "image": _image,
    "list_item_open": _item,
}
