"""Model names: configured, `provider/model` or claimed; and providers that cannot be used."""

import tempfile
from functools import cache
from pathlib import Path

import pytest

from gateway import __version__
from gateway.config.load import load_text
from gateway.core.errors import ConfigError
from gateway.core.operations import Operation
from gateway.pipeline.catalogue import MAX_DYNAMIC_MODELS, Catalogue
from gateway.pipeline.served import Route
from gateway.policy.pricing import PriceTable
from workers.prices import load_prices

CONFIG = """
providers:
  openai: {kind: openai, api_key: sk-1}
  local: {kind: openai-compatible, base_url: "http://127.0.0.1:8000/v1/", models: [llama, "my-*"]}
  demo: {kind: demo}
models:
  smart:
    targets: [{provider: openai, model: gpt-5}, {provider: local, priority: 2}]
  gpt-4o: {targets: [{provider: local, model: mine}], max_output_tokens: 77}
"""


@cache
def prices() -> PriceTable:
    with tempfile.TemporaryDirectory() as directory:
        return load_prices(Path(directory))


def catalogue(text: str = CONFIG) -> Catalogue:
    return Catalogue(load_text(text, "t", {}), prices(), "/run/demo.sock")


def reached(names: Catalogue, model: str) -> list[tuple[str, str]] | None:
    served = names.resolve(model)
    if served is None:
        return None
    return [(route.target.provider, route.target.model) for route in served.routes]


def route(text: str, model: str) -> Route:
    served = catalogue(text).resolve(model)
    assert served is not None
    return served.routes[0]


# --- Names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "targets"),
    [
        ("smart", [("openai", "gpt-5"), ("local", "smart")]),
        ("gpt-4o", [("local", "mine")]),  # the operator's word is above a provider's claim
        ("gpt-4o-mini", [("openai", "gpt-4o-mini")]),
        ("o3", [("openai", "o3")]),
        ("llama", [("local", "llama")]),
        ("my-7b", [("local", "my-7b")]),
        ("demo", [("demo", "demo")]),
        ("openai/gpt-4o", [("openai", "gpt-4o")]),
        ("openai/smart", [("openai", "smart")]),
        ("local/org/model:7b", [("local", "org/model:7b")]),
        ("mistral", None),
        ("openai/", None),
        ("/gpt-4o", None),
        ("nobody/gpt-4o", None),
        ("GPT-4o", None),
        ("", None),
    ],
)
def test_a_name_is_resolved(model: str, targets: list[tuple[str, str]] | None) -> None:
    assert reached(catalogue(), model) == targets


def test_a_name_that_two_providers_claim_means_neither() -> None:
    two = catalogue(
        "providers:\n  a: {kind: openai, api_key: k}\n  b: {kind: openai, api_key: k}\n"
    )
    assert reached(two, "gpt-5") is None
    assert reached(two, "b/gpt-5") == [("b", "gpt-5")]


@pytest.mark.parametrize(
    ("model", "full_names"),
    [
        ("gpt-4o-mini", ("openai/gpt-4o-mini",)),
        ("my-7b", ("local/my-7b",)),
        ("openai/gpt-4o", ()),
        ("smart", ()),  # at openai it is gpt-5
        ("gpt-4o", ()),  # at no provider
        ("both", ()),  # nobody knows yet who will answer
        ("twice", ("local/twice",)),
    ],
)
def test_a_model_has_its_full_name_where_one_provider_alone_calls_it_so(
    model: str, full_names: tuple[str, ...]
) -> None:
    both = "  both: {targets: [{provider: openai}, {provider: local}, {provider: local}]}\n"
    both += "  twice: {targets: [{provider: local}, {provider: local}]}\n"
    served = catalogue(CONFIG + both).resolve(model)
    assert served is not None
    assert served.full_names == full_names


def test_a_provider_can_have_a_model_whose_name_looks_like_a_pattern() -> None:
    text = CONFIG.replace('"my-*"', '"claude-sonnet[1m]", "my-*"')
    assert reached(catalogue(text), "claude-sonnet[1m]") == [("local", "claude-sonnet[1m]")]


def test_only_what_the_operator_named_is_safe_as_a_label() -> None:
    names = catalogue()
    smart, dynamic = names.resolve("smart"), names.resolve("openai/x")
    assert smart is not None
    assert dynamic is not None
    assert (smart.configured, smart.name, smart.owner) == (True, "smart", "openai")
    assert (dynamic.configured, dynamic.name, dynamic.owner) == (False, "openai/x", "openai")
    limited = names.resolve("gpt-4o")
    assert limited is not None
    assert (limited.max_output, smart.max_output) == (77, None)


def test_models_are_listed_under_names_that_work() -> None:
    names = catalogue()
    listed = [served.name for served in names.listed()]
    assert listed[:2] == ["smart", "gpt-4o"]
    assert {"llama", "demo", "demo-embedding"} < set(listed)
    assert not any("*" in name for name in listed)
    assert all(names.resolve(name) is not None for name in listed)
    twice = "providers: {a: {kind: demo}, b: {kind: demo}}"
    shared = [served.name for served in catalogue(twice).listed()]
    assert sorted(shared) == ["a/demo", "a/demo-embedding", "b/demo", "b/demo-embedding"]


