"""Challenges, realms and tokens; servers that record requests show who gets credentials."""

from __future__ import annotations

import asyncio
import base64
import ssl
import urllib.parse
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from aiodockersave import AuthenticationError, ContentTooLargeError, RateLimitedError, RegistryError
from aiodockersave.sources.credentials import Credentials
from aiodockersave.sources.registry.addresses import AddressClass
from aiodockersave.sources.registry.answers import InterruptedTransfer
from aiodockersave.sources.registry.auth import (
    MAX_TOKEN_BODY,
    Authorizer,
    Challenge,
    Token,
    parse_challenges,
    parse_token,
    password_request,
    pull_scope,
    realm_fault,
    token_request,
)
from aiodockersave.sources.registry.session_pool import Settings, Tls
from aiodockersave.sources.registry.transport import Request, Transport

# ── challenges ──

BEARER = Challenge("bearer", {"realm": "https://a.example/token", "service": "s"})

CHALLENGES: dict[str, tuple[list[str], list[Challenge]]] = {
    "one": (['Bearer realm="https://a.example/token",service="s"'], [BEARER]),
    "case and space": (['BEARER  Realm = "https://a.example/token" ,  SERVICE=s'], [BEARER]),
    "quoted comma": (
        ['Bearer scope="repository:a:pull,push"'],
        [Challenge("bearer", {"scope": "repository:a:pull,push"})],
    ),
    "quoted quote": ([r'Basic realm="a \"b\" \\c"'], [Challenge("basic", {"realm": 'a "b" \\c'})]),
    "several in one": (
        ['Basic realm="x", Bearer realm="https://a.example/token", service="s"'],
        [Challenge("basic", {"realm": "x"}), BEARER],
    ),
    "several headers": (
        ['Basic realm="x"', 'Bearer realm="https://a.example/token",service="s"'],
        [Challenge("basic", {"realm": "x"}), BEARER],
    ),
    "token68": (
        ["Negotiate YWJj==, Basic realm=x"],
        [Challenge("negotiate", {}), Challenge("basic", {"realm": "x"})],
    ),
    "scheme alone": (["NTLM, Negotiate"], [Challenge("ntlm", {}), Challenge("negotiate", {})]),
    "empty parts": ([', ,Basic realm="x",,'], [Challenge("basic", {"realm": "x"})]),
    "the first of two counts": (["Basic realm=a, realm=b"], [Challenge("basic", {"realm": "a"})]),
    "scheme in quotes": (
        ['Basic realm="Bearer realm=https://evil"'],
        [Challenge("basic", {"realm": "Bearer realm=https://evil"})],
    ),
    "open quote": (['Basic realm="x'], [Challenge("basic", {})]),
    "open quote later": (
        ['Basic realm=x, Bearer realm="y'],
        [Challenge("basic", {"realm": "x"}), Challenge("bearer", {})],
    ),
    "parameter first": (["realm=x, Basic"], []),
    "token68, by its form": (["Basic realm=, x"], [Challenge("basic", {}), Challenge("x", {})]),
    "empty value": (['Basic realm=""'], [Challenge("basic", {"realm": ""})]),
    "nothing": (["", "=", '"'], []),
    "none": ([], []),
}


@pytest.mark.parametrize(("headers", "expected"), CHALLENGES.values(), ids=CHALLENGES)
def test_challenges(headers: list[str], expected: list[Challenge]) -> None:
    assert parse_challenges(headers) == expected


@pytest.mark.parametrize(
    "text",
    ["a " * 100_000, '"' * 100_000, "a=" * 100_000, "a=\\" * 50_000, ", " * 100_000, 'A x="\\' * 20_000],
)
def test_long_challenges_take_no_time(text: str) -> None:
    parse_challenges([text])  # the limit is the test's own


# ── realms ──

