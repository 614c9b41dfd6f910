"""Where a gateway with a configuration is reached from its own machine."""

import ssl

from gateway.config.address import parse_address
from gateway.config.schema import Config

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  what is reached instead


def place_of(config: Config) -> str:
    """Return host and port."""
    host, port = parse_address(config.server.address or "")
    host = _EVERYWHERE.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def url_of(config: Config) -> str:
    """Return the base URL."""
    return f"http{'s' if config.server.tls is not None else ''}://{place_of(config)}"


def trusting() -> ssl.SSLContext:
    """Return a context that takes any certificate: for this machine's own, which name another."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
