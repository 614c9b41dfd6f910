"""Hot path: what the cache may do for a request, by the rules that hold and its own headers."""

import hashlib
from typing import Any

import msgspec

from gateway.config.caching import Cache as Settings
from gateway.core.messages import Media, Prompt, ToolResult
from gateway.core.operations import CONVERSATIONS, Operation
from gateway.core.request import Request
from gateway.formats.canonical import IDLE, Canonical, canonical, question
from gateway.pipeline.call import Call
from gateway.pipeline.replay import VERSION_HEADER, form_of
from gateway.pipeline.served import Served
from gateway.policy.access import Principal
from gateway.policy.caching import (
    ALL,
    BYPASS,
    MISS,
    Directives,
    Overrides,
    Rules,
    directives,
    is_deterministic,
    may_join,
)
from gateway.store import names
from gateway.store.answers import Place, place

KIBIBYTE = 1024
# What makes a request do something that an answer from the cache would not.
STATEFUL = ("background", "conversation", "container")
MAX_RULES = 4096
# What has more objects than these takes a turn of 40 ms and more to be compared with anything.
LARGE_BYTES, MOST_OBJECTS = 64 * KIBIBYTE, 5_000
MAX_KNOWN, MAX_KNOWN_BYTES = 1024, 8 * KIBIBYTE  # of requests that are remembered as they are

_pack = msgspec.msgpack.Encoder().encode


class Question:
    """What is asked last in a conversation, and the digest of all the rest that matters."""

    __slots__ = ("meaning", "scope", "text")

    def __init__(self, text: str, scope: bytes) -> None:
        self.text, self.scope = text, scope
        self.meaning: Any = None  # once it has been found: `pipeline.semantic`


class Plan(msgspec.Struct, frozen=True, gc=False):
    """Where the answer to a request is kept, and by which rules. `shared`: with all who ask it.

    `form` is how it is to be written for who asks.
    """

    place: Place
    form: str
    rules: Rules
    wishes: Directives
    shared: bool
    plain: bool = True  # the hub knows all of what is asked
    question: Question | None = None

    @property
    def ttl(self) -> float:
        """Return how long its answer is fresh, in seconds."""
        asked = self.wishes.ttl
        return self.rules.ttl if asked is None else min(asked, self.rules.max_ttl)

    def may_be_stale(self, age: float, ttl: float) -> bool:
        """Tell whether an answer so old may stand in where no other can be had; all in seconds."""
        allowed, most = self.wishes.stale, self.wishes.max_age
        good = ttl if most is None else min(ttl, most)
        return age <= good + (self.rules.stale if allowed is None else allowed)

    @property
    def least_ms(self) -> int:
        """Return how much longer an answer is kept that is fresh now, at the least."""
        return int(self.rules.stale * 1000)


class _Known(msgspec.Struct, frozen=True, gc=False):
    """What a request came to, for the next one that is the same to the byte."""

    principal: Principal
    request: Request
    model: Served
    plan: Plan


