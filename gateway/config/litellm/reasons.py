"""Why settings of LiteLLM's have no counterpart here, and what does their work."""

_ROUTING = "a model's targets of one priority are asked by its strategy"
_RETRY = "see retries: after which failures and how long is the same for all models"
_COOLDOWN = "see breaker: failures are not told apart"
_TAGS = "a target has to have all the tags that a client asks for (x-sluice-tags)"
_CACHE = "see cache: it is the same for all models, or each has its own"
_LOGS = "Sluice calls no logging service: see ledger, tracing and /metrics"
_DATABASE = (
    "there is no database; keys and spend in it stay there (sluice keys create makes new ones)"
)
_PEOPLE = "budgets are of keys, tenants and everybody"
_WHO = "keys alone say who may call (auth.keys, sluice keys)"
_HEALTH = "providers are not called to see whether they are well"
_LIMITS = "see concurrency in limits.default (of a key), tenants and limits.global"
_ALERTS = "there are no alerts: let your monitoring watch /metrics"
_VERBOSE = "see log.level"
_SERVICES = "there is no such service here"
_GUARDRAILS = "there are no guardrails to call"
NOTHING = "Sluice has no such setting"

CACHE: dict[str, str] = {
    **dict.fromkeys(
        ("host", "port", "password", "ssl", "db", "redis_startup_nodes", "url"), "see redis.url"
    ),
    "default_in_memory_ttl": "LiteLLM reads it where the type is local, alone",
    "default_in_redis_ttl": "LiteLLM reads it where the type is redis, alone",
    **dict.fromkeys(("supported_call_types", "namespace"), "whatever can be kept is"),
    **dict.fromkeys(
        ("similarity_threshold", "redis_semantic_cache_embedding_model"), "see cache.semantic"
    ),
}
ROUTER: dict[str, str] = {
    **dict.fromkeys(("routing_strategy_args", "routing_groups", "weights"), _ROUTING),
    **dict.fromkeys(("retry_after", "retry_policy", "model_group_retry_policy"), _RETRY),
    **dict.fromkeys(("allowed_fails_policy",), _COOLDOWN),
    **dict.fromkeys(("tag_filtering_match_any", "tag_routing_prefix"), _TAGS),
    "optional_pre_call_checks": "see affinity, and a target's when and rpm",
    **dict.fromkeys(("cache_kwargs", "caching_groups", "client_ttl"), _CACHE),
    "default_max_parallel_requests": "see a target's concurrency",
    "provider_budget_config": _PEOPLE,
    "default_litellm_params": "Sluice adds nothing to requests: clients have to send it themselves",
    "alerting_config": _ALERTS,
    **dict.fromkeys(("set_verbose", "debug_level"), _VERBOSE),
}
LITELLM: dict[str, str] = {
    "stream_timeout": "LiteLLM reads it in router_settings and litellm_params alone",
    "retry_after": _RETRY,
    "enable_redis_auth_cache": "keys are remembered for as long as nobody changes them",
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
        "a provider's own API is at /providers/NAME/",
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
