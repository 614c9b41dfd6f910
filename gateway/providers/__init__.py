"""What upstreams speak. A provider is one file with an ADAPTER and one line in PROVIDERS.

One that speaks OpenAI's dialect is one row: an address, the variable of its key, and its quirks.
"""

from collections.abc import Callable

import msgspec

from gateway.core.operations import Operation
from gateway.core.target import Target
from gateway.providers import anthropic, azure, bedrock, cohere, gemini, openai, vertex
from gateway.providers.adapter import Adapter
from gateway.providers.openai import OpenAI
from gateway.providers.quirks import ALL, OLD_MAX, TOLD, Quirks
from gateway.providers.responses_only import RESPONSES_ONLY

__all__ = ["PROVIDERS", "Adapter", "Kind"]


class Kind(msgspec.Struct, frozen=True):
    """A provider kind: its wire format and what is commonly true of it.

    `claims`: patterns of bare model names that mean this provider. `prices`: whose prices in the
    price data hold; None where the operator's own hardware has no list price. `variable` is the
    usual environment variable of its key. `settings`: what else must be configured; their names in
    braces stand in `base_url`. `options`: what else may be, of this kind alone. `choose` picks
    another adapter for some targets. `credential`: the header that its key goes into.
    """

    adapter: Adapter
    base_url: str | None = None
    needs_key: bool = True
    claims: tuple[str, ...] = ()
    prices: str | None = None
    variable: str = ""
    settings: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    choose: Callable[[Target], Adapter] | None = None
    credential: str = "Authorization"

    def adapter_for(self, target: Target) -> Adapter:
        """Return the adapter of a target."""
        return self.adapter if self.choose is None else self.choose(target)


_CHAT = Operation.CHAT
_CHATS = frozenset((_CHAT,))
_RESPONDS = frozenset((_CHAT, Operation.RESPONSES))
_COMPLETES = frozenset((_CHAT, Operation.COMPLETIONS))
_EMBEDS = frozenset((_CHAT, Operation.COMPLETIONS, Operation.EMBEDDINGS))
_ALL = frozenset((*_EMBEDS, Operation.RESPONSES))

_OPENAI_MODELS = (
    *("gpt-*", "chatgpt-*", "o1", "o1-*", "o3", "o3-*", "o4-*", "codex-*"),
    *("text-embedding-*", "babbage-*", "davinci-*", "ft:*"),
)
_MISTRAL_MODELS = (
    *("mistral-*", "ministral-*", "magistral-*", "codestral*", "devstral-*", "pixtral-*"),
    *("voxtral-*", "open-mistral-*", "open-mixtral-*"),
)
# Mistral answers any field that it does not know with an error.
_MISTRAL = Quirks(
    renames=OLD_MAX | {"seed": "random_seed"},
    refuses=frozenset(
        (
            *("logprobs", "top_logprobs", "logit_bias", "user", "store", "service_tier"),
            *("modalities", "audio", "functions", "function_call", "web_search_options"),
            *("safety_identifier", "prompt_cache_retention", "verbosity", "reasoning", "top_k"),
        )
    ),
    usage_option=False,
    tool_choices={"required": "any"},
    thinking_parts=True,
    document_urls=True,
    short_ids=True,
    results_answered=True,
)
_GROQ = Quirks(
    refuses=frozenset(("logprobs", "top_logprobs", "logit_bias", "n")), thoughts_back="reasoning"
)
_OLD = Quirks(renames=OLD_MAX)
_OLD_TOP_K = Quirks(renames=OLD_MAX, top_k=True)
_THINKS = Quirks(thoughts_back="reasoning_content", thoughts_needed=True)
_DEEPSEEK = Quirks(renames=OLD_MAX, thoughts_back="reasoning_content", thoughts_needed=True)


def _either(target: Target) -> Adapter:
    """Speak to models that only have the Responses API by that."""
    return RESPONSES_ONLY if target.setting("api") == "responses" else openai.ADAPTER


def _publisher(target: Target) -> Adapter:
    return vertex.CLAUDE if target.model.startswith("claude") else vertex.ADAPTER


