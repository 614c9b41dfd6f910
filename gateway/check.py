"""Finds what is wrong with a configuration before any worker is started on it."""

import errno
import importlib.util
import os
import re
import ssl
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from gateway.config.caching import LOCAL_EMBEDDER
from gateway.config.keys import LEFT_IN, is_left_in
from gateway.config.schema import MEBIBYTE, Config, Ledger, Price, Scope, Tls, Webhook
from gateway.core.errors import ConfigError
from gateway.observe.ledger import LedgerFile
from gateway.observe.webhook import signing_key
from gateway.pipeline.catalogue import Catalogue
from gateway.pipeline.keyring import Keyring
from gateway.policy import pricing as policy_pricing
from gateway.policy.pricing import PriceTable
from gateway.store.location import Location, parse_url

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.1, token
_FORBIDDEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # in a header's value, section 5.5


def open_ledger(ledger: Ledger, worker: str) -> LedgerFile | None:
    """Open a worker's file of finished requests, where there is to be one."""
    directory = _ledger_directory(ledger)
    if directory is None:
        return None
    path = directory / f"requests-{worker}.jsonl"
    return LedgerFile(path, ledger.rotate_mb * MEBIBYTE, ledger.keep)


def check(config: Config, prices: PriceTable) -> None:
    """Compile everything a worker would, to find errors before any worker is started.

    Leaves no file behind. Raises ConfigError.
    """
    _check_default_price(config.pricing.default)
    catalogue = Catalogue(config, prices, "")
    Keyring(config)
    if config.redis.url:
        _check_location(parse_url(config.redis.url))
    if "+cluster" in (config.redis.url or "") and config.limits.everybody != Scope():
        message = "a cluster decides over one tenant at a time: limits of all need a single Redis"
        raise ConfigError(message, field="limits.global")
    for name, provider in config.providers.items():
        _check_authorities(provider.ca_file, f"providers.{name}.ca_file")
        if provider.prices is not None and not prices.knows(provider.prices):
            message = f"no price list has that name; one of: {', '.join(prices.sellers)}"
            raise ConfigError(message, field=f"providers.{name}.prices")
    _check_url(config.tracing.endpoint, "tracing.endpoint")
    _check_headers(config.tracing.headers, "tracing.headers")
    _check_webhook(config.ledger.webhook)
    _check_semantic(config, catalogue)
    if config.server.tls is not None:
        tls_context(config.server.tls)
    _check_ledger(config.ledger)


def _check_default_price(price: Price | None) -> None:
    """Compile the price of models that nobody knows, whether there is one by now or not."""
    if price is not None:
        try:
            policy_pricing.Price.from_rates(*msgspec.structs.astuple(price))
        except ValueError as error:
            raise ConfigError(str(error), field="pricing.default") from None


def _check_location(location: Location) -> None:
    _check_authorities(location.ca_file, "redis.url")
    if is_left_in(location.password or ""):
        raise ConfigError(f"the password: {LEFT_IN}", field="redis.url")


def _check_authorities(ca_file: str | None, field: str) -> None:
    if not ca_file:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca_file)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"certificates do not load: {reason}", field=field) from None


def _check_url(url: str, field: str) -> None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable()
        _ = parts.port
    except ValueError:
        valid = False
    if not valid or " " in url:
        raise ConfigError("expected a URL (http, https)", field=field)


def _check_headers(headers: Mapping[str, str], field: str) -> None:
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or _FORBIDDEN.search(value):
            message = "a header holds characters that HTTP forbids, such as a line's end"
            raise ConfigError(message, field=f"{field}.{name}" if name.isprintable() else field)


def _check_ledger(ledger: Ledger) -> None:
    """See that a worker can write there. The directory is the gateway's to make."""
    directory = _ledger_directory(ledger)
    if directory is None:
        return
    try:
        nearest = next(path for path in (directory, *directory.parents) if path.exists())
        if not nearest.is_dir():
            raise _unwritable(directory, os.strerror(errno.ENOTDIR))
        # Rights are not all, least of all root's: /proc takes no file.
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise _unwritable(directory, error.strerror) from None


def _ledger_directory(ledger: Ledger) -> Path | None:
    try:
        return None if ledger.directory is None else Path(ledger.directory).expanduser()
    except RuntimeError:
        message = "there is no such home directory"
        raise ConfigError(message, field="ledger.directory") from None


def _unwritable(path: Path, reason: str | None) -> ConfigError:
    return ConfigError(f"{path} cannot be written: {reason}", field="ledger.directory")


def _check_semantic(config: Config, catalogue: Catalogue) -> None:
    semantic = config.cache.semantic
    if semantic is None:
        for name, model in config.models.items():
            if model.cache.semantic:
                message = "cache.semantic says by which model questions are compared"
                raise ConfigError(message, field=f"models.{name}.cache.semantic")
        return
    local = semantic.model == LOCAL_EMBEDDER
    needed = ["numpy", *(["wordllama"] if local else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        message = f"needs {' and '.join(missing)}: pip install '.[semantic]' in a checkout"
        raise ConfigError(message, field="cache.semantic")
    if not local and catalogue.resolve(semantic.model) is None:
        message = f"no provider serves {semantic.model!r}"
        raise ConfigError(message, field="cache.semantic.model")


def _check_webhook(webhook: Webhook | None) -> None:
    if webhook is None:
        return
    _check_url(webhook.url, "ledger.webhook.url")
    _check_headers(webhook.headers, "ledger.webhook.headers")
    if webhook.secret is not None:
        try:
            signing_key(webhook.secret)
        except ValueError as error:
            raise ConfigError(str(error), field="ledger.webhook.secret") from None


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Return the listener's TLS context: 1.2 and later. Raises ConfigError."""
    for name, path in (("certificate", tls.certificate), ("key", tls.key)):
        try:
            Path(path).read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"cannot be read: {reason}", field=f"server.tls.{name}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(tls.certificate, tls.key, password=_no_passphrase)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"certificate and key do not load: {reason}", field="server.tls"
        ) from None
    return context


def _no_passphrase() -> str:
    raise ValueError("the key is encrypted; give one without a passphrase")
