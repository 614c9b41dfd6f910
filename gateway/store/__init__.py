"""Redis: the multiplexed connection, the Lua functions, admission and settlement, key names."""
