"""A LiteLLM deployment becomes a provider and a target; what cannot be reached is left out."""

from typing import Any

import pytest

from gateway.config.litellm.prefixes import ROWS
from gateway.providers import PROVIDERS
from tests.support.litellm import deployed, imported, noted, provider, targets

KEY = {"api_key": "os.environ/K"}
TAKEN = {"api_key": "env:K"}


# --- Providers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "kind", "own_name", "more"),
    [
        ("openai/gpt-4o", "openai", "gpt-4o", {}),
        ("text-completion-openai/babbage-002", "openai", "babbage-002", {}),
        ("openai/responses/gpt-5-pro", "openai", "gpt-5-pro", {"api": "responses"}),
        ("anthropic/claude-sonnet-4-5", "anthropic", "claude-sonnet-4-5", {}),
        ("gemini/gemini-2.5-pro", "gemini", "gemini-2.5-pro", {}),
        ("mistral/mistral-large-latest", "mistral", "mistral-large-latest", {}),
        (
            "codestral/codestral-latest",
            "mistral",
            "codestral-latest",
            {"base_url": "https://codestral.mistral.ai/v1"},
        ),
        ("cohere/command-r", "cohere", "command-r", {}),
        ("cohere_chat/command-r-plus", "cohere", "command-r-plus", {}),
        ("groq/llama-3.3-70b-versatile", "groq", "llama-3.3-70b-versatile", {}),
        ("deepseek/deepseek-chat", "deepseek", "deepseek-chat", {}),
        ("xai/grok-4", "xai", "grok-4", {}),
        ("together_ai/meta-llama/Llama-4", "together", "meta-llama/Llama-4", {}),
        ("fireworks_ai/llama-v3p1", "fireworks", "accounts/fireworks/models/llama-v3p1", {}),
        ("fireworks_ai/accounts/me/models/x", "fireworks", "accounts/me/models/x", {}),
        ("perplexity/sonar-pro", "perplexity", "sonar-pro", {}),
        ("openrouter/meta-llama/x:free", "openrouter", "meta-llama/x:free", {}),
        ("moonshot/kimi-k2", "moonshot", "kimi-k2", {}),
        ("cerebras/llama3.1-70b", "cerebras", "llama3.1-70b", {}),
        ("nvidia_nim/meta/llama3", "nvidia", "meta/llama3", {}),
        ("huggingface/Qwen/Qwen3", "huggingface", "Qwen/Qwen3", {}),
        ("huggingface/together/deepseek-ai/R1", "huggingface", "deepseek-ai/R1:together", {}),
        ("ollama/llama3.2:3b", "ollama", "llama3.2:3b", {}),
        ("ollama_chat/llama3", "ollama", "llama3", {}),
        ("lm_studio/qwen", "lmstudio", "qwen", {}),
        (
            "deepinfra/meta-llama/x",
            "openai-compatible",
            "meta-llama/x",
            {"base_url": "https://api.deepinfra.com/v1/openai"},
        ),
        ("gpt-4o-mini", "openai", "gpt-4o-mini", {}),
        ("o3-mini", "openai", "o3-mini", {}),
        ("ft:gpt-4o:org::id", "openai", "ft:gpt-4o:org::id", {}),
        ("text-embedding-3-small", "openai", "text-embedding-3-small", {}),
        ("claude-sonnet-4-5", "anthropic", "claude-sonnet-4-5", {}),
        ("command-r", "cohere", "command-r", {}),
    ],
)
def test_a_prefix_or_a_known_name_is_a_kind(
    model: str, kind: str, own_name: str, more: dict[str, str]
) -> None:
    entry, name = provider(model=model, **KEY)
    assert (entry, name) == ({"kind": kind, **TAKEN, **more}, own_name)


@pytest.mark.parametrize("prefix", ROWS)
def test_every_prefix_gives_a_provider_that_can_be_used(prefix: str) -> None:
    model = "gemini-pro" if prefix.startswith("vertex_ai") else "some-model"
    base = "https://models.example/v1"
    entry, _ = provider(model=f"{prefix}/{model}", api_base=base, **KEY)
    assert entry["kind"] in PROVIDERS
    kind = PROVIDERS[ROWS[prefix].kind]
    if kind.base_url is not None or ROWS[prefix].base or ROWS[prefix].base_variable:
        found = deployed({"model": f"{prefix}/{model}"})
        assert ("models" in found.config) == (prefix != "vllm")


