"""A run whose texts do what they can to break a page: scripts, bombs, and characters that are hard to show.

Whatever runs says so in ``window.ran``. Every text holds a word of its own by which it can be found on a page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agentrl.config import load_config
from agentrl.gateway.contract import Call
from agentrl.rollout.contract import Episode, EpisodeKey, Failure
from agentrl.runs.contract import Summary
from agentrl.runs.folder import RunFolder
from agentrl.runs.metrics import MetricsLog
from agentrl.runs.store import EpisodeStore
from agentrl.tokens.contract import Sampled, TokenTree

NAME = "<img src=x onerror=window.ran='name'>"
"""The run's name, which is that of its folder."""

SCRIPTS = {
    "script": "<script>window.ran='script'</script>",
    "closing": "</script></style></textarea></pre></title></template><script>window.ran='closing'</script>",
    "image": "<img src=x onerror=\"window.ran='image'\">",
    "vector": "<svg onload=\"window.ran='svg'\"><animate onbegin=\"window.ran='animate'\" attributeName=x></svg>",
    "details": "<details open ontoggle=\"window.ran='toggle'\"><summary>a</summary></details>",
    "frame": "<iframe srcdoc=\"<script>parent.ran='frame'</script>\"></iframe>",
    "attribute": '" onmouseover="window.ran=\'attribute\'" autofocus onfocus="window.ran=\'focus\'" x="',
    "quote": "' autofocus onfocus='window.ran=1' x='` ${window.ran=2} {{ 7 * 7 }} {% raw %}",
    "base": '<base href="http://192.0.2.1/"><meta http-equiv=refresh content="0;url=http://192.0.2.1/">',
    "style": "<style>body { display: none }</style><link rel=stylesheet href=http://192.0.2.1/a.css>",
    "link": "<a href=\"javascript:window.ran='link'\">a link</a>",
    "markdown link": "[a link](javascript:window.ran='markdown') [another](JaVaScRiPt&colon;window.ran='colon') "
    "[data](data:text/html,<script>parent.ran=1</script>) <javascript:window.ran='auto'>\n\n"
    "[ref]: javascript:window.ran=1\n[ref]",
    "markdown image": "![a](http://192.0.2.1/a.png) ![b](x\"onerror=\"window.ran='alt') ![c](//192.0.2.1/c.png)",
    "fence": "```\"><img src=x onerror=window.ran='fence'>\ncode\n```\n~~~<script>window.ran=1</script>\n~~~",
    "latex": "$\\href{javascript:window.ran='latex'}{x}$ $\\text{<img src=x onerror=window.ran='text'>}$ "
    "$$\\url{javascript:window.ran=1}$$ \\(<script>window.ran='math'</script>\\)",
    "thinking": "</think><script>window.ran='think'</script><think>",
}
"""Texts that would run something, reach another machine or change the page if they were taken as HTML."""

CHARACTERS = {
    "controls": "".join(map(chr, [*range(9), *range(11, 32), *range(127, 160)])),
    "escapes": "\x1b[31mred\x1b[0m\x1b]8;;http://192.0.2.1\x07link\x1b]8;;\x07\x08\x08\x7f",
    "right to left": "abc \u202egnp.exe\u202c \u2067\u0627\u0644\u0639\u0631\u0628\u064a\u0629\u2069 "
    "\u05e2\u05d1\u05e8\u05d9\u05ea",
    "unclosed": "\u202e\u2067\u202b never closed",
    "halves": "\ud83d half \ude00 a pair \ud83d\ud83d",
    "invisible": "a\u200b\u200c\u200d\u2060\ufeff\u00adb\u2028c\u2029d\U000e0041\U000e0042e",
    "stacked": "a" + "\u0301\u0489" * 2_000,
    "wide": "\u4f60\u597d \U0001f469\u200d\U0001f469\u200d\U0001f467 \ufdfd \u1242b",
    "carriage": "one\rtwo\r\nthree\n\n\n\nfour\x0bfive\x0csix\x85seven",
}
"""Characters that are invisible, turn the line around, or are no characters."""

BOMBS = {
    "huge line": "x" * 300_000,
    "many lines": "line\n" * 20_000,
    "quotes": ">" * 4_000 + " deep",
    "brackets": "[" * 30_000,
    "images": "![" * 15_000,
    "stars": "*a **b " * 8_000,
    "ticks": " ".join("`" * n for n in range(1, 250)),
    "lists": "\n".join("  " * n + "- a" for n in range(300)),
    "table": "|" + "a|" * 400 + "\n|" + "-|" * 400 + "\n" + ("|" + "b|" * 400 + "\n") * 40,
    "references": "".join(f"[{n}]: /{n}\n" for n in range(3_000)) + "[1] " * 3_000,
    "entities": "&amp;" * 20_000 + "&#x10ffff;&#0;&#xd800;",
    "dollars": "$" * 20_000,
    "fractions": "$" + "\\frac{" * 3_000 + "$ $" + "{" * 5_000 + "}" * 5_000 + "$",
    "macros": "$\\def\\x{\\x\\x}\\x$ $\\newcommand{\\y}{\\y}\\y$ "
    "$\\begin{array}{c}$ $\\left( \\sqrt[$ $$\\end{matrix}$$ \\[ \\(",
    "links": "http://" + "a." * 20_000,
    "tags": "<a" * 20_000 + "<!--" * 5_000 + "<![CDATA[" * 3_000,
    "thoughts": "<think>" * 3_000,
}
"""Texts that cost a careless parser quadratic time, its stack, or a page without end."""

