"""The exception tree of agentrl.

Every failure names the side that caused it, so that a run can decide what is retried, what is
counted and what stops it, and the command line can decide its exit code::

    AgentRLError
    ├── ConfigError       config    what the user asked for is not possible            exit 2
    ├── PluginError       plugin    a plugin or its environment is broken              exit 3
    ├── AgentError        agent     the agent's own code raised or broke its contract  exit 1
    │   └── EpisodeTimeout          …or did not end in time
    │       └── ModelTimeout        …for want of the model's answers: a failure of the backend
    ├── PolicyError       policy    the model did something wrong: an outcome
    ├── WorkerError       worker    the process that ran an agent is gone, through no fault of its  exit 1
    ├── RewardError       reward    a reward function raised or returned no number     exit 1
    ├── BackendError      backend   the inference engine failed                        exit 1
    │   ├── PromptTooLong           the prompt leaves no room in the context
    │   └── UnsupportedSampling     the engine cannot sample as asked
    ├── GatewayError      gateway   a request that the gateway refuses, with its status
    └── RunError          run       the run itself cannot go on                        exit 1
        ├── RunFolderError          …its folder cannot be made                         exit 3
        ├── HostLostError           …a process that it needs is gone
        └── BudgetError             …it has spent what the config lets it spend
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

Side = Literal["agent", "policy", "reward", "backend", "gateway", "config", "plugin", "worker", "run"]
Limit = Literal["context", "turns", "tokens", "pass"]
"""What a policy may run into: the model's context, an agent's limit of turns, a call's limit of tokens, and the most
tokens that a pass of the learner takes."""

__all__ = [
    "AgentError",
    "AgentRLError",
    "BackendError",
    "BudgetError",
    "ConfigError",
    "EpisodeTimeout",
    "GatewayError",
    "HostLostError",
    "Limit",
    "ModelTimeout",
    "PluginError",
    "PolicyError",
    "PromptTooLong",
    "RewardError",
    "RunError",
    "RunFolderError",
    "Side",
    "UnsupportedSampling",
    "WorkerError",
    "about",
    "cannot_write",
    "disk_is_full",
    "encodable",
    "near_files",
    "near_matches",
    "one_line",
    "printable",
    "shortened",
    "shown",
]


class AgentRLError(Exception):
    """Base of every error that agentrl raises on purpose.

    ``message`` says what is wrong and names the value; ``fix`` says what to do about it. ``str()``
    is both, on one line. ``fingerprint`` is the message without what differs from one episode to the next (an id, an
    answer, a number): failures with equal fingerprints are counted as one. Without it the message is compared with
    its quoted texts, numbers and URLs left out.
    """

    side: ClassVar[Side] = "run"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, fix: str | None = None, fingerprint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.fingerprint = fingerprint

    def __str__(self) -> str:
        # A class derived elsewhere need not have called ours when it was made.
        message, fix = getattr(self, "message", type(self).__name__), getattr(self, "fix", None)
        return f"{message} ({fix})" if fix else str(message)


class ConfigError(AgentRLError):
    """What the user asked for does not exist, has the wrong type or contradicts itself.

    ``key`` is the dotted key of the configuration that is at fault, where the message does not begin with it.
    """

    side = "config"
    exit_code = 2

    def __init__(
        self, message: str, *, fix: str | None = None, fingerprint: str | None = None, key: str | None = None
    ) -> None:
        super().__init__(message, fix=fix, fingerprint=fingerprint)
        self.key = key


class PluginError(AgentRLError):
    """A plugin does not import, conflicts with another, or its environment is unusable."""

    side = "plugin"
    exit_code = 3


class AgentError(AgentRLError):
    """The agent's own code raised, or returned something its contract does not allow."""

    side: ClassVar[Side] = "agent"


class EpisodeTimeout(AgentError):
    """An episode did not end within its deadline; the message says what it was waiting for."""


class ModelTimeout(EpisodeTimeout):
    """An episode did not end within its deadline, most of which it spent waiting for the model."""

    side = "backend"


class PolicyError(AgentRLError):
    """The policy did something wrong: it called a tool that does not exist, or never came to an end.

    An agent may raise it instead of returning: the episode is an outcome, not a failure. ``answer`` is then
    what a reward function scores; where the agent returns its own reward, the reward is 0. ``limit`` says that the
    policy ran into that limit, such as ``"turns"``: unless a reward function has an answer to score, the outcome is
    then what ``rollout.on_overflow`` says.
    """

    side = "policy"

    def __init__(
        self,
        message: str,
        *,
        answer: Any = "",
        limit: Limit | None = None,
        fix: str | None = None,
        fingerprint: str | None = None,
    ) -> None:
        super().__init__(message, fix=fix, fingerprint=fingerprint)
        if limit is not None and limit not in get_args(Limit):
            raise ValueError(f"limit={limit!r} is no limit that a policy runs into: {', '.join(get_args(Limit))}")
        self.answer = answer
        self.limit = limit


