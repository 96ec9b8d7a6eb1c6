"""Which addresses may be dialled, and what goes through a proxy."""

from __future__ import annotations

import base64
import socket

import pytest

from aiodockersave.sources._addresses import (
    AddressClass,
    AddressRefusedError,
    DialGuard,
    classify,
    is_loopback_name,
    numeric,
    resolve_by_system,
)
from aiodockersave.sources._proxies import Proxies, Proxy

PUBLIC, PRIVATE, LOOPBACK = AddressClass.PUBLIC, AddressClass.PRIVATE, AddressClass.LOOPBACK
LINK_LOCAL, RESERVED = AddressClass.LINK_LOCAL, AddressClass.RESERVED

CLASSES = {
    "8.8.8.8": PUBLIC,
    "2606:4700::1111": PUBLIC,
    "10.1.2.3": PRIVATE,
    "172.16.0.1": PRIVATE,
    "192.168.1.1": PRIVATE,
    "100.64.0.1": PRIVATE,  # between carriers
    "192.0.2.1": PRIVATE,  # for documentation
    "fd00::1": PRIVATE,
    "fec0::1": PRIVATE,
    "127.0.0.1": LOOPBACK,
    "127.255.255.254": LOOPBACK,
    "::1": LOOPBACK,
    "::ffff:127.0.0.1": LOOPBACK,
    "::ffff:8.8.8.8": PUBLIC,
    "::ffff:10.0.0.1": PRIVATE,
    "64:ff9b::7f00:1": LOOPBACK,  # NAT64 of 127.0.0.1
    "64:ff9b::808:808": PUBLIC,
    "2002:7f00:1::": LOOPBACK,  # 6to4 of 127.0.0.1
    "169.254.169.254": LINK_LOCAL,
    "fe80::1": LINK_LOCAL,
    "fe80::1%eth0": LINK_LOCAL,
    "0.0.0.0": RESERVED,
    "::": RESERVED,
    "224.0.0.1": RESERVED,
    "ff02::1": RESERVED,
    "240.0.0.1": RESERVED,
    "255.255.255.255": RESERVED,
}


@pytest.mark.parametrize(("address", "kind"), CLASSES.items())
def test_classes(address: str, kind: AddressClass) -> None:
    assert classify(address) is kind


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
def test_this_machine(host: str) -> None:
    assert is_loopback_name(host)


@pytest.mark.parametrize("host", ["localhost.example.com", "example.com", "10.0.0.1", "0.0.0.0"])
def test_not_this_machine(host: str) -> None:
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
def test_hosts_that_say_what_they_are_are_refused_without_a_resolver(host: str) -> None:
    with pytest.raises(AddressRefusedError):
        DialGuard().check_literal(host, PUBLIC)


@pytest.mark.parametrize("host", ["registry.example.com", "8.8.8.8"])
def test_names_are_left_to_the_resolver(host: str) -> None:
    DialGuard().check_literal(host, PUBLIC)


async def test_the_system_resolves() -> None:
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


def test_a_network_that_is_none_excepts_nothing() -> None:
    proxies = Proxies.read({"HTTP_PROXY": "http://p", "NO_PROXY": "10.0.0.0/99"})
    assert proxies.find(("http", "10.0.0.1", 80)) == Proxy("http://p", None)


def test_a_request_of_a_web_server_does_not_choose_our_proxy() -> None:
    environment = {"HTTP_PROXY": "http://evil", "REQUEST_METHOD": "GET"}  # httpoxy, CVE-2016-5386
    assert Proxies.read(environment).find(("http", "registry.example.com", 80)) is None


def test_the_password_of_a_proxy_is_not_shown() -> None:
    assert "p%40ss" not in repr(Proxies.read(ENVIRONMENT))
