"""The shape of `sluice.yaml`. Every field is optional; an unknown one is an error, never ignored.

Seconds unless the name says otherwise. The README lists each field with its meaning.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gateway.config.caching import Cache, KeyCache, ModelCache
from gateway.config.sections import Count, Seconds, Section

Weight = Annotated[int, Meta(ge=1)]
_NAME = "up to 64 letters, digits and . _ -, of which the first is a letter or digit"
_SHA256 = "a SHA-256: 64 digits and letters from a to f"
_LABEL = "1 to 64 letters, digits and . _ -"
_SETTING = "up to 128 letters, digits and . _ : -, of which the first is a letter or digit"
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z", description=_NAME)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z", description=_SHA256)]
Usd = Annotated[float | str, Meta(description="US dollars")]

DEFAULT_PORT = 8080
MAX_WORKERS = 512
MIN_KEY_CHARS = 8  # of a client's key
DEFAULT_TENANT = "default"
MEBIBYTE = 1024 * 1024


class Timeouts(Section, frozen=True):
    """Deadlines of a request to a provider.

    `total` is for every attempt together; a provider's own is for one attempt at it. `first_token`
    is a stream's: until there is anything that the client may see.
    """

    connect: Seconds = 5
    first_byte: Seconds = 60
    first_token: Seconds = 120
    idle: Seconds = 60
    total: Seconds = 600


class Drain(Section, frozen=True):
    """`lame_duck`: unready but still accepting; `grace`: then, for what is in flight."""

    lame_duck: Annotated[float, Meta(ge=0, le=3600)] = 0
    grace: Annotated[float, Meta(ge=0, le=86_400)] = 30


class Tls(Section, frozen=True):
    """PEM files; read again on reload."""

    certificate: str
    key: str


class Overload(Section, frozen=True):
    """What a worker takes: requests and connections at once, and those of one client address.

    While its event loop is later than `lag` it takes less.
    """

    requests: Count = 10_000
    connections: Count = 20_000
    connections_per_address: Count | None = None
    lag: Seconds = 0.25


class Recycle(Section, frozen=True):
    """When a worker is replaced by a fresh one: after so many requests, or above so much memory.

    It goes on until the last of its requests is done.
    """

    requests: Count | None = None
    rss_mb: Annotated[int, Meta(ge=64, le=1_000_000)] | None = None


class Server(Section, frozen=True):
    """How the gateway listens. Without an address: see `gateway.config.load.finish`.

    `stream_ping`: how often a client is sent a comment while its stream has not begun.
    `max_upload_size` is of a body that passes through to a provider's own API, never held whole.
    """

    address: str | None = None
    workers: Literal["auto"] | Annotated[int, Meta(ge=1, le=MAX_WORKERS)] = "auto"
    max_request_size: Count = 10 * MEBIBYTE
    max_upload_size: Count = 512 * MEBIBYTE
    request_timeout: Seconds = 30
    stream_ping: Seconds = 15
    timeouts: Timeouts = Timeouts()
    drain: Drain = Drain()
    overload: Overload = Overload()
    recycle: Recycle = Recycle()
    tls: Tls | None = None
    state_dir: str | None = None


class Redis(Section, frozen=True):
    """Where the shared state lives; without a URL the gateway runs a server of its own.

    `journal_mb`: the most disk that finished requests may take until Redis is back; 0: memory only.
    """

    url: str | None = None
    memory_mb: Annotated[int, Meta(ge=16, le=1_000_000)] = 256
    journal_mb: Annotated[int, Meta(ge=0, le=1_000_000)] = 256
    timeout: Seconds = 2


class Budget(Section, frozen=True):
    """US dollars a day, week or month (UTC), in total, or in a rolling window such as 30d."""

    usd: Usd
    per: str = "month"
    shadow: bool = False


class Limit(Section, frozen=True):
    """Requests a minute with a burst (default: `rpm`), tokens a minute, requests at once, money.

    The kinds in `shadow` are counted and reported, and never refuse.
    """

    rpm: Count | None = None
    burst: Count | None = None
    tpm: Count | None = None
    concurrency: Count | None = None
    budget: Budget | tuple[Budget, ...] = ()
    shadow: tuple[Literal["rpm", "tpm", "concurrency"], ...] = ()


class Scope(Limit, frozen=True):
    """Limits of a key, a tenant or everybody; `per_model` adds limits for names and patterns."""

    per_model: dict[str, Limit] = {}


Label = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z", description=_LABEL)]


class KeySettings(Scope, frozen=True, kw_only=True):
    """What a client key may do. `expires` is Unix seconds; labels appear in usage and records."""

    name: Name
    tenant: Name = DEFAULT_TENANT
    models: tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...] = ("*",)
    labels: Annotated[dict[Label, Label], Meta(max_length=8)] = {}
    cache: KeyCache = KeyCache()
    expires: Annotated[float, Meta(ge=0, le=253_402_300_799)] | None = None  # the year 9999


class Key(KeySettings, frozen=True, kw_only=True):
    """A static client key: its SHA-256, or the key itself as `env:NAME`."""

    sha256: Sha256 | None = None
    key: str | None = None


class Auth(Section, frozen=True):
    """Who may call. `enabled` unset means: as soon as there is any key."""

    enabled: bool | None = None
    health_check: bool = False
    admin_key: str | None = None
    keys: tuple[Key, ...] = ()


class Limits(Section, frozen=True):
    """`default` holds for every key that sets no limit of that kind itself, `global` for all.

    `on_store_failure`: while Redis is away, enforce each worker's share of the limits, or refuse.
    `lease`: what a killed worker's requests had reserved is free again after so long.
    """

    enabled: bool = True
    on_store_failure: Literal["degrade", "refuse"] = "degrade"
    lease: Annotated[float, Meta(ge=1, le=3600)] = 30
    default: Scope = Scope()
    everybody: Scope = msgspec.field(name="global", default=Scope())


class Tenant(Scope, frozen=True):
    """Limits shared by all keys of a tenant."""


class Price(Section, frozen=True):
    """US dollars per million tokens, for models the price data lacks or has otherwise."""

    input: Usd
    output: Usd
    cached: Usd | None = None
    cache_write: Usd | None = None
    per_request: Usd = 0
    cache_write_1h: Usd | None = None
    per_search: Usd = 0


class Pricing(Section, frozen=True):
    """What holds for models whose price nobody knows: `default`, or else refusal.

    `count` serves them where no budget applies, marked as unpriced.
    """

    unknown: Literal["refuse", "count"] = "count"
    default: Price | None = None


class Credential(Section, frozen=True):
    """One of several keys of a provider; twice the weight, twice the requests."""

    key: str
    weight: Weight = 1


class Entra(Section, frozen=True):
    """An application of Microsoft Entra, for Azure without keys."""

    tenant: str
    client_id: str
    client_secret: str
    scope: str = "https://cognitiveservices.azure.com/.default"


class Aws(Section, frozen=True):
    """Keys that requests to Bedrock are signed with."""

    access_key: str
    secret_key: str
    session_token: str | None = None


Setting = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}\Z", description=_SETTING)
]


class Provider(Section, frozen=True):
    """An upstream. `models`: name patterns it claims; `prices`: whose prices in the data set.

    `credentials` is Google's, for Vertex: a file, or its JSON. `unsupported`: refuse or drop what a
    provider cannot do. `idempotency`: it knows `Idempotency-Key`, so each request gets one.
    """

    kind: str
    api_key: str | None = None
    api_keys: tuple[str | Credential, ...] = ()
    api: Literal["chat", "responses"] | None = None
    api_version: Setting | None = None
    region: Setting | None = None
    project: Setting | None = None
    location: Setting | None = None
    entra: Entra | None = None
    aws: Aws | None = None
    credentials: str | None = None
    unsupported: Literal["refuse", "drop"] | None = None
    passthrough: bool = True
    base_url: str | None = None
    models: tuple[str, ...] | None = None
    prices: str | None = None
    headers: dict[str, str] = {}
    timeouts: Timeouts | None = None
    max_connections: Count = 1000
    on_disconnect: Literal["cancel", "drain"] = "cancel"
    idempotency: bool = False
    proxy: str | None = None
    ca_file: str | None = None


class When(Section, frozen=True):
    """Which requests a target takes: tokens of the prompt (estimated), what is in it, labels."""

    min_tokens: Count | None = None
    max_tokens: Count | None = None
    tools: bool | None = None
    images: bool | None = None
    stream: bool | None = None
    labels: dict[Label, Label] = {}


class Target(Section, frozen=True):
    """One provider that can serve a model, under its own name for it; lower priority first.

    Among those of one priority the model's strategy decides; `weight` is the share of each.
    `canary`: it gets this percentage of the users before all others, and nobody else. `rpm`, `tpm`
    and `concurrency` are what it is given at the most, by all workers together.
    """

    provider: str
    model: str | None = None
    priority: Weight = 1
    weight: Weight = 1
    price: Price | None = None
    when: When | None = None
    tags: tuple[Label, ...] = ()
    canary: Annotated[float, Meta(gt=0, le=100)] | None = None
    rpm: Count | None = None
    tpm: Count | None = None
    concurrency: Count | None = None


class Fallbacks(Section, frozen=True):
    """Models to ask instead where a provider refuses a prompt: as too long, or by its policy."""

    context_window: tuple[str, ...] = ()
    content_policy: tuple[str, ...] = ()


class Hedge(Section, frozen=True):
    """A second target is asked where the first has not begun `after` seconds, or after its p95."""

    after: Literal["p95"] | Seconds = "p95"


class Shadow(Section, frozen=True):
    """A target that gets copies of requests; nobody waits for its answers.

    `percent` of the requests, `concurrency` at once in a worker, and no more than the budget.
    """

    provider: str
    model: str | None = None
    percent: Annotated[float, Meta(gt=0, le=100)] = 100
    concurrency: Count = 8
    budget: Budget | None = None


class Model(Section, frozen=True):
    """A name clients use. `max_output_tokens` is reserved where a request sets no maximum.

    `unsupported` and `timeouts` go above what its provider says. `affinity`: the same session, or
    else the same beginning of a prompt, goes to the same target, whose cache knows it.
    `on_stream_failure`: where a stream of plain text is cut, another target is asked to go on.
    """

    targets: Annotated[tuple[Target, ...], Meta(min_length=1)]
    strategy: Literal["priority", "weighted", "latency", "least-busy", "cost"] = "priority"
    price: Price | None = None
    max_output_tokens: Count | None = None
    unsupported: Literal["refuse", "drop"] | None = None
    timeouts: Timeouts | None = None
    affinity: Literal["none", "session", "prompt"] = "none"
    fallbacks: Fallbacks = Fallbacks()
    on_stream_failure: Literal["error", "continue"] = "error"
    hedge: Hedge | None = None
    shadow: Shadow | None = None
    cache: ModelCache = ModelCache()


class Retries(Section, frozen=True):
    """How often all targets are asked again, after how long; at most `budget` retries a request.

    A provider's `Retry-After` is kept to, unless it is above `longest`.
    """

    attempts: Annotated[int, Meta(ge=0, le=5)] = 1
    backoff: Annotated[float, Meta(ge=0, le=60)] = 0.25
    longest: Annotated[float, Meta(ge=0, le=60)] = 4
    budget: Annotated[float, Meta(ge=0, le=1)] = 0.15


class Breaker(Section, frozen=True):
    """When a target that fails is left alone, and how long; see `gateway.policy.breaker`.

    Never more than a share `panic` of a model's targets at once.
    """

    failures: Annotated[int, Meta(ge=1, le=1000)] = 5
    ratio: Annotated[float, Meta(gt=0, le=1)] = 0.5
    minimum: Annotated[int, Meta(ge=1, le=10_000)] = 20
    window: Seconds = 10
    ejection: Seconds = 5
    longest: Seconds = 300
    panic: Annotated[float, Meta(ge=0, le=1)] = 0.5


class Log(Section, frozen=True):
    """JSON lines on standard output."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    requests: bool = True


