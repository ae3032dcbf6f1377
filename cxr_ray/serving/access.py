"""Who may ask: API keys from the environment, or, without any, this machine alone."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Iterable, Mapping

from fastapi import Request

from cxr_ray.errors import ConfigError
from cxr_ray.serving.problems import Problem

KEYS_VARIABLE = "CXR_API_KEYS"


class Gate:
    """Lets a request in, or raises the problem it is answered with.

    Args:
        keys: The API keys, any of which opens; none lets in clients on this machine alone.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    @property
    def needs_key(self) -> bool:
        """Whether requests must carry one."""
        return bool(self._digests)

    async def check(self, request: Request) -> None:
        """Judge a request by its headers, before its body is read.

        Raises:
            Problem: 401 without a valid key; 403 from another machine where there are no keys.
        """
        if not self._digests:
            # The address Serve binds is not this application's to choose, so it looks at where a request
            # comes from: `insecure` with host 0.0.0.0 is a mistake that must not open the server.
            if not _is_loopback(request.client.host if request.client else ""):
                raise Problem(
                    403,
                    "this_machine_only",
                    f"This server runs without API keys and answers only its own machine; set {KEYS_VARIABLE} "
                    "where Ray starts to answer others.",
                )
            return
        given = _key_in(request)
        if given is None or not self._opens(given):
            raise Problem(
                401,
                "unauthorized",
                "An API key is needed, as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."
                if given is None
                else "The API key is not valid.",
                {"WWW-Authenticate": "Bearer"},
            )

    def _opens(self, key: str) -> bool:
        digest = _digest(key)
        # Digests have one length and every one is compared, so that time tells nothing about the keys.
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


def keys_from(environment: Mapping[str, str]) -> list[str]:
    """The keys in ``CXR_API_KEYS``, separated by commas."""
    return [key for key in (part.strip() for part in environment.get(KEYS_VARIABLE, "").split(",")) if key]


def open_gate(*, insecure: bool) -> Gate:
    """The gate of this process's environment.

    Raises:
        ConfigError: There are no keys, and `insecure` or HAProxy ingress does not allow that.
    """
    # From the environment alone: Ray logs an application's arguments, and its dashboard shows them.
    keys = keys_from(os.environ)
    if not keys and not insecure:
        raise ConfigError(
            "is not set, and the server does not start without API keys",
            where=f"environment variable {KEYS_VARIABLE}",
            next_step=f"Set it to one or more keys, separated by commas, where Ray starts ({KEYS_VARIABLE}=... serve "
            "run serve_config.yaml, or before ray start on every node), or set insecure: true under args to answer "
            "this machine alone",
        )
    if not keys and os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        raise ConfigError(
            "HAProxy ingress listens on every address and hides where requests come from, so it needs API keys",
            where="environment variable RAY_SERVE_ENABLE_HA_PROXY",
            next_step=f"Set {KEYS_VARIABLE} where Ray starts, or leave HAProxy off",
        )
    return Gate(keys)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _key_in(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return request.headers.get("x-api-key")


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
