"""Which provider a LiteLLM model's name means: `prefix/model`, or a bare name that it guesses.

A prefix is one row. What they mean there: https://docs.litellm.ai/docs/providers
"""

import re

import msgspec

from gateway.config.litellm.source import NotCarried
from gateway.providers import PROVIDERS

COMPATIBLE = "openai-compatible"


class Row(msgspec.Struct, frozen=True):
    """What a prefix means here: a kind, the variable of its key, and its address.

    `base` where the kind's own address is another one, or where the kind has none; `end`: what our
    address ends with and LiteLLM's need not; `base_variable` where LiteLLM has no address either.
    """

    kind: str
    key: str = ""
    base: str = ""
    end: str = ""
    base_variable: str = ""


_OPENAI = Row("openai", "OPENAI_API_KEY")
_ANTHROPIC = Row("anthropic", "ANTHROPIC_API_KEY", end="/v1")
_COHERE = Row("cohere", "COHERE_API_KEY")
_VERTEX = Row("vertex")
_OLLAMA = Row("ollama", end="/v1")
# Servers of any address that speak OpenAI's dialect.
ANY = Row(COMPATIBLE)
_AI21 = Row(COMPATIBLE, "AI21_API_KEY", "https://api.ai21.com/studio/v1")

ROWS: dict[str, Row] = {
    "openai": _OPENAI,
    "text-completion-openai": _OPENAI,
    "azure": Row("azure", "AZURE_API_KEY", base_variable="AZURE_API_BASE"),
    "azure_text": Row("azure", "AZURE_API_KEY", base_variable="AZURE_API_BASE"),
    "azure_ai": Row(COMPATIBLE, "AZURE_AI_API_KEY", end="/v1", base_variable="AZURE_AI_API_BASE"),
    "anthropic": _ANTHROPIC,
    "anthropic_text": _ANTHROPIC,
    "gemini": Row("gemini", "GEMINI_API_KEY"),
    "vertex_ai": _VERTEX,
    "vertex_ai_beta": _VERTEX,
    "bedrock": Row("bedrock"),
    "bedrock_converse": Row("bedrock"),
    "mistral": Row("mistral", "MISTRAL_API_KEY", end="/v1"),
    "codestral": Row("mistral", "CODESTRAL_API_KEY", "https://codestral.mistral.ai/v1"),
    "cohere": _COHERE,
    "cohere_chat": _COHERE,
    "groq": Row("groq", "GROQ_API_KEY"),
    "deepseek": Row("deepseek", "DEEPSEEK_API_KEY"),
    "xai": Row("xai", "XAI_API_KEY"),
    "together_ai": Row("together", "TOGETHER_API_KEY"),
    "fireworks_ai": Row("fireworks", "FIREWORKS_API_KEY"),
    "perplexity": Row("perplexity", "PERPLEXITYAI_API_KEY"),
    "openrouter": Row("openrouter", "OPENROUTER_API_KEY"),
    "moonshot": Row("moonshot", "MOONSHOT_API_KEY"),
    "cerebras": Row("cerebras", "CEREBRAS_API_KEY"),
    "nvidia_nim": Row("nvidia", "NVIDIA_NIM_API_KEY"),
    "huggingface": Row("huggingface", "HF_TOKEN", end="/v1"),
    "hosted_vllm": Row("vllm", base_variable="HOSTED_VLLM_API_BASE"),
    "vllm": Row("vllm"),
    "ollama": _OLLAMA,
    "ollama_chat": _OLLAMA,
    "lm_studio": Row("lmstudio"),
    "llamafile": Row(COMPATIBLE, base="http://127.0.0.1:8080/v1"),
    "openai_like": ANY,
    "custom_openai": ANY,
    "aiohttp_openai": ANY,
    "xinference": ANY,
    "docker_model_runner": ANY,
    "lemonade": ANY,
    "litellm_proxy": Row(
        COMPATIBLE, "LITELLM_PROXY_API_KEY", base_variable="LITELLM_PROXY_API_BASE"
    ),
    # Services that speak it, at the addresses that LiteLLM knows.
    "ai21": _AI21,
    "ai21_chat": _AI21,
    "dashscope": Row(
        COMPATIBLE,
        "DASHSCOPE_API_KEY",
        "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
    ),
    "deepinfra": Row(COMPATIBLE, "DEEPINFRA_API_KEY", "https://api.deepinfra.com/v1/openai"),
    "featherless_ai": Row(COMPATIBLE, "FEATHERLESS_AI_API_KEY", "https://api.featherless.ai/v1"),
    "friendliai": Row(COMPATIBLE, "FRIENDLI_TOKEN", "https://api.friendli.ai/serverless/v1"),
    "github": Row(COMPATIBLE, "GITHUB_API_KEY", "https://models.inference.ai.azure.com"),
    "hyperbolic": Row(COMPATIBLE, "HYPERBOLIC_API_KEY", "https://api.hyperbolic.xyz/v1"),
    "lambda_ai": Row(COMPATIBLE, "LAMBDA_API_KEY", "https://api.lambda.ai/v1"),
    "meta_llama": Row(COMPATIBLE, "LLAMA_API_KEY", "https://api.llama.com/compat/v1"),
    "morph": Row(COMPATIBLE, "MORPH_API_KEY", "https://api.morphllm.com/v1"),
    "nebius": Row(COMPATIBLE, "NEBIUS_API_KEY", "https://api.studio.nebius.ai/v1"),
    "nscale": Row(COMPATIBLE, "NSCALE_API_KEY", "https://inference.api.nscale.com/v1"),
    "sambanova": Row(COMPATIBLE, "SAMBANOVA_API_KEY", "https://api.sambanova.ai/v1"),
    "v0": Row(COMPATIBLE, "V0_API_KEY", "https://api.v0.dev/v1"),
    "vercel_ai_gateway": Row(
        COMPATIBLE, "VERCEL_AI_GATEWAY_API_KEY", "https://ai-gateway.vercel.sh/v1"
    ),
    "volcengine": Row(COMPATIBLE, "VOLCENGINE_API_KEY", "https://ark.cn-beijing.volces.com/api/v3"),
}

