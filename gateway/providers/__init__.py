"""What upstreams speak. A provider is one file with an ADAPTER and one line in PROVIDERS."""

import msgspec

from gateway.providers import openai
from gateway.providers.adapter import Adapter

__all__ = ["PROVIDERS", "Adapter", "Kind"]


class Kind(msgspec.Struct, frozen=True):
    """A provider kind: its wire format and what is commonly true of it.

    `claims`: patterns of bare model names that mean this provider. `prices`: whose prices in the
    price data hold; None where the operator's own hardware has no list price.
    """

    adapter: Adapter
    base_url: str | None = None
    needs_key: bool = True
    claims: tuple[str, ...] = ()
    prices: str | None = None


_OPENAI_MODELS = (
    *("gpt-*", "chatgpt-*", "o1", "o1-*", "o3", "o3-*", "o4-*", "codex-*"),
    *("text-embedding-*", "babbage-*", "davinci-*", "ft:*"),
)

PROVIDERS: dict[str, Kind] = {
    "openai": Kind(
        openai.ADAPTER, "https://api.openai.com/v1", claims=_OPENAI_MODELS, prices="openai"
    ),
    "openai-compatible": Kind(openai.ADAPTER, needs_key=False),
    # Served by the gateway itself: gateway.http.demo listens on the Unix socket put here.
    "demo": Kind(openai.ADAPTER, "demo:/v1", needs_key=False, claims=("demo", "demo-embedding")),
}