TEXTS = SCRIPTS | CHARACTERS | BOMBS
TOKENS = 100_000
"""Sampled tokens of the longest episode, which is the last."""


def word(name: str) -> str:
    """The word that stands before the text ``name`` wherever it is."""
    return "marked" + name.replace(" ", "")


def key(name: str) -> EpisodeKey:
    """The episode that holds the text ``name``; of the longest one the name is ``tokens``."""
    ordinal = len(TEXTS) if name == "tokens" else list(TEXTS).index(name)
    return EpisodeKey("train", ordinal // 4, ordinal // 4, ordinal % 4)


def write_run(place: Path, encode: Callable[[str], Sequence[int]]) -> Path:
    """Write the run into the folder ``place`` through the real store, and return its folder.

    ``encode`` gives a text's token ids, of which the longest episode repeats some; it gets no half surrogate pairs.
    """
    folder = RunFolder.create(load_config(None, f"run.dir={place}", f"run.name={NAME}", "training.steps=2", environ={}))
    with EpisodeStore(folder.episodes) as store:
        written = [store.submit([_episode(name, text, encode)]) for name, text in TEXTS.items()]
        written.append(store.submit([_long(encode)]))
        for each in written:
            each.result()
    with MetricsLog(folder.metrics) as log:
        log.append(1, {"reward/mean": 0.5, "<script>window.ran='metric'</script>": 1.0})
    folder.write_summary(Summary("failed: <script>window.ran='outcome'</script>", steps=1))
    return folder.path


def _episode(name: str, text: str, encode: Callable[[str], Sequence[int]]) -> Episode:
    """The text everywhere at once; a huge one only where a model writes."""
    whole = f"{word(name)} {text}"
    short = whole if len(text) < 1_000 else word(name)
    first: dict[str, Any] = {
        "messages": [
            {"role": "system", "content": short},
            {"role": "user", "content": [{"type": "text", "text": short}]},
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": short, "description": short, "parameters": {"type": "object", short: _nested(40)}},
            }
        ],
    }
    calls_tool = {
        "role": "assistant",
        "content": whole,
        "reasoning_content": whole,
        "tool_calls": [
            {"id": short, "type": "function", "function": {"name": short, "arguments": '{"a": "' + short}},
            {"id": "2", "type": "function", "function": {"name": "nested", "arguments": "[" * 5_000 + "]" * 5_000}},
        ],
    }
    result = {"role": "tool", "tool_call_id": short, "content": whole}
    second = first | {"messages": [*first["messages"], calls_tool, result]}
    answer = {"role": "assistant", "content": whole}
    tree = TokenTree()
    clean = short.encode(errors="replace").decode()
    at = tree.add_given(encode(clean))
    for call in ("call-1", "call-2"):
        ids = tuple(encode(clean))
        at = tree.add_sampled(ids, Sampled(call, (-0.5,) * len(ids), (0,) * len(ids), 1.0), at)
    return Episode(
        key=key(name),
        data={"question": short, short: _nested(40)},
        outcome="rewarded",
        reward=float(key(name).sample % 2),
        reward_parts={short: 1.0},
        calls=(
            Call("call-1", None, first, calls_tool, short, 3, 2),
            Call(
                "call-2", "call-1", second, answer, short, 3, 2, fork_reason=short, overridden=(short,), unmet=(short,)
            ),
        ),
        tree=tree,
        answer={short: [short]},
        mistake=short,
        mistake_fingerprint=short,
        setbacks=(Failure("backend", short, short),),
        seconds=1.0,
    )


def _long(encode: Callable[[str], Sequence[int]]) -> Episode:
    sentence = encode("The sum of 57 and 28 is 85. ")
    ids = tuple((list(sentence) * (TOKENS // len(sentence) + 1))[:TOKENS])
    tree = TokenTree()
    at = tree.add_given(encode("What is 57 + 28?"))
    tree.add_sampled(ids, Sampled("call-1", tuple(-(n % 70) / 10 for n in range(TOKENS)), (0,) * TOKENS, 1.0), at)
    call = Call(
        "call-1",
        None,
        {"messages": [{"role": "user", "content": "What is 57 + 28?"}]},
        {
            "role": "assistant",
            "content": f"{word('tokens')} " + "The sum of 57 and 28 is 85. " * (TOKENS // len(sentence)),
        },
        "length",
        8,
        TOKENS,
    )
    data = {"question": "What is 57 + 28?"}
    return Episode(key=key("tokens"), data=data, outcome="rewarded", reward=0.0, calls=(call,), tree=tree, seconds=9.0)


def _nested(depth: int) -> Any:
    value: Any = "end"
    for _ in range(depth):
        value = {"a": [value]}
    return value
