"""The addresses that may be dialled, and the requests that go through a proxy."""

from __future__ import annotations

import base64
import ipaddress
import socket

import pytest
from hypothesis import assume, given, strategies

from aiodockersave.sources.registry.addresses import (
    AddressClass,
    AddressRefusedError,
    DialGuard,
    classify,
    is_loopback_name,
    numeric,
    resolve_by_system,
)
from aiodockersave.sources.registry.session_pool import Proxies, Proxy

PUBLIC, PRIVATE, LOOPBACK = AddressClass.PUBLIC, AddressClass.PRIVATE, AddressClass.LOOPBACK
LINK_LOCAL, RESERVED = AddressClass.LINK_LOCAL, AddressClass.RESERVED

CLASSES = {
    "8.8.8.8": PUBLIC,
    "2606:4700::1111": PUBLIC,
    "192.31.196.1": PUBLIC,  # AS112
    "192.52.193.1": PUBLIC,  # AMT
    "192.175.48.1": PUBLIC,  # AS112
    "2620:4f:8000::1": PUBLIC,  # AS112
    "3ffe::1": PUBLIC,
    "3fff:1000::": PUBLIC,
    "10.1.2.3": PRIVATE,
    "172.16.0.1": PRIVATE,
    "192.168.1.1": PRIVATE,
    "100.64.0.1": PRIVATE,  # between carriers
    "192.0.0.1": PRIVATE,  # IETF protocols
    "192.0.0.8": PRIVATE,
    "192.0.0.9": PRIVATE,  # an anycast, of no registry
    "192.0.0.170": PRIVATE,
    "192.0.2.1": PRIVATE,  # for documentation
    "198.51.100.1": PRIVATE,
    "203.0.113.1": PRIVATE,
    "192.88.99.1": PRIVATE,  # relays of 6to4
    "198.18.0.1": PRIVATE,  # benchmarks
    "198.19.255.255": PRIVATE,
    "fd00::1": PRIVATE,
    "fd00:ec2::254": PRIVATE,  # a cloud's metadata service
    "fec0::1": PRIVATE,
    "2001::1": PRIVATE,  # Teredo
    "2001:0:7f00:1::": PRIVATE,
    "2001:1::1": PRIVATE,
    "2001:2::1": PRIVATE,  # benchmarks
    "2001:3::1": PRIVATE,  # AMT
    "2001:4:112::1": PRIVATE,  # AS112
    "2001:10::1": PRIVATE,  # ORCHID
    "2001:20::1": PRIVATE,
    "2001:30::1": PRIVATE,
    "2001:1ff:ffff::": PRIVATE,
    "2001:200::": PUBLIC,
    "2001:db8::1": PRIVATE,  # for documentation
    "3fff::1": PRIVATE,
    "3fff:fff::1": PRIVATE,
    "5f00::1": PRIVATE,  # segment routing
    "100::1": PRIVATE,  # discarded
    "100:0:0:1::1": PRIVATE,
    "200::1": PRIVATE,  # given out by nobody
    "4000::1": PRIVATE,
    "64:ff9b:2::1": PRIVATE,
    "127.0.0.1": LOOPBACK,
    "127.255.255.254": LOOPBACK,
    "::1": LOOPBACK,
    "::ffff:127.0.0.1": LOOPBACK,
    "::ffff:8.8.8.8": PUBLIC,
    "::ffff:10.0.0.1": PRIVATE,
    "::127.0.0.1": LOOPBACK,  # compatible
    "::8.8.8.8": PUBLIC,
    "::2": RESERVED,
    "::ffff:0:127.0.0.1": LOOPBACK,  # translated
    "::ffff:0:169.254.169.254": LINK_LOCAL,
    "64:ff9b::7f00:1": LOOPBACK,  # NAT64 of 127.0.0.1
    "64:ff9b::808:808": PUBLIC,
    "64:ff9b:1::7f00:1": LOOPBACK,  # of a network's own, behind 96 bits
    "64:ff9b:1:fffe::a9fe:a9fe": LINK_LOCAL,
    "64:ff9b:1:7f00:0:100::": LOOPBACK,  # behind 48
    "64:ff9b:1:7f00:0:100:808:808": LOOPBACK,  # with what is passed over
    "64:ff9b:1:ffa9:fe:a9fe::": LINK_LOCAL,  # behind 56
    "64:ff9b:1:ffff:a9:fea9:fe00:0": LINK_LOCAL,  # behind 64
    "64:ff9b:1::a00:1": PRIVATE,
    "64:ff9b:1::808:808": PRIVATE,
    "2002:7f00:1::": LOOPBACK,  # 6to4 of 127.0.0.1
    "2002:a9fe:a9fe::1": LINK_LOCAL,
    "2002:808:808::1": PUBLIC,
    "169.254.169.254": LINK_LOCAL,
    "fe80::1": LINK_LOCAL,
    "fe80::1%eth0": LINK_LOCAL,
    "febf::1": LINK_LOCAL,
    "0.0.0.0": RESERVED,
    "0.1.2.3": RESERVED,
    "::": RESERVED,
    "224.0.0.1": RESERVED,
    "233.252.0.1": RESERVED,
    "ff02::1": RESERVED,
    "240.0.0.1": RESERVED,
    "255.255.255.255": RESERVED,
}