def test_a_key_that_is_not_given_is_in_the_variable_that_litellm_reads() -> None:
    assert provider(model="groq/x")[0]["api_key"] == "env:GROQ_API_KEY"
    assert provider(model="perplexity/sonar")[0]["api_key"] == "env:PERPLEXITYAI_API_KEY"
    assert "api_key" not in provider(model="ollama/x")[0]


@pytest.mark.parametrize(
    ("params", "base_url"),
    [
        ({"model": "ollama/x", "api_base": "http://o:11434"}, "http://o:11434/v1"),
        ({"model": "ollama/x", "api_base": "http://o:11434/v1/"}, "http://o:11434/v1"),
        ({"model": "ollama_chat/x", "api_base": "http://o:11434/api/chat"}, "http://o:11434/v1"),
        ({"model": "hosted_vllm/x", "api_base": "http://v:8000/v1"}, "http://v:8000/v1"),
        ({"model": "vllm/x", "base_url": "http://v:8000/v1"}, "http://v:8000/v1"),
        ({"model": "hosted_vllm/x"}, "env:HOSTED_VLLM_API_BASE"),
        ({"model": "anthropic/x", "api_base": "https://a.example"}, "https://a.example/v1"),
        ({"model": "anthropic/x", "api_base": "https://a.example/v1/messages"}, None),
        ({"model": "mistral/x", "api_base": "https://m.example"}, "https://m.example/v1"),
        ({"model": "cohere/x", "api_base": "https://c.example/v1/chat"}, "https://c.example"),
        ({"model": "openai/x", "api_base": "http://l:1/v1/chat/completions"}, "http://l:1/v1"),
        ({"model": "openai/x", "api_base": "os.environ/BASE"}, "env:BASE"),
        ({"model": "openai/x", "api_base": "${BASE}"}, "env:BASE"),
        ({"model": "huggingface/x", "api_base": "https://h.example"}, "https://h.example/v1"),
    ],
)
def test_an_address_is_written_as_sluice_has_it(
    params: dict[str, str], base_url: str | None
) -> None:
    assert provider(**params)[0]["base_url"] == (base_url or "https://a.example/v1")


def test_openai_with_an_address_is_any_server_that_speaks_its_dialect() -> None:
    base = "http://127.0.0.1:8000/v1"
    entry, name = provider(model="openai/org/llama", api_base=base, api_key="none")
    server = {"kind": "openai-compatible", "api_key": "none", "base_url": base}
    assert entry == {**server, "prices": "openai"}
    assert name == "org/llama"
    own, _ = provider(model="openai/gpt-4o", api_base="https://api.openai.com/v1", **KEY)
    assert own == {"kind": "openai", **TAKEN}
    known, _ = provider(model="llama-3.3", api_base="https://api.groq.com/openai/v1", **KEY)
    assert known == {"kind": "groq", **TAKEN}
    said, _ = provider(model="llama-3.3", custom_llm_provider="groq", **KEY)
    assert said == {"kind": "groq", **TAKEN}


def test_a_model_of_openais_at_another_address_has_its_price() -> None:
    base = "https://eu.api.openai.com/v1"
    assert provider(model="openai/gpt-4o-mini", api_base=base, **KEY)[0]["prices"] == "openai"
    assert "prices" not in provider(model="openai_like/gpt-4o-mini", api_base=base, **KEY)[0]


def test_azure_has_a_resource_a_version_and_a_key_or_an_application() -> None:
    base = {"api_base": "https://eu.openai.azure.com/"}
    dated = {"api_version": "2024-10-21", "base_url": "https://eu.openai.azure.com"}
    keyed, name = provider(model="azure/my-4o", api_version="2024-10-21", **base, **KEY)
    assert (keyed, name) == ({"kind": "azure", **TAKEN, **dated}, "my-4o")
    whole = "https://eu.openai.azure.com/openai/deployments/my-4o?api-version=2024-10-21"
    assert provider(model="azure/my-4o", api_base=whole, **KEY)[0] == keyed
    application = {"tenant_id": "t", "client_id": "c", "client_secret": "os.environ/S"}
    entra, name = provider(model="azure/o_series/o3", api_version="v1", **base, **application)
    settings = {"tenant": "t", "client_id": "c", "client_secret": "env:S"}
    assert entra == {"kind": "azure", "entra": settings, "base_url": dated["base_url"]}
    assert name == "o3"
    assert provider(model="azure/x")[0] == {
        "kind": "azure",
        "api_key": "env:AZURE_API_KEY",
        "base_url": "env:AZURE_API_BASE",
    }