REGISTRY = ("https", "r.example", 443)
REALMS: list[tuple[str, str | None]] = [
    ("https://auth.example/token", None),
    ("https://auth.example/token?x=1", None),
    ("https://r.example/token", None),
    ("http://auth.example/token", "is not https"),
    ("http://r.example/token", "is not https"),
    ("http://localhost/token", "is not https"),
    ("https://user@auth.example/token", "is not a proper URL"),
    ("https://user:pw@auth.example/token", "is not a proper URL"),
    ("https://auth.example/token#x", "is not a proper URL"),
    ("https://auth.example:99999/", "is not a proper URL"),
    ("ftp://auth.example/", "is not a proper URL"),
    ("//auth.example/", "is not a proper URL"),
    ("/token", "is not a proper URL"),
    ("auth.example", "is not a proper URL"),
    ("https://", "is not a proper URL"),
    ("https://bücher.example/", "is not a proper URL"),
    ("https://auth.example/to ken", "is not a proper URL"),
    ("\x01https://auth.example/token", "is not a proper URL"),
    ("", "is not a proper URL"),
]


@pytest.mark.parametrize(("realm", "fault"), REALMS)
def test_realms(realm: str, fault: str | None) -> None:
    assert realm_fault(realm, REGISTRY, in_machine=False) == fault


@pytest.mark.parametrize(
    ("realm", "registry", "in_machine", "fault"),
    [
        (
            "http://r.example:5000/token",
            ("http", "r.example", 5000),
            False,
            None,
        ),  # where it was asked by http
        ("http://r.example:5001/token", ("http", "r.example", 5000), False, "is not https"),
        ("http://r.example:5000/token", ("https", "r.example", 5000), False, "is not https"),
        ("http://localhost:5001/token", ("https", "localhost", 5000), True, None),
        ("http://127.0.0.1:5001/token", ("http", "localhost", 5000), True, None),
        ("http://auth.example/token", ("http", "localhost", 5000), True, "is not https"),
    ],
)
def test_realms_by_http(
    realm: str, registry: tuple[str, str, int], in_machine: bool, fault: str | None
) -> None:
    assert realm_fault(realm, registry, in_machine=in_machine) == fault


# ── tokens ──

GORDON = Credentials("gordon", "se&cret#")
IDENTITY = Credentials("", "", identity_token="identity+token")


def query(url: str) -> dict[str, str]:
    return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query, strict_parsing=True))


def test_a_token_is_asked_for_without_credentials() -> None:
    request = token_request("https://a.example/t?x=1", "a&b#c", "repository:r:pull", None, what="token")
    assert query(request.url) == {"x": "1", "service": "a&b#c", "scope": "repository:r:pull"}
    assert (request.authorization, request.form) == (None, None)


def test_a_token_is_asked_for_with_a_password() -> None:
    request = token_request("https://a.example/t", "", "s", GORDON, what="token")
    assert query(request.url) == {"scope": "s", "account": "gordon"}
    assert request.authorization == f"Basic {base64.b64encode(b'gordon:se&cret#').decode()}"
    assert "secret" not in repr(request)
    assert "Basic" not in repr(request)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (
            token_request("https://a.example/t", "s", "r", IDENTITY, what="token"),
            {"grant_type": "refresh_token", "refresh_token": "identity+token"},
        ),
        (
            password_request("https://a.example/t", "s", "r", GORDON, what="token"),
            {"grant_type": "password", "username": "gordon", "password": "se&cret#"},
        ),
    ],
    ids=["identity token", "password"],
)
def test_a_token_is_asked_for_by_post(request_: Request, expected: dict[str, str]) -> None:
    assert request_.url == "https://a.example/t"
    assert request_.form is not None
    found = dict(urllib.parse.parse_qsl(request_.form.decode(), strict_parsing=True))
    assert found == expected | {"service": "s", "scope": "r", "client_id": "aiodockersave"}
    assert not {"identity", "se&cret"} & set(repr(request_).split())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"token": "a"}', Token("a", 60)),
        (b'{"access_token": "a", "expires_in": 300}', Token("a", 300)),
        (b'{"token": "a", "access_token": "b", "expires_in": 3600.5}', Token("a", 3600.5)),
        (b'{"token": "", "access_token": "b"}', Token("b", 60)),
        (b'{"token": "a", "expires_in": 1}', Token("a", 60)),
        (b'{"token": "a", "expires_in": -1}', Token("a", 60)),
        (b'{"token": "a", "expires_in": 1e400}', Token("a", 1e9)),
        (b'{"token": "a", "expires_in": NaN}', Token("a", 60)),
        (b'{"token": "a", "expires_in": "300"}', Token("a", 60)),
        (b'{"token": "a", "expires_in": true}', Token("a", 60)),
        (b'{"token": "a b"}', None),
        (b'{"token": "a\\r\\nX: y"}', None),
        (b'{"token": "\xc3\xbc"}', None),
        (b'{"token": 1}', None),
        (b"{}", None),
        (b"[]", None),
        (b"", None),
        (b"\xff", None),
        (b"[" * 200_000, None),
    ],
    ids=range(19),
)
def test_tokens(body: bytes, expected: Token | None) -> None:
    assert parse_token(body) == expected


