"""Which addresses may be dialled: what the user names always, what a registry points at only within bounds.

A registry answers with addresses of its own choice: redirects, token realms. Followed blindly they make this program
dial for a stranger whatever is reachable from here, such as a cloud's metadata service at 169.254.169.254. So what was
not named by the user must be public, or of the class of address at which the registry itself was dialled: a registry on
a private network may point within private networks.

The check is made on the address that is dialled, after names were resolved, since a name says nothing about it.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import NamedTuple

__all__ = ["AddressClass", "AddressRefusedError", "DialGuard", "classify", "is_loopback_name"]


class AddressClass(Enum):
    """What kind of network an address belongs to."""

    PUBLIC = "public"
    PRIVATE = "private"
    LINK_LOCAL = "link-local"
    LOOPBACK = "loopback"
    RESERVED = "reserved"
    """Multicast, unspecified and the like: never followed, whatever the registry's own class is."""


class AddressRefusedError(OSError):
    """An address must not be dialled, because the user did not name it."""

    def __init__(self, address: str, kind: AddressClass) -> None:
        super().__init__(errno.EACCES, f"the {kind.value} address {address} is not dialled for a registry")


_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")  # NAT64: the last 32 bits are an IPv4 address


def classify(address: str) -> AddressClass:
    """Tell the class of a numeric address, as ``getaddrinfo`` returns it.

    IPv4 addresses inside IPv6 ones (mapped, 6to4, NAT64) count as themselves: that is where packets go.

    Raises:
        ValueError: It is a name.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour
        if embedded is None and ip in _TRANSLATED:
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        ip = embedded or ip
    if ip.is_loopback:
        return AddressClass.LOOPBACK
    if ip.is_link_local:
        return AddressClass.LINK_LOCAL
    if ip.is_multicast or ip.is_unspecified or (ip.is_reserved and ip.version == 4):
        return AddressClass.RESERVED
    # What is neither, such as 100.64.0.0/10 between carriers, is not for a stranger to point at either.
    is_public = ip.is_global and not getattr(ip, "is_site_local", False)
    return AddressClass.PUBLIC if is_public else AddressClass.PRIVATE


def numeric(host: str) -> str | None:
    """Return the address that a host stands for without a resolver; None for a name.

    The C library takes ``2130706433``, ``0x7f000001`` and ``127.1`` for 127.0.0.1, so they are read as it reads them. A dot
    at the end, which makes a name absolute, does not make an address a name.
    """
    host = host.rstrip(".")
    try:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return None


def is_loopback_name(host: str) -> bool:
    """Tell whether a host is this machine by its very name: no resolver can be made to say so."""
    if host.rstrip(".").lower() == "localhost":
        return True
    address = numeric(host)
    return address is not None and classify(address) is AddressClass.LOOPBACK


Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Resolve a host and a port to numeric addresses; raises OSError where there are none."""


async def resolve_by_system(host: str, port: int) -> Sequence[str]:
    """Ask the system's resolver, but not for what is an address: it denies ``::1`` where that is all there is of IPv6."""
    address = numeric(host)
    if address is not None:
        return [address]
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except UnicodeError:  # a label of more than 63 characters, or none
        raise socket.gaierror(socket.EAI_NONAME, "no name of a host") from None
    return list(dict.fromkeys(str(info[4][0]) for info in found))


class DialGuard(NamedTuple):
    """The rules for addresses, and how names become addresses.

    Attributes:
        classify: Tells the class of a numeric address.
        resolve: Resolves names.
    """

    classify: Callable[[str], AddressClass] = classify
    resolve: Resolver = resolve_by_system

    def may_follow(self, address: str, registry: AddressClass) -> bool:
        """Tell whether a registry that was dialled in the class ``registry`` may point at ``address``."""
        kind = self.classify(address)
        return kind is AddressClass.PUBLIC or (kind is registry and kind is not AddressClass.RESERVED)

    def check(self, address: str, registry: AddressClass) -> None:
        """Refuse an address that a registry may not point at.

        Raises:
            AddressRefusedError: It may not.
        """
        if not self.may_follow(address, registry):
            raise AddressRefusedError(address, self.classify(address))

    def check_literal(self, host: str, registry: AddressClass) -> None:
        """Refuse a host that is an address itself; as :meth:`check`. Names pass."""
        address = "127.0.0.1" if is_loopback_name(host) else numeric(host)
        if address is not None:
            self.check(address, registry)
