"""Finds what is wrong with a configuration before any worker is started on it."""

import importlib.util
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from gateway.config.caching import LOCAL_EMBEDDER
from gateway.config.schema import MEBIBYTE, Config, Ledger, Scope, Tls, Webhook
from gateway.core.errors import ConfigError
from gateway.observe.ledger import LedgerFile
from gateway.observe.webhook import signing_key
from gateway.pipeline.catalogue import Catalogue
from gateway.pipeline.keyring import Keyring
from gateway.policy.pricing import PriceTable
from gateway.store.location import parse_url


def open_ledger(ledger: Ledger, worker: str) -> LedgerFile | None:
    """Open a worker's file of finished requests. Raises ConfigError."""
    if ledger.directory is None:
        return None
    path = Path(ledger.directory).expanduser() / f"requests-{worker}.jsonl"
    try:
        return LedgerFile(path, ledger.rotate_mb * MEBIBYTE, ledger.keep)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}", field="ledger.directory"
        ) from None


def check(config: Config, prices: PriceTable) -> None:
    """Compile everything a worker would, to find errors before any worker is started."""
    catalogue = Catalogue(config, prices, "")
    Keyring(config)
    if config.redis.url:
        parse_url(config.redis.url)
    if "+cluster" in (config.redis.url or "") and config.limits.everybody != Scope():
        message = "a cluster decides over one tenant at a time: limits of all need a single Redis"
        raise ConfigError(message, field="limits.global")
    if urlsplit(config.tracing.endpoint).scheme not in ("http", "https"):
        raise ConfigError("expected a URL (http, https)", field="tracing.endpoint")
    _check_webhook(config.ledger.webhook)
    _check_semantic(config, catalogue)
    if config.server.tls is not None:
        tls_context(config.server.tls)
    if (ledger := open_ledger(config.ledger, "check")) is not None:
        ledger.close()
        ledger.remove()


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
    if urlsplit(webhook.url).scheme not in ("http", "https") or not urlsplit(webhook.url).hostname:
        raise ConfigError("expected a URL (http, https)", field="ledger.webhook.url")
    if webhook.secret is not None:
        try:
            signing_key(webhook.secret)
        except ValueError as error:
            raise ConfigError(str(error), field="ledger.webhook.secret") from None


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Return the listener's TLS context: 1.2 and later. Raises ConfigError."""
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