class WorkerError(AgentRLError):
    """The process that ran an agent's code is gone, and the agent is not known to be the cause."""

    side = "worker"


class RewardError(AgentRLError):
    """A reward function raised, or returned something that is not a number."""

    side = "reward"


class BackendError(AgentRLError):
    """The inference engine failed."""

    side = "backend"


class PromptTooLong(BackendError):
    """The prompt leaves no room for a single token in the context."""


class UnsupportedSampling(BackendError):
    """The engine cannot sample the way a request asks for."""


class GatewayError(AgentRLError):
    """A request that the gateway refuses.

    ``status`` is the HTTP status, ``code`` a short machine-readable name and ``param`` the request
    field at fault, as in the OpenAI API's error object. ``retry_after`` is in how many seconds the same request may be
    granted; ``None`` where nobody knows, or never.
    """

    side = "gateway"

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str = "invalid_request_error",
        param: str | None = None,
        fix: str | None = None,
        fingerprint: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, fix=fix, fingerprint=fingerprint)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after = retry_after


class RunError(AgentRLError):
    """The run cannot go on: its failure budget is spent, or its folder cannot be written."""

    side = "run"


class RunFolderError(RunError):
    """The run cannot start: the place that its folder should be made in does not take it."""

    exit_code = 3


class HostLostError(RunError):
    """A process that the run needs, here or on another machine, has ended before it did what it was asked."""


class BudgetError(RunError):
    """A run has spent what its config lets it spend, such as on a judge, and is to stop then.

    Unlike what else a reward function raises, it is no failure of an episode.
    """


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def disk_is_full(error: BaseException) -> bool:
    """Whether ``error``, raised by the operating system, SQLite or another library, says that no space is left."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return os.strerror(errno.ENOSPC) in str(error) or "disk is full" in str(error)


def cannot_write(path: Path, error: BaseException) -> RunError:
    """The one-line ``RunError`` for ``error``, which a write to ``path`` raised during a run."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    if disk_is_full(error):
        return RunError(f"cannot write {path}: {reason}", fix="free some space, or set run.dir to another disk")
    return RunError(f"cannot write {path}: {reason}", fix="make it writable, or set run.dir to another folder")


@contextlib.contextmanager
def about(key: str) -> Iterator[None]:
    """Within it, a ``ConfigError`` that names no key of the configuration is about ``key``."""
    try:
        yield
    except ConfigError as error:
        error.key = error.key or key
        raise


def encodable(text: str) -> str:
    """``text`` with the halves of surrogate pairs that stand alone spelled out, as JSON spells them.

    Python's strings may hold what UTF-8 cannot: ``json.loads`` makes one of a policy's ``"\\ud83d"``.
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
"""Characters that a terminal obeys instead of showing them: controls, marks that turn the direction of what follows,
and some that have no width. Tab and newline are not among them."""


def printable(text: str) -> str:
    """``text`` that a terminal shows and does not obey: control characters are spelled out, as JSON spells them.

    Tabs and newlines stay. A carriage return before a newline is left out.
    """
    if text.isascii() and text.isprintable():
        return text
    return _UNPRINTABLE.sub(lambda found: _spelled(found[0]), encodable(text.replace("\r\n", "\n")))


def _spelled(character: str) -> str:
    """As JSON writes it, in two halves where it is beyond the first 65,536."""
    code = ord(character)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def one_line(text: object) -> str:
    """``text``, or an exception's message, with every run of white space as one space; it can be written anywhere."""
    return printable(" ".join(str(text).split()))


def shortened(text: str, longest: int = 200) -> str:
    """``text`` of at most ``longest`` characters, an ellipsis among them, cut between words where there are some."""
    if len(text) <= longest:
        return text
    kept = text[: longest - 1]
    head, space, _ = kept.rpartition(" ")
    if text[longest - 1] != " " and space and len(head) >= longest // 2:
        kept = head
    return f"{kept.rstrip(' ,;:(')}…"


def shown(value: object, longest: int = 200) -> str:
    """``repr(value)`` for a message: cut to ``longest`` characters, and no error whatever ``value`` is."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > longest:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except Exception:
        return f"a {type(value).__name__}"
    return shortened(text, longest)


def near_files(path: Path, files: Iterable[Path], kind: str) -> str:
    """Where ``path`` was looked for, and which of ``files``, those of ``kind`` that are beside it, may be meant."""
    names = [file.name for file in files]
    folder = path.parent.absolute()
    return f"in {folder}: {near_matches(path.name, names)}" if names else f"there is no {kind} in {folder}"


def near_matches(name: str, known: Iterable[str]) -> str:
    """A "did you mean" clause for ``name``, or the list of what is known when nothing is near."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(match) for match in near) + "?"
    return "known: " + (", ".join(names) if names else "none")
