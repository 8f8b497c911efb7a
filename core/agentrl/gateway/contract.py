"""The gateway's contract: what a wire protocol, the rollout and a completer exchange with it.

A *dialect* is one wire protocol, such as the chat completions API. It says which routes it serves, turns a request
into one or more ``ModelRequest``, and writes the ``Completion`` of each, or an error, as a ``Reply``: whole, or while
``Delta`` after ``Delta`` of it is sampled; and it is ``Described``, so that the gateway's OpenAPI document says what is
served. A plugin adds one by an entry point
of the group ``agentrl.dialects`` that names a class without constructor arguments, or an object::

    [project.entry-points."agentrl.dialects"]
    my-protocol = "my_package.protocol:MyProtocol"

The gateway does the rest for every dialect alike: credentials, limits, retries, rendering, sampling, recording and
keeping track of which answers were delivered. A *completer* turns a ``ModelRequest`` of a session into a recorded
``Completion``. The rollout opens sessions with ``SessionSettings`` and reads the recorded calls as ``Call``.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from agentrl.errors import GatewayError

if TYPE_CHECKING:
    from agentrl.gateway.session import Session
    from agentrl.inference.contract import Grammar

__all__ = [
    "CONTEXT_EXCEEDED",
    "Call",
    "CallDelta",
    "Completer",
    "Completion",
    "Delta",
    "Described",
    "Dialect",
    "Event",
    "Exchange",
    "ModelRequest",
    "Normaliser",
    "Replacement",
    "Reply",
    "Route",
    "SessionSettings",
    "Tokens",
    "WireRequest",
    "new_call_id",
]

CONTEXT_EXCEEDED: Final = "context_length_exceeded"
"""The ``code`` of a ``GatewayError`` that refuses a prompt because it leaves no room in the model's context."""

_CALL_IDS = random.Random()
"""Seeded by the operating system, and apart from the module's own generator, which agents may seed alike."""


def new_call_id(prefix: str = "chatcmpl-") -> str:
    """A random response id; ``prefix`` is what ids begin with in the protocol."""
    return f"{prefix}{_CALL_IDS.getrandbits(96):024x}"


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How the calls of one session are sampled, and what they may ask for."""

    training: bool
    """Whether calls are trained on. If so, a field that changes the sampling distribution in a way that the learner
    cannot account for is refused."""
    model: str = "policy"
    """The model name in responses; a request may use any name."""
    temperature: float = 1.0
    """The temperature of requests that set none."""
    max_tokens: int | None = None
    """The most tokens of a completion whose request sets no limit; ``None`` is what the context leaves."""
    override: Mapping[str, Any] = field(default_factory=dict)
    """``rollout.override``: request fields, by their names in the chat completions API, that are replaced, or dropped
    where the value is ``None``; the additional name ``strict`` is that field of every tool."""
    versions: tuple[int, int] | None = None
    """The policy version under which the session is opened, and the newest that its tokens may have when weights change
    meanwhile: an older or a newer one is refused. ``None`` accepts any."""
    seed_key: tuple[int | str, ...] = ()
    """What the seed of every call derives from: run seed, phase, task, sample, and a number that tells apart when the
    task comes again: the policy version of an evaluation, the block of the task order in training."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """What a rule of ``gateway.normalise`` has replaced in a text of the system.

    The rules of a text apply one after the other, each to what the one before has left of it. Its first ``start``
    characters stayed, ``rendered`` took the place of ``sent``, and the rest stayed. So the text as it was rendered
    follows from the text as it was sent.
    """

    rule: str
    """The rule's name, as the config names it."""
    message: int
    """Index of the message in the conversation that the dialect read. A message of which nothing is left is not
    rendered."""
    start: int
    """How many characters of the text stand before what was replaced."""
    sent: str
    rendered: str


