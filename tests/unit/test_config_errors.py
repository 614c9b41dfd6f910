"""Every error of a configuration file names the file, the line and the field."""

import hashlib

import pytest

from gateway.config.document import MAX_DOCUMENT_BYTES, Document
from gateway.config.load import load_text
from gateway.core.errors import ConfigError

SHA = hashlib.sha256(b"sk-a-client-key").hexdigest()
OTHER = hashlib.sha256(b"another key").hexdigest()


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_text(text, "sluice.yaml", {"SHORT": "1234567", "SAME": "sk-a-client-key"})
    return caught.value


PLACED = {
    "unknown section": ("log: {}\nservers: {}\n", 2, "servers"),
    "unknown field": ("server:\n  adress: x\n", 2, "server.adress"),
    "unknown field deep": (
        "models:\n  m:\n    targets:\n      - provider: demo\n        wait: 2\n",
        5,
        "models.m.targets[0].wait",
    ),
    "unknown field beside a dot": (
        "models:\n  gpt-4.1:\n    target: []\n",
        3,
        "models.gpt-4.1.target",
    ),
    "wrong type": ("server:\n\n  max_request_size: big\n", 3, "server.max_request_size"),
    "wrong section": ("log: {}\nserver: 5\n", 2, "server"),
    "not positive": ("server:\n  timeouts:\n    connect: 0\n", 3, "server.timeouts.connect"),
    "not a number": ("server:\n  timeouts:\n    idle: .nan\n", 3, "server.timeouts.idle"),
    "no workers": ("server:\n  workers: 0\n", 2, "server.workers"),
    "wrong choice": ("log:\n  level: loud\n", 2, "log.level"),
    "little memory": ("redis:\n  memory_mb: 1\n", 2, "redis.memory_mb"),
    "much memory": ("redis:\n  memory_mb: 1000001\n", 2, "redis.memory_mb"),
    "a large worker": (
        "server:\n  recycle:\n    rss_mb: 1000001\n",
        3,
        "server.recycle.rss_mb",
    ),
    "null where a value must be": ("server:\n  workers: null\n", 2, "server.workers"),
    "no target": ("models:\n  m:\n    targets: []\n", 3, "models.m.targets"),
    "targets missing": ("log: {}\nmodels:\n  m: {}\n", 3, "models.m"),
    "kind missing": ("providers:\n  p: {api_key: x}\n", 2, "providers.p"),
    "unknown provider": (
        "providers: {p: {kind: demo}}\nmodels:\n  m:\n    targets:\n      - provider: p\n"
        "      - provider: q\n",
        6,
        "models.m.targets[1].provider",
    ),
    "tenant's name": ("tenants:\n  ok: {}\n  -bad: {}\n", 3, "tenants.-bad"),
    "model's name": (
        "providers: {p: {kind: demo}}\nmodels:\n  1: {targets: [{provider: p}]}\n",
        3,
        "models.1",
    ),
    "a name that is none to YAML": (
        "providers:\n  a: {kind: demo}\n  no: {}\n",
        3,
        "providers.False",
    ),
    "limit of a pattern": (
        "limits:\n  default:\n    per_model:\n      a: {rpm: 1}\n      b.c[0]:\n        rpm: x\n",
        6,
        "limits.default.per_model.b.c[0].rpm",
    ),
    "limit of a tenant's pattern": (
        "tenants:\n  a: {rpm: 1}\n  b:\n    per_model:\n      c: {}\n      d:\n        rps: 1\n",
        7,
        "tenants.b.per_model.d.rps",
    ),
    "label": (
        "auth:\n  keys:\n    - name: a\n      labels:\n        b: c\n        d: 5\n",
        6,
        "auth.keys[0].labels.d",
    ),
    "section's name": ("log: {}\n1: 2\n", 2, "1"),
    "header's value": (
        "providers:\n  p:\n    kind: demo\n    headers:\n      X: 5\n",
        5,
        "providers.p.headers.X",
    ),
    "key without digest": ("auth:\n  keys:\n    - name: a\n", 3, "auth.keys[0]"),
    "key and digest": (
        f"auth:\n  keys:\n    - {{name: a, sha256: {SHA}, key: sk-a-client-key}}\n",
        3,
        "auth.keys[0]",
    ),
    "short key": (
        f"auth:\n  keys:\n    - {{name: b, sha256: {OTHER}}}\n"
        "    - name: a\n      key: env:SHORT\n",
        5,
        "auth.keys[1].key",
    ),
    "not a digest": (
        "auth:\n  keys:\n    - name: a\n      sha256: ABC\n",
        4,
        "auth.keys[0].sha256",
    ),
    "key's name": (
        f"auth:\n  keys:\n    - name: a b\n      sha256: {SHA}\n",
        3,
        "auth.keys[0].name",
    ),
    "two of a name": (
        f"auth:\n  keys:\n    - {{name: a, sha256: {SHA}}}\n    - name: a\n      sha256: {OTHER}\n",
        4,
        "auth.keys[1].name",
    ),
    "a key twice": (
        f"auth:\n  keys:\n    - {{name: a, sha256: {SHA}}}\n    - {{name: b, key: env:SAME}}\n",
        4,
        "auth.keys[1]",
    ),
    "short admin key": ("auth:\n  admin_key: changeme\n", 2, "auth.admin_key"),
    "plain admin key": ("auth:\n  admin_key: aaaaaaaaaaaaaaaaaaaaaaa\n", 2, "auth.admin_key"),
    "placeholder as admin key": ("auth:\n  admin_key: changeme-changeme\n", 2, "auth.admin_key"),
    "placeholder as key": (
        "auth:\n  keys:\n    - name: a\n      key: your-api-key\n",
        4,
        "auth.keys[0].key",
    ),
    "empty admin key": ("auth:\n  admin_key: ''\n", 2, "auth.admin_key"),
    "keys not a list": ("auth:\n  keys: 5\n", 2, "auth.keys"),
    "a condition that nothing meets": (
        "providers: {p: {kind: demo}}\nmodels:\n  m:\n    targets:\n      - provider: p\n"
        "        when:\n          max_tokens: 5\n          min_tokens: 6\n",
        8,
        "models.m.targets[0].when.min_tokens",
    ),
    "a limit of no model": (
        "tenants:\n  acme:\n    per_model:\n      '': {rpm: 1}\n",
        3,
        "tenants.acme.per_model",
    ),
    "a limit of no model, of a key": (
        f"auth:\n  keys:\n    - name: a\n      sha256: {SHA}\n      per_model: {{'': {{}}}}\n",
        5,
        "auth.keys[0].per_model",
    ),
    "answers kept for longer than they may be": (
        "cache:\n  max_ttl: 60\n  ttl: 61\n",
        3,
        "cache.ttl",
    ),
    "burst alone": ("tenants:\n  acme:\n    burst: 5\n", 3, "tenants.acme.burst"),
    "burst alone in the default": (
        "limits:\n  default:\n    burst: 5\n",
        3,
        "limits.default.burst",
    ),
    "burst alone of a key": (
        f"auth:\n  keys:\n    - name: a\n      sha256: {SHA}\n      burst: 1\n",
        5,
        "auth.keys[0].burst",
    ),
    "not an address": ("server:\n  address: nonsense\n", 2, "server.address"),
    "open address": ("server:\n  address: 0.0.0.0:80\n", 2, "server.address"),
    "env not set": ("redis:\n  url: env:NOWHERE\n", 2, "redis.url"),
    "given twice": ("log: {}\nserver:\n  workers: 1\n  workers: 2\n", 4, "server.workers"),
    "section given twice": ("log: {}\nserver: {}\nlog: {}\n", 3, "log"),
    "given twice in a list": (
        "auth:\n  keys:\n    - name: a\n      tenant: b\n      name: c\n",
        5,
        "auth.keys[0].name",
    ),
}


