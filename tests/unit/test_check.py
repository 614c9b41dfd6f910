"""What is wrong with a configuration is found before a worker is started on it."""

import errno
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pytest

from gateway.config.schema import MAX_WORKERS
from gateway.core.errors import ConfigError
from workers import settings
from workers.prices import load_prices
from workers.settings import Flags, read, refuse_what_cannot_change, verify


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prices")


def checked(path: Path, prices: Path, text: str, **environ: str) -> None:
    """What a start and a reload do with a file."""
    file = path / "sluice.yaml"
    file.write_text(text)
    verify(read(Flags(str(file)), environ), load_prices(prices))


PROVIDER = "providers:\n  p:\n    kind: openai-compatible\n    base_url: https://x\n"

REFUSED = {
    "a ledger without a home": (
        'ledger:\n  directory: "~no-such-user/x"\n',
        2,
        "ledger.directory",
    ),
    "a ledger with a NUL": ('ledger:\n  directory: "/tmp/a\\0b"\n', 2, "ledger.directory"),
    "a ledger where no file can be": ("ledger:\n  directory: /proc/nope\n", 2, "ledger.directory"),
    "a ledger in a file": ("ledger:\n  directory: /dev/null/x\n", 2, "ledger.directory"),
    "a state without a home": ('server:\n  state_dir: "/a\\0"\n', 2, "server.state_dir"),
    "half an address of a collector": (
        'tracing:\n  endpoint: "http://[::1:4318"\n',
        2,
        "tracing.endpoint",
    ),
    "no port": ('tracing:\n  endpoint: "http://x:99999"\n', 2, "tracing.endpoint"),
    "a header of a collector": (
        'tracing:\n  headers:\n    x-token: "a\\n"\n',
        3,
        "tracing.headers.x-token",
    ),
    "half an address of a webhook": (
        'ledger:\n  webhook:\n    url: "http://[fd00::1/x"\n',
        3,
        "ledger.webhook.url",
    ),
    "a header of a webhook": (
        "ledger:\n  webhook:\n    url: http://x\n    headers:\n      Authorization: env:LINE\n",
        5,
        "ledger.webhook.headers.Authorization",
    ),
    "a header's name": (
        'ledger:\n  webhook:\n    url: http://x\n    headers: {"a b": c}\n',
        4,
        "ledger.webhook.headers.a b",
    ),
    "half a character": (
        'auth:\n  keys:\n    - name: a\n      key: "abcdefgh\\ud800"\n',
        4,
        "auth.keys[0].key",
    ),
    "half a character in the environment": (
        "auth:\n  keys:\n    - name: a\n      key: env:HALF\n",
        4,
        "auth.keys[0].key",
    ),
    "half a character in a name": ('models:\n  "\\ud800": {}\n', 1, "models.\\ud800"),
    "no switch": ("log: {}\nmetrics:\n  enabled: !!bool foo\n", 3, "metrics.enabled"),
    "no number": ('redis:\n  memory_mb: !!int ""\n', 2, "redis.memory_mb"),
    "no date": ("log:\n  level: !!timestamp foo\n", 2, "log.level"),
    "workers without end": (f"server:\n  workers: {MAX_WORKERS + 1}\n", 2, "server.workers"),
    "a default price below zero": (
        "pricing:\n  default: {input: -1, output: 1}\n",
        2,
        "pricing.default",
    ),
    "a default price of nothing": (
        "pricing:\n  default: {input: .nan, output: 1}\n"
        "providers: {p: {kind: demo}}\n"
        "models: {m: {targets: [{provider: p}]}}\n",
        2,
        "pricing.default",
    ),
    "a default price in words": (
        "pricing:\n  default: {input: 1, output: much}\n",
        2,
        "pricing.default",
    ),
    "a price list of nobody": (PROVIDER + "    prices: nobody\n", 5, "providers.p.prices"),
    "no authorities of Redis": (
        "redis:\n  url: rediss://h?ssl_ca_certs=/nonexistent.pem\n",
        2,
        "redis.url",
    ),
    "no certificate": (
        "server:\n  tls:\n    key: /dev/null\n    certificate: /nonexistent.pem\n",
        4,
        "server.tls.certificate",
    ),
    "no key of a certificate": (
        "server:\n  tls:\n    key: /nonexistent.pem\n    certificate: /dev/null\n",
        3,
        "server.tls.key",
    ),
    "a header's name of a provider": (
        PROVIDER + "    headers:\n      X-Team: a\n      X Team: b\n",
        7,
        "providers.p.headers.X Team",
    ),
    "a header of the gateway's": (
        PROVIDER + "    headers: {X-Team: a,\n      Host: b}\n",
        6,
        "providers.p.headers.Host",
    ),
    "a header of a provider": (
        PROVIDER + "    headers:\n      X-Team: env:LINE\n",
        6,
        "providers.p.headers.X-Team",
    ),
    "a key with a line's end": (
        PROVIDER + "    api_keys:\n      - a\n      - env:LINE\n",
        7,
        "providers.p.api_keys[1]",
    ),
    "a socket with two slashes": (
        "providers:\n  p:\n    kind: vllm\n    base_url: unix://tmp/model.sock\n",
        4,
        "providers.p.base_url",
    ),
    "a price of a model": (
        "providers: {p: {kind: demo}}\nmodels:\n  m:\n    price: {input: -1, output: 1}\n"
        "    targets: [{provider: p}]\n",
        4,
        "models.m.price",
    ),
    "a price of a target": (
        "providers: {p: {kind: demo}}\nmodels:\n  m:\n    price: {input: 1, output: 1}\n"
        "    targets:\n      - {provider: p}\n      - provider: p\n"
        "        price: {input: -1, output: 1}\n",
        8,
        "models.m.targets[1].price",
    ),
    "no authorities": (PROVIDER + "    ca_file: /nonexistent.pem\n", 5, "providers.p.ca_file"),
    "no certificates": (PROVIDER + "    ca_file: /dev/null\n", 5, "providers.p.ca_file"),
}


