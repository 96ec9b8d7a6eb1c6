"""The addresses that may be dialled: always the user's own, and within bounds those that a registry points at.

A registry answers with addresses of its own choice: redirects, token realms. A client that follows them blindly dials
for a stranger any host that it can reach, such as a cloud's metadata service at 169.254.169.254. So an address that the
user did not name must be public, or of the class of address at which the registry itself was dialled: a registry on a
private network may point within private networks.

The address that is dialled is checked, after names were resolved, since a name says nothing about its address.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Final, NamedTuple

__all__ = ["AddressClass", "AddressRefusedError", "DialGuard", "classify", "is_loopback_name"]


class AddressClass(Enum):
    """The kind of network that an address belongs to."""

    PUBLIC = "public"
    PRIVATE = "private"
    LINK_LOCAL = "link-local"
    LOOPBACK = "loopback"
    RESERVED = "reserved"
    """Multicast, unspecified and the like: never followed, whatever the registry's own class is."""


class AddressRefusedError(OSError):
    """An address must not be dialled, because a registry points at it and may not."""

    def __init__(self, address: str, kind: AddressClass) -> None:
        super().__init__(errno.EACCES, f"the {kind.value} address {address} is not dialled for a registry")


# ── what kind of address ──

# IANA's registries of special-purpose addresses (iana-ipv4-special-registry and iana-ipv6-special-registry), in full, since
# Python's `ipaddress` differs from version to version. Networks from which nobody serves, such as documentation, are
# PRIVATE, so that no stranger can point at them.
_SPECIAL: Final = (
    ("0.0.0.0/8", AddressClass.RESERVED),  # "this network"; 0.0.0.0 is this machine to connect() (RFC 791)
    ("10.0.0.0/8", AddressClass.PRIVATE),  # private use (RFC 1918)
    ("100.64.0.0/10", AddressClass.PRIVATE),  # between carriers; clouds have services there (RFC 6598)
    ("127.0.0.0/8", AddressClass.LOOPBACK),  # loopback (RFC 1122)
    ("169.254.0.0/16", AddressClass.LINK_LOCAL),  # link-local; clouds' metadata services (RFC 3927)
    ("172.16.0.0/12", AddressClass.PRIVATE),  # private use (RFC 1918)
    (
        "192.0.0.0/24",
        AddressClass.PRIVATE,
    ),  # IETF protocols, DS-Lite (RFC 6890); two anycasts in it are no registries
    ("192.0.2.0/24", AddressClass.PRIVATE),  # documentation (RFC 5737)
    ("192.88.99.0/24", AddressClass.PRIVATE),  # relays of 6to4, given up (RFC 7526)
    ("192.168.0.0/16", AddressClass.PRIVATE),  # private use (RFC 1918)
    ("198.18.0.0/15", AddressClass.PRIVATE),  # benchmarks (RFC 2544)
    ("198.51.100.0/24", AddressClass.PRIVATE),  # documentation (RFC 5737)
    ("203.0.113.0/24", AddressClass.PRIVATE),  # documentation (RFC 5737)
    ("224.0.0.0/4", AddressClass.RESERVED),  # multicast (RFC 5771)
    ("240.0.0.0/4", AddressClass.RESERVED),  # for the future, and broadcast (RFC 1112, RFC 919)
    ("0.0.0.0/0", AddressClass.PUBLIC),
    ("::/128", AddressClass.RESERVED),  # unspecified (RFC 4291)
    ("::1/128", AddressClass.LOOPBACK),  # loopback (RFC 4291)
    ("fe80::/10", AddressClass.LINK_LOCAL),  # link-local (RFC 4291)
    ("ff00::/8", AddressClass.RESERVED),  # multicast (RFC 4291)
    ("fec0::/10", AddressClass.PRIVATE),  # site-local, given up (RFC 3879)
    ("fc00::/7", AddressClass.PRIVATE),  # unique local; clouds' metadata services too (RFC 4193)
    ("100::/64", AddressClass.PRIVATE),  # discarded (RFC 6666)
    ("100:0:0:1::/64", AddressClass.PRIVATE),  # a prefix that is none (RFC 9780)
    ("5f00::/16", AddressClass.PRIVATE),  # identifiers of segment routing (RFC 9602)
    # IETF protocols (RFC 2928): Teredo 2001::/32, benchmarks 2001:2::/48, ORCHID 2001:10::/28 and 2001:20::/28, identifiers of
    # drones 2001:30::/28; also AMT 2001:3::/32 and AS112 2001:4:112::/48, which are public, but no registries.
    ("2001::/23", AddressClass.PRIVATE),
    ("2001:db8::/32", AddressClass.PRIVATE),  # documentation (RFC 3849)
    ("3fff::/20", AddressClass.PRIVATE),  # documentation (RFC 9637)
    ("2000::/3", AddressClass.PUBLIC),  # all that is given out of global unicast (RFC 4291)
    ("::/0", AddressClass.PRIVATE),  # not given out; there are networks in it that only their members reach
)
_NETWORKS: Final = tuple((ipaddress.ip_network(network), kind) for network, kind in _SPECIAL)