@pytest.mark.parametrize(("address", "kind"), CLASSES.items())
def test_classes(address: str, kind: AddressClass) -> None:
    assert classify(address) is kind


# ── the same by Python's own lists, which differ by its version ──

# Where ours is less strict: the address counts that packets go to, or the network is not special (any more).
LESS_STRICT = [
    *("64:ff9b::/96", "2002::/16", "::ffff:0:0/96", "::/96", "::ffff:0:0:0/96"),
    *("192.31.196.0/24", "192.52.193.0/24", "192.175.48.0/24", "2620:4f:8000::/48"),
]
# Where ours is stricter than some version.
STRICTER = [
    *(
        "192.0.0.0/24",
        "192.88.99.0/24",
        "2001::/23",
        "64:ff9b:1::/48",
        "3fff::/20",
        "5f00::/16",
        "100:0:0:1::/64",
    ),
    *("fec0::/10", "ff00::/8", "224.0.0.0/4", "::/3", "4000::/2", "8000::/1"),
]


def is_in(address: ipaddress.IPv4Address | ipaddress.IPv6Address, networks: list[str]) -> bool:
    return any(address in ipaddress.ip_network(each) for each in networks)


def check_like_python(number: int, version: int) -> None:
    address = (ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address)(number)
    kind = classify(str(address))
    if not is_in(address, LESS_STRICT) and not address.is_global:
        assert kind is not PUBLIC, address
    if not is_in(address, STRICTER) and address.is_global and not is_in(address, LESS_STRICT):
        assert kind is PUBLIC, address
    if not is_in(address, [*LESS_STRICT, "64:ff9b:1::/48"]):
        assert (kind is LOOPBACK) == address.is_loopback, address
        assert (kind is LINK_LOCAL) == address.is_link_local, address