def test_names_made_up_by_clients_are_kept_up_to_a_bound() -> None:
    names = catalogue()
    first = names.resolve("local/0")
    for number in range(1, MAX_DYNAMIC_MODELS):
        names.resolve(f"local/{number}")
    assert names.resolve("local/0") is first
    newest = names.resolve("local/one-more")
    assert names.resolve("local/one-more") is newest
    assert names.resolve("local/0") is not first
    assert reached(names, "local/0") == [("local", "0")]


# --- Routes --------------------------------------------------------------------------------------


def test_a_route_has_its_request_head_ready() -> None:
    assert route(CONFIG, "llama").ways[Operation.CHAT].head.decode().split("\r\n") == [
        "POST /v1/chat/completions HTTP/1.1",
        "Host: 127.0.0.1:8000",
        f"User-Agent: sluice/{__version__}",
        "Accept: application/json, text/event-stream",
        "Accept-Encoding: identity",
        "Content-Type: application/json",
        "Content-Length: ",
    ]
    assert b"Authorization: Bearer sk-1\r\n" in route(CONFIG, "gpt-5").ways[Operation.CHAT].head
    assert "sk-1" not in repr(route(CONFIG, "gpt-5").target)


def headers_of(head: bytes) -> list[tuple[str, str]]:
    lines = [line.partition(": ") for line in head.decode().split("\r\n")[1:] if line]
    return [(name.lower(), value) for name, _, value in lines if name != "Content-Length"]


OWN = "{user-agent: me, ACCEPT: text/plain, Anthropic-Version: '2024-01-01', anthropic-beta: b}"


def test_the_operators_headers_stand_in_the_place_of_the_gateways() -> None:
    text = (
        "providers:\n"
        f"  a: {{kind: anthropic, api_key: k, headers: {OWN}}}\n"
        "  o: {kind: vllm, headers: {authorization: Basic x}}\n"
    )
    operators = {
        ("user-agent", "me"),
        ("accept", "text/plain"),
        ("anthropic-version", "2024-01-01"),
        ("anthropic-beta", "b"),
    }
    for operation in (Operation.CHAT, Operation.MESSAGES):
        way = route(text, "a/claude").ways[operation]
        for head in (way.head, way.stream_head):
            found = headers_of(head)
            assert len({name for name, _ in found}) == len(found)
            assert operators < {*found}
            assert ("x-api-key", "k") in found
    # A client's own betas are further ones; its version is not.
    assert route(text, "a/claude").ways[Operation.MESSAGES].passed_on == (("anthropic-beta", ""),)
    assert ("authorization", "Basic x") in headers_of(route(text, "o/x").ways[Operation.CHAT].head)


@pytest.mark.parametrize(
    ("url", "scheme", "authority", "unix_path", "base_path"),
    [
        ("https://api.example/v1", "https", "api.example", None, "/v1"),
        ("https://api.example:8443", "https", "api.example:8443", None, ""),
        ("http://[::1]:80/a/b/", "http", "[::1]", None, "/a/b"),
        ("unix:///run/m.sock", "http", "localhost", "/run/m.sock", "/v1"),
        ("demo:/v1", "http", "localhost", "/run/demo.sock", "/v1"),
    ],
)
def test_a_base_url_says_where_connections_go(
    url: str, scheme: str, authority: str, unix_path: str | None, base_path: str
) -> None:
    text = f"providers: {{p: {{kind: openai-compatible, base_url: '{url}'}}}}"
    target = route(text, "p/x").target
    origin = target.origin
    assert (origin.scheme, origin.authority, origin.unix_path) == (scheme, authority, unix_path)
    assert target.base_path == base_path


def test_a_plain_proxy_is_asked_for_the_whole_url() -> None:
    text = "providers: {p: {kind: openai-compatible, base_url: 'http://h/v1', proxy: 'http://q:1'}}"
    head = route(text, "p/x").ways[Operation.CHAT].head
    assert head.startswith(b"POST http://h/v1/chat/completions HTTP/1.1\r\nHost: h\r\n")


def test_prices_come_from_the_target_the_model_or_the_data_set() -> None:
    text = CONFIG + (
        "  own: {price: {input: 1, output: 2}, targets: [{provider: openai},\n"
        "    {provider: openai, price: {input: 3, output: 4}}]}\n"
    )
    own = catalogue(text).resolve("own")
    assert own is not None
    prices = [found.price_now() for found in own.routes]
    assert [(p.input, p.output) for p in prices if p is not None] == [
        (1_000_000_000, 2_000_000_000),
        (3_000_000_000, 4_000_000_000),
    ]
    listed = route(CONFIG, "gpt-4o-mini").price_now()
    assert listed is not None
    assert (listed.input, listed.output) == (150_000_000, 600_000_000)
    assert route(CONFIG, "llama").price_now() is None
    assert route(CONFIG, "openai/gpt-nobody-knows").price_now() is None


