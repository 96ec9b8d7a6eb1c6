"""A world of names and networks inside this machine: which addresses count as public is made up, what is dialled is real.

::

    127.1.0.0/16   stands for public addresses
    127.2.0.0/16   stands for a private network
    the others     are what they are

Everything in ``127.0.0.0/8`` is this machine, so servers can listen on all of them.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from asyncio import selector_events
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult

from aiodockersave.sources.registry.addresses import AddressClass, DialGuard, classify

PUBLIC, PUBLIC_TOO = "127.1.0.1", "127.1.0.2"
PRIVATE, PRIVATE_TOO = "127.2.0.1", "127.2.0.2"
METADATA = "169.254.169.254"
_CLASSES = {
    ipaddress.ip_network("127.1.0.0/16"): AddressClass.PUBLIC,
    ipaddress.ip_network("127.2.0.0/16"): AddressClass.PRIVATE,
}


def classify_in_this_world(address: str) -> AddressClass:
    """Tell the class of an address, as ``DialGuard`` wants it."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    return next((kind for network, kind in _CLASSES.items() if ip in network), classify(address))


class Names(AbstractResolver):
    """A resolver with a table. A name's answers are given in turn, the last one for ever.

    Attributes:
        asked: Every name that was looked up.
    """

    def __init__(self, table: Mapping[str, Sequence[Sequence[str]]]) -> None:
        self.asked: list[str] = []
        self._table = {name: list(answers) for name, answers in table.items()}

    @property
    def guard(self) -> DialGuard:
        """The rules of this world, for a source."""
        return DialGuard(classify=classify_in_this_world, resolve=self.look_up)

    async def look_up(self, host: str, port: int) -> Sequence[str]:
        """Return the addresses of a name; an address is its own."""
        self.asked.append(host)
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        answers = self._table.get(host.rstrip(".").lower())
        if answers is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return answers[0] if len(answers) == 1 else answers.pop(0)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Do the same for a connector of aiohttp's."""
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in await self.look_up(host, port)
        ]

    async def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True)
class Authority:
    """A CA that only who is told of it knows.

    Attributes:
        ca_file: Its certificate.
        server: For servers, under every name and address of this world.
    """

    ca_file: Path
    server: ssl.SSLContext


def make_authority(folder: Path, *names: str) -> Authority:
    """Make a CA, with a certificate for these names."""
    ca, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names).configure_cert(context)
    authority = Authority(folder / "ca.pem", context)
    ca.cert_pem.write_to_path(str(authority.ca_file))
    return authority


def record_dials(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return a list that gets every address that asyncio connects to from now on."""
    dials: list[tuple[str, int]] = []
    connect = selector_events.BaseSelectorEventLoop.sock_connect

    async def recording(loop: Any, sock: socket.socket, address: Any) -> None:
        dials.append((address[0], address[1]))
        await connect(loop, sock, address)

    monkeypatch.setattr(selector_events.BaseSelectorEventLoop, "sock_connect", recording)
    return dials