@pytest.mark.parametrize(("text", "line", "field"), REFUSED.values(), ids=REFUSED)
def test_what_would_fail_later_is_refused(
    tmp_path: Path, directory: Path, text: str, line: int, field: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(tmp_path, directory, text, LINE="Bearer x\n", HALF="abcdefgh\udcff")
    assert str(caught.value).startswith(f"{tmp_path}/sluice.yaml:{line}: {field}: ")
    str(caught.value).encode()


@pytest.mark.parametrize("seller", ["openai", "x-ai", "Gemini"])
def test_a_price_list_may_have_several_names(tmp_path: Path, directory: Path, seller: str) -> None:
    checked(tmp_path, directory, PROVIDER + f"    prices: {seller}\n")


def test_a_home_that_is_not_there(tmp_path: Path) -> None:
    from gateway.config.load import load_text, state_directory

    config = load_text('server: {state_dir: "~no-such-user/x"}', "f", {})
    with pytest.raises(ConfigError, match=r"server\.state_dir: there is no such home"):
        state_directory(config, {})


@pytest.mark.parametrize("variable", ["API_KEYS", "SLUICE_ADMIN_KEY"])
def test_a_variable_that_is_no_text(variable: str) -> None:
    with pytest.raises(ConfigError, match=f"environment {variable}: holds what no text does"):
        read(Flags(), {variable: "0123456789abcdefgh\udcff"})


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({"REDIS_URL": "nonsense"}, "environment REDIS_URL: redis.url: "),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "nonsense"},
            "environment OTEL_EXPORTER_OTLP_ENDPOINT: tracing.endpoint: ",
        ),
        (
            {"OTEL_EXPORTER_OTLP_HEADERS": "a b=c"},
            "environment OTEL_EXPORTER_OTLP_HEADERS: tracing.headers.a b: ",
        ),
    ],
)
def test_a_variable_is_blamed_and_not_the_file(
    tmp_path: Path, directory: Path, environ: dict[str, str], place: str
) -> None:
    file = "redis: {url: redis://r}\ntracing: {endpoint: http://x, headers: {a: b}}\n"
    with pytest.raises(ConfigError) as caught:
        checked(tmp_path, directory, file, **environ)
    assert str(caught.value).startswith(place)


def test_a_providers_variable_is_blamed(directory: Path) -> None:
    environ = {"OPENAI_API_KEY": "sk-1", "OPENAI_BASE_URL": "nonsense"}
    with pytest.raises(ConfigError, match=r"^environment OPENAI_BASE_URL: providers\.openai\.base"):
        verify(read(Flags(), environ), load_prices(directory))