@dataclass(frozen=True, slots=True)
class Call:
    """One completed request to the model, as it is recorded."""

    id: str
    """The response id that the agent saw, which the sampled span in the token tree carries too."""
    parent: str | None
    """Response id of the call whose conversation this one continues, as judged by the messages."""
    request: Mapping[str, Any]
    """The request's body under ``rollout.override``, plain JSON: messages, tools and sampling fields."""
    message: Mapping[str, Any]
    """The assistant message that was answered, in the shape of the chat completions API."""
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    fork_reason: str | None = None
    """Why the history was rendered in full instead of extended; ``None`` where it was extended or new."""
    overridden: tuple[str, ...] = ()
    """Request fields that ``rollout.override`` replaced or dropped; ``strict`` is that field of the tools."""
    unmet: tuple[str, ...] = ()
    """What the request asked for and was answered without, because nothing here can grant it: ``strict`` tools."""
    control_tokens: tuple[str, ...] = ()
    """Control tokens that new texts of users, systems and tools spell out, and that the model reads as such."""
    normalised: tuple[Replacement, ...] = ()
    """What ``gateway.normalise`` replaced in texts of the system; ``request`` holds them as they were sent."""
    delivered: bool = True
    """Whether the agent has the whole answer, as far as is known; not where its client left before the last byte."""
    seconds: float = 0.0
    """How long the completion took."""
    started: float | None = None
    """Seconds from the start of the episode's last attempt to the arrival of the request; ``None`` where that is not
    recorded."""
    waited: float | None = None
    """Seconds from the arrival of the request to the first sampled token; ``None`` where the backend does not tell."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One HTTP request as the gateway takes it from a socket or from the in-process client."""

    method: str
    path: str = field(repr=False)
    """The URL's path, percent-decoded. It may hold a capture token, which is secret."""
    body: bytes = field(default=b"", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Values by name in lower case. They hold the key of the session."""
    loopback: bool = True
    """Whether the request comes from this machine."""
    in_process: bool = False
    """Whether the request came through the in-process client, and not over a socket."""
    query: str = ""
    """What follows the ``?`` of the URL, as it was sent."""
    arrived: float = field(default_factory=time.monotonic, compare=False)
    """When the gateway had the whole request, by ``time.monotonic()``."""


def _ignore() -> None:
    """What happens when an answer is lost for which nobody keeps account."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to a request."""

    status: int
    body: bytes | Iterable[bytes] | AsyncIterable[bytes] = field(repr=False)
    """The whole body, or an iterator of its parts, each of which is sent as soon as the iterator yields it."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Header values by name in lower case. Without a ``content-type`` the body is ``application/json``."""
    lost: Callable[[], None] = field(default=_ignore, repr=False, compare=False)
    """Set by the gateway, for whoever sends the reply to call once if the client left before it had the last byte;
    from any thread, and possibly after the session was closed."""


@dataclass(frozen=True, slots=True)
class Route:
    """A path that a dialect serves, and the methods that it takes there.

    ``HEAD`` comes with ``GET``, and the gateway answers ``OPTIONS`` itself.
    """

    path: str
    """The path below the base URL, which ends in ``/v1``, such as ``/chat/completions``. ``{name}`` in it matches one
    segment, and ``{name:path}`` at its end all that follow."""
    methods: tuple[str, ...] = ("POST",)


@dataclass(frozen=True, slots=True)
class WireRequest:
    """A request as a dialect reads it. Its session is known, and its method is one that the route takes."""

    method: str
    route: Route
    """The route of the dialect that the path matched."""
    parameters: Mapping[str, str]
    """What the braces in the route's path matched."""
    headers: Mapping[str, str]
    """Values by name in lower case, credentials included."""
    body: Mapping[str, Any]
    """The JSON object in the body, under ``rollout.override``; empty where the request has no body. Nothing in it may
    be changed: what it repeats of an earlier request of the session is the same object, by which that can be told."""
    settings: SessionSettings
    """The settings of the session."""
    context_length: int | None = None
    """The most tokens of prompt and completion together, where that is known."""
    relayed: bool = False
    """Whether the request is passed on to an endpoint of the chat completions API, which judges its fields itself;
    see ``Completer.relays``."""
    memory: MutableMapping[str, Any] = field(default_factory=dict, repr=False)
    """What the dialect keeps in this session, such as responses that a client may ask for again. Single operations on
    it are safe from any thread. It ends with the session."""
    thinking: Callable[[str], str | None] = field(default=lambda handle: None, repr=False, compare=False)
    """Gives the thinking that a ``Completion.handle`` of this session stands for; ``None`` for any other text."""
    handle: Callable[[str], str] = field(default=lambda call: "", repr=False, compare=False)
    """Gives the ``Completion.handle`` that a call will have if it thinks, from its ``ModelRequest.call_id``: a protocol
    may have to write it while the call is still answered."""
    query: Mapping[str, str] = field(default_factory=dict)
    """The values in the URL after its ``?``, by name; of several with one name the last."""
    count: Callable[[ModelRequest], int] = field(default=lambda asked: 0, repr=False, compare=False)
    """Gives how many tokens the prompt of a request comes to. Raises ``GatewayError`` as a completion would."""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A request for one completion, checked, in the terms of the chat completions API whichever protocol it came in."""

    body: Mapping[str, Any]
    """What is recorded as ``Call.request``: the body of the ``WireRequest``."""
    messages: list[dict[str, Any]]
    """The conversation in the shape of the chat completions API, plain JSON; empty where there is a ``prompt``."""
    tools: list[dict[str, Any]] | None = None
    """The tools in the shape of the chat completions API; ``None`` where there are none."""
    calls_tools: bool = True
    """Whether a tool call in the completion is read as one; otherwise it stays text."""
    one_call: bool = False
    """Whether the completion ends with its first tool call."""
    must_call: tuple[str, ...] = ()
    """The names of tools one of which the completion must call; empty where it is free to call any or none. Arguments
    of tools whose ``function.strict`` is true follow their schema either way."""
    grammar: Grammar | None = None
    """What the content of the answer must look like, thinking aside: a ``json_object``, ``json_schema`` or ``regex``.
    With ``tools`` that may be called, the answer is content of this form, or calls."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The sampling fields that the request set, under their names in the chat completions API. Values may be
    unchecked: the gateway refuses those that are wrong."""
    logprobs: bool = False
    """Whether the answer is to hold the log-probability of each token."""
    top_logprobs: int = 0
    """How many alternatives to report at each token."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Variables for the model's chat template, such as ``enable_thinking``. One that the template does not read is
    refused."""
    preferences: Mapping[str, Any] = field(default_factory=dict)
    """Further variables for the template, such as ``reasoning_effort``. One that the template does not read is counted
    in ``Call.unmet``, except that a ``reasoning_effort`` of ``none`` or ``minimal`` also ends thinking where the
    template reads ``enable_thinking``."""
    unmet: tuple[str, ...] = ()
    """See ``Call.unmet``."""
    normalised: tuple[Replacement, ...] = ()
    """See ``Call.normalised``. The gateway sets it: a dialect reads the messages as they were sent."""
    stream: bool = False
    """Whether the answer is written while it is sampled, by ``Dialect.stream``."""
    call_id: str = field(default_factory=new_call_id)
    """The response id that the call will have."""
    prompt: str | tuple[int, ...] | None = None
    """A text, or token ids, to complete as they are, in the place of messages. The answer is content alone."""
    relay: Mapping[str, Any] | None = None
    """The body that an endpoint of the chat completions API is sent where the request is passed on; ``None`` has one
    made of the messages, tools and fields above."""
    arrived: float = field(default_factory=time.monotonic, compare=False)
    """``Exchange.arrived`` of its request. The gateway sets it."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Sampled tokens as they are reported to a client; the sequences have one entry for each token."""

    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    """The natural log-probability of each id."""
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    """For each id the likeliest (id, log-probability) pairs; empty where none were asked for."""
    before: int | None = None
    """The id before the first one; ``None`` at the beginning of a completion."""
    piece: Callable[[int, int | None], bytes] = field(default=lambda token, before: b"", repr=False, compare=False)
    """Gives the bytes of a token's text, from its id and the id before it (``None`` at the beginning)."""


@dataclass(frozen=True, slots=True)
class CallDelta:
    """What has been added to one tool call of an answer."""

    index: int
    """The call's number in the answer, from 0."""
    id: str = ""
    """The call's id, and its name below, on the first delta of the call only."""
    name: str = ""
    arguments: str = ""
    """The text that follows the arguments so far."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What has been added to an answer since its last delta.

    All deltas of an answer come to ``Completion.call.message``: its thinking, then its content and tool calls. The
    first one leaves with the first sampled token and may be empty.
    """

    choice: int = 0
    """The place of the answer's ``ModelRequest`` among those that ``Dialect.parse`` returned."""
    reasoning: str = ""
    content: str = ""
    calls: tuple[CallDelta, ...] = ()
    tokens: Tokens = field(default_factory=Tokens)
    """The tokens that were sampled since the last delta, if the request wants log-probabilities. Their text may be
    part of a later delta."""
    prompt_tokens: int = 0
    """How many tokens the prompt has; 0 where that is not known before the completion."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model answered to a request."""

    call: Call
    """The call as recorded: response id, message, finish reason and token counts."""
    model: str
    """The model's name for the response."""
    tokens: Tokens = field(default_factory=Tokens)
    """What was sampled; empty where the call was passed on to an endpoint."""
    answer: Mapping[str, Any] | None = None
    """The body with which an endpoint of the chat completions API answered, where the call was passed on to one."""
    prompt_ids: Sequence[int] = ()
    """The prompt's token ids; empty where the call was passed on."""
    handle: str = ""
    """An opaque text that stands for the call's thinking in its session: ``WireRequest.thinking`` takes it back.
    Protocols with signed or encrypted thinking hand it to clients. Empty where the answer has no thinking."""
    choice: int = 0
    """The place of the answer's ``ModelRequest`` among those that ``Dialect.parse`` returned."""
    stop: str | None = None
    """The stop string of the request that ended the completion, if one did."""


Event = Delta | Completion
"""What happens to a streamed answer: some deltas, then its completion."""


class Dialect(Protocol):
    """A wire protocol. One object serves every session from any thread, so it keeps no state of a request."""

    @property
    def routes(self) -> Sequence[Route]:
        """What it serves. A route that another dialect serves too is an error when the gateway is made."""
        ...

    def override(self, body: Mapping[str, Any], override: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Apply ``rollout.override``, which is not empty, to a request's body.

        Returns the new body, and the names of the fields in it that were replaced or dropped. Raises ``GatewayError``
        (400) for a field that an override cannot change.
        """
        ...

    def parse(self, request: WireRequest) -> ModelRequest | Sequence[ModelRequest] | Reply:
        """Read a request to the model, or answer one that needs no model, such as a list of the models.

        Several requests to the model, such as the ``n`` choices of a chat completion, run at once and are answered
        together. Either all of them are streamed or none. Raises ``GatewayError`` for what is wrong or cannot be done:
        nothing that was asked for may be ignored.
        """
        ...

    def respond(self, request: WireRequest, asked: Sequence[ModelRequest], completions: Sequence[Completion]) -> Reply:
        """Write the answer. ``asked`` is what ``parse`` returned for ``request``, and ``completions`` are its answers.

        Where the body is an iterator, this is called again with the same arguments if the client lost the answer and
        asks for it again.
        """
        ...

    def stream(self, request: WireRequest, asked: Sequence[ModelRequest], events: AsyncIterator[Event]) -> Reply:
        """Write the answer while it is sampled, as a reply whose body is an asynchronous iterator.

        Every choice has some deltas and then its completion. ``events`` raises ``GatewayError`` where the answer
        breaks off: the body then writes the error in the protocol's own shape and ends. After the completion of the
        last choice the body yields exactly one part, with which the answer has arrived. This is called once more, with
        the same answer, if the client lost it and asks for it again.

        Only needed where ``parse`` returns requests with ``stream``.
        """
        ...

    def refuse(self, error: GatewayError) -> Reply:
        """Write an error. Usually the reply has ``error.status``; it has no iterator as its body.

        Besides errors of its own requests a dialect is given those of the gateway on its routes: 401, 404, 405, 413,
        429, 500 and so on. The gateway adds headers: ``x-should-retry``, ``retry-after`` where the error says when, and
        ``allow`` to a 405.
        """
        ...


@runtime_checkable
class Described(Protocol):
    """A dialect that says what it serves, which every dialect should."""

    def describe(self) -> Mapping[str, Any]:
        """Say what is served, as a part of the OpenAPI 3.1 document that the gateway gives at ``GET /openapi.json``.

        Returns ``{"paths": {path: {method: operation}}, "components": {"schemas": {name: schema}}}`` in the terms of
        that standard. The paths are those of ``routes``, with ``{name:path}`` written ``{name}``, and the methods those
        that the routes name, in lower case. The schema of a request holds exactly the fields that ``parse`` reads, with
        ``additionalProperties: false`` where others are refused. Of an operation's ``responses``, ``default`` has the
        shape that ``refuse`` writes; the gateway puts it at every status that an error may have. It also adds the
        parameters of the path and the credentials. References to schemas are ``#/components/schemas/NAME``; names need
        to be unique within the dialect only.

        A dialect without it is served too, and the document then says of its routes only that they exist.
        """
        ...


class Normaliser(Protocol):
    """A rule of ``gateway.normalise``: replaces what changes from request to request in a text of the system.

    A text that begins every request and is never the same, as one with the time in it, keeps a session's requests from
    sharing a prefix and from being recognised as one conversation. A plugin adds a rule by an entry point of the group
    ``agentrl.normalisers``: a function, or a class whose objects are called. One object serves every session from any
    thread, so it keeps no state.
    """

    def __call__(self, text: str) -> str:
        """The whole ``text`` of a system or developer message as the model is to read it.

        It must depend on ``text`` alone. Where there is nothing to replace, return ``text``. A message whose text
        becomes empty is left out.
        """
        ...


class Completer(Protocol):
    """Answers a model request and records it, with an inference backend or a remote endpoint."""

    @property
    def relays(self) -> bool:
        """Whether requests are passed on to an endpoint of the chat completions API, which judges their fields itself.

        A dialect then checks only what it needs to read, and such an endpoint's own retries are already spent when a
        call fails, so that clients are told not to retry.
        """
        ...

    @property
    def context_length(self) -> int | None:
        """The most tokens of prompt and completion together; ``None`` where that is not known."""
        ...

    async def complete(
        self,
        session: Session,
        request: ModelRequest,
        overridden: tuple[str, ...] = (),
        tell: Callable[[Delta], None] | None = None,
    ) -> Completion:
        """Have one completion made, and record it in ``session`` with the fields that were ``overridden``.

        ``tell`` is given every delta as soon as it is sampled, the first one with the first token. A call that fails
        or is cancelled leaves no trace in the session, except that one that is cancelled after its first delta is
        recorded as far as it was sampled, as not delivered. Raises ``GatewayError`` for what is wrong with the request
        and ``BackendError`` for what failed behind it.
        """
        ...

    def count(self, session: Session, request: ModelRequest) -> int:
        """Return how many tokens the prompt of ``request`` comes to. Raises ``GatewayError`` as ``complete`` would.

        A completer that knows no tokens refuses.
        """
        ...