BORDERS = [
    (int(edge) + step, edge.version)
    for network in map(
        ipaddress.ip_network,
        [
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
            *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "192.31.196.0/24"),
            *("::1/128", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64"),
            *("2000::/3", "2001::/23", "2001::/32", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16"),
            *("fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8", "2620:4f:8000::/48"),
        ],
    )
    for edge in (network.network_address, network.broadcast_address)
    for step in (-1, 0, 1)
    if 0 <= int(edge) + step < 1 << edge.max_prefixlen
]


@pytest.mark.parametrize(("number", "version"), BORDERS)
def test_borders_of_networks_agree_with_python(number: int, version: int) -> None:
    check_like_python(number, version)


@given(strategies.integers(0, 2**32 - 1))
def test_any_ipv4_address_agrees_with_python(number: int) -> None:
    check_like_python(number, 4)


@given(strategies.integers(0, 2**128 - 1))
def test_any_ipv6_address_agrees_with_python(number: int) -> None:
    check_like_python(number, 6)


V4 = strategies.one_of(
    strategies.ip_addresses(v=4),
    *(
        strategies.ip_addresses(network=network)
        for network in ("10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "224.0.0.0/4")
    ),
)
EMBEDDINGS: dict[str, tuple[str, int]] = {
    "mapped": ("::ffff:0:0", 0),
    "translated": ("::ffff:0:0:0", 0),
    "NAT64": ("64:ff9b::", 0),
    "6to4": ("2002::", 80),
    "compatible": ("::", 0),
}


@pytest.mark.parametrize("name", EMBEDDINGS)
@given(v4=V4, rest=strategies.integers(0, 2**80 - 1))
def test_an_embedded_ipv4_address_gives_the_class(name: str, v4: ipaddress.IPv4Address, rest: int) -> None:
    prefix, shift = EMBEDDINGS[name]
    assume(name != "compatible" or int(v4) > 1)  # which are :: and ::1
    whole = int(ipaddress.IPv6Address(prefix)) | int(v4) << shift | (rest if shift else 0)
    assert classify(str(ipaddress.IPv6Address(whole))) is classify(str(v4))


@given(v4=V4, behind=strategies.sampled_from([48, 56, 64, 96]), subnet=strategies.integers(0, 2**16 - 1))
def test_a_local_nat64_address_is_never_public(v4: ipaddress.IPv4Address, behind: int, subnet: int) -> None:
    prefix = (int(ipaddress.IPv6Address("64:ff9b:1::")) | subnet << 64) >> (128 - behind) << (128 - behind)
    bits = f"{int(prefix):0128b}"[:behind] + f"{int(v4):032b}"
    if behind < 96:
        bits = bits[:64] + "0" * 8 + bits[64:]
    kind = classify(str(ipaddress.IPv6Address(int(bits.ljust(128, "0")[:128], 2))))
    assert kind is not PUBLIC
    if classify(str(v4)) is LINK_LOCAL:
        assert kind is LINK_LOCAL
    if classify(str(v4)) is LOOPBACK:
        assert kind in (LOOPBACK, LINK_LOCAL)


def test_a_name_has_no_class() -> None:
    with pytest.raises(ValueError, match="localhost"):
        classify("localhost")


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("017700000001", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("::1", "::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("registry.example.com", None),
        ("localhost", None),
        ("1.2.3.4.5", None),
        ("bücher.example", None),
    ],
)
def test_hosts_that_are_addresses(host: str, address: str | None) -> None:
    assert numeric(host) == address


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.1", "::1", "::ffff:127.0.0.1"]
)
def test_loopback_names(host: str) -> None:
    assert is_loopback_name(host)


@pytest.mark.parametrize("host", ["localhost.example.com", "example.com", "10.0.0.1", "0.0.0.0"])
def test_names_that_are_not_loopback(host: str) -> None:
    assert not is_loopback_name(host)


@pytest.mark.parametrize("registry", AddressClass)
@pytest.mark.parametrize("address", ["8.8.8.8", "10.0.0.1", "169.254.169.254", "127.0.0.1", "0.0.0.0"])
def test_a_registry_points_at_public_addresses_and_its_own_kind(address: str, registry: AddressClass) -> None:
    kind = classify(address)
    allowed = kind is PUBLIC or (kind is registry and kind is not RESERVED)
    assert DialGuard().may_follow(address, registry) is allowed
    if allowed:
        DialGuard().check(address, registry)
    else:
        with pytest.raises(AddressRefusedError, match=f"the {kind.value} address {address}"):
            DialGuard().check(address, registry)


@pytest.mark.parametrize("host", ["localhost", "127.1", "10.0.0.1", "0x0a000001"])
def test_literal_addresses_are_refused_without_a_resolver(host: str) -> None:
    with pytest.raises(AddressRefusedError):
        DialGuard().check_literal(host, PUBLIC)


@pytest.mark.parametrize("host", ["registry.example.com", "8.8.8.8"])
def test_names_are_left_to_the_resolver(host: str) -> None:
    DialGuard().check_literal(host, PUBLIC)


async def test_the_system_resolver() -> None:
    assert await resolve_by_system("127.0.0.1", 80) == ["127.0.0.1"]
    with pytest.raises(socket.gaierror):
        await resolve_by_system("no-such-host.invalid", 80)
    with pytest.raises(socket.gaierror):
        await resolve_by_system("a" * 70 + ".example", 80)


# ── proxies ──

ENVIRONMENT = {
    "HTTP_PROXY": "proxy.example.com:3128",
    "https_proxy": "http://user:p%40ss@secure.example.com:3129",
    "NO_PROXY": "10.0.0.0/8, .below.example, domain.example,port.example:5000,*.star.example,192.168.1.5,[fd00::1]:80,fd01::1",
}
DIRECT = [
    ("https", "10.2.3.4", 443),
    ("https", "a.below.example", 443),
    ("https", "domain.example", 443),
    ("https", "a.b.domain.example", 443),
    ("https", "port.example", 5000),
    ("http", "a.star.example", 80),
    ("http", "192.168.1.5", 8080),
    ("http", "fd00::1", 80),
    ("http", "fd01::1", 8080),
    ("http", "localhost", 5000),
    ("https", "127.0.0.1", 5000),
    ("https", "::1", 5000),
]
PROXIED = [
    ("https", "11.2.3.4", 443),
    ("https", "below.example", 443),
    ("https", "subdomain.example", 443),
    ("https", "port.example", 443),
    ("http", "star.example", 80),
    ("http", "192.168.1.6", 80),
    ("http", "fd00::1", 81),
    ("http", "10.0.0.1.example", 80),
]


@pytest.mark.parametrize("origin", DIRECT)
def test_exceptions_are_asked_directly(origin: tuple[str, str, int]) -> None:
    assert Proxies.read(ENVIRONMENT).find(origin) is None


@pytest.mark.parametrize("origin", PROXIED)
def test_the_scheme_chooses_the_proxy(origin: tuple[str, str, int]) -> None:
    login = f"Basic {base64.b64encode(b'user:p@ss').decode()}"
    secure = Proxy("http://secure.example.com:3129", login)
    plain = Proxy("http://proxy.example.com:3128", None)
    assert Proxies.read(ENVIRONMENT).find(origin) == (secure if origin[0] == "https" else plain)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"HTTPS_PROXY": "http://p", "NO_PROXY": "*"},
        {"HTTPS_PROXY": "", "https_proxy": ""},
        {"HTTP_PROXY": "http://p"},
        {"HTTPS_PROXY": "http://p", "no_proxy": "registry.example.com"},
    ],
    ids=str,
)
def test_no_proxy(environment: dict[str, str]) -> None:
    assert Proxies.read(environment).find(("https", "registry.example.com", 443)) is None


def test_an_invalid_network_in_no_proxy_matches_nothing() -> None:
    proxies = Proxies.read({"HTTP_PROXY": "http://p", "NO_PROXY": "10.0.0.0/99"})
    assert proxies.find(("http", "10.0.0.1", 80)) == Proxy("http://p", None)


def test_in_cgi_http_proxy_is_ignored() -> None:
    environment = {"HTTP_PROXY": "http://evil", "REQUEST_METHOD": "GET"}  # httpoxy, CVE-2016-5386
    assert Proxies.read(environment).find(("http", "registry.example.com", 80)) is None


def test_the_password_of_a_proxy_is_not_shown() -> None:
    assert "p%40ss" not in repr(Proxies.read(ENVIRONMENT))