# ── an authorizer and its token server ──


@dataclass
class Keyring:
    """A store of one login that records who asked for it."""

    credentials: Credentials | None = None
    asked: list[tuple[str, str]] = field(default_factory=list)

    async def get(self, registry: str, repository: str) -> Credentials | None:
        self.asked.append((registry, repository))
        return self.credentials


@dataclass
class TokenService:
    """A token server with given answers that records requests and their bodies."""

    answers: list[web.Response] = field(default_factory=list)
    asks: list[tuple[str, str, str, str | None]] = field(default_factory=list)
    gate: asyncio.Event | None = None
    url: str = ""

    async def handle(self, request: web.BaseRequest) -> web.Response:
        body = await request.text()
        self.asks.append((request.method, request.path_qs, body, request.headers.get("Authorization")))
        if self.gate is not None:
            await self.gate.wait()
        return self.answers.pop(0) if self.answers else token(f"token-{len(self.asks)}")

    @property
    def challenge(self) -> Challenge:
        return Challenge("bearer", {"realm": f"{self.url}/token", "service": "s"})


def token(text: str, **more: object) -> web.Response:
    return web.json_response({"token": text, **more})


@pytest.fixture
async def service() -> AsyncIterator[TokenService]:
    service = TokenService()
    runner = web.ServerRunner(web.Server(service.handle), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    service.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield service
    await runner.cleanup()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def trusting_nobody(host_port: str, is_named: bool) -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


async def no_tls(host_port: str, is_named: bool) -> bool:
    raise AssertionError(f"https to {host_port}")


@asynccontextmanager
async def authorizer(
    keyring: Keyring, clock: Callable[[], float] | None = None, tls: Tls = no_tls
) -> AsyncIterator[Authorizer]:
    transport = Transport("127.0.0.1", 5000, Settings(tls=tls))
    try:
        yield Authorizer("r.example", transport, keyring, clock or Clock())
    finally:
        await transport.dialler.aclose()


ASK = Request("manifest app", "http://127.0.0.1:5000/v2/app/manifests/1?secret=1")


async def test_a_token_is_kept_until_it_expires(service: TokenService) -> None:
    clock, keyring = Clock(), Keyring()
    async with authorizer(keyring, clock) as auth:
        assert await auth.header(ASK, "app") is None
        service.answers = [token("one", expires_in=100)]
        assert await auth.answer(ASK, "app", [service.challenge], refused=None) == ("Bearer one", True)
        assert await auth.header(ASK, "other") is None
        clock.now += 99
        assert await auth.header(ASK, "app") == "Bearer one"
        clock.now += 2
        service.answers = [token("two")]
        assert await auth.header(ASK, "app") == "Bearer two"
        assert "two" not in repr(auth.__dict__)
    assert [ask[:2] for ask in service.asks] == [
        ("GET", "/token?service=s&scope=repository%3Aapp%3Apull")
    ] * 2
    assert keyring.asked == [("r.example", "app")] * 2


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("repository:library/app:pull", "repository:library/app:pull"),
        ("repository:a/b:pull,push", "repository:a/b:pull"),
        ("repository:a/b:*", "repository:a/b:pull"),
        ("registry:catalog:* repository:a:push repository:b:pull", "repository:b:pull"),
        ("repository:registry.example:5000/a:pull", "repository:registry.example:5000/a:pull"),
        ("", None),
        ("repository:a:push", None),
        ("repository::pull", None),
        ("repository:a&scope=x:pull", None),
        (f"repository:{'a' * 301}:pull", None),
        ("repository:pull", None),
    ],
)
def test_the_scope_of_a_challenge(scope: str, expected: str | None) -> None:
    assert pull_scope(scope) == expected


