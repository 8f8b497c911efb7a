"""Regular expressions that a grammar keeps to exactly where the text that they are about is written in JSON."""

from __future__ import annotations

import re

__all__ = ["fits_json"]

_PLAIN = r'[^\\"\[\](){}.*+?|^$\x00-\x1f]'
"""A character that means itself, and that JSON writes as it is."""
_ESCAPE = r"\\[d.*+?(){}|^$/\[\]-]"
_CLASS = r'\[(?!\^)(?:[^\\"\[\]\x00-\x1f]|\\[d.*+?(){}|^$/\[\]-])+\]'
_PATTERN = re.compile(
    rf"\^?(?:{_PLAIN}|{_ESCAPE}|{_CLASS}|\((?:\?:|(?!\?))|[)|*+?]|\{{[0-9]+(?:,[0-9]*)?\}})*\$?", re.DOTALL
)
_IN_CLASS = re.compile(_CLASS, re.DOTALL)
_RANGE = re.compile(r"(.)-(.)", re.DOTALL)


def fits_json(pattern: str) -> bool:
    """Whether all that ``pattern`` matches is written in JSON as it is, and every part of it is read alike everywhere.

    So it has no quotes, backslashes or control characters, nothing that may stand for them (``.``, ``[^x]``, ``\\s``,
    a range across them), no lookarounds, and no classes that some take for those of ASCII and some do not (``\\w``).
    """
    if not _PATTERN.fullmatch(pattern):
        return False
    ranges = [pair for found in _IN_CLASS.finditer(pattern) for pair in _RANGE.findall(found[0])]
    return not any(first <= mark <= last for first, last in ranges for mark in '"\\')