def test_azure_ai_is_a_resource_or_a_server() -> None:
    foundry = {"api_base": "https://r.services.ai.azure.com/models", **KEY}
    assert provider(model="azure_ai/grok-3", **foundry)[0]["kind"] == "azure"
    claude = provider(model="azure_ai/claude-sonnet-4-5", **foundry)[0]
    assert claude["base_url"] == "https://r.services.ai.azure.com/anthropic/v1"
    server = provider(model="azure_ai/x", api_base="https://s.models.ai.azure.com", **KEY)[0]
    assert server["base_url"] == "https://s.models.ai.azure.com/v1"


@pytest.mark.parametrize(
    ("model", "region", "own_name"),
    [
        ("bedrock/anthropic.claude-v2:1", None, "anthropic.claude-v2:1"),
        ("bedrock/converse/us.anthropic.claude-4", None, "us.anthropic.claude-4"),
        ("bedrock/invoke/amazon.nova-pro-v1:0", None, "amazon.nova-pro-v1:0"),
        ("bedrock/us-west-2/meta.llama3", "us-west-2", "meta.llama3"),
        ("bedrock/converse/us-gov-west-1/meta.llama3", "us-gov-west-1", "meta.llama3"),
        ("bedrock/arn:aws:bedrock:x:1:p/q", None, "arn:aws:bedrock:x:1:p/q"),
        ("anthropic.claude-3-haiku", None, "anthropic.claude-3-haiku"),
    ],
)
def test_bedrock_has_a_region_and_keys(model: str, region: str | None, own_name: str) -> None:
    keys = {"aws_access_key_id": "os.environ/A", "aws_secret_access_key": "os.environ/S"}
    entry, name = provider(model=model, aws_region_name=None if region else "eu-west-1", **keys)
    signed = {"access_key": "env:A", "secret_key": "env:S"}
    assert entry == {"kind": "bedrock", "region": region or "eu-west-1", "aws": signed}
    assert name == own_name


def test_bedrock_without_keys_says_which_variables_to_set() -> None:
    found = deployed({"model": "bedrock/meta.llama3", "aws_role_name": "r"})
    assert found.config["providers"]["bedrock"] == {"kind": "bedrock"}
    place = "model_list[0].litellm_params."
    assert "AWS_ACCESS_KEY_ID" in noted(found, f"{place}aws_access_key_id")
    assert "AWS_REGION" in noted(found, f"{place}aws_region_name")
    assert "keys alone" in noted(found, f"{place}aws_role_name")


def test_vertex_has_a_project_and_a_location() -> None:
    place = {"vertex_project": "p", "vertex_location": "europe-west1"}
    credentials = "os.environ/GOOGLE_JSON"
    entry, name = provider(model="gemini-2.5-pro", **place, vertex_credentials=credentials)
    expected = {"kind": "vertex", "project": "p", "location": "europe-west1"}
    assert (entry, name) == ({**expected, "credentials": "env:GOOGLE_JSON"}, "gemini-2.5-pro")
    bare, name = provider(model="vertex_ai/claude-sonnet-4@20250514")
    assert (bare["project"], bare["location"]) == ("env:VERTEXAI_PROJECT", "env:VERTEXAI_LOCATION")
    written_out = {"type": "authorized_user", "client_id": "c"}
    entry, _ = provider(model="vertex_ai/gemini-pro", vertex_credentials=written_out)
    assert entry["credentials"] == '{"type": "authorized_user", "client_id": "c"}'


