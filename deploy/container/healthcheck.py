"""The image's health check: exit 0 when the gateway in this container answers, else 1.

It reads SERVER_ADDRESS for the port and imports the standard library only, so that it still
runs when the gateway's own code does not.
"""

import os
import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection

# Two attempts stay within the five seconds that the Containerfile gives.
TIMEOUT_SECONDS = 2.0


def answers(connection: HTTPConnection) -> bool:
    """Whether the gateway answers; a 401 (AUTH_HEALTH_CHECK) is an answer."""
    try:
        connection.request("GET", "/health/live")
        return connection.getresponse().status < 500
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def main() -> int:
    """Ask in plain HTTP, then over TLS (server.tls)."""
    port = int(os.environ.get("SERVER_ADDRESS", ":8080").rpartition(":")[2])
    # Its own certificate names the public host, never 127.0.0.1.
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    healthy = answers(HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)) or answers(
        HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS, context=tls)
    )
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
