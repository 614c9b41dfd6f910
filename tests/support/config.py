"""Configurations for tests, as YAML text."""

import hashlib
import json
from typing import Any

KEY = "sk-test-0123456789"
PRICED_MODEL = "gpt-4o-mini"


def digest(key: str) -> str:
    """The SHA-256 under which a key is configured."""
    return hashlib.sha256(key.encode()).hexdigest()


def config(*upstreams: str, **sections: Any) -> str:
    """One key (tenant acme) and one model, `m`, whose targets are the upstreams in order.

    Sections given by name replace the defaults. The upstreams are of kind openai, so that prices
    hold. JSON is YAML.
    """
    providers = {
        f"p{i}": {"kind": "openai", "api_key": f"sk-upstream-{i}", "base_url": url}
        for i, url in enumerate(upstreams)
    }
    targets = [
        {"provider": name, "model": PRICED_MODEL, "priority": i + 1}
        for i, name in enumerate(providers)
    ]
    content: dict[str, Any] = {
        "auth": {"keys": [{"name": "k", "tenant": "acme", "sha256": digest(KEY)}]},
        "providers": providers,
        "models": {"m": {"targets": targets}},
        # One attempt a target, and none is left alone: what becomes of it is then for sure.
        "retries": {"attempts": 0},
        "breaker": {"failures": 1000, "minimum": 10_000, "longest": 0.01},
        **sections,
    }
    return json.dumps({name: value for name, value in content.items() if value is not None})


def chat(model: str = "m", **fields: Any) -> dict[str, Any]:
    """A chat request."""
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], **fields}


def bearer(key: str = KEY) -> dict[str, str]:
    """The header that presents a key."""
    return {"Authorization": f"Bearer {key}"}
