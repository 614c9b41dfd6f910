"""A LiteLLM configuration becomes one of Sluice's that can be used; what has no place is noted."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.check import check
from gateway.cli.import_litellm import described, verify, written
from gateway.config.document import Document
from gateway.config.litellm import SECTIONS, translate
from gateway.config.litellm.prefixes import ROWS
from gateway.config.load import load_text
from gateway.core.errors import ConfigError
from gateway.policy.pricing import PriceTable
from tests.support.litellm import deployed, imported, noted, targets
from workers.prices import load_prices

# --- Whole configurations -------------------------------------------------------------------------

TEAM = """
    # A team's proxy: hosted models, one Redis, a budget.
    model_list:
      - model_name: fast
        litellm_params: {model: groq/llama-3.3-70b-versatile, api_key: os.environ/GROQ_API_KEY}
      - model_name: gpt-4o
        litellm_params: {model: gpt-4o, api_key: os.environ/OPENAI_API_KEY, rpm: 900}
      - model_name: gpt-4o
        litellm_params: {model: openai/gpt-4o, api_key: os.environ/OPENAI_API_KEY_B, rpm: 300}
      - model_name: claude-thinking
        litellm_params:
          model: anthropic/claude-sonnet-4-5
          api_key: os.environ/ANTHROPIC_API_KEY
          thinking: {type: enabled, budget_tokens: 2048}
          max_tokens: 8000
        model_info: {description: thinks, mode: chat}
      - model_name: embeddings
        litellm_params: {model: text-embedding-3-small, api_key: os.environ/OPENAI_API_KEY}
        model_info: {mode: embedding}
      - model_name: pictures
        litellm_params: {model: openai/gpt-image-1, api_key: os.environ/OPENAI_API_KEY}
        model_info: {mode: image_generation}

    router_settings:
      routing_strategy: simple-shuffle
      num_retries: 2
      redis_host: redis.internal
      redis_port: 6379
      redis_password: not-a-secret
      model_group_alias: {gpt-4: gpt-4o}
      fallbacks: [{gpt-4o: [claude-thinking]}, {claude-thinking: [gpt-4o]}]

    litellm_settings:
      drop_params: True
      request_timeout: 300
      max_budget: 250
      budget_duration: 30d
      callbacks: [prometheus]
      cache: true
      cache_params: {type: redis, ttl: 3600}

    general_settings:
      master_key: os.environ/LITELLM_MASTER_KEY
      database_url: os.environ/DATABASE_URL
    """

HOUSE = """
    # Machines of our own, in an older manner.
    model_list:
      - model_name: "llama3.2:3b"
        litellm_params: {model: "ollama_chat/llama3.2:3b", api_base: "http://ollama:11434"}
        model_info:
          input_cost_per_token: 0.00002
          output_cost_per_token: 4e-5
          cache_read_input_token_cost: 0.000005
      - model_name: qwen
        litellm_params:
          model: openai/Qwen/Qwen3-32B
          api_base: http://10.1.2.3:8000/v1/
          api_key: none
          input_cost_per_token: 0
          output_cost_per_token: 0
        tpm: 20000
      - model_name: qwen
        litellm_params: {model: hosted_vllm/Qwen/Qwen3-32B, api_base: os.environ/VLLM_URL}
      - model_name: desk
        litellm_params: {model: lm_studio/qwen3-8b, stream_timeout: 20}
      - model_name: mistral-7b
        litellm_params: {model: mistralai/mistral-7b-instruct}
    general_settings: {master_key: sk-1234, database_url: "postgresql://a:b@db/litellm"}
    litellm_settings: {success_callback: [langfuse], set_verbose: false}
    environment_variables: {LANGFUSE_SECRET_KEY: not-a-secret}
    cors_settings: {allow_origins: ["*"]}
    """

FIRM = """
    # A firm's: clouds, regions, wildcards, shared credentials.
    x-azure: &azure
      api_version: 2024-10-21
      litellm_credential_name: azure
    credential_list:
      - credential_name: azure
        credential_values: {api_key: os.environ/AZURE_KEY}
        credential_info: {}
    model_list:
      - model_name: chat
        litellm_params:
          {<<: *azure, model: azure/chat-eu, api_base: "https://firm-eu.openai.azure.com", order: 1}
        model_info: {base_model: azure/gpt-4o, id: chat-eu}
      - model_name: chat
        litellm_params:
          {<<: *azure, model: azure/chat-us, api_base: "https://firm-us.openai.azure.com", order: 2}
        model_info: {input_cost_per_token: 2.5e-6, output_cost_per_token: 1.0e-5}
      - model_name: claude
        litellm_params:
          model: bedrock/us.anthropic.claude-sonnet-4-5-v1:0
          aws_region_name: us-east-1
          weight: 3
      - model_name: claude
        litellm_params: {model: bedrock/eu-west-1/anthropic.claude-sonnet-4-5-v1:0, weight: 1}
      - model_name: gemini
        litellm_params:
          model: vertex_ai/gemini-2.5-pro
          vertex_project: firm
          vertex_location: europe-west4
          vertex_credentials: os.environ/VERTEX_JSON
      - {model_name: "openai/*", litellm_params: {model: "openai/*", api_key: os.environ/OPENAI}}
      - {model_name: "eu/*", litellm_params: {model: "bedrock/*", aws_region_name: eu-central-1}}
      - {model_name: "*", litellm_params: {model: "*"}}
    router_settings:
      routing_strategy: latency-based-routing
      routing_strategy_args: {ttl: 10}
      default_fallbacks: [openai/gpt-4o-mini]
      context_window_fallbacks: [{chat: [gemini]}]
      allowed_fails: 3
      cooldown_time: 30
      timeout: 120
      redis_url: os.environ/REDIS
    general_settings:
      master_key: os.environ/MASTER
      alerting: [slack]
      max_parallel_requests: 100
    """

ENVIRON = {
    **dict.fromkeys(("GROQ_API_KEY", "OPENAI_API_KEY", "OPENAI_API_KEY_B", "OPENAI"), "sk-a"),
    **dict.fromkeys(("ANTHROPIC_API_KEY", "AZURE_KEY", "AWS_ACCESS_KEY_ID"), "sk-b"),
    "AWS_SECRET_ACCESS_KEY": "sk-c",
    "LITELLM_MASTER_KEY": "sk-5f1c0a9e7b3d2846",
    "MASTER": "sk-5f1c0a9e7b3d2846",
    "VLLM_URL": "http://vllm:8000/v1",
    "VERTEX_JSON": '{"type": "authorized_user", "client_id": "a", "client_secret": "b", '
    '"refresh_token": "c"}',
    "REDIS": "redis://redis.internal",
}
REACHED = {
    "team": (
        TEAM,
        {
            "fast": ["groq/llama-3.3-70b-versatile"],
            "gpt-4o": ["openai/gpt-4o", "2 anthropic/claude-sonnet-4-5"],
            "claude-thinking": ["anthropic/claude-sonnet-4-5", "2 openai/gpt-4o"],
            "embeddings": ["openai-2/text-embedding-3-small"],
            "gpt-4": ["openai/gpt-4o", "2 anthropic/claude-sonnet-4-5"],
        },
    ),
    "house": (
        HOUSE,
        {
            "llama3.2:3b": ["ollama/llama3.2:3b"],
            "qwen": ["local/Qwen/Qwen3-32B", "vllm/Qwen/Qwen3-32B"],
            "desk": ["lmstudio/qwen3-8b"],
        },
    ),
    "firm": (
        FIRM,
        {
            "chat": ["azure/chat-eu", "2 azure-firm-us/chat-us", "3 openai/gpt-4o-mini"],
            "claude": [
                "bedrock/us.anthropic.claude-sonnet-4-5-v1:0",
                "bedrock-eu-west-1/anthropic.claude-sonnet-4-5-v1:0",
                "2 openai/gpt-4o-mini",
            ],
            "gemini": ["vertex/gemini-2.5-pro", "2 openai/gpt-4o-mini"],
        },
    ),
}


@cache
def prices() -> PriceTable:
    with tempfile.TemporaryDirectory() as directory:
        return load_prices(Path(directory))


@pytest.mark.parametrize("name", REACHED)
def test_a_whole_configuration_passes_the_check(name: str) -> None:
    text, expected = REACHED[name]
    found = imported(text)
    config = load_text(written(found.config, "config.yaml"), "sluice.yaml", ENVIRON)
    check(config, prices())
    reached = {}
    for model, section in config.models.items():
        ranks = (f"{one.priority} " if one.priority > 1 else "" for one in section.targets)
        names = (f"{one.provider}/{one.model or model}" for one in section.targets)
        reached[model] = ["".join(pair) for pair in zip(ranks, names, strict=True)]
    assert reached == expected
    assert config.auth.enabled
    assert [key.name for key in config.auth.keys] == ["master"]
    assert "not-a-secret" not in str(found.notes)


def test_a_teams_settings_are_carried_over() -> None:
    found = imported(TEAM).config
    models, providers = found.pop("models"), found.pop("providers")
    assert providers["openai"] == {
        "kind": "openai",
        "api_keys": [
            {"key": "env:OPENAI_API_KEY", "weight": 3},
            {"key": "env:OPENAI_API_KEY_B", "weight": 1},
        ],
    }
    assert models["claude-thinking"]["max_output_tokens"] == 8000
    key = "env:LITELLM_MASTER_KEY"
    assert found == {
        "server": {"timeouts": {"first_byte": 300, "first_token": 300, "idle": 300, "total": 1800}},
        "redis": {"url": "redis://:not-a-secret@redis.internal:6379"},
        "auth": {"admin_key": key, "keys": [{"name": "master", "key": key}]},
        "cache": {"enabled": True, "requests": "all", "ttl": 3600},
        "limits": {"global": {"budget": {"usd": 250, "per": "30d"}}},
        "pricing": {"default": {"input": 0, "output": 0}},
        "unsupported": "drop",
        "retries": {"attempts": 2},
    }


def test_a_houses_models_keep_their_prices() -> None:
    found = imported(HOUSE)
    price = {"input": 20, "output": 40, "cached": 5}
    assert targets(found, "llama3.2:3b")[0]["price"] == price
    assert targets(found, "qwen")[0]["price"] == {"input": 0, "output": 0}
    assert found.config["models"]["qwen"]["strategy"] == "weighted"
    assert "mistralai/" in noted(found, "model_list[4]")
    said = described(found.notes, Document(HOUSE, "config.yaml"))
    assert "config.yaml:27: cors_settings: not carried over: Sluice has no such section" in said


def test_a_firms_clouds_and_wildcards_are_providers() -> None:
    found = imported(FIRM).config
    assert found["providers"]["azure"] == {
        "kind": "azure",
        "api_key": "env:AZURE_KEY",
        "base_url": "https://firm-eu.openai.azure.com",
        "api_version": "2024-10-21",
    }
    wild = {name: found["providers"][name] for name in ("openai", "eu")}
    assert wild == {
        "openai": {"kind": "openai", "api_key": "env:OPENAI"},
        "eu": {"kind": "bedrock", "region": "eu-central-1"},
    }
    assert found["models"]["chat"]["targets"][1]["price"] == {"input": 2.5, "output": 10}
    assert found["models"]["claude"]["strategy"] == "latency"
    assert found["breaker"] == {"failures": 4, "ejection": 30}
    assert found["redis"] == {"url": "env:REDIS"}


# --- What cannot be read --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "field"),
    [
        ({}, ""),
        ({"apiVersion": "v1", "data": {}}, ""),
        ({"model_list": {"a": 1}}, "model_list"),
        ({"model_list": [], "router_settings": [1]}, "router_settings"),
        ({"general_settings": "x"}, "general_settings"),
    ],
)
def test_what_is_no_configuration_of_litellms_is_refused(
    source: dict[str, Any], field: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        translate(source)
    assert caught.value.field == field


def test_a_number_of_thousands_of_digits_is_no_trouble() -> None:
    number = 16**6000
    found = deployed(
        {"model": "openai/x", "api_key": number, "timeout": number, number: 1, "weight": number},
        router_settings={"redis_host": number, "timeout": number},
    )
    assert found.config["providers"]["openai"] == {
        "kind": "openai",
        "api_key": "env:OPENAI_API_KEY",
    }
    assert "not carried over" in noted(found, "router_settings.timeout")


def test_what_is_no_text_is_no_name() -> None:
    source = {
        "model_list": [
            {"model_name": "\0", "litellm_params": {"model": "openai/x"}},
            {"model_name": "openai/*", "litellm_params": {"model": "openai/*"}},
        ],
        "router_settings": {
            "model_group_alias": {"a\ud800": "openai/x"},
            "fallbacks": [{"openai/\0": ["openai/\0"]}],
        },
    }
    found = translate(source)
    verify(found.config)
    assert "no model_name" in noted(found, "model_list[0]")
    assert "not the name" in noted(found, "router_settings.fallbacks[0].openai/?[0]")


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=3)
    | st.dates()
    | st.sampled_from(["os.environ/X", "${X}", "env:X", "1e-6", "openai/*", "*", "http://a/v1"])
)
NAMES = st.sampled_from(
    (
        *("model", "model_name", "api_base", "api_key", "fallbacks", "timeout", "max_budget"),
        *("litellm_params", "model_info", "headers", "organization", "order", "weight", "mode"),
        *("redis_host", "redis_url", "master_key", "model_group_alias", "default_fallbacks"),
        *("input_cost_per_token", "output_cost_per_token", "vertex_credentials", "api_version"),
        *("rpm", "max_parallel_requests", "tags", "enable_pre_call_checks", "max_input_tokens"),
        *("context_window_fallbacks", "content_policy_fallbacks", "max_fallbacks", "num_retries"),
        *("VERTEXAI_LOCATION", "AWS_REGION", "AZURE_API_VERSION", "OPENAI_BASE_URL"),
        *("vertex_location", "vertex_ai_credentials", "cache", "cache_params", "ttl", "type"),
    )
)
KEYS = NAMES | st.text(max_size=4) | st.integers() | st.booleans() | st.none()
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
MODELS = st.sampled_from(sorted(ROWS)).map(lambda prefix: f"{prefix}/x") | SCALARS
ENTRY = st.fixed_dictionaries(
    {
        "model_name": SCALARS,
        "litellm_params": st.dictionaries(KEYS, ANYTHING, max_size=4).flatmap(
            lambda params: MODELS.map(lambda model: {**params, "model": model})
        ),
        "model_info": ANYTHING,
    }
)
SETTINGS = st.dictionaries(KEYS, ANYTHING, max_size=4) | ANYTHING
SOURCE = st.fixed_dictionaries(
    {"model_list": st.lists(ENTRY | ANYTHING, max_size=4)},
    optional=dict.fromkeys(SECTIONS[1:], SETTINGS) | {"credential_list": ANYTHING},
)


@given(SOURCE | st.dictionaries(KEYS, ANYTHING, max_size=4))
@settings(deadline=None, max_examples=100)
def test_any_nesting_gives_a_result_that_can_be_used_or_an_error(source: dict[Any, Any]) -> None:
    try:
        found = translate(source)
    except ConfigError:
        return
    verify(found.config)
    described(found.notes, Document("", "config.yaml"))
