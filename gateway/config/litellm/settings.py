"""What LiteLLM's settings are here: deadlines, the store, keys, budgets; and why others are not."""

import hashlib
import re
from typing import Any
from urllib.parse import quote, urlsplit

from gateway.config.litellm.source import CLEAR, REFERENCE, Fields

DEFAULT_TOTAL_SECONDS = 600
MIN_ADMIN_KEY_CHARS, MIN_ADMIN_KEY_VARIETY = 16, 8  # load._check_admin_key
MAX_BUDGET_USD, MIN_BUDGET_USD = 10**9, 0.000_001
_SCHEMES = frozenset(("redis", "rediss"))
_DURATION = re.compile(r"([1-9][0-9]{0,3})([mhd])")

_ROUTING = "a model's targets are asked by priority, then in the order written"
_RETRY = "a request that failed goes to the next target at once, never to the same one again"
_COOLDOWN = "only a key that was refused rests, as long as its provider says"
_TAGS = "there is no routing by tags: give each tag a model name of its own"
_CACHE = "Sluice does not cache replies"
_LOGS = "Sluice calls no logging service: see ledger, tracing and /metrics"
_DATABASE = (
    "there is no database; keys and spend in it stay there (sluice keys create makes new ones)"
)
_PEOPLE = "budgets are of keys, tenants and everybody"
_WHO = "keys alone say who may call (auth.keys, sluice keys)"
_HEALTH = "providers are not called to see whether they are well"
_LIMITS = "limits are of keys, tenants and everybody (limits.default, limits.global)"
_ALERTS = "there are no alerts: let your monitoring watch /metrics"
_VERBOSE = "see log.level"
_SERVICES = "there is no such service here"
_GUARDRAILS = "there are no guardrails to call"
NOTHING = "Sluice has no such setting"