async def test_a_challenge_that_names_another_scope(service: TokenService) -> None:
    """A proxy knows the repository by another name: what it names is asked for when the own name did not do, and from then on."""
    clock, told = (
        Clock(),
        Challenge("bearer", {**service.challenge.parameters, "scope": "repository:library/app:pull"}),
    )
    async with authorizer(Keyring(), clock) as auth:
        service.answers = [token("one"), token("two", expires_in=100), token("three"), token("four")]
        assert not auth.has_other_scope("app", [told])  # nothing was tried yet
        assert await auth.answer(ASK, "app", [told], refused=None) == ("Bearer one", True)
        assert auth.has_other_scope("app", [told])
        assert not auth.has_other_scope("app", [service.challenge])
        assert await auth.answer(ASK, "app", [told], refused="Bearer one") == ("Bearer two", True)
        assert not auth.has_other_scope("app", [told])
        clock.now += 101
        assert await auth.header(ASK, "app") == "Bearer three"
        # A placeholder that did not do either: the own name again.
        assert await auth.answer(ASK, "app", [told], refused="Bearer three") == ("Bearer four", True)
    own, others = "repository%3Aapp%3Apull", "repository%3Alibrary%2Fapp%3Apull"
    assert [ask[1].partition("scope=")[2] for ask in service.asks] == [own, others, others, own]


async def test_a_realm_is_judged_by_the_answer_that_named_it(service: TokenService) -> None:
    """Also when the token has expired, whatever was connected to meanwhile; and by the registry's name if no answer named it."""
    clock = Clock()
    transport = Transport("registry.example", 5000, Settings(tls=no_tls))
    ask = Request("manifest app", "http://registry.example:5000/v2/app/manifests/1")
    auth = Authorizer("registry.example", transport, Keyring(GORDON), clock)
    try:
        for by in (None, AddressClass.PUBLIC, AddressClass.PRIVATE):
            with pytest.raises(AuthenticationError, match="is not https"):
                await auth.answer(ask, "app", [service.challenge], refused=None, by=by)
        assert service.asks == []
        service.answers = [token("one"), token("two")]
        given = await auth.answer(ask, "app", [service.challenge], refused=None, by=AddressClass.LOOPBACK)
        assert given == ("Bearer one", True)
        clock.now += 1000
        assert await auth.header(ask, "app") == "Bearer two"
    finally:
        await transport.dialler.aclose()


async def test_a_token_that_is_refused_is_fetched_anew(service: TokenService) -> None:
    async with authorizer(Keyring(GORDON)) as auth:
        await auth.answer(ASK, "app", [service.challenge], refused=None)
        answer = await auth.answer(ASK, "app", [service.challenge], refused="Bearer token-1")
        assert answer == ("Bearer token-2", True)
        assert await auth.answer(ASK, "app", [service.challenge], refused="Bearer token-1") == (
            "Bearer token-2",
            False,
        )
        service.answers = [token("token-2")]
        with pytest.raises(AuthenticationError, match="the credentials are refused"):
            await auth.answer(ASK, "app", [service.challenge], refused="Bearer token-2")
        assert "token-2" in auth.secrets
        assert GORDON.password in auth.secrets


