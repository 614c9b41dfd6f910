"""The benchmark: what one request costs through Sluice, nginx and a bare aiohttp proxy.

Run it with `make bench` or `python -m tests.bench`. Nothing here is collected by pytest: timings
are reported, never asserted.
"""
