"""What clients see: aiohttp's server, the hot routes' own way through it, plain routes."""
