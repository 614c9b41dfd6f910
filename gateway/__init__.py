"""The data plane of Sluice: everything between a client's request and a provider's answer."""

__version__ = "0.1.0"