async def test_concurrent_requests_share_one_token_fetch(service: TokenService) -> None:
    service.gate = asyncio.Event()
    async with authorizer(Keyring()) as auth, asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(auth.answer(ASK, "app", [service.challenge], refused=None)) for _ in range(20)
        ]
        async with asyncio.timeout(60):
            while not service.asks:
                await asyncio.sleep(0)
        tasks[0].cancel()  # who fetches leaves: the next one does it
        tasks[5].cancel()
        async with asyncio.timeout(60):
            while len(service.asks) < 2:
                await asyncio.sleep(0)
        service.gate.set()
    assert len(service.asks) == 2
    done = [task.result() for task in tasks if not task.cancelled()]
    assert len(done) == 18
    assert sorted(done) == [("Bearer token-2", False)] * 17 + [("Bearer token-2", True)]


async def test_an_identity_token_goes_by_post(service: TokenService) -> None:
    service.answers = [web.json_response({"access_token": "one"})]
    async with authorizer(Keyring(IDENTITY)) as auth:
        assert await auth.answer(ASK, "app", [service.challenge], refused=None) == ("Bearer one", True)
    ((method, path, body, authorization),) = service.asks
    assert (method, path, authorization) == ("POST", "/token", None)
    assert "refresh_token=identity%2Btoken" in body


@pytest.mark.parametrize("status", [404, 405])
async def test_a_server_without_get_is_asked_by_post(service: TokenService, status: int) -> None:
    service.answers = [web.Response(status=status), token("one")]
    async with authorizer(Keyring(GORDON)) as auth:
        assert await auth.answer(ASK, "app", [service.challenge], refused=None) == ("Bearer one", True)
    assert [ask[0] for ask in service.asks] == ["GET", "POST"]
    assert "password=se%26cret%23" in service.asks[1][2]


async def test_a_registry_token_is_used_as_it_is(service: TokenService) -> None:
    async with authorizer(Keyring(Credentials("", "", registry_token="given"))) as auth:
        assert await auth.answer(ASK, "app", [service.challenge], refused=None) == ("Bearer given", True)
        assert await auth.header(ASK, "app") == "Bearer given"
        with pytest.raises(AuthenticationError):
            await auth.answer(ASK, "app", [service.challenge], refused="Bearer given")
    assert not service.asks


async def test_a_password_is_shown_where_it_is_asked_for() -> None:
    async with authorizer(Keyring(GORDON)) as auth:
        header, is_fresh = await auth.answer(ASK, "app", [Challenge("basic", {"realm": "x"})], refused=None)
        assert header == f"Basic {base64.b64encode(b'gordon:se&cret#').decode()}"
        assert is_fresh
        with pytest.raises(AuthenticationError, match="refused"):
            await auth.answer(ASK, "app", [Challenge("basic", {})], refused=header)


async def test_bearer_wins_over_basic(service: TokenService) -> None:
    async with authorizer(Keyring(GORDON)) as auth:
        challenges = [Challenge("basic", {}), service.challenge, Challenge("bearer", {"realm": "/later"})]
        assert (await auth.answer(ASK, "app", challenges, refused=None))[0] == "Bearer token-1"