PROVIDERS: dict[str, Kind] = {
    "openai": Kind(
        openai.ADAPTER,
        "https://api.openai.com/v1",
        claims=_OPENAI_MODELS,
        prices="openai",
        variable="OPENAI_API_KEY",
        options=("api",),
        choose=_either,
    ),
    "anthropic": Kind(
        anthropic.ADAPTER,
        "https://api.anthropic.com/v1",
        claims=("claude-*",),
        prices="anthropic",
        variable="ANTHROPIC_API_KEY",
        credential="x-api-key",
    ),
    "gemini": Kind(
        gemini.ADAPTER,
        "https://generativelanguage.googleapis.com/v1beta",
        claims=("gemini-*", "gemma-*"),
        prices="google",
        variable="GEMINI_API_KEY",
        credential="x-goog-api-key",
    ),
    "vertex": Kind(
        vertex.ADAPTER,
        "https://{location}-aiplatform.googleapis.com/v1",
        needs_key=False,
        prices="google",
        settings=("project", "location"),
        options=("credentials",),
        choose=_publisher,
    ),
    "bedrock": Kind(
        bedrock.ADAPTER,
        "https://bedrock-runtime.{region}.amazonaws.com",
        needs_key=False,
        prices="aws",
        variable="AWS_BEARER_TOKEN_BEDROCK",
        settings=("region",),
        options=("aws",),
    ),
    "azure": Kind(
        azure.ADAPTER,
        needs_key=False,
        prices="azure",
        variable="AZURE_OPENAI_API_KEY",
        options=("api_version", "entra"),
        credential="api-key",
    ),
    "cohere": Kind(
        cohere.ADAPTER,
        "https://api.cohere.com",
        claims=("command-*", "c4ai-*", "embed-v*", "embed-english-*", "embed-multilingual-*"),
        prices="cohere",
        variable="COHERE_API_KEY",
    ),
    "mistral": Kind(
        OpenAI(_MISTRAL, frozenset((Operation.EMBEDDINGS,))),
        "https://api.mistral.ai/v1",
        claims=_MISTRAL_MODELS,
        prices="mistral",
        variable="MISTRAL_API_KEY",
    ),
    "groq": Kind(
        OpenAI(_GROQ, _RESPONDS),
        "https://api.groq.com/openai/v1",
        prices="groq",
        variable="GROQ_API_KEY",
    ),
    "deepseek": Kind(
        OpenAI(_DEEPSEEK, _CHATS),
        "https://api.deepseek.com",
        claims=("deepseek-*",),
        prices="deepseek",
        variable="DEEPSEEK_API_KEY",
    ),
    "xai": Kind(
        OpenAI(speaks=_RESPONDS),
        "https://api.x.ai/v1",
        claims=("grok-*",),
        prices="x-ai",
        variable="XAI_API_KEY",
    ),
    "together": Kind(
        OpenAI(Quirks(renames=OLD_MAX, thoughts_back="reasoning", top_k=True), _EMBEDS),
        "https://api.together.xyz/v1",
        prices="together",
        variable="TOGETHER_API_KEY",
    ),
    "fireworks": Kind(
        OpenAI(Quirks(thoughts_back="reasoning_content", top_k=True), _EMBEDS),
        "https://api.fireworks.ai/inference/v1",
        claims=("accounts/fireworks/*",),
        prices="fireworks",
        variable="FIREWORKS_API_KEY",
    ),
    "perplexity": Kind(
        OpenAI(Quirks(renames=OLD_MAX, usage_option=False, top_k=True), _CHATS),
        "https://api.perplexity.ai",
        claims=("sonar", "sonar-*"),
        prices="perplexity",
        variable="PERPLEXITY_API_KEY",
    ),
    "openrouter": Kind(
        OpenAI(Quirks(renames=OLD_MAX, top_k=True, details=ALL), _ALL),
        "https://openrouter.ai/api/v1",
        prices="openrouter",
        variable="OPENROUTER_API_KEY",
    ),
    "moonshot": Kind(
        OpenAI(_THINKS, _CHATS),
        "https://api.moonshot.ai/v1",
        claims=("kimi-*", "moonshot-v1-*"),
        prices="moonshotai",
        variable="MOONSHOT_API_KEY",
    ),
    "cerebras": Kind(
        OpenAI(Quirks(thoughts_back="reasoning"), _COMPLETES),
        "https://api.cerebras.ai/v1",
        prices="cerebras",
        variable="CEREBRAS_API_KEY",
    ),
    "nvidia": Kind(
        OpenAI(_OLD, _EMBEDS),
        "https://integrate.api.nvidia.com/v1",
        variable="NVIDIA_API_KEY",
    ),
    "huggingface": Kind(
        OpenAI(_OLD, _RESPONDS), "https://router.huggingface.co/v1", variable="HF_TOKEN"
    ),
    "vllm": Kind(
        OpenAI(Quirks(thoughts_back="reasoning", top_k=True), _ALL),
        "http://127.0.0.1:8000/v1",
        needs_key=False,
    ),
    "sglang": Kind(
        OpenAI(Quirks(thoughts_back="reasoning_content", top_k=True), _ALL),
        "http://127.0.0.1:30000/v1",
        needs_key=False,
    ),
    "ollama": Kind(
        OpenAI(Quirks(renames=OLD_MAX, thoughts_back="reasoning"), _EMBEDS),
        "http://127.0.0.1:11434/v1",
        needs_key=False,
    ),
    "lmstudio": Kind(OpenAI(_OLD_TOP_K, _EMBEDS), "http://127.0.0.1:1234/v1", needs_key=False),
    "llamacpp": Kind(
        # Its own Responses ignore the schema, and call an answer that is cut complete.
        OpenAI(Quirks(renames=OLD_MAX, thoughts_back="reasoning_content", top_k=True), _EMBEDS),
        "http://127.0.0.1:8081/v1",
        needs_key=False,
    ),
    "openai-compatible": Kind(OpenAI(Quirks(details=TOLD), _EMBEDS), needs_key=False),
    # Served by the gateway itself: gateway.http.demo listens on the Unix socket put here.
    "demo": Kind(
        OpenAI(speaks=_EMBEDS), "demo:/v1", needs_key=False, claims=("demo", "demo-embedding")
    ),
}
