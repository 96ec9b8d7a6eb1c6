"""The proxy that a request goes through, by the rules of Go's ``httpproxy``, which Docker and podman follow.

``HTTP_PROXY`` and ``HTTPS_PROXY`` name the proxy by the scheme of what is asked for, ``NO_PROXY`` what is asked directly:
``*``, addresses, networks (``10.0.0.0/8``), domains (with what is below them; with a leading dot only what is below), each
with a port or without. This machine itself is always asked directly.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit, urlunsplit

from aiodockersave.core.errors import InvalidInputError

from .addresses import is_loopback_name
from .answers import Origin

__all__ = ["Proxies", "Proxy"]


class Proxy(NamedTuple):
    """A proxy.

    Attributes:
        url: Its URL, without user and password.
        authorization: The header that logs in with them; None where there are none.
    """

    url: str
    authorization: str | None


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies of an environment.

    Attributes:
        http: The URL of the proxy for http, or empty.
        https: The URL of the proxy for https, or empty.
        exceptions: What is asked directly, as ``NO_PROXY`` lists it.
    """

    http: str = field(default="", repr=False)  # may hold a password
    https: str = field(default="", repr=False)
    exceptions: tuple[str, ...] = ()

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Proxies:
        """Read the variables, in upper or lower case."""
        http, https, exceptions = (
            environment.get(name) or environment.get(name.lower()) or ""
            for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
        )
        if environment.get("REQUEST_METHOD"):  # a CGI program: a request's header Proxy stands in HTTP_PROXY
            http = ""
        names = [name.strip().lower() for name in exceptions.split(",")]
        return cls(_proxy_url(http), _proxy_url(https), tuple(filter(None, names)))

    @property
    def secrets(self) -> Sequence[bytes]:
        """The logins at the proxies: they must not be seen in a message, should a proxy repeat them."""
        found: list[bytes] = []
        for url in filter(None, (self.http, self.https)):
            with contextlib.suppress(InvalidInputError):  # it is not used either
                login = _split_login(url).authorization or ""
                pair = base64.b64decode(login.removeprefix("Basic "))
                found += [pair, pair.partition(b":")[2]]
        return found

    def find(self, origin: Origin) -> Proxy | None:
        """Return the proxy for requests to an origin; None where it is asked directly.

        Raises:
            InvalidInputError: The environment names it by what is no URL.
        """
        scheme, host, port = origin
        proxy = self.https if scheme == "https" else self.http
        if not proxy or is_loopback_name(host) or any(_matches(rule, host, port) for rule in self.exceptions):
            return None
        return _split_login(proxy)


def _split_login(url: str) -> Proxy:
    try:
        parts = urlsplit(url)
    except ValueError:  # it is not repeated, as it may hold a password
        raise InvalidInputError("the environment names a proxy by what is no URL") from None
    login, at, host = parts.netloc.rpartition("@")
    bare = urlunsplit(parts._replace(netloc=host))
    if not at:
        return Proxy(bare, None)
    user, _, password = login.partition(":")
    # Bytes, since what is encoded there, or stands in the environment, need not be UTF-8.
    pair = b":".join(unquote_to_bytes(os.fsencode(part)) for part in (user, password))
    return Proxy(bare, f"Basic {base64.b64encode(pair).decode()}")


def _proxy_url(text: str) -> str:
    text = text.strip()
    return text if not text or "://" in text else f"http://{text}"


def _matches(rule: str, host: str, port: int) -> bool:
    if rule == "*":
        return True
    if "/" in rule:
        return _in_network(host, rule)
    name, rule_port = _split_port(rule)
    if rule_port and rule_port != str(port):
        return False
    address = _address(host)
    if address is not None:
        return _address(name) == address
    name = name.removeprefix("*")
    return host.endswith(name) if name.startswith(".") else host == name or host.endswith(f".{name}")


def _split_port(rule: str) -> tuple[str, str]:
    if rule.count(":") > 1 and not rule.startswith("["):
        return rule, ""  # an IPv6 address
    name, colon, port = rule.rpartition(":")
    name, port = (name, port) if colon and port.isdigit() else (rule, "")
    return name.strip("[]"), port


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _in_network(host: str, rule: str) -> bool:
    address = _address(host)
    try:
        return address is not None and address in ipaddress.ip_network(rule, strict=False)
    except ValueError:
        return False