def test_a_model_that_is_billed_in_units_nobody_counts_has_no_price() -> None:
    assert route(CONFIG, "openai/tts-1").price_now() is None
    default = CONFIG + "pricing: {default: {input: 7, output: 8}}\n"
    found = route(default, "openai/tts-1").price_now()
    assert found is not None
    assert found.input == 7 * 10**9


# --- Limits of targets ---------------------------------------------------------------------------

LIMITED = (
    CONFIG
    + """
  a: {targets: [{provider: local, model: x, rpm: 60, tpm: 1000, concurrency: 4}]}
  x: {targets: [{provider: local, rpm: 60, tpm: 5000}]}
  c: {targets: [{provider: demo, model: x, rpm: 20}, {provider: local, model: x}]}
  x:rpm: {targets: [{provider: local, rpm: 60}]}
"""
)


def limit_names(model: str) -> list[list[str]]:
    served = catalogue(LIMITED).resolve(model)
    assert served is not None
    prefix = "sluice:limit:{~targets}:"
    return [[one.name.removeprefix(prefix) for one in route.limits] for route in served.routes]


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("a", [["local/x:rpm", "local/x:tpm:1000", "local/x:concurrency"]]),
        ("x", [["local/x:rpm", "local/x:tpm:5000"]]),
        ("c", [["demo/x:rpm"], []]),
        ("x:rpm", [["local/x:rpm:rpm"]]),
    ],
)
def test_targets_of_one_model_share_the_limits_that_are_alike(
    model: str, names: list[list[str]]
) -> None:
    assert limit_names(model) == names


# --- Errors --------------------------------------------------------------------------------------

ERRORS = {
    "unknown kind": ("{kind: nonesuch}", "providers.p.kind"),
    "no key": ("{kind: openai}", "providers.p"),
    "no base URL": ("{kind: openai-compatible}", "providers.p"),
    "no scheme": ("{kind: openai-compatible, base_url: 'h/v1'}", "providers.p.base_url"),
    "wrong scheme": ("{kind: openai-compatible, base_url: 'ftp://h'}", "providers.p.base_url"),
    "no host": ("{kind: openai-compatible, base_url: 'http://'}", "providers.p.base_url"),
    "bad port": ("{kind: openai-compatible, base_url: 'http://h:x'}", "providers.p.base_url"),
    "bad IPv6": ("{kind: openai-compatible, base_url: 'http://[::1'}", "providers.p.base_url"),
    "a space": ("{kind: openai-compatible, base_url: 'http://h/a b'}", "providers.p.base_url"),
    "a line end": (
        '{kind: openai-compatible, base_url: "http://h/\\r\\nX: 1"}',
        "providers.p.base_url",
    ),
    "a query": ("{kind: openai-compatible, base_url: 'http://h?a=1'}", "providers.p.base_url"),
    "no socket": ("{kind: openai-compatible, base_url: 'unix://'}", "providers.p.base_url"),
    "TLS proxy": ("{kind: demo, proxy: 'https://q'}", "providers.p.proxy"),
    "key with line end": ('{kind: openai, api_key: "a\\nb"}', "providers.p.api_key"),
    "header with line end": ('{kind: demo, headers: {X: "a\\r\\nY: b"}}', "providers.p.headers.X"),
    "header name with line end": ('{kind: demo, headers: {"X\\n": a}}', "providers.p.headers"),
    "header beyond ASCII": ("{kind: demo, headers: {X: é}}", "providers.p.headers.X"),
    "header name with a space": ("{kind: demo, headers: {'X Y': a}}", "providers.p.headers.X Y"),
    "header name with a colon": ("{kind: demo, headers: {'X: a': b}}", "providers.p.headers.X: a"),
    "empty header name": ("{kind: demo, headers: {'': a}}", "providers.p.headers."),
    "framing by header": (
        "{kind: demo, headers: {Content-Length: '5'}}",
        "providers.p.headers.Content-Length",
    ),
    "coding by header": (
        "{kind: demo, headers: {accept-encoding: gzip}}",
        "providers.p.headers.accept-encoding",
    ),
    "header twice": ("{kind: demo, headers: {X-A: a, x-a: b}}", "providers.p.headers.x-a"),
}


@pytest.mark.parametrize(("provider", "field"), ERRORS.values(), ids=ERRORS)
def test_a_provider_that_cannot_be_used_is_refused_by_field(provider: str, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        catalogue(f"providers: {{p: {provider}}}")
    assert caught.value.field == field


@pytest.mark.parametrize("rate", ["-1", ".nan", ".inf", "'cheap'"])
def test_a_price_that_is_none_is_refused_by_field(rate: str) -> None:
    with pytest.raises(ConfigError) as caught:
        catalogue(
            f"models: {{m: {{targets: [{{provider: demo}}], price: {{input: {rate}, output: 1}}}}}}"
        )
    assert caught.value.field.startswith("models.m")