ROUTER: dict[str, str] = {
    **dict.fromkeys(
        ("routing_strategy", "routing_strategy_args", "routing_groups", "weights"), _ROUTING
    ),
    **dict.fromkeys(
        ("num_retries", "retry_after", "retry_policy", "model_group_retry_policy"), _RETRY
    ),
    **dict.fromkeys(
        ("allowed_fails", "allowed_fails_policy", "cooldown_time", "disable_cooldowns"), _COOLDOWN
    ),
    "max_fallbacks": "every target is asked while there is time (server.timeouts.total)",
    **dict.fromkeys(
        ("enable_tag_filtering", "tag_filtering_match_any", "tag_routing_prefix"), _TAGS
    ),
    **dict.fromkeys(
        ("enable_pre_call_checks", "optional_pre_call_checks"),
        "no request is routed by its length or its client",
    ),
    **dict.fromkeys(("cache_responses", "cache_kwargs", "caching_groups", "client_ttl"), _CACHE),
    "default_max_parallel_requests": _LIMITS,
    "provider_budget_config": _PEOPLE,
    "default_litellm_params": "Sluice adds nothing to requests: clients have to send it themselves",
    "alerting_config": _ALERTS,
    **dict.fromkeys(("set_verbose", "debug_level"), _VERBOSE),
}
LITELLM: dict[str, str] = {
    **dict.fromkeys(("num_retries", "retry_after"), _RETRY),
    **dict.fromkeys(("allowed_fails", "cooldown_time"), _COOLDOWN),
    **dict.fromkeys(("cache", "cache_params", "enable_redis_auth_cache"), _CACHE),
    **dict.fromkeys(
        (
            *("callbacks", "success_callback", "failure_callback", "service_callback"),
            *("service_callbacks", "audit_log_callbacks", "s3_callback_params"),
            *("langfuse_default_tags", "turn_off_message_logging", "redact_user_api_key_info"),
        ),
        _LOGS,
    ),
    **dict.fromkeys(
        (
            *("max_internal_user_budget", "internal_user_budget_duration", "default_team_settings"),
            *("max_end_user_budget", "default_internal_user_params", "default_team_params"),
            *("default_end_user_params", "upperbound_key_generate_params", "tag_budget_config"),
            *("default_key_generate_params", "key_generation_settings"),
        ),
        _PEOPLE,
    ),
    **dict.fromkeys(("ssl_verify", "ssl_certificate"), "see a provider's ca_file"),
    **dict.fromkeys(("set_verbose", "debug", "detailed_debug"), _VERBOSE),
    "json_logs": "logs are JSON lines anyway",
    "modify_params": "what a provider cannot do is refused, or left out with unsupported: drop",
    "guardrails": _GUARDRAILS,
    "model_alias_map": "write these names into model_group_alias first",
    "custom_provider_map": "Sluice runs no code of yours: serve it as an OpenAI-compatible server",
    **dict.fromkeys(("cost_discount_config", "cost_margin_config"), "see a model's price"),
    "extra_spend_tag_headers": "labels belong to keys",
    "telemetry": "Sluice sends none",
}
GENERAL: dict[str, str] = {
    **dict.fromkeys(
        (
            *("database_url", "store_model_in_db", "database_connection_pool_limit"),
            *("database_connection_timeout", "proxy_batch_write_at", "disable_spend_logs"),
            *("disable_spend_updates", "disable_error_logs", "store_prompts_in_spend_logs"),
            *("maximum_spend_logs_retention_period", "disable_prisma_schema_update"),
            *("allow_requests_on_db_unavailable", "supported_db_objects"),
        ),
        _DATABASE,
    ),
    **dict.fromkeys(("max_parallel_requests", "global_max_parallel_requests"), _LIMITS),
    **dict.fromkeys(
        (
            *("custom_auth", "enable_jwt_auth", "litellm_jwtauth", "enable_oauth2_auth"),
            *("custom_key_generate", "custom_sso", "allowed_routes", "admin_only_routes"),
            *("public_routes", "role_permissions", "enforce_rbac", "service_account_settings"),
            *("enforce_user_param", "enforced_params", "allowed_ips", "litellm_key_header_name"),
            *("user_header_name", "user_header_mappings", "use_x_forwarded_for"),
        ),
        _WHO,
    ),
    **dict.fromkeys(
        ("alerting", "alerting_threshold", "alert_types", "alerting_args", "alert_to_webhook_url"),
        _ALERTS,
    ),
    **dict.fromkeys(
        (
            *("background_health_checks", "health_check_interval", "health_check_details"),
            "enable_health_check_routing",
        ),
        _HEALTH,
    ),
    **dict.fromkeys(
        ("completion_model", "embedding_model", "moderation_model", "infer_model_from_keys"),
        "the model that a client names is the one it gets",
    ),
    **dict.fromkeys(
        ("pass_through_endpoints", "use_client_credentials_pass_through_routes"),
        "there are no pass-through routes",
    ),
    **dict.fromkeys(
        ("allow_client_side_credentials", "forward_client_headers_to_llm_api"),
        "nothing of a client's own headers reaches a provider",
    ),
    **dict.fromkeys(
        ("key_management_system", "key_management_settings"),
        "secrets come from the environment (env:NAME)",
    ),
    "coordination_redis": "see redis.url",
    "ui_access_mode": "auth.admin_key opens what is the operator's",
}
TOP: dict[str, str] = {
    "include": "these files are not read: put all into one file first",
    "environment_variables": "set it where Sluice runs",
    "guardrails": _GUARDRAILS,
    **dict.fromkeys(
        (
            *("callback_settings", "assistant_settings", "finetune_settings", "files_settings"),
            *("prompts", "policies", "policy_attachments", "mcp_servers", "mcp_tools"),
            *("agent_list", "search_tools", "vector_store_registry", "worker_registry"),
        ),
        _SERVICES,
    ),
    "default_vertex_config": "write it into the litellm_params of the models",
}


def usual_deadline(router: Fields, litellm: Fields) -> int | float | None:
    """Return the deadline of a call where a deployment has none of its own; the router's wins."""
    found = router.seconds("timeout")
    other = litellm.seconds("request_timeout")
    if router.take("stream_timeout") is not None:
        router.lost("stream_timeout", "streams and whole replies share a deadline (first_byte)")
    if found is not None and other is not None:
        litellm.lost("request_timeout", "router_settings.timeout is above it")
    return other if found is None else found


def server(general: Fields, usual: float | None, longest: float) -> dict[str, Any]:
    """Return the server section: LiteLLM's deadline is of one call, `total` of all attempts."""
    timeouts: dict[str, float] = {} if usual is None else {"first_byte": usual}
    if longest > DEFAULT_TOTAL_SECONDS:
        timeouts["total"] = longest
    found: dict[str, Any] = {"timeouts": timeouts} if timeouts else {}
    megabytes = general.number("max_request_size_mb")
    if megabytes is not None and 1 <= megabytes * 2**20 <= 10**12:
        found["max_request_size"] = int(megabytes * 2**20)
    elif megabytes is not None:
        general.lost("max_request_size_mb", "it is no size of a request")
    return found


