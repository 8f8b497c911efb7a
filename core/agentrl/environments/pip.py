"""pip in an environment, and what it says when it fails."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from agentrl.environ import ENVIRONMENTS

__all__ = ["FREE_SPACE", "Failure", "failure_of", "pip_environment"]

FREE_SPACE = f"free some space, or set {ENVIRONMENTS} to another disk"

_MOST_LINES = 3
_MOST_CHARACTERS = 300
_ERROR = re.compile(r"^\s*(?:ERROR|error): *")
_SUBPROCESS = "subprocess-exited-with-error"
_NOISE = re.compile(r"^(note: |hint: |\[notice\]|WARNING: |\$ )|^[\s╰╭─>|]*$")
_FIXES = (
    (r"No space left on device|Disk quota exceeded", FREE_SPACE),
    (
        r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|Max retries exceeded",
        "check the network; PIP_INDEX_URL names another index and --from a local folder",
    ),
    (r"ResolutionImpossible|conflicting dependencies", "they cannot be installed together: change what is asked for"),
    (
        r"No matching distribution found|from versions: none",
        "check the name and the version, or name a local folder, as in --from ./plugins/agentrl-NAME in a checkout",
    ),
)


class Failure(NamedTuple):
    """Why pip failed."""

    reason: str
    fix: str | None
    """What to do about it, where that is known."""


def pip_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` with what output into a pipe needs, as far as the user has not decided it."""
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_PROGRESS_BAR": "off", "PIP_NO_INPUT": "1"}
    # A user's configuration that installs into the user's own folder cannot work in an environment.
    return {**quiet, **environ, "PIP_USER": "0"}


def failure_of(lines: Sequence[str]) -> Failure:
    """The reason in pip's output, and what to do about it."""
    errors = [_ERROR.sub("", line) for line in lines if _ERROR.match(line) and _SUBPROCESS not in line]
    # Where a build failed, its own last line says why.
    builds = [before.strip() for before, line in pairwise(lines) if line.strip() == "[end of output]"]
    telling = [*builds[-1:], *errors] or [line.strip() for line in lines if not _NOISE.match(line)]
    reason = "; ".join(line[:_MOST_CHARACTERS] for line in telling[-_MOST_LINES:]) or "it said nothing"
    text = "\n".join(lines)
    return Failure(reason, next((fix for pattern, fix in _FIXES if re.search(pattern, text)), None))
