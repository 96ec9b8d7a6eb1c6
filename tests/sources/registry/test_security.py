"""Known attacks on registry clients, against a registry source: dialled hosts, and credentials.

======  =========================================================================================================
S1      A header reaches only its own origin: scheme, host, port.
S2      A realm is refused before credentials are looked up, or is one that the registry may name.
S3      What an address is, is decided by what is dialled, for realms, redirects and URLs in manifests.
======  =========================================================================================================

S4 to S7 and S10 are in ``test_security_of_content.py``.
"""

from __future__ import annotations

import asyncio
import json
import socket
from asyncio import selector_events
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from multidict import CIMultiDict
from yarl import URL

from aiodockersave import AuthenticationError, DockerSaveError, RegistryError, SourceError
from aiodockersave.sources.registry import Retries, Timeouts
from tests.support.attempts import DOCUMENTS, FOREIGN, IMAGE, LAYER, Keyring, attempt, challenge, everything
from tests.support.faulty_registry import (
    RIGHT_TOKEN,
    SECRETS,
    USER,
    Answer,
    Ask,
    Auth,
    Fault,
    FaultyRegistry,
    Kind,
    drop,
    redirect,
    refuse,
    wants_token,
)
from tests.support.images import Image, make_image, to_json
from tests.support.small_world import (
    METADATA,
    PRIVATE,
    PRIVATE_TOO,
    PUBLIC,
    PUBLIC_TOO,
    Authority,
    Names,
    make_authority,
    record_dials,
)

NAMES = {
    "registry.test": [[PUBLIC]],
    "sub.registry.test": [[PUBLIC]],
    "auth.test": [[PUBLIC_TOO]],
    "private.test": [[PRIVATE]],
    "private-too.test": [[PRIVATE_TOO]],
    "loopback.test": [["127.0.0.1"]],
    "metadata.test": [[METADATA]],
}


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    addresses = [PUBLIC, PUBLIC_TOO, PRIVATE, PRIVATE_TOO, "127.0.0.1", "127.0.0.2"]
    return make_authority(tmp_path_factory.mktemp("tls"), *NAMES, *addresses)