@pytest.mark.parametrize(("text", "line", "field"), PLACED.values(), ids=PLACED)
def test_an_error_names_file_line_and_field(text: str, line: int, field: str) -> None:
    error = refused(text)
    assert (error.source, error.line, error.field) == ("sluice.yaml", line, field)
    assert str(error) == f"sluice.yaml:{line}: {field}: {error.message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("log: {level: loud}", "expected debug, error, info or warning, got 'loud'"),
        ("server: {workers: many}", "expected auto or a number, got 'many'"),
        ("limits: {default: {shadow: [rpm, usd]}}", "expected concurrency, rpm or tpm, got 'usd'"),
        ("tenants: {a: {shadow: [usd]}}", "expected concurrency, rpm or tpm, got 'usd'"),
        (
            "tenants: {a b: {}}",
            "expected up to 64 letters, digits and . _ -, of which the first is a letter or digit",
        ),
        (
            "auth: {keys: [{name: a, labels: {team: b c}}]}",
            "expected 1 to 64 letters, digits and . _ -",
        ),
        (
            "auth: {keys: [{name: a, sha256: ABC}]}",
            "expected a SHA-256: 64 digits and letters from a to f",
        ),
        ("providers: {no: {kind: demo}}", "a name is text: put the name in quotes"),
        (
            "server: {address: '[::1'}",
            "expected [IPv6 address]:port, with both brackets, got '[::1'",
        ),
    ],
)
def test_an_error_says_what_may_stand_there(text: str, message: str) -> None:
    assert refused(text).message == message