# IPv6 addresses that lead to an IPv4 address, and how far that stands from their end, in bits.
_EMBEDDING: Final = tuple(
    (ipaddress.IPv6Network(network), shift)
    for network, shift in (
        ("::ffff:0:0/96", 0),  # mapped (RFC 4291)
        ("::ffff:0:0:0/96", 0),  # translated, SIIT (RFC 2765)
        ("64:ff9b::/96", 0),  # NAT64 (RFC 6052)
        ("2002::/16", 80),  # 6to4 (RFC 3056)
        ("::/96", 0),  # compatible, given up (RFC 4291); looked at behind :: and ::1, which are not
    )
)
_LOCAL_NAT64: Final = ipaddress.IPv6Network("64:ff9b:1::/48")
_NEITHER: Final = frozenset({ipaddress.IPv6Address("::"), ipaddress.IPv6Address("::1")})


def classify(address: str) -> AddressClass:
    """Return the class of a numeric address, as ``getaddrinfo`` returns it.

    An IPv6 address that holds an IPv4 address (mapped, compatible, translated, 6to4, NAT64) is of the class of that IPv4
    address, since packets go there.

    Raises:
        ValueError: ``address`` is a name.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return _class_of(ip)
    if ip in _LOCAL_NAT64:
        return _class_of_translated(int(ip))
    for network, shift in _EMBEDDING:
        if ip in network and ip not in _NEITHER:
            return _class_of(ipaddress.IPv4Address(int(ip) >> shift & 0xFFFF_FFFF))
    return _class_of(ip)


def _class_of(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> AddressClass:
    return next(kind for network, kind in _NETWORKS if ip.version == network.version and ip in network)


def _class_of_translated(number: int) -> AddressClass:
    """Return the class of an address of the NAT64 prefix for local use (RFC 8215), which is never public.

    The IPv4 address stands behind 48, 56, 64 or 96 bits (RFC 6052 § 2.2); the address does not tell behind how many, and
    translators ignore the bits after it. So the IPv4 address is read at each place; one that is link-local or loopback counts.
    """
    above, below = number >> 64, number & 0xFF_FFFF_FFFF_FFFF  # bits 64 to 71 are left out
    readings = [number, *(above << 56 - shift | below >> shift for shift in (40, 32, 24))]
    kinds = {_class_of(ipaddress.IPv4Address(each & 0xFFFF_FFFF)) for each in readings}
    return next(
        (kind for kind in (AddressClass.LINK_LOCAL, AddressClass.LOOPBACK) if kind in kinds),
        AddressClass.PRIVATE,
    )


# ── hosts ──


def numeric(host: str) -> str | None:
    """Return the address that a host stands for without a resolver; None for a name.

    ``2130706433``, ``0x7f000001`` and ``127.1`` are 127.0.0.1 to the C library, and so they are here. A dot at the end,
    which makes a name absolute, does not make an address a name.
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
    """Tell whether a host is this machine by its very name, without a resolver."""
    if host.rstrip(".").lower() == "localhost":
        return True
    address = numeric(host)
    return address is not None and classify(address) is AddressClass.LOOPBACK


Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Resolve a host and a port to numeric addresses; raises OSError where there are none."""


async def resolve_by_system(host: str, port: int) -> Sequence[str]:
    """Resolve a host by the system's resolver; return its addresses.

    An address is returned as it is: the resolver refuses ``::1`` where loopback is the only IPv6 address of the machine.

    Raises:
        OSError: The name cannot be resolved.

    Cancel: is raised at once; a look-up that has begun ends in the loop's thread, and its result is dropped.
    """
    address = numeric(host)
    if address is not None:
        return [address]
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except UnicodeError:  # a label of more than 63 characters, or none
        raise socket.gaierror(socket.EAI_NONAME, "not the name of a host") from None
    return list(dict.fromkeys(str(info[4][0]) for info in found))


class DialGuard(NamedTuple):
    """The rules for addresses that a registry points at, and the resolver of names.

    Attributes:
        classify: Returns the class of a numeric address.
        resolve: Resolves a host and a port to numeric addresses.
    """

    classify: Callable[[str], AddressClass] = classify
    resolve: Resolver = resolve_by_system

    def may_follow(self, address: str, registry: AddressClass) -> bool:
        """Tell whether a registry whose own address is of the class ``registry`` may point at ``address``."""
        kind = self.classify(address)
        return kind is AddressClass.PUBLIC or (kind is registry and kind is not AddressClass.RESERVED)

    def check(self, address: str, registry: AddressClass) -> None:
        """Refuse an address that a registry may not point at.

        Raises:
            AddressRefusedError: The registry may not point there.
        """
        if not self.may_follow(address, registry):
            raise AddressRefusedError(address, self.classify(address))

    def check_literal(self, host: str, registry: AddressClass) -> None:
        """Refuse a host that is itself an address, as :meth:`check` does; a name passes."""
        address = "127.0.0.1" if is_loopback_name(host) else numeric(host)
        if address is not None:
            self.check(address, registry)