@pytest.fixture
def dials(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    return record_dials(monkeypatch)


@pytest.fixture
def keyring() -> Keyring:
    return Keyring()


# ── S1: origin ──

CREDENTIAL_HEADERS = ("Authorization", "Cookie", "Cookie2", "Proxy-Authorization", "Referer")

HOPS: dict[str, tuple[str, bool | None]] = {
    # where to, and whether the save must work; None where either is right
    "same origin": ("http://registry.test:{port}{path}?again=1", True),
    "relative": ("{path}?again=1", True),
    "upper case": ("http://REGISTRY.TEST:{port}{path}?again=1", True),
    "other host": ("http://auth.test:{other}{path}", True),
    "other host, signed": ("http://auth.test:{other}{path}?X-Signature=abc%2Fdef", True),
    "other port": ("http://registry.test:{second}{path}", True),
    "subdomain": ("http://sub.registry.test:{port}{path}", None),
    "subdomain, other port": ("http://sub.registry.test:{second}{path}", True),
    "address of the same host": ("http://127.1.0.1:{port}{path}", None),
    "trailing dot": ("http://registry.test.:{port}{path}", None),
    "scheme-relative": ("//auth.test:{other}{path}", True),
    "to https": ("https://registry.test:{tls}{path}", True),
    "user information": ("http://evil:pass@auth.test:{other}{path}", False),
    "the registry as user information": ("http://registry.test:{port}@auth.test:{other}{path}", False),
    "back slash": ("http://registry.test:{port}\\@auth.test:{other}{path}", None),
    "white space": (" http://auth.test:{other}{path}", None),
    "another scheme": ("ftp://auth.test:{other}{path}", False),
    "no port number": ("http://auth.test:port{path}", False),
}
SESSIONS = ["own session", "lent session", "lent session with netrc"]


@dataclass
class Town:
    """A registry that wants credentials, and its neighbours that want none: other host, other port, TLS."""

    registry: FaultyRegistry
    second: FaultyRegistry
    secure: FaultyRegistry
    names: Names

    @property
    def address(self) -> str:
        return f"registry.test:{self.registry.here.port}"

    def location(self, template: str) -> str:
        """Fill in the ports, and leave the path for the registry to fill in."""
        return template.format(
            path="{path}",
            port=self.registry.here.port,
            other=self.registry.other.port,
            second=self.second.here.port,
            tls=self.secure.here.port,
        )

    def strangers(self) -> list[Ask]:
        """Return the requests to hosts other than the registry, by the names under which they were asked."""
        elsewhere = [
            self.registry.other,
            self.second.here,
            self.second.other,
            self.secure.here,
            self.secure.other,
        ]
        misnamed = [ask for ask in self.registry.asks if ask.headers["Host"].lower() != self.address]
        return misnamed + [ask for host in elsewhere for ask in host.asks]


@pytest.fixture
async def town(authority: Authority) -> AsyncIterator[Callable[..., Any]]:
    towns: list[FaultyRegistry] = []

    async def build(auth: Auth) -> Town:
        def make(auth: Auth) -> FaultyRegistry:
            registry = FaultyRegistry({"team/app:1": IMAGE}, auth=auth, ip=PUBLIC, elsewhere=PUBLIC_TOO)
            towns.append(registry)
            return registry

        town = Town(make(auth), make("none"), make("none"), Names(NAMES))
        await town.registry.start()
        await town.second.start()
        await town.secure.start(authority.server)
        return town

    yield build
    for registry in towns:
        await registry.stop()


def cookies() -> Fault:
    """Set two cookies in every answer."""

    def change(ask: Ask, answer: Answer) -> Answer:
        headers = answer.headers.copy()
        headers.add("Set-Cookie", "session=token-cookie; Path=/")
        headers.add("Set-Cookie", "domain=token-cookie; Domain=registry.test; Path=/")
        return replace(answer, headers=headers)

    return Fault("cookies", change, when=lambda *_: True, kinds=("token", *DOCUMENTS))


def lent_session(town: Town, *, netrc: bool) -> aiohttp.ClientSession:
    """Return a session that would send everything everywhere, if its own ways were used."""
    jar = aiohttp.CookieJar(unsafe=True)
    for host in ("registry.test", "auth.test", "127.1.0.1"):
        jar.update_cookies({"mine": "token-of-the-session"}, URL(f"http://{host}/"))
    headers = CIMultiDict(
        [
            (name, "token-of-the-session")
            for name in ("Authorization", "Cookie", "Proxy-Authorization")
            for _ in "12"
        ]
    )
    connector = aiohttp.TCPConnector(resolver=town.names)
    return aiohttp.ClientSession(connector=connector, cookie_jar=jar, headers=headers, trust_env=netrc)


@pytest.mark.parametrize("session", SESSIONS)
@pytest.mark.parametrize("auth", ["basic", "bearer"])
@pytest.mark.parametrize("hop", HOPS)
async def test_s1_origin(
    town: Any,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hop: str,
    auth: Auth,
    session: str,
) -> None:
    built: Town = await town(auth)
    template, works = HOPS[hop]
    location = built.location(template)
    built.registry.faults = [cookies(), *(redirect(location).of(kind).often(1) for kind in DOCUMENTS)]
    netrc = tmp_path / "netrc"
    netrc.write_text("default login gordon password token-of-netrc\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    lent = None if session == "own session" else lent_session(built, netrc="netrc" in session)
    try:
        error = await attempt(
            f"{built.address}/team/app:1",
            tmp_path / "app.tar",
            credentials=Keyring(),
            guard=built.names.guard,
            ca_file=authority.ca_file,
            session=lent,
        )
    finally:
        if lent is not None:
            await lent.close()
    if works is not None:
        assert works == (error is None), everything(error)
    check_origins(built)


def check_origins(town: Town) -> None:
    for ask in town.strangers():
        assert not [name for name in CREDENTIAL_HEADERS if name in ask.headers], ask.everything()
        assert not [secret for secret in SECRETS if secret in ask.everything()], ask.everything()
    for ask in town.registry.asks:
        assert "Cookie" not in ask.headers
        assert "Proxy-Authorization" not in ask.headers
        assert len(ask.headers.getall("Authorization", [])) <= 1
        assert "of-the-session" not in ask.everything()
        assert "of-netrc" not in ask.everything()


@pytest.mark.parametrize("auth", ["none", "basic", "bearer"])
@pytest.mark.parametrize("scheme", ["Basic", "Bearer"])
async def test_s1_origin_of_a_challenge(tmp_path: Path, scheme: str, auth: Auth) -> None:
    """A redirect leads to another host that asks for credentials; they are not for that host (CVE-2020-15157)."""
    registry = FaultyRegistry({"team/app:1": IMAGE}, auth=auth)
    async with registry:
        wanted = Answer(401).saying(
            WWW_Authenticate=f'{scheme} realm="{registry.other.url}/token",service="s",scope="x"'
        )
        away = Fault("elsewhere", lambda *_: wanted, when=lambda ask, _: ask.is_elsewhere)
        registry.faults = [redirect("{elsewhere}{path}"), away]
        error = await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar", credentials=Keyring())
        assert isinstance(error, AuthenticationError), everything(error)
        asked = {ask.kind for ask in registry.other.asks}
        assert asked == ({"blob", "token"} if scheme == "Bearer" else {"blob"}), (
            "only a guest's token may be asked for"
        )
        assert not [ask for ask in registry.other.asks if "Authorization" in ask.headers]


@pytest.mark.parametrize("auth", ["none", "basic", "bearer"])
async def test_s1_origin_of_another_registry(tmp_path: Path, auth: Auth) -> None:
    """A registry redirects to another one, which gives a token to anybody: nothing of the first one's login goes there."""
    registry = FaultyRegistry({"team/app:1": IMAGE}, auth=auth)
    async with registry:
        registry.faults = [
            redirect("{elsewhere}{path}").of(*DOCUMENTS),
            *wants_token("repository:team/app:pull", elsewhere=True),
        ]
        error = await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar", credentials=Keyring())
        assert error is None, everything(error)
        there = registry.other.asks
    assert {ask.headers.get("Authorization") for ask in there if ask.kind != "token"} == {
        None,
        f"Bearer {RIGHT_TOKEN}",
    }
    assert [ask.headers.get("Authorization") for ask in there if ask.kind == "token"] == [None]
    assert not [secret for secret in SECRETS for ask in there if secret in ask.everything()]
    assert not [ask for ask in registry.asks if RIGHT_TOKEN in ask.everything()]


async def test_s1_origin_of_another_registry_that_refuses(tmp_path: Path) -> None:
    """A guest's token is asked for once, and the error names who refused it."""
    registry = FaultyRegistry({"team/app:1": IMAGE}, auth="basic")
    async with registry:
        refused = Fault(
            "no token is right",
            lambda ask, _: Answer(401).saying(
                WWW_Authenticate=f'Bearer realm="http://{ask.headers["Host"]}/token"'
            ),
            when=lambda ask, _: ask.is_elsewhere,
            kinds=DOCUMENTS,
        )
        registry.faults = [
            redirect("{elsewhere}{path}").of(*DOCUMENTS),
            refused,
            *wants_token("repository:team/app:pull", elsewhere=True)[1:],
        ]
        error = await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar", credentials=Keyring())
        assert isinstance(error, AuthenticationError), everything(error)
        assert registry.other.address in str(error)
        assert "gordon" not in everything(error)
        assert [ask.kind for ask in registry.other.asks] == ["manifest", "manifest", "token", "manifest"]


def away_and_back(registry: FaultyRegistry, *kinds: Kind) -> list[Fault]:
    """Redirect to the other host, which redirects back to a path of its choice."""
    return [
        Fault(
            "away",
            lambda ask, _: Answer(307).saying(Location=f"{ask.elsewhere}{ask.path}"),
            when=lambda ask, answer: answer.is_content and not ask.is_elsewhere and "chosen" not in ask.path,
            kinds=kinds,
        ),
        Fault(
            "back",
            lambda ask, _: Answer(307).saying(Location=f"{registry.here.url}{ask.path}?chosen=1"),
            when=lambda ask, _: ask.is_elsewhere,
            kinds=kinds,
        ),
    ]


@pytest.mark.parametrize("kind", DOCUMENTS)
@pytest.mark.parametrize("auth", ["none", "basic", "bearer"])
async def test_s1_origin_that_was_left(tmp_path: Path, auth: Auth, kind: Kind) -> None:
    """A path to which another host leads back gets no credentials, also not when it asks for them."""
    registry = FaultyRegistry({"team/app:1": IMAGE}, auth=auth)
    async with registry:
        registry.faults = away_and_back(registry, kind)
        error = await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar", credentials=Keyring())
        chosen = [ask for ask in registry.asks if "chosen" in ask.path]
        assert chosen
        assert not [ask for ask in chosen if "Authorization" in ask.headers]
        assert len([ask for ask in registry.asks if ask.kind == "token"]) == (auth == "bearer")
    assert (error is None) == (auth == "none"), everything(error)
    assert error is None or isinstance(error, AuthenticationError)


@pytest.mark.parametrize("auth", ["none", "bearer"])
async def test_s1_origin_of_a_challenge_after_coming_back(tmp_path: Path, auth: Auth) -> None:
    """A host that leads back to the registry does not choose the token server either."""
    registry = FaultyRegistry({"team/app:1": IMAGE}, auth=auth)
    async with registry:
        realm = f'Bearer realm="{registry.other.url}/token",service="s"'
        registry.faults = [
            *away_and_back(registry, "manifest"),
            Fault(
                "another realm",
                lambda *_: Answer(401).saying(WWW_Authenticate=realm),
                when=lambda ask, _: "chosen" in ask.path,
                kinds=("manifest",),
            ),
        ]
        error = await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar", credentials=Keyring())
        assert isinstance(error, AuthenticationError), everything(error)
        assert {ask.kind for ask in registry.other.asks} == {"manifest"}
        assert not [ask for ask in registry.other.asks if "Authorization" in ask.headers]


async def test_s1_origin_of_a_token_server_that_was_left(tmp_path: Path) -> None:
    registry = FaultyRegistry({"team/app:1": IMAGE}, auth="bearer")
    async with registry:
        registry.faults = away_and_back(registry, "token")
        error = await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar", credentials=Keyring())
        tokens = [ask for ask in [*registry.asks, *registry.other.asks] if ask.kind == "token"]
    assert isinstance(error, DockerSaveError), everything(error)
    assert [
        (ask.path.partition("?")[0], "Authorization" in ask.headers) for ask in tokens if "chosen" in ask.path
    ]
    assert not [ask for ask in tokens if "Authorization" in ask.headers and "chosen" in ask.path]
    assert not [ask for ask in registry.other.asks if "Authorization" in ask.headers]


async def test_s1_origin_is_asked_anew_for_the_rest_of_a_layer(tmp_path: Path) -> None:
    """The credentials go to the registry alone, also when a transfer from the host that it redirects to breaks off."""
    registry = FaultyRegistry({"team/app:1": IMAGE}, auth="bearer")
    async with registry:
        at_other = replace(
            drop(0.5, "close").often(1), when=lambda ask, answer: answer.is_content and ask.is_elsewhere
        )
        registry.faults = [at_other, redirect("{elsewhere}{path}")]
        error = await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar", credentials=Keyring())
        assert error is None, everything(error)
        blobs = [ask for ask in registry.asks if ask.kind == "blob"]
    assert ["Authorization" in ask.headers for ask in blobs] == [True, True]
    assert not [ask for ask in registry.other.asks if "Authorization" in ask.headers]


@pytest.mark.parametrize(
    ("hops", "works"), [(10, True), (11, False), (None, False)], ids=["10", "11", "loop"]
)
async def test_s1_origin_number_of_hops(town: Any, tmp_path: Path, hops: int | None, works: bool) -> None:
    built: Town = await town("basic")
    built.registry.faults = [redirect("{path}").often(hops)]
    error = await attempt(
        f"{built.address}/team/app:1", tmp_path / "app.tar", credentials=Keyring(), guard=built.names.guard
    )
    assert works == (error is None)
    assert works or (isinstance(error, RegistryError) and "redirects" in str(error))
    assert len(built.registry.asks) < 20


@pytest.mark.parametrize("kind", DOCUMENTS)
async def test_s1_origin_no_redirect_from_https_to_http(
    town: Any, authority: Authority, tmp_path: Path, kind: Kind
) -> None:
    """Also without credentials: anybody may change an answer over plain HTTP."""
    built: Town = await town("none")
    built.secure.faults = [redirect(f"http://registry.test:{built.second.here.port}{{path}}").of(kind)]
    error = await attempt(
        f"registry.test:{built.secure.here.port}/team/app:1",
        tmp_path / "app.tar",
        plain_http=False,
        ca_file=authority.ca_file,
        guard=built.names.guard,
    )
    assert isinstance(error, RegistryError)
    assert built.second.asks == []


# ── S2: realm ──


@dataclass(frozen=True)
class Realm:
    """A realm that a registry names, and whether credentials may go there."""

    registry: str
    realm: str
    allowed: bool


def realms() -> dict[str, Realm]:
    """Return the table. ``{port}`` is the registry's, ``{other}`` the token server's on the other host."""
    public = {
        "another public host": ("https://auth.test:{other}/token", True),
        "the registry itself": ("https://registry.test:{port}/token", True),
        "with a query": ("https://auth.test:{other}/token?tenant=1", True),
        "upper case": ("HTTPS://AUTH.TEST:{other}/token", True),
        "http on another host": ("http://auth.test:{other}/token", False),
        "http on the same host and port": ("http://registry.test:{port}/token", False),
        "user information": ("https://evil:pass@auth.test:{other}/token", False),
        "user without a password": ("https://auth.test@auth.test:{other}/token", False),
        "loopback": ("https://127.0.0.1:{other}/token", False),
        "loopback, last address": ("https://127.255.255.254:{other}/token", False),
        "localhost": ("https://localhost:{other}/token", False),
        "localhost with a dot": ("https://localhost.:{other}/token", False),
        "name of a loopback address": ("https://loopback.test:{other}/token", False),
        "loopback with a dot": ("https://127.0.0.1.:{other}/token", False),
        "IPv6 loopback": ("https://[::1]:{other}/token", False),
        "mapped loopback": ("https://[::ffff:127.0.0.1]:{other}/token", False),
        "mapped loopback in hex": ("https://[::ffff:7f00:1]:{other}/token", False),
        "loopback behind NAT64": ("https://[64:ff9b::7f00:1]:{other}/token", False),
        "loopback behind 6to4": ("https://[2002:7f00:1::]:{other}/token", False),
        "decimal": ("https://2130706433:{other}/token", False),
        "hexadecimal": ("https://0x7f000001:{other}/token", False),
        "octal": ("https://0177.0.0.1:{other}/token", False),
        "short": ("https://127.1:{other}/token", False),
        "zero": ("https://0.0.0.0:{other}/token", False),
        "zero, short": ("https://0:{other}/token", False),
        "IPv6 zero": ("https://[::]:{other}/token", False),
        "metadata": ("https://169.254.169.254/token", False),
        "metadata by http": ("http://169.254.169.254/token", False),
        "name of the metadata address": ("https://metadata.test/token", False),
        "metadata, decimal": ("https://2852039166/token", False),
        "metadata by IPv6": ("https://[fd00:ec2::254]/token", False),
        "link-local with a zone": ("https://[fe80::1%25eth0]/token", False),
        "private network": ("https://10.0.0.1/token", False),
        "name in a private network": ("https://private.test:{other}/token", False),
        "unique local": ("https://[fc00::1]/token", False),
        "between carriers": ("https://100.64.0.1/token", False),
        "multicast": ("https://224.0.0.1/token", False),
        "wide digits": ("https://１２７.0.0.1:{other}/token", False),
        "IDN that is another name": ("https://аuth.test:{other}/token", False),
        "IDN that folds": ("https://ⓛocalhost:{other}/token", False),
        "fragment": ("https://auth.test:{other}/token#x", False),
        "no host": ("https:///token", False),
        "no scheme": ("auth.test/token", False),
        "relative": ("/token", False),
        "empty": ("", False),
        "file": ("file:///etc/passwd", False),
        "impossible port": ("https://auth.test:99999/token", False),
        "port 0": ("https://auth.test:0/token", False),
        "back slash": ("https://auth.test:{other}\\\\@127.0.0.1/token", False),
    }
    private = {
        "the same network": ("https://private-too.test:{other}/token", True),
        "the registry itself": ("https://private.test:{port}/token", True),
        "public": ("https://auth.test:{public}/token", True),
        "loopback": ("https://127.0.0.1:{other}/token", False),
        "metadata": ("https://169.254.169.254/token", False),
        "http in the same network": ("http://private-too.test:{other}/token", False),
    }
    loopback = {
        "the registry itself": ("http://127.0.0.1:{port}/token", True),
        "another loopback address": ("http://127.0.0.2:{other}/token", True),
        "private network": ("https://private.test:{other}/token", False),
        "metadata": ("http://169.254.169.254/token", False),
        "http in public": ("http://auth.test:{public}/token", False),
        "http at a name that is not loopback's own": ("http://loopback.test:{port}/token", False),
    }
    tables = {"public": public, "private": private, "loopback": loopback}
    return {
        f"{registry}: {name}": Realm(registry, *row)
        for registry, rows in tables.items()
        for name, row in rows.items()
    }


REALMS = realms()
HOSTS = {
    "public": ("registry.test", PUBLIC, PUBLIC_TOO),
    "private": ("private.test", PRIVATE, PRIVATE_TOO),
    "loopback": ("127.0.0.1", "127.0.0.1", "127.0.0.2"),
}


@pytest.mark.parametrize("row", REALMS)
async def test_s2_realm(
    row: str, authority: Authority, keyring: Keyring, dials: list[tuple[str, int]], tmp_path: Path
) -> None:
    case = REALMS[row]
    host, ip, elsewhere = HOSTS[case.registry]
    registry = FaultyRegistry({"team/app:1": IMAGE}, auth="bearer", ip=ip, elsewhere=elsewhere)
    public = FaultyRegistry(ip=PUBLIC, elsewhere=PUBLIC_TOO)
    tls = None if case.registry == "loopback" else authority.server
    await registry.start(tls)
    await public.start(authority.server)
    try:
        # Only the registry knows its tokens, so the other server hands out one of the registry's.
        public._token_uses = registry._token_uses
        ports = {"port": registry.here.port, "other": registry.other.port, "public": public.other.port}
        realm = case.realm.format(**ports)
        registry.faults = [challenge(f'Bearer realm="{realm}",service="faulty"')]
        error = await attempt(
            f"{host}:{registry.here.port}/team/app:1",
            tmp_path / "app.tar",
            plain_http=tls is None,
            credentials=keyring,
            guard=Names(NAMES).guard,
            ca_file=authority.ca_file if tls else None,
        )
    finally:
        await registry.stop()
        await public.stop()
    if case.allowed:
        assert error is None, everything(error)
        assert keyring.asked
        return
    assert isinstance(error, AuthenticationError), everything(error)
    assert keyring.asked == [], "credentials were looked up for it"
    assert {address for address, _ in dials} == {ip}
    asks = [*registry.asks, *registry.other.asks, *public.other.asks]
    assert not [ask for ask in asks if ask.kind == "token" or "Authorization" in ask.headers]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "to", ["https://127.0.0.1:{other}/token", "https://registry.test:{port}/elsewhere", "{elsewhere}/x"]
)
async def test_s2_realm_that_redirects(
    authority: Authority, keyring: Keyring, tmp_path: Path, dials: list[tuple[str, int]], to: str, status: int
) -> None:
    """The token server sees the password; a host that it points at does not."""
    registry = FaultyRegistry({"team/app:1": IMAGE}, auth="bearer", ip=PUBLIC, elsewhere=PUBLIC_TOO)
    await registry.start(authority.server)
    try:
        location = to.format(port=registry.here.port, other=registry.other.port, elsewhere="{elsewhere}")
        realm = f"https://auth.test:{registry.other.port}/token"
        away = Answer(status).saying(Location=location.format(elsewhere=registry.other.url))
        registry.faults = [
            challenge(f'Bearer realm="{realm}",service="faulty"'),
            Fault("realm redirects", lambda *_: away, kinds=("token",)),
        ]
        error = await attempt(
            f"registry.test:{registry.here.port}/team/app:1",
            tmp_path / "app.tar",
            plain_http=False,
            credentials=keyring,
            guard=Names(NAMES).guard,
            ca_file=authority.ca_file,
        )
    finally:
        await registry.stop()
    assert isinstance(error, RegistryError), everything(error)
    shown = [ask for ask in [*registry.asks, *registry.other.asks] if "Authorization" in ask.headers]
    assert {(ask.kind, ask.headers["Host"]) for ask in shown} == {
        ("token", f"auth.test:{registry.other.port}")
    }
    assert "127.0.0.1" not in {address for address, _ in dials}


@pytest.mark.parametrize(
    "value", ["a&account=root", "a#b", "a b", "a%26b", "ä", "a&scope=repository:other:push"]
)
async def test_s2_realm_parameters_are_values(keyring: Keyring, tmp_path: Path, value: str) -> None:
    """The name of a registry's service is one value of the query, whatever characters it has."""
    registry = FaultyRegistry({"team/app:1": IMAGE}, auth="bearer")
    async with registry:
        header = (
            f'Bearer realm="{registry.here.url}/token",service="{value}",scope="repository:other:push{value}"'
        )
        registry.faults = [challenge(header)]
        error = await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar", credentials=keyring)
        assert error is None, everything(error)
        (ask, *_) = [ask for ask in registry.asks if ask.kind == "token"]
    query = URL(ask.path, encoded=True).query
    assert query.getall("account") == [USER]
    assert query.getall("scope") == ["repository:team/app:pull"]
    assert len(query.getall("service")) == 1


# ── S3: dial ──


def elsewhere_by(way: str, url: str) -> tuple[Image, list[Fault], Auth]:
    """Make an image, the faults and the login that lead a client to a URL."""
    if way == "realm":
        return IMAGE, [challenge(f'Bearer realm="{url}/token",service="s"')], "bearer"
    if way == "redirect":
        return IMAGE, [redirect(f"{url}/x").of(*DOCUMENTS)], "none"
    if way == "Link":
        faults = [
            Fault("a Link", lambda _, answer: answer.saying(Link=f'<{url}/x>; rel="next"'), kinds=DOCUMENTS)
        ]
        return IMAGE, faults, "none"
    layer = replace(LAYER, descriptor=replace(LAYER.descriptor, media_type=FOREIGN))
    image = make_image(layer)
    document = json.loads(image.manifest_bytes)
    document["layers"][0]["urls"] = [f"{url}/x"]
    return replace(image, manifest_bytes=to_json(document)), [refuse(404)], "none"


DANGEROUS = {
    "loopback": [["127.0.0.1"]],
    "metadata": [[METADATA]],
    "private": [[PRIVATE]],
    "public and private": [[PRIVATE, METADATA]],
    "rebinding": [[PUBLIC_TOO], ["127.0.0.1"]],
    "rebinding, later": [[PUBLIC_TOO], [PUBLIC_TOO], ["127.0.0.1"]],
    "rebinding to metadata": [[PUBLIC_TOO], [METADATA]],
}
LITERALS = ["127.0.0.1", "2130706433", "0x7f000001", "127.1", "[::ffff:127.0.0.1]", "0.0.0.0", "localhost"]


@pytest.fixture
async def public_registry(authority: Authority) -> AsyncIterator[FaultyRegistry]:
    registry = FaultyRegistry(ip=PUBLIC, elsewhere=PUBLIC_TOO)
    await registry.start(authority.server)
    yield registry
    await registry.stop()


async def led_astray(
    registry: FaultyRegistry, authority: Authority, names: Names, way: str, url: str, target: Path
) -> tuple[DockerSaveError | None, Keyring]:
    image, faults, auth = elsewhere_by(way, url)
    registry.add("team/app:1", image)
    registry.faults, registry.auth = faults, auth
    keyring = Keyring()
    error = await attempt(
        f"registry.test:{registry.here.port}/team/app:1",
        target,
        plain_http=False,
        credentials=keyring,
        guard=names.guard,
        ca_file=authority.ca_file,
        retries=Retries(attempts=3),
    )
    return error, keyring


@pytest.mark.parametrize("way", ["realm", "redirect", "urls", "Link"])
@pytest.mark.parametrize("answers", DANGEROUS)
async def test_s3_dial(
    public_registry: FaultyRegistry,
    authority: Authority,
    dials: list[tuple[str, int]],
    tmp_path: Path,
    answers: str,
    way: str,
) -> None:
    """Only the registry and public addresses are dialled, whatever a resolver returns, and when."""
    names = Names(NAMES | {"evil.test": DANGEROUS[answers]})
    url = f"https://evil.test:{public_registry.other.port}"
    error, _ = await led_astray(public_registry, authority, names, way, url, tmp_path / "app.tar")
    assert (error is None) == (way == "Link"), everything(error)
    assert {address for address, _ in dials} <= {PUBLIC, PUBLIC_TOO}


@pytest.mark.parametrize("way", ["realm", "redirect", "urls", "Link"])
@pytest.mark.parametrize("host", LITERALS)
async def test_s3_dial_of_an_address(
    public_registry: FaultyRegistry,
    authority: Authority,
    dials: list[tuple[str, int]],
    tmp_path: Path,
    host: str,
    way: str,
) -> None:
    """A literal address skips the resolver, but not the check."""
    url = f"https://{host}:{public_registry.other.port}"
    error, _ = await led_astray(public_registry, authority, Names(NAMES), way, url, tmp_path / "app.tar")
    assert (error is None) == (way == "Link"), everything(error)
    assert {address for address, _ in dials} == {PUBLIC}


@pytest.mark.parametrize("way", ["realm", "redirect"])
@pytest.mark.parametrize("is_public_first", [True, False], ids=["public first", "loopback first"])
async def test_s3_dial_of_a_name_with_addresses_of_two_classes(
    monkeypatch: pytest.MonkeyPatch, keyring: Keyring, tmp_path: Path, is_public_first: bool, way: str
) -> None:
    """Addresses are tried side by side. The address that answers counts, and not those that were tried."""
    connect, tried = selector_events.BaseSelectorEventLoop.sock_connect, asyncio.Event()
    dead = "127.0.0.9"  # nobody listens there

    async def connect_late(loop: Any, sock: socket.socket, address: Any) -> None:
        if address[0] == dead:
            tried.set()
        if address[0] == PUBLIC:
            await tried.wait()
        await connect(loop, sock, address)

    monkeypatch.setattr(selector_events.BaseSelectorEventLoop, "sock_connect", connect_late)
    addresses = [PUBLIC, dead] if is_public_first else [dead, PUBLIC]
    names = Names({"evil.test": [addresses]})
    registry, inner = FaultyRegistry(ip=PUBLIC, elsewhere=PUBLIC_TOO), FaultyRegistry()
    async with registry, inner:
        image, faults, auth = elsewhere_by(way, inner.here.url)
        registry.add("team/app:1", image)
        registry.faults, registry.auth = faults, auth
        error = await attempt(
            f"evil.test:{registry.here.port}/team/app:1",
            tmp_path / "app.tar",
            credentials=keyring,
            guard=names.guard,
            timeouts=Timeouts(connect=10, silence=10),
            retries=Retries(attempts=3),
        )
        assert isinstance(error, RegistryError), everything(error)
        assert registry.asks
        assert inner.asks == []
    assert keyring.asked == [], "credentials were looked up for it"


async def test_s3_dial_of_the_users_own_registry(dials: list[tuple[str, int]], tmp_path: Path) -> None:
    """A registry may be at a private or loopback address, and may point within its network."""
    for host, ip, elsewhere in (
        ("private.test", PRIVATE, PRIVATE_TOO),
        ("loopback.test", "127.0.0.1", "127.0.0.2"),
    ):
        async with FaultyRegistry(
            {"team/app:1": IMAGE}, [redirect("{elsewhere}{path}")], ip=ip, elsewhere=elsewhere
        ) as registry:
            error = await attempt(
                f"{host}:{registry.here.port}/team/app:1", tmp_path / "app.tar", guard=Names(NAMES).guard
            )
        assert error is None, everything(error)
        assert {address for address, _ in dials} == {ip, elsewhere}
        dials.clear()


async def test_s3_dial_urls_are_not_asked_at_all(
    public_registry: FaultyRegistry, authority: Authority, dials: list[tuple[str, int]], tmp_path: Path
) -> None:
    """Not even public URLs that would answer are asked: a manifest does not choose whom to dial."""
    url = f"https://auth.test:{public_registry.other.port}"
    error, _ = await led_astray(public_registry, authority, Names(NAMES), "urls", url, tmp_path / "app.tar")
    assert isinstance(error, SourceError)
    assert "auth.test" in everything(error), "the error says where it could be had"
    assert {address for address, _ in dials} == {PUBLIC}
    assert public_registry.other.asks == []
