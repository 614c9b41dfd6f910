"""Frozen values that every layer shares: usage, errors, identifiers, records. No I/O."""
