"""The client of a server: `from irv2.client import Client`."""

from irv2.client.channel import Tls
from irv2.client.client import Client

__all__ = ["Client", "Tls"]
