"""Addresses to listen on: `host:port`, `:port`, `[::1]:port`."""

from ipaddress import ip_address

from gateway.core.errors import ConfigError

MAX_PORT = 65535


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port; an empty host means every interface. Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > MAX_PORT:
        raise ConfigError(f"expected host:port, got {text!r}", field="server.address")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif "[" in host or "]" in host:
        message = f"expected [IPv6 address]:port, with both brackets, got {text!r}"
        raise ConfigError(message, field="server.address")
    elif ":" in host:
        raise ConfigError(
            f"write an IPv6 address in brackets: [{host}]:{port}", field="server.address"
        )
    return host or "0.0.0.0", int(port)  # noqa: S104  documented: no host means all interfaces


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach a listener on the host."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