def test_headers_organization_and_deadline_belong_to_the_provider() -> None:
    headers = {"X-Team": "a", "Host": "b", "X-Auth": "os.environ/H", "X-N": 5, "x-n": 6}
    headers |= {"Authorization": "os.environ/H", "Accept-Encoding": "gzip"}
    params = {"model": "openai/x", "organization": "org-1", "timeout": "120", **KEY}
    found = deployed({**params, "extra_headers": headers, "stream_timeout": 30})
    entry = found.config["providers"]["openai"]
    assert entry["headers"] == {
        "OpenAI-Organization": "org-1",
        "X-Team": "a",
        "X-Auth": "env:H",
        "x-n": "6",
    }
    assert entry["timeouts"] == {"first_byte": 120, "first_token": 30, "idle": 120}
    place = "model_list[0].litellm_params."
    for name in ("Host", "Accept-Encoding"):
        assert "cannot be set" in noted(found, f"{place}extra_headers.{name}")
    assert "credential goes there" in noted(found, f"{place}extra_headers.Authorization")
    keyless = {"model": "hosted_vllm/x", "api_base": "http://h/v1"}
    entry, _ = provider(**keyless, extra_headers={"authorization": "os.environ/H"})
    assert entry["headers"] == {"authorization": "env:H"}
    listed = deployed({"model": "openai/x", "organization": ["a", "b"]})
    assert "a provider for each" in noted(listed, f"{place}organization")


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({}, "names no model"),
        ({"model": "os.environ/MODEL"}, "names no model"),
        ({"model": 5.5}, "which provider is meant"),
        ({"model": "mistralai/mistral-7b"}, "no provider for mistralai/"),
        ({"model": "sagemaker/x"}, "no provider for sagemaker/"),
        ({"model": "house-model"}, "which provider is meant"),
        ({"model": "bedrock/agent/x"}, "does not speak to bedrock/agent/"),
        ({"model": "vertex_ai/meta/llama"}, "Gemini and Claude"),
        ({"model": "vllm/x"}, "its own process"),
        ({"model": "openai_like/x"}, "no api_base"),
        ({"model": "openai/x", "api_base": "localhost:8000"}, "not an http address"),
        ({"model": "openai/x", "api_base": "http://[::1"}, "not an http address"),
        ({"model": "openai/x", "api_base": "http://a:b/v1"}, "not an http address"),
        ({"model": "openai/x", "api_key": "a\nb"}, "HTTP forbids"),
        ({"model": "azure/x", "api_version": "a b"}, "api_version"),
        ({"model": "bedrock/x", "aws_access_key_id": "a"}, "go together"),
    ],
)
def test_a_deployment_that_cannot_be_reached_is_left_out(params: dict[str, Any], why: str) -> None:
    found = deployed(params)
    assert (len(found.notes), "providers" in found.config) == (2, False)
    assert why in noted(found, "model_list[0]")


def test_what_sluice_does_not_serve_is_left_out() -> None:
    found = imported("""
        model_list:
          - model_name: a
            litellm_params: {model: openai/gpt-image-1}
            model_info: {mode: image_generation}
          - {model_name: b, litellm_params: {model: openai/gpt-5}, model_info: {mode: responses}}
          - model_name: c
          - [d]
          - model_name: e
            litellm_params: {model: bedrock/amazon.titan-embed-text-v2:0}
            model_info: {mode: embedding}
          - {litellm_params: {model: openai/gpt-5}}
        """)
    assert list(found.config["models"]) == ["b"]
    assert found.config["providers"]["openai"]["api"] == "responses"
    assert "image_generation" in noted(found, "model_list[0]")
    assert "no model" in noted(found, "model_list[2]")
    assert "no model_name" in noted(found, "model_list[3]")
    assert "no embeddings" in noted(found, "model_list[4]")
    assert "no model_name" in noted(found, "model_list[5]")


def test_a_provider_is_written_once_under_a_readable_name() -> None:
    azure = {"model": "azure/x", "api_version": "v1", **KEY}
    found = deployed(
        {"model": "openai/a", **KEY},
        {"model": "openai/b", **KEY},
        {"model": "openai/c", "api_key": "os.environ/OPENAI_TEAM_B_API_KEY"},
        {"model": "openai/d", "api_key": "sk-literal"},
        {"model": "openai/e", "timeout": 5, **KEY},
        {**azure, "api_base": "https://house-eu.openai.azure.com"},
        {**azure, "api_base": "https://house-us.openai.azure.com"},
        {"model": "bedrock/x", "aws_region_name": "us-east-1"},
        {"model": "bedrock/x", "aws_region_name": "eu-west-1"},
        {"model": "openai/x", "api_base": "https://api.house.example/v1", **KEY},
        {"model": "openai/x", "api_base": "http://10.0.0.1:8000/v1", **KEY},
        {"model": "openai/x", "api_base": "http://ollama:8000/v1", **KEY},
        {"model": "openai/x", "api_base": "os.environ/HOUSE_LLM_API_BASE", **KEY},
        {"model": "deepinfra/x", **KEY},
    )
    assert [one["provider"] for one in targets(found)] == [
        *("openai", "openai", "openai-team-b", "openai-2", "openai-5s"),
        *("azure", "azure-house-us", "bedrock", "bedrock-eu-west-1"),
        *("house", "local", "ollama-compatible", "house-llm", "deepinfra"),
    ]


def test_a_credential_may_stand_apart() -> None:
    found = imported("""
        credential_list:
          - {credential_name: eu, credential_values: {api_key: os.environ/EU, api_base: "https://eu.example"}}
          - {credential_name: odd}
        model_list:
          - model_name: m
            litellm_params: {model: azure/x, litellm_credential_name: eu, api_version: v1}
        """)
    expected = {"kind": "azure", "api_key": "env:EU", "base_url": "https://eu.example"}
    assert found.config["providers"]["azure"] == expected
    assert "credential_values" in noted(found, "credential_list[1]")