@pytest.mark.parametrize(
    ("flags", "place"),
    [
        (Flags(workers="two"), "--workers: expected a whole number"),
        (Flags(workers="0"), "--workers: server.workers: "),
        (Flags(port=99_999), "--port: expected a port"),
        (Flags(port=-1), "--port: expected a port"),
        (Flags(host="0.0.0.0"), "--host: server.address: "),
    ],
)
def test_a_flag_is_blamed_and_not_the_environment(flags: Flags, place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(flags, {"SLUICE_WORKERS": "many" if flags.workers else "2"})
    assert str(caught.value).startswith(place)
    with pytest.raises(ConfigError, match=r"^environment SERVER_ADDRESS: "):
        read(Flags(host="::"), {"SERVER_ADDRESS": "nonsense"})


def test_a_key_that_ends_with_a_line_is_the_key() -> None:
    config = read(Flags(), {"SLUICE_ADMIN_KEY": "9c41f07ab35de682\n"}).config
    assert config.auth.admin_key == "9c41f07ab35de682"


def test_a_check_makes_no_file(tmp_path: Path, directory: Path) -> None:
    for ledger in (tmp_path / "new" / "ledger", tmp_path):
        checked(tmp_path, directory, f"ledger: {{directory: {ledger}}}")
    assert list(tmp_path.iterdir()) == [tmp_path / "sluice.yaml"]


RESTARTS = {
    "redis.url": "redis: {url: redis://other}",
    "redis.timeout": "redis:\n  url: redis://r\n  timeout: 5",
    "server.state_dir": "server:\n  state_dir: /elsewhere",
}


@pytest.mark.parametrize("field", RESTARTS)
def test_what_a_reload_cannot_change_is_named(tmp_path: Path, field: str) -> None:
    file = tmp_path / "sluice.yaml"
    file.write_text("redis: {url: redis://r}")
    old = read(Flags(str(file)), {}).config
    redis = "" if RESTARTS[field].startswith("redis") else "redis: {url: redis://r}\n"
    file.write_text(f"{redis}{RESTARTS[field]}\n")
    line = 1 if field == "redis.url" else 3
    with pytest.raises(ConfigError) as caught:
        refuse_what_cannot_change(old, read(Flags(str(file)), {}))
    assert str(caught.value) == f"{file}:{line}: {field}: a change needs a restart"
    with pytest.raises(ConfigError, match=r"^environment REDIS_URL: redis\.url: a change"):
        refuse_what_cannot_change(old, read(Flags(), {"REDIS_URL": "redis://other"}))
    refuse_what_cannot_change(old, read(Flags(), {"REDIS_URL": "redis://r"}))


def test_an_address_is_blamed_on_who_said_it(tmp_path: Path) -> None:
    file = tmp_path / "sluice.yaml"
    file.write_text("server:\n  address: 127.0.0.1:1\n")
    error = ConfigError("cannot listen", field="server.address")
    placed = {
        f"{file}:2": read(Flags(str(file)), {}),
        "environment SERVER_ADDRESS": read(Flags(str(file)), {"SERVER_ADDRESS": "127.0.0.1:2"}),
        "--port": read(Flags(port=2), {}),
        "--host": read(Flags(str(file), host="::1", port=2), {}),
    }
    for place, loaded in placed.items():
        assert str(loaded.locate(error)) == f"{place}: server.address: cannot listen"


def test_a_failure_that_nobody_foresaw_is_refused_too(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise LookupError("a secret")

    for step in ("load", "check"):
        with monkeypatch.context() as broken:
            broken.setattr(settings, step, fails)
            with pytest.raises(ConfigError) as caught:
                checked(tmp_path, directory, "log: {}")
        said = str(caught.value)
        assert said.startswith(f"{tmp_path}/sluice.yaml: cannot be used: LookupError at {__file__}")
        assert "secret" not in said


def test_prices_that_cannot_be_written_are_the_state_directorys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        load_prices(tmp_path / "file")
    place = f"cannot write prices to {tmp_path}/file: "
    assert str(caught.value) == f"server.state_dir: {place}Not a directory"
    with pytest.raises(ConfigError, match=f"^{place}Not a directory$"):
        load_prices(tmp_path, tmp_path / "file")
    for error, reason in (
        (subprocess.TimeoutExpired("x", 60), "within 60 seconds"),
        (OSError(errno.EAGAIN, "Try again"), "Try again"),
    ):
        monkeypatch.setattr(subprocess, "run", Mock(side_effect=error))
        with pytest.raises(ConfigError, match=f"the price data does not compile.* {reason}$"):
            load_prices(tmp_path)
