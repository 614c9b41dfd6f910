"""Reading the configuration: YAML and environment in, a frozen value or a placed error out."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from gateway.config.address import is_loopback, parse_address
from gateway.config.environment import NEVER_EMPTY
from gateway.config.load import load, load_text, state_directory
from gateway.config.schema import Config, Provider, Target
from gateway.core.errors import ConfigError

KEY = "sk-a-client-key"
SHA = hashlib.sha256(KEY.encode()).hexdigest()


def read(text: str = "", **environ: str) -> Config:
    return load_text(text, "sluice.yaml", environ)


def refused(text: str = "", environ: Mapping[str, str] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_text(text, "sluice.yaml", environ or {})
    return caught.value


# --- Defaults ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}", "server:\ntenants:\nmodels:\n"])
def test_everything_has_a_default(text: str) -> None:
    config = read(text)
    assert config.server.address == "127.0.0.1:8080"
    assert (config.server.workers, config.server.max_request_size) == ("auto", 10_485_760)
    times = config.server.timeouts
    assert (times.connect, times.first_byte, times.idle, times.total) == (5, 60, 60, 600)
    assert (config.server.drain.lame_duck, config.server.drain.grace) == (0, 30)
    assert config.redis.url is None
    assert (config.auth.enabled, config.auth.keys) == (False, ())
    assert config.providers == {"demo": Provider(kind="demo")}


def test_a_key_variable_brings_its_provider() -> None:
    config = read(OPENAI_API_KEY="sk-1", OPENAI_BASE_URL="http://127.0.0.1:1/v1")
    assert config.providers == {
        "openai": Provider(kind="openai", api_key="sk-1", base_url="http://127.0.0.1:1/v1")
    }
    file = "providers: {mine: {kind: demo}}"
    assert read(file, OPENAI_API_KEY="sk-1").providers == {"mine": Provider(kind="demo")}


AWS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s"}
AZURE = {"AZURE_OPENAI_API_KEY": "k"}
REGION = "AWS_REGION or AWS_DEFAULT_REGION is not"


@pytest.mark.parametrize(
    ("environ", "found", "skipped"),
    [
        ({}, ["demo"], []),
        ({**AWS, "AWS_REGION": "r"}, ["bedrock"], []),
        ({"AWS_REGION": "r"}, ["demo"], []),
        (
            {**AWS, "AWS_ACCESS_KEY_ID": "", "AWS_REGION": "r"},
            ["demo"],
            ["bedrock is left out: AWS_SECRET_ACCESS_KEY is set, AWS_ACCESS_KEY_ID is not"],
        ),
        (
            {"AWS_ACCESS_KEY_ID": "a", "AWS_REGION": "r"},
            ["demo"],
            ["bedrock is left out: AWS_ACCESS_KEY_ID is set, AWS_SECRET_ACCESS_KEY is not"],
        ),
        (
            {"AZURE_OPENAI_ENDPOINT": "https://a.example"},
            ["demo"],
            ["azure is left out: AZURE_OPENAI_ENDPOINT is set, AZURE_OPENAI_API_KEY is not"],
        ),
        (
            {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"},
            ["demo"],
            [
                "openai is left out: OPENAI_BASE_URL is set, OPENAI_API_KEY is not "
                "(any word will do where the server asks for none)"
            ],
        ),
        (AWS, ["demo"], [f"bedrock is left out: AWS_ACCESS_KEY_ID is set, {REGION}"]),
        (
            {"AWS_BEARER_TOKEN_BEDROCK": "k"},
            ["demo"],
            [f"bedrock is left out: AWS_BEARER_TOKEN_BEDROCK is set, {REGION}"],
        ),
        (
            {**AZURE, "GROQ_API_KEY": "k"},
            ["groq"],
            ["azure is left out: AZURE_OPENAI_API_KEY is set, AZURE_OPENAI_ENDPOINT is not"],
        ),
        ({**AZURE, "AZURE_OPENAI_ENDPOINT": "https://a.example"}, ["azure"], []),
    ],
)
def test_a_provider_that_the_environment_has_by_half_is_named(
    environ: dict[str, str], found: list[str], skipped: list[str]
) -> None:
    loaded = load(None, environ)
    assert (list(loaded.config.providers), list(loaded.skipped)) == (found, skipped)


def test_a_file_that_names_providers_lacks_none(tmp_path: Path) -> None:
    file = tmp_path / "sluice.yaml"
    file.write_text("providers: {d: {kind: demo}}")
    assert load(str(file), {**AWS, **AZURE}).skipped == ()


@pytest.mark.parametrize(
    ("entry", "environ", "source", "field"),
    [
        ("bedrock", {"AWS_REGION": "a b", **AWS}, "environment AWS_REGION", "region"),
        ("bedrock, region: a b", {"AWS_REGION": "r", **AWS}, "sluice.yaml", "region"),
        ("vertex", {"GOOGLE_CLOUD_PROJECT": "/"}, "environment GOOGLE_CLOUD_PROJECT", "project"),
    ],
)
def test_what_a_cloud_has_of_the_environment_is_blamed_on_it(
    entry: str, environ: dict[str, str], source: str, field: str
) -> None:
    error = refused(f"providers:\n  p: {{kind: {entry}}}\n", environ)
    assert (error.source, error.field) == (source, f"providers.p.{field}")


def test_a_file_is_read_into_frozen_values() -> None:
    config = read(
        "models:\n  smart:\n    targets:\n      - {provider: p, model: x}\n"
        "      - {provider: p, priority: 2}\n"
        "providers: {p: {kind: openai, api_key: k}}\n"
    )
    targets = (Target("p", "x"), Target("p", priority=2))
    assert config.models["smart"].targets == targets
    with pytest.raises(AttributeError):
        config.server.workers = 3  # type: ignore[misc]  # that this fails is the test


# --- Secrets and keys ----------------------------------------------------------------------------


def test_env_names_are_replaced_wherever_they_stand() -> None:
    config = read(
        "auth:\n  keys:\n    - {name: a, key: env:K}\n"
        "providers: {p: {kind: openai, api_key: env:P, headers: {X: env:P}}}\n"
        "redis: {url: env:R}\n",
        K=KEY,
        P="sk-p",
        R="redis://r",
    )
    assert (config.auth.keys[0].sha256, config.auth.keys[0].key) == (SHA, None)
    assert config.providers["p"].api_key == "sk-p"
    assert config.providers["p"].headers == {"X": "sk-p"}
    assert config.redis.url == "redis://r"


@pytest.mark.parametrize("environ", [{}, {"NOT_SET": ""}])
def test_an_env_name_that_is_not_set_is_named_with_its_place(environ: dict[str, str]) -> None:
    error = refused("auth:\n  keys:\n    - name: a\n      key: env:NOT_SET\n", environ)
    assert (error.source, error.line, error.field) == ("sluice.yaml", 4, "auth.keys[0].key")
    assert "NOT_SET" in error.message


def test_api_keys_join_the_files_and_only_digests_stay() -> None:
    text = f"auth: {{keys: [{{name: a, sha256: {SHA}}}]}}"
    keys = read(text, API_KEYS=" key-number-1 ,,key-number-2").auth.keys
    digests = [hashlib.sha256(key).hexdigest() for key in (b"key-number-1", b"key-number-2")]
    assert [key.sha256 for key in keys] == [SHA, *digests]
    assert [key.name for key in keys] == ["a", *(f"key-{digest[:8]}" for digest in digests)]
    assert {key.key for key in keys} == {None}
    assert "key-number" not in repr(keys)


@pytest.mark.parametrize("text", ["auth:\n", "auth: {keys: }", "auth: {keys: []}", ""])
def test_api_keys_need_no_auth_section(text: str) -> None:
    config = read(text, API_KEYS=KEY)
    assert [key.sha256 for key in config.auth.keys] == [SHA]
    assert (config.auth.enabled, config.server.address) == (True, "0.0.0.0:8080")


# --- The environment's variables -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("SERVER_ADDRESS", " 127.0.0.1:1 ", "server.address", "127.0.0.1:1"),
        ("SERVER_TIMEOUT_SECONDS", "2.5", "server.timeouts.total", 2.5),
        ("MAX_REQUEST_SIZE", "100", "server.max_request_size", 100),
        ("SLUICE_WORKERS", "3", "server.workers", 3),
        ("SLUICE_WORKERS", "auto", "server.workers", "auto"),
        ("SLUICE_STATE_DIR", "/x", "server.state_dir", "/x"),
        ("SLUICE_ADMIN_KEY", "an-admin-key-0123", "auth.admin_key", "an-admin-key-0123"),
        ("AUTH_ENABLED", "false", "auth.enabled", False),
        ("AUTH_ENABLED", "ON", "auth.enabled", True),
        ("AUTH_HEALTH_CHECK", "1", "auth.health_check", True),
        ("RATE_LIMIT_ENABLED", "no", "limits.enabled", False),
        ("RATE_LIMIT_RPM", "70", "limits.default.rpm", 70),
        ("RATE_LIMIT_BURST", "9", "limits.default.burst", 9),
        ("LOG_LEVEL", "WARNING", "log.level", "warning"),
        ("ENABLE_METRICS", "off", "metrics.enabled", False),
        ("REDIS_URL", "redis://r", "redis.url", "redis://r"),
    ],
)
def test_a_variable_overrides_the_file(variable: str, text: str, field: str, value: object) -> None:
    file = (
        "server: {address: '127.0.0.1:9', workers: 2, max_request_size: 5, state_dir: /f,\n"
        "  timeouts: {connect: 1, total: 9}}\n"
        "auth: {enabled: true, admin_key: admin-key-of-file,\n"
        f"  keys: [{{name: a, sha256: {SHA}}}]}}\n"
        "limits: {default: {rpm: 1, burst: 1}}\nlog: {level: debug}\nredis: {url: redis://f}\n"
    )

    def at(config: Config) -> object:
        found: object = config
        for name in field.split("."):
            found = getattr(found, name)
        return found

    changed = read(file, **{variable: text})
    assert at(changed) == value
    assert changed.server.timeouts.connect == 1
    if variable not in NEVER_EMPTY:
        assert at(read(file, **{variable: ""})) == at(read(file))


@pytest.mark.parametrize("text", ["", "false", "0"])
def test_tracing_may_be_switched_off(text: str) -> None:
    assert read(ENABLE_TRACING=text) == read()


def test_tracing_takes_the_collector_from_the_usual_variables() -> None:
    tracing = read(
        ENABLE_TRACING="true",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://collector:4318",
        OTEL_EXPORTER_OTLP_HEADERS="x-a=1%202, x-b=c",
        OTEL_SERVICE_NAME="edge",
    ).tracing
    assert tracing.enabled
    assert tracing.endpoint == "http://collector:4318"
    assert tracing.headers == {"x-a": "1 2", "x-b": "c"}
    assert tracing.service_name == "edge"


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("SERVER_ADDRESS", "nonsense"),
        ("SERVER_TIMEOUT_SECONDS", "soon"),
        ("SERVER_TIMEOUT_SECONDS", "nan"),
        ("SERVER_TIMEOUT_SECONDS", "-1"),
        ("MAX_REQUEST_SIZE", "10MB"),
        ("MAX_REQUEST_SIZE", "0"),
        ("SLUICE_WORKERS", "many"),
        ("AUTH_ENABLED", "maybe"),
        ("AUTH_HEALTH_CHECK", "2"),
        ("RATE_LIMIT_ENABLED", "maybe"),
        ("RATE_LIMIT_RPM", "1.5"),
        ("RATE_LIMIT_BURST", "-1"),
        ("LOG_LEVEL", "loud"),
        ("ENABLE_METRICS", "maybe"),
        ("ENABLE_TRACING", "maybe"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "nonsense"),
    ],
)
def test_a_bad_variable_is_blamed_by_name_and_not_the_file(variable: str, text: str) -> None:
    file = "log: {level: info}\nserver: {max_request_size: 5, address: '127.0.0.1:1'}\n"
    error = refused(file, {variable: text})
    assert variable in error.source
    assert error.line == 0


@pytest.mark.parametrize(
    ("file", "variable", "text", "field"),
    [
        ("server: x\n", "SLUICE_WORKERS", "2", "server"),
        ("limits: 5\n", "RATE_LIMIT_RPM", "70", "limits"),
        ("limits:\n  default: []\n", "RATE_LIMIT_RPM", "70", "limits.default"),
        ("auth: []\n", "AUTH_ENABLED", "true", "auth"),
    ],
)
def test_a_variable_hides_no_bad_section(file: str, variable: str, text: str, field: str) -> None:
    assert refused(file, {variable: text}).field == field
    assert read("limits:\n  default:\n", RATE_LIMIT_RPM="70").limits.default.rpm == 70


def test_keys_of_the_environment_are_as_long_as_the_files() -> None:
    error = refused("", {"API_KEYS": f"{KEY},sk-1234"})
    assert str(error) == "environment API_KEYS: auth.keys[1].key: a key has at least 8 characters"


def test_placeholders_are_no_keys_of_the_environment() -> None:
    error = refused("", {"API_KEYS": f"{KEY},REPLACE_ME"})
    assert error.source == "environment API_KEYS"
    assert error.message.startswith("anybody would try that first")
    assert refused("", {"SLUICE_ADMIN_KEY": "REPLACE_ME_REPLACE_ME"}).field == "auth.admin_key"


def test_an_admin_key_that_is_set_is_not_empty() -> None:
    error = refused("", {"SLUICE_ADMIN_KEY": ""})
    assert (error.source, error.field) == ("environment SLUICE_ADMIN_KEY", "auth.admin_key")
    assert read("", API_KEYS="").auth.keys == ()


def test_api_keys_given_twice_are_blamed_on_the_variable() -> None:
    error = refused("", {"API_KEYS": f"{KEY},{KEY}"})
    assert error.source == "environment API_KEYS"
    assert error.message == "this key stands here twice"


# --- Addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        (":8080", ("0.0.0.0", 8080)),
        ("[::1]:0", ("::1", 0)),
        ("[::]:65535", ("::", 65535)),
        ("a.example:1", ("a.example", 1)),
    ],
)
def test_an_address_is_taken_apart(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text", ["", "8080", "h:", "h:x", "h:-1", "h:65536", "::1:80", "[::1]", "[::1:80", "::1]:80"]
)
def test_a_wrong_address_is_refused_by_field(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(text)
    assert caught.value.field == "server.address"


def test_loopback_is_this_machine_alone() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.com", "")))


@pytest.mark.parametrize("address", ["0.0.0.0:1", ":1", "[::]:1", "10.0.0.1:1"])
def test_an_open_address_needs_a_key_or_a_clear_word(address: str) -> None:
    file = f"server:\n  address: '{address}'\n"
    error = refused(file)
    assert (error.line, error.field) == (2, "server.address")
    assert read(file, AUTH_ENABLED="false").server.address == address
    assert read(file, API_KEYS=KEY).server.address == address


def test_without_a_key_only_this_machine_is_served() -> None:
    assert read().server.address == "127.0.0.1:8080"
    assert read(AUTH_ENABLED="false", API_KEYS=KEY).server.address == "127.0.0.1:8080"
    assert read("server: {address: '[::1]:5'}").server.address == "[::1]:5"


def test_the_state_directory_is_the_configured_one_systemds_or_the_users() -> None:
    configured = read("server: {state_dir: /configured}")
    systemd = {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "XDG_STATE_HOME": "/x"}
    assert state_directory(configured, systemd) == Path("/configured")
    assert state_directory(read(), systemd) == Path("/var/lib/a")
    assert state_directory(read(), {"XDG_STATE_HOME": "/x"}) == Path("/x/sluice")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    with pytest.raises(ConfigError, match=f"{missing}: cannot be read"):
        load(str(missing), {})
    wrong = tmp_path / "wrong.yaml"
    wrong.write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match=f"{wrong}: is not UTF-8"):
        load(str(wrong), {})


def test_an_empty_section_is_as_good_as_none_but_must_exist() -> None:
    assert read("tenants:\nserver:\n") == read()
    assert "unknown field" in refused("servr:\n").message


def test_without_a_home_nothing_is_kept_in_a_directory_named_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(ConfigError, match="SLUICE_STATE_DIR"):
        state_directory(Config(), {})