@pytest.mark.parametrize(
    ("challenge", "credentials", "message"),
    [
        (Challenge("basic", {}), None, "a password is needed for r.example"),
        (Challenge("basic", {}), IDENTITY, "a password is needed for r.example"),
        (Challenge("negotiate", {}), GORDON, "asks for negotiate"),
        (Challenge("bearer", {}), GORDON, "is not a proper URL"),
        (
            Challenge("bearer", {"realm": "http://auth.example/?token=abc"}),
            GORDON,
            "http://auth.example/ is not https",
        ),
        (
            Challenge("bearer", {"realm": "https://10.0.0.1/"}),
            GORDON,
            "the private address 10.0.0.1 is not dialled",
        ),
        (Challenge("bearer", {"realm": "https://169.254.169.254/"}), GORDON, "the link-local address"),
        (Challenge("bearer", {"realm": "https://0.0.0.0/"}), GORDON, "the reserved address"),
        (Challenge("bearer", {"realm": "https://0x0a000001/"}), GORDON, "the private address 10.0.0.1"),
    ],
    ids=range(9),
)
async def test_logins_that_fail(challenge: Challenge, credentials: Credentials | None, message: str) -> None:
    keyring = Keyring(credentials)
    async with authorizer(keyring) as auth:
        with pytest.raises(AuthenticationError, match=message) as caught:
            await auth.answer(ASK, "app", [challenge], refused=None)
    assert caught.value.status == 401
    assert "secret=1" not in str(caught.value)
    assert not keyring.asked or challenge.scheme == "basic", (
        "credentials were looked up for a realm that is refused"
    )


async def test_a_realm_that_cannot_be_resolved_now_may_be_later() -> None:
    keyring = Keyring(GORDON)
    challenge = Challenge("bearer", {"realm": "https://no-such-host.invalid/token"})
    async with authorizer(keyring, tls=trusting_nobody) as auth:
        with pytest.raises((RegistryError, InterruptedTransfer), match="host"):
            await auth.answer(ASK, "app", [challenge], refused=None)


ANSWERS: dict[str, tuple[web.Response, type[Exception], str]] = {
    "no token": (web.json_response({}), AuthenticationError, "without a token"),
    "no JSON": (web.Response(text="<html>"), AuthenticationError, "without a token"),
    "wrong password": (
        web.json_response({"details": "wrong: se&cret#"}, status=401),
        AuthenticationError,
        r"wrong: \*\*\*",
    ),
    "the form that was not sent": (
        web.json_response({"message": "user=gordon&password=se%26cret%23"}, status=400),
        RegistryError,
        r"password=\*\*\* ",
    ),
    "denied": (web.Response(status=403), AuthenticationError, "denied"),
    "not found": (web.Response(status=400), RegistryError, "status 400"),
    "too much": (web.Response(body=bytes(MAX_TOKEN_BODY + 1)), ContentTooLargeError, str(MAX_TOKEN_BODY)),
    "busy": (web.Response(status=429, headers={"Retry-After": "7"}), InterruptedTransfer, "429"),
    "broken": (web.Response(status=502), InterruptedTransfer, "502"),
}


@pytest.mark.parametrize(("answer", "error", "message"), ANSWERS.values(), ids=ANSWERS)
async def test_answers_without_a_token(
    service: TokenService, answer: web.Response, error: type[Exception], message: str
) -> None:
    service.answers = [answer]
    async with authorizer(Keyring(GORDON)) as auth:
        with pytest.raises(error, match=message) as caught:
            await auth.answer(ASK, "app", [service.challenge], refused=None)
        assert await auth.header(ASK, "app") is None
    assert GORDON.password not in str(caught.value)
    assert service.url.removeprefix("http://") in str(caught.value)
    if isinstance(caught.value, InterruptedTransfer) and isinstance(caught.value.error, RateLimitedError):
        assert caught.value.retry_after == 7


async def test_a_form_with_a_secret_is_not_redirected(service: TokenService) -> None:
    service.answers = [web.Response(status=307, headers={"Location": "/elsewhere"})]
    async with authorizer(Keyring(IDENTITY)) as auth:
        with pytest.raises(RegistryError, match="redirects a request that holds a secret"):
            await auth.answer(ASK, "app", [service.challenge], refused=None)
    assert len(service.asks) == 1