class Webhook(Section, frozen=True):
    """Where finished requests are posted as JSON lines; what is not taken waits in `spool_mb`.

    `secret` is `whsec_` and base64, and signs the posts as Standard Webhooks does.
    """

    url: str
    secret: str | None = None
    headers: dict[str, str] = {}
    spool_mb: Annotated[int, Meta(ge=1, le=1_000_000)] = 256


class Ledger(Section, frozen=True):
    """Finished requests as JSON lines: a file a worker, and `keep` older ones of `rotate_mb`."""

    directory: str | None = None
    rotate_mb: Annotated[int, Meta(ge=1, le=1_000_000)] = 64
    keep: Annotated[int, Meta(ge=0, le=10_000)] = 10
    webhook: Webhook | None = None


class Metrics(Section, frozen=True):
    """Prometheus exposition at /metrics."""

    enabled: bool = True


class Tracing(Section, frozen=True):
    """Spans by OTLP over HTTP, as JSON, to `endpoint`/v1/traces."""

    enabled: bool = False
    endpoint: str = "http://127.0.0.1:4318"
    headers: dict[str, str] = {}
    service_name: str = "sluice"


class Config(Section, frozen=True):
    """The whole file."""

    server: Server = Server()
    redis: Redis = Redis()
    auth: Auth = Auth()
    limits: Limits = Limits()
    tenants: dict[Name, Tenant] = {}
    pricing: Pricing = Pricing()
    providers: dict[Name, Provider] = {}
    models: dict[str, Model] = {}
    unsupported: Literal["refuse", "drop"] = "refuse"
    retries: Retries = Retries()
    breaker: Breaker = Breaker()
    cache: Cache = Cache()
    log: Log = Log()
    ledger: Ledger = Ledger()
    metrics: Metrics = Metrics()
    tracing: Tracing = Tracing()
