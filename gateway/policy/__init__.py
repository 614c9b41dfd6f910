"""Pure decisions: routing, retry, breaker, limits, pricing."""