NOT_YAML = {
    "unclosed": ("server: {\n", 2),
    "a tab": ("server:\n\tworkers: 1\n", 2),
    "no mapping": ("- a\n- b\n", 1),
    "a word": ("hello", 1),
    "no character": ('log: {}\nserver: "\\UFFFFFFFF"\n', 2),
    "unknown alias": ("log: {}\nserver: *nowhere\n", 2),
    "two documents": ("log: {}\n---\nlog: {}\n", 2),
    "a list as a name": ("log: {}\n? [a]\n: b\n", 2),
    "a tag": ("log: {}\nserver: !!python/object:os.system {}\n", 2),
    "no such day": ("log: {}\nserver: {address: 2024-99-99}\n", 2),
    "a control character": ("log: {}\nserver: \x00\n", 2),
}


@pytest.mark.parametrize(("text", "line"), NOT_YAML.values(), ids=NOT_YAML)
def test_what_is_not_a_configuration_is_refused_with_its_line(text: str, line: int) -> None:
    error = refused(text)
    assert (error.source, error.line) == ("sluice.yaml", line)


def test_a_document_that_holds_itself_is_refused() -> None:
    assert refused("server: &a [*a]\n").source == "sluice.yaml"


def test_a_document_past_the_cap_is_refused() -> None:
    assert "4 MiB" in refused("#" * (MAX_DOCUMENT_BYTES + 1)).message


def test_a_secret_is_not_quoted() -> None:
    error = refused("auth:\n  keys:\n    - name: a\n      key: env:SHORT\n")
    assert "1234567" not in str(error)


@pytest.mark.parametrize(
    "value",
    [
        *("!SECRET", "!SECRET x", "!!SECRET x", "!<SECRET> x", "!SECRET!y x", "!a !SECRET"),
        *("*SECRET", "*SECRET x", "&a *SECRET", "{a: *SECRET}", "[!SECRET x]"),
    ],
)
def test_a_secret_that_yaml_takes_for_a_tag_or_an_alias_is_not_quoted(value: str) -> None:
    error = refused(f"log: {{}}\nauth:\n  admin_key: {value}\n")
    assert str(error).startswith("sluice.yaml:3: ")
    assert error.message == "not YAML: quote values that begin with ! or *"
    assert "SECRET" not in str(error)


@pytest.mark.parametrize("field", ["a.b[c.d", "a[b", "[", "a.[", "models.x[0.y", "]", "a]b"])
def test_a_field_that_is_nowhere_has_the_line_of_what_is_around_it(field: str) -> None:
    document = Document("a: 1\nmodels:\n  m: {}\n", "f")
    assert document.line(field) in (0, 1, 2)