class Planner:
    """Plans for requests. Raises ApiError where a header is wrong.

    Whoever asks the same again mostly writes it the same: what it came to is remembered.
    """

    def __init__(self, settings: Settings) -> None:
        self._rules = Rules(
            enabled=settings.enabled,
            ttl=settings.ttl,
            max_ttl=settings.max_ttl,
            requests=settings.requests,
            tools=settings.tools,
            images=settings.images,
            max_request=settings.max_request_kb * KIBIBYTE,
            share=settings.share,
            stale=settings.stale,
            pace=settings.pace,
            coalesce=settings.coalesce,
            bill=settings.bill,
            semantic=settings.semantic.threshold if settings.semantic is not None else 0.0,
        )
        self._by_overrides: dict[tuple[Overrides, Overrides], Rules] = {}
        self._known: dict[tuple[object, ...], _Known] = {}

    def recall(self, call: Call) -> Plan | None:
        """Plan for a request that has been decoded and allowed before, if it has."""
        known = self._known.get((call.body, call.operation, call.hints, call.passed_on))
        if known is None or known.principal is not call.principal:
            return None
        call.request, call.model, call.cache = known.request, known.model, MISS
        return known.plan

    def remember(self, call: Call, body: bytes, plan: Plan) -> None:
        """Remember what a request came to, for a while."""
        assert call.principal is not None
        assert call.request is not None
        assert call.model is not None
        if len(body) > MAX_KNOWN_BYTES:
            return
        if len(self._known) >= MAX_KNOWN:
            del self._known[next(iter(self._known))]
        known = _Known(call.principal, call.request, call.model, plan)
        self._known[body, call.operation, call.hints, call.passed_on] = known

    def plan(self, call: Call) -> Plan | None:
        """Say what the cache may do for a request; None: nothing."""
        served, principal, request = call.model, call.principal, call.request
        assert served is not None
        assert principal is not None
        assert request is not None
        rules = self._rules_for(served.cache, principal.cache)
        if not rules.enabled or call.operation is Operation.COUNT_TOKENS:
            return None
        call.cache = BYPASS
        wishes = directives(call.hints)
        if not wishes.keeps and not wishes.reads:
            return None
        deterministic = call.operation is Operation.EMBEDDINGS or is_deterministic(
            _value(request, "temperature"), _value(request, "seed")
        )
        if not deterministic and rules.requests != ALL:
            return None
        if any(_value(request, name) for name in STATEFUL):
            return None
        if not rules.tools and _value(request, "tools"):
            return None
        size = _size(request)
        if size > rules.max_request or (size > LARGE_BYTES and _objects(request) > MOST_OBJECTS):
            return None
        found = canonical(request)
        if found is None or len(found.form) > rules.max_request:
            return None
        if not rules.images and call.operation in CONVERSATIONS and not _plain(found.prompt):
            return None
        call.cache = MISS
        tenant, scope = _whose(rules, principal.tenant, principal.key)
        namespace = wishes.namespace
        form = form_of(call)
        asked = found.form if found.plain else found.form + form.encode()
        about = (scope, namespace, request.model, call.hints.tags, _betas(call), asked)
        return Plan(
            place(_pack(about), tenant, namespace, request.model, principal.key),
            form,
            rules,
            wishes,
            may_join(rules, deterministic=deterministic)
            and wishes.reads
            and wishes.keeps
            and not wishes.only_cached
            and not call.hints.timeout,  # which is this client's alone
            found.plain,
            self._question(rules, found, (principal.tenant, *about[:-1])),
        )

    def _question(
        self, rules: Rules, found: Canonical, whose: tuple[object, ...]
    ) -> Question | None:
        """Return the question of a request; only those of one tenant are ever compared."""
        if not rules.semantic or not found.plain or found.prompt is None:
            return None
        asked = question(found.prompt)
        if asked is None:
            return None
        digest = hashlib.blake2b(_pack((*whose, asked[1])), person=b"sluice-question")
        return Question(asked[0], digest.digest())

    def _rules_for(self, model: Overrides, key: Overrides) -> Rules:
        rules = self._by_overrides.get((model, key))
        if rules is None:
            if len(self._by_overrides) >= MAX_RULES:
                self._by_overrides.clear()
            rules = self._by_overrides[model, key] = self._rules.but(model, key)
        return rules


def _whose(rules: Rules, tenant: str, key: str) -> tuple[str, tuple[str, ...]]:
    """Return the tenant under whose name answers are kept, and who may have them."""
    if rules.share == ALL:
        return names.SHARED_TENANT, ()
    return tenant, (tenant,) if rules.share == "tenant" else (tenant, key)


def _betas(call: Call) -> list[str]:
    """Return what a client's headers ask of the API beyond its body."""
    return [value for name, value in call.passed_on if name != VERSION_HEADER and value]


def _size(request: Request) -> int:
    """Return how many bytes the client wrote of what may decide an answer."""
    return sum([len(raw) for name, raw in request.fields.items() if name not in IDLE])


def _objects(request: Request) -> int:
    """Return how many JSON objects there are at the most in what may decide an answer."""
    fields = request.fields.items()
    return sum([bytes(raw).count(b"{") for name, raw in fields if name not in IDLE])


def _value(request: Request, name: str) -> Any:
    """Return a field's value; None where it cannot be read, which leaves no canonical form."""
    raw = request.fields.get(name)
    try:
        return msgspec.json.decode(raw) if raw is not None else None
    except msgspec.DecodeError:
        return None


def _plain(prompt: Prompt | None) -> bool:
    """Tell whether a prompt is known to hold no images, documents or sounds."""
    if prompt is None:
        return False
    parts = [part for message in prompt.messages for part in message.parts]
    inner = [one for part in parts if isinstance(part, ToolResult) for one in part.parts]
    return not any(isinstance(part, Media) for part in (*parts, *inner))