# --- Values ---------------------------------------------------------------------------------------


def test_a_secret_that_stands_in_clear_is_said_but_never_shown() -> None:
    found = deployed({"model": "openai/x", "api_key": "sk-very-secret"})
    assert found.config["providers"]["openai"]["api_key"] == "sk-very-secret"
    assert "in clear" in noted(found, "model_list[0].litellm_params.api_key")
    assert "sk-very-secret" not in str(found.notes)
    none = deployed({"model": "ollama/x", "api_key": "none", "timeout": 9})
    assert "in clear" not in str(none.notes)


def test_what_looks_like_a_reference_of_ours_is_not_taken_for_one() -> None:
    found = deployed({"model": "openai/x", "api_key": "env:K"})
    assert found.config["providers"]["openai"]["api_key"] == "env:OPENAI_API_KEY"
    assert "means a variable" in noted(found, "model_list[0].litellm_params.api_key")


def test_yaml_is_read_as_people_mean_it() -> None:
    found = imported("""
        x: &defaults {api_key: os.environ/K, api_version: 2024-10-21, drop_params: "True"}
        model_list:
          - model_name: 4.5
            litellm_params:
              <<: *defaults
              model: azure/x
              api_base: https://a.example
              input_cost_per_token: 1e-6
              output_cost_per_token: "2.5E-6"
        """)
    entry = found.config["providers"]["azure"]
    assert (entry["api_version"], entry["api_key"]) == ("2024-10-21", "env:K")
    assert found.config["models"]["4.5"] == {
        "targets": [{"provider": "azure", "model": "x", "price": {"input": 1, "output": 2.5}}]
    }
    assert entry["unsupported"] == "drop"


@pytest.mark.parametrize(
    ("rates", "price"),
    [
        ((0.00000125, 0.00001), (1.25, 10)),
        (("1e-6", "4e-07"), (1, 0.4)),
        ((0, 0), (0, 0)),
        (("0.000000123456789", 1), (0.123456789, 1_000_000)),
        (("0.0000010000000000000000000", "1e-15"), (1, 1e-9)),
        (("123.456789012345678", "0"), ("123456789.012345678", 0)),
    ],
)
def test_a_price_is_per_million_exactly(rates: tuple[Any, Any], price: tuple[Any, Any]) -> None:
    costs = dict(zip(("input_cost_per_token", "output_cost_per_token"), rates, strict=True))
    found = deployed({"model": "openai/x", **costs, "cache_read_input_token_cost": 1e-7})
    expected = {"input": price[0], "output": price[1], "cached": 0.1}
    assert targets(found)[0]["price"] == expected


@pytest.mark.parametrize("rate", ["1e-16", -1, "free", float("inf"), 2000, True, "os.environ/P"])
def test_what_is_no_price_is_noted(rate: Any) -> None:
    found = deployed(
        {"model": "openai/x", "input_cost_per_token": rate, "output_cost_per_token": 0}
    )
    assert "price" not in targets(found)[0]
    assert noted(found, "model_list[0].litellm_params.input_cost_per_token")


def test_a_price_may_stand_in_model_info_and_be_half_known() -> None:
    found = imported("""
        model_list:
          - model_name: m
            litellm_params: {model: openai/x, input_cost_per_token: 0.000002}
            model_info: {input_cost_per_token: 5, output_cost_per_token: 0.000003}
          - model_name: half
            litellm_params: {model: openai/x}
            model_info: {output_cost_per_token: 0.000003, input_cost_per_second: 1}
          - model_name: vectors
            litellm_params: {model: openai/e, input_cost_per_token: 0.00000002}
            model_info: {mode: embedding}
          - model_name: azure
            litellm_params: {model: azure/deployed}
            model_info: {base_model: azure/gpt-4o}
        """)
    assert targets(found, "m")[0]["price"] == {"input": 2, "output": 3}
    assert targets(found, "half")[0]["price"] == {"input": 0, "output": 3}
    assert targets(found, "vectors")[0]["price"] == {"input": 0.02, "output": 0}
    assert "0 is taken" in noted(found, "model_list[1].model_info.input_cost_per_token")
    assert "prices are by" in noted(found, "model_list[1].model_info.input_cost_per_second")
    assert not noted(found, "model_list[2].litellm_params.output_cost_per_token")
    assert "give the model a price" in noted(found, "model_list[3].model_info.base_model")