def redis(router: Fields) -> dict[str, Any]:
    """Return the redis section: LiteLLM's shared state of the router."""
    url = router.secret("redis_url")
    names = ("redis_host", "redis_port", "redis_username", "redis_password", "redis_db")
    parts = {name.removeprefix("redis_"): _part(router, name) for name in names}
    tls = router.flag("redis_ssl")
    if url is None and parts["host"]:
        url = _composed(parts, tls=bool(tls))
        if url is None:
            router.lost(
                "redis_host",
                "a URL is made of what stands in the file: set REDIS_URL to "
                "redis://:PASSWORD@HOST:PORT",
            )
    if url is None:
        return {}
    if not url.startswith(REFERENCE) and not _is_redis(url):
        router.lost("redis_url", "expected redis://[user:password@]host[:port][/db] or rediss://")
        return {}
    name = "redis_host" if parts["host"] else "redis_url"
    router.note(name, "Sluice wants Redis 7 or later with maxmemory-policy noeviction")
    return {"url": url}


def _part(router: Fields, name: str) -> str | None:
    return router.secret(name) if name == "redis_password" else router.text(name)


def _composed(parts: dict[str, str | None], *, tls: bool) -> str | None:
    """Return a URL of literal parts; None where a part comes from the environment."""
    if any(value and value.startswith(REFERENCE) for value in parts.values()):
        return None
    user, password = (
        quote(parts["username"] or "", safe=""),
        quote(parts["password"] or "", safe=""),
    )
    login = f"{user}:{password}@" if user or password else ""
    database = f"/{parts['db']}" if parts["db"] else ""
    scheme = "rediss" if tls else "redis"
    return f"{scheme}://{login}{parts['host']}:{parts['port'] or 6379}{database}"


def _is_redis(url: str) -> bool:
    try:
        found = urlsplit(url)
        usable = found.port != 0 and re.fullmatch(r"/?[0-9]{0,9}", found.path) is not None
    except ValueError:
        return False
    return usable and found.scheme in _SCHEMES and bool(found.hostname) and url.isprintable()


def auth(general: Fields) -> dict[str, Any]:
    """Return the auth section: the master key goes on opening everything."""
    if "master_key" not in general:
        general.note(
            "master_key", "there is none: with LITELLM_MASTER_KEY set, add it to auth.keys"
        )
        return {}
    key = general.text("master_key")
    if key is None:
        return {}
    if key.startswith(REFERENCE):
        general.note(
            "master_key",
            f"{key.removeprefix(REFERENCE)} needs {MIN_ADMIN_KEY_CHARS} characters that nobody "
            "would guess; with a shorter one take auth.admin_key out, and with one below 8 give "
            "its sha256 in auth.keys",
        )
        return {"admin_key": key, "keys": [{"name": "master", "key": key}]}
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    found: dict[str, Any] = {"keys": [{"name": "master", "sha256": digest}]}
    if len(key) >= MIN_ADMIN_KEY_CHARS and len(set(key)) >= MIN_ADMIN_KEY_VARIETY:
        general.note("master_key", CLEAR)
        return {"admin_key": key, **found}
    general.note("master_key", "too easy to guess for auth.admin_key; clients may go on using it")
    return found


def budget(litellm: Fields) -> dict[str, Any]:
    """Return the limits and pricing sections: LiteLLM's budget is of everybody together."""
    usd, per = litellm.number("max_budget"), litellm.text("budget_duration")
    if usd is None:
        if per is not None:
            litellm.lost("budget_duration", "there is no max_budget beside it")
        return {}
    if not MIN_BUDGET_USD <= usd <= MAX_BUDGET_USD:
        litellm.lost("max_budget", "a budget is more than 0 and at most 1e9 dollars")
        return {}
    period = "total" if per is None else "month" if per == "1mo" else per
    if period not in ("total", "month") and not _DURATION.fullmatch(period):
        litellm.lost("max_budget", "its duration is none of minutes, hours, days or 1mo")
        return {}
    litellm.note(
        "max_budget",
        "the budget of everybody, the master key's requests too; a model whose price nobody knows "
        "costs nothing, as before (pricing.default)",
    )
    amount = int(usd) if usd == int(usd) else float(usd)
    return {
        "limits": {"global": {"budget": {"usd": amount, "per": period}}},
        "pricing": {"default": {"input": 0, "output": 0}},
    }