# Bare names, in the order LiteLLM asks: a bare `gemini-*` is Vertex AI's there.
_BARE: tuple[tuple[str, str], ...] = (
    (r"(chat)?gpt-.*|o[1345](-.*)?|codex-.*|ft:(gpt-|babbage|davinci).*", "openai"),
    (r"text-embedding-(3|ada).*|(babbage|davinci)-.*", "openai"),
    (r"claude-.*", "anthropic"),
    (r"command.*|c4ai-.*|embed-(english|multilingual|v4).*", "cohere"),
    (r"gemini-.*|text-embedding-00\d.*|textembedding-gecko.*", "vertex_ai"),
    (r"([a-z]{2,6}\.)?(anthropic|amazon|meta|mistral|cohere|ai21|deepseek)\..*", "bedrock"),
)
# What a bare name has that is asked for under a prefix where no pattern has it, by the prefix.
GUESSED: dict[str, tuple[str, ...]] = {
    **{prefix: PROVIDERS[prefix].claims for prefix in ("openai", "anthropic", "cohere")},
    "vertex_ai": ("gemini-*", "textembedding-gecko*"),
    "bedrock": (
        *("anthropic.*", "amazon.*", "meta.*", "mistral.*", "cohere.*", "ai21.*", "deepseek.*"),
        *("us.*", "eu.*", "apac.*", "global.*"),
    ),
}
_HOSTS = {
    host: prefix
    for prefix, row in reversed(ROWS.items())
    if (host := (row.base or PROVIDERS[row.kind].base_url or "").partition("://")[2].split("/")[0])
    and "{" not in host
}


def split(model: str, custom: str | None, host: str) -> tuple[str, str]:
    """Return the prefix and the rest of a model's name, which may hold slashes itself.

    `custom` is LiteLLM's own word for the prefix, `host` that of its api_base. Raises NotCarried.
    """
    if model == "*":
        raise NotCarried(
            "the result's own providers are reached as provider/model; others have to be added"
        )
    if custom is not None and model.partition("/")[0] != custom:
        model = f"{custom}/{model}"
    prefix, slash, rest = model.partition("/")
    if slash and rest and prefix in ROWS:
        return prefix, rest
    if host in _HOSTS:
        return _HOSTS[host], model
    for pattern, owner in _BARE:
        if re.fullmatch(pattern, model):
            return owner, model
    if slash:
        raise NotCarried(f"Sluice has no provider for {prefix[:40]}/")
    raise NotCarried("its model does not say which provider is meant")
