"""Log in at a registry: read its challenges, and fetch the tokens that answer them.

::

    GET /v2/…                          401, WWW-Authenticate: Bearer realm="https://auth.example.com/token",service="…"
    GET https://auth.example.com/token?service=…&scope=repository:library/alpine:pull     {"token": …, "expires_in": 300}
    GET /v2/…  Authorization: Bearer …                                                    200

The registry chooses the realm, that is, the server that is shown the user's password. So a realm is checked before
credentials are even looked up. It must be an https URL (http only for the registry's own origin, or inside this machine)
without user information, at an address that the registry may point at.
Sources: distribution's specification of token authentication; RFC 9110 § 11; CVE-2020-15157 and those after it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlencode

from aiodockersave.core.errors import AuthenticationError
from aiodockersave.core.text import Secrets, shown, shown_url

from .addresses import AddressClass, AddressRefusedError, is_loopback_name
from .answers import Origin, origin, refusal
from .cache import Recent
from .transport import Request, Transport

if TYPE_CHECKING:
    from aiodockersave.sources.credentials import Credentials, CredentialStore

__all__ = [
    "Anonymous",
    "Authorizer",
    "Challenge",
    "Token",
    "parse_challenges",
    "parse_token",
    "realm_fault",
    "token_request",
]

MAX_TOKEN_BODY: Final = 64 << 10
"""Bytes of a token server's answer that are read. They are parsed on the loop, in at most 3 ms. Tokens have some thousand
bytes, and no server takes a larger header."""
_CLIENT_ID = "aiodockersave"
_MAX_SCOPES = 1024
"""Repositories whose grants are kept at one address, so that a process that runs for long does not grow with each."""
_MAX_HEADER = 16 << 10
"""Characters of all ``WWW-Authenticate`` headers of one answer that are read; a challenge has some hundred."""
_MAX_CHALLENGES = 32
"""Challenges of one answer that are read; registries send one or two."""
_SHORTEST_LIFE = 60.0
"""Seconds for which a token holds that states no lifetime, or a shorter one: the specification's default and minimum."""
_LONGEST_LIFE = 1e9
"""Seconds for which a token holds at most, about 30 years: a larger number may not be finite."""
_OK = 200
_NO_GET = frozenset({404, 405})
"""The statuses with which a token server that only knows POST answers a GET."""

# ── challenges ──

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110 § 5.6.2
_SKIPPED = re.compile(r"[\s,]*")
_NAME = re.compile(rf"({_TOKEN})(?:(?P<equals>\s*=\s*)(?=[^\s=,]))?")
_VALUE = re.compile(r'"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^\s,"]+)', re.DOTALL)
_REPOSITORY = re.compile("[A-Za-z0-9._/:-]{1,300}")  # with the name of a registry before it, at some
_TOKEN68 = re.compile(r"[ \t]+[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$))")


class Challenge(NamedTuple):
    """One way of logging in that a server accepts (RFC 9110 § 11.3).

    Attributes:
        scheme: The name of the way, in lower case.
        parameters: The values by name; the names are in lower case.
    """

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Read ``WWW-Authenticate`` headers, each of which may hold several challenges (RFC 9110 § 11.6.1).

    The challenges before a fault in a header count, and the rest of that header does not. Of very long headers only the
    beginning is read.
    """
    found: list[Challenge] = []
    left = _MAX_HEADER
    for header in headers:
        if len(found) < _MAX_CHALLENGES:
            found += _challenges(header[:left])
        left -= min(left, len(header))
    return found[:_MAX_CHALLENGES]


def _challenges(header: str) -> list[Challenge]:
    found: list[tuple[str, dict[str, str]]] = []
    at = 0
    while len(found) <= _MAX_CHALLENGES and (name := _NAME.match(header, _end(_SKIPPED, header, at))):
        at = name.end()
        if name["equals"] is None:
            found.append((name[1].lower(), {}))
            at = _end(_TOKEN68, header, at)
            continue
        value = _VALUE.match(header, at)
        if value is None or not found:
            break
        at = value.end()
        text = (
            value["plain"]
            if value["quoted"] is None
            else re.sub(r"\\(.)", r"\1", value["quoted"], flags=re.DOTALL)
        )
        found[-1][1].setdefault(name[1].lower(), text)
    return [Challenge(*each) for each in found]


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def pull_scope(scope: str) -> str | None:
    """Return the first scope of a challenge by which a repository can be read, asking for no more than to read it.

    None where there is none. A scope is ``repository:NAME:ACTIONS`` (Docker's token authentication, "Requesting a token").
    """
    for each in scope.split():
        kind, _, rest = each.partition(":")
        name, _, actions = rest.rpartition(":")
        if kind == "repository" and _REPOSITORY.fullmatch(name) and {"pull", "*"} & set(actions.split(",")):
            return f"repository:{name}:pull"
    return None


def realm_fault(realm: str, registry: Origin | None, *, in_machine: bool) -> str | None:
    """Return the reason why credentials must not be sent to a realm, by its URL alone; None if they may be.

    Args:
        realm: The URL of the token server.
        registry: The origin of the registry that named it.
        in_machine: Whether the answer that names it came from a loopback address.
    """
    found = origin(realm)
    if found is None or "#" in realm:
        return "is not a proper URL"
    is_safe = found[0] == "https" or found == registry or (in_machine and is_loopback_name(found[1]))
    return None if is_safe else "is not https"


# ── tokens ──


class Token(NamedTuple):
    """A token that a token server gave, and its lifetime in seconds."""

    text: str
    lifetime: float


def token_request(
    realm: str, service: str, scope: str, credentials: Credentials | None, *, what: str
) -> Request:
    """Make the request for a token: a POST with an identity token, a GET with a password or without credentials."""
    wanted = {name: value for name, value in (("service", service), ("scope", scope)) if value}
    if credentials is not None and credentials.identity_token:
        form = {"grant_type": "refresh_token", **wanted, "client_id": _CLIENT_ID}
        return _post(realm, form | {"refresh_token": credentials.identity_token}, what)
    if credentials is None:
        return Request(what, _with_query(realm, wanted))
    return Request(
        what, _with_query(realm, wanted | {"account": credentials.username}), authorization=basic(credentials)
    )


def password_request(realm: str, service: str, scope: str, credentials: Credentials, *, what: str) -> Request:
    """Make the request for a token with a password at a server that takes only POST."""
    form = {"grant_type": "password", "service": service, "scope": scope, "client_id": _CLIENT_ID}
    return _post(realm, form | {"username": credentials.username, "password": credentials.password}, what)


def _post(realm: str, form: Mapping[str, str], what: str) -> Request:
    return Request(what, realm, form=_encoded(form).encode())


def _with_query(url: str, parameters: Mapping[str, str]) -> str:
    return f"{url}{'&' if '?' in url else '?'}{_encoded(parameters)}"


def _encoded(parameters: Mapping[str, str]) -> str:
    return urlencode(parameters, errors="surrogateescape")  # as headers are read: the service comes from one


def basic(credentials: Credentials) -> str:
    """Return the header ``Authorization`` with username and password (RFC 7617)."""
    return f"Basic {base64.b64encode(_pair(credentials).encode()).decode()}"


def _pair(credentials: Credentials) -> str:
    return f"{credentials.username}:{credentials.password}"


def parse_token(body: bytes) -> Token | None:
    """Read a token server's answer; None if it has no token, or one that no header may hold."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    text = document.get("token") or document.get("access_token")
    if not isinstance(text, str) or not re.fullmatch("[!-~]+", text):
        return None
    lifetime = document.get("expires_in")
    seconds = lifetime if isinstance(lifetime, int | float) else 0
    return Token(text, float(min(max(_SHORTEST_LIFE, seconds), _LONGEST_LIFE)))


# ── grants ──


@dataclass(frozen=True, slots=True)
class _Grant:
    """A header that a login gave, and the challenge and the scope by which it can be obtained again."""

    header: str = field(repr=False)
    expires: float
    challenge: Challenge
    by: AddressClass
    secrets: tuple[str, ...] = field(repr=False)
    login: str | None
    """The place that the credentials behind it come from; None where there are none."""
    scope: str = ""


@dataclass(slots=True)
class _Access:
    """The grant for one repository. The lock is held while a grant is fetched, so that one fetch serves all requests."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    grant: _Grant | None = None


class Anonymous:
    """The credentials of somebody who has none."""

    async def get(self, registry: str, repository: str) -> None:
        """Return none.

        Cancel: nothing is waited for.
        """


class Authorizer:
    """The logins at one address of a registry.

    Args:
        registry: The name under which the registry's credentials are kept.
        transport: The connections of that address.
        credentials: The store of credentials.
        clock: Returns the time in seconds, from any start.
        secrets: The collection to which everything that is sent in confidence is added.

    Attributes:
        secrets: The texts that no message may show, should the registry repeat them.
    """

    def __init__(
        self,
        registry: str,
        transport: Transport,
        credentials: CredentialStore,
        clock: Callable[[], float] = time.monotonic,
        secrets: Secrets | None = None,
    ) -> None:
        self.secrets = Secrets() if secrets is None else secrets
        self._registry = registry
        self._transport = transport
        self._credentials = credentials
        self._clock = clock
        self._accesses: Recent[str, _Access] = Recent(_MAX_SCOPES)

    async def header(self, request: Request, repository: str) -> str | None:
        """Return the header that was granted last, fetched again if it has expired; None if there was none.

        Raises:
            DockerSaveError, InterruptedTransfer: As :meth:`answer`.

        Cancel: as :meth:`answer`.
        """
        access = self._access(repository)
        grant = access.grant
        if grant is not None:
            self.secrets.add(*grant.secrets)  # they count as used, so that they are not forgotten
        if grant is None or grant.expires > self._clock():
            return None if grant is None else grant.header
        # No header is passed as refused: some token servers give the same token again after it should have expired.
        header, _ = await self.answer(request, repository, [grant.challenge], refused=None, by=grant.by)
        return header

    def login(self, repository: str) -> str | None:
        """Return the place that the credentials behind the last header come from; None where there were none."""
        grant = self._access(repository).grant
        return None if grant is None else grant.login

    async def answer(
        self,
        request: Request,
        repository: str,
        challenges: Sequence[Challenge],
        *,
        refused: str | None,
        by: AddressClass | None = None,
    ) -> tuple[str, bool]:
        """Obtain another header than the one that was refused.

        Args:
            request: The request for which the header is needed.
            repository: The repository of the request; empty for the registry itself.
            challenges: The ways of logging in that the registry accepts.
            refused: The header that the registry has refused.
            by: The class of the host that sent the challenges; by default the class that the registry's name gives.

        Returns:
            The header, and whether it was fetched by this call. If not, another call fetched it meanwhile.

        Raises:
            AuthenticationError: No header can be had, or the realm must not be asked for one.
            InterruptedTransfer: The token server does not answer now.
            DockerSaveError: The token server's answer is too large, or another error.

        Cancel: no connection stays open and the grant is unchanged; another call that waits for it fetches it.
        """
        access = self._access(repository)
        async with access.lock:
            grant = access.grant
            if grant is not None and grant.header != refused and grant.expires > self._clock():
                return grant.header, False
            by = self._transport.dialler.class_by_name if by is None else by
            scope = _next_scope(repository, challenges, grant, refused)
            access.grant = grant = await self._obtain(request, repository, challenges, by, scope)
        if grant.header == refused:
            raise _failed(request, refusal(grant.login or ""))
        return grant.header, True

    def has_other_scope(self, repository: str, challenges: Sequence[Challenge]) -> bool:
        """Tell whether challenges name another scope than the one that the last token was asked for with."""
        grant = self._access(repository).grant
        if grant is None or not grant.scope or grant.scope != _own_scope(repository):
            return False
        return _told_scope(challenges) not in (None, grant.scope)

    def _access(self, repository: str) -> _Access:
        access = self._accesses.get(repository)
        if access is None:
            access = _Access()
            self._accesses.put(repository, access)
        return access

    async def _obtain(
        self, request: Request, repository: str, challenges: Sequence[Challenge], by: AddressClass, scope: str
    ) -> _Grant:
        by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges)}
        has_realm = "bearer" in by_scheme and by_scheme["bearer"].parameters.get("realm")
        if has_realm or list(by_scheme) == ["bearer"]:
            return await self._bearer(request, repository, by_scheme["bearer"], by, scope)
        if "basic" not in by_scheme:
            # The schemes may be any text, such as a secret; each is cut where the name of a scheme would end.
            names = ", ".join(map(self.secrets.hide_beginning, sorted(by_scheme)))
            schemes = shown(names, secrets=self.secrets, limit=80) or "nothing that can be read"
            raise _failed(request, f"it asks for {schemes}; only Bearer and Basic are known")
        credentials, kept = await self._credentials_for(repository)
        if credentials is None or not credentials.password:
            raise _failed(request, f"a password is needed for {self._registry}")
        return _Grant(basic(credentials), math.inf, by_scheme["basic"], by, kept, credentials.origin)

    async def _bearer(
        self, request: Request, repository: str, challenge: Challenge, by: AddressClass, scope: str
    ) -> _Grant:
        realm = challenge.parameters.get("realm", "")
        await self._check_realm(request, realm, by)
        credentials, kept = await self._credentials_for(repository)
        if credentials is not None and credentials.registry_token:
            header = f"Bearer {credentials.registry_token}"
            return _Grant(header, math.inf, challenge, by, kept, credentials.origin)
        token = await self._fetch(request, challenge, scope, credentials, by)
        self.secrets.add(token.text)
        until = self._clock() + token.lifetime
        login = None if credentials is None else credentials.origin
        return _Grant(f"Bearer {token.text}", until, challenge, by, (*kept, token.text), login, scope)

    async def _check_realm(self, request: Request, realm: str, by: AddressClass) -> None:
        """Refuse a realm before credentials are looked up for it."""
        dialler = self._transport.dialler
        fault = realm_fault(realm, origin(request.url), in_machine=by is AddressClass.LOOPBACK)
        found = origin(realm)
        try:
            if fault is None and found is not None:
                await dialler.check(found, by)
        except AddressRefusedError as exc:
            fault = f"must not be asked: {exc.strerror}"
        except OSError:
            pass  # the name cannot be resolved now: the request to the realm will fail by itself
        if fault is not None:
            where = (
                f"its token server {shown_url(realm, secrets=self.secrets)}"
                if realm
                else "the token server, which it does not name,"
            )
            raise _failed(request, f"{where} {fault}")

    async def _credentials_for(self, repository: str) -> tuple[Credentials | None, tuple[str, ...]]:
        """Look credentials up; return them and their secret parts."""
        credentials = await self._credentials.get(self._registry, repository)
        if credentials is None:
            return None, ()
        kept = (
            credentials.password,
            credentials.identity_token,
            credentials.registry_token,
            _pair(credentials),
        )
        self.secrets.add(*kept)
        return credentials, kept

    async def _fetch(
        self,
        request: Request,
        challenge: Challenge,
        scope: str,
        credentials: Credentials | None,
        by: AddressClass,
    ) -> Token:
        realm, service = challenge.parameters["realm"], challenge.parameters.get("service", "")
        what = f"token for {request.what}"
        ask = self._told(token_request(realm, service, scope, credentials, what=what), credentials)
        response = await self._transport.open(ask, by)
        if response.status in _NO_GET and ask.form is None and credentials is not None:
            await response.discard()
            ask = password_request(realm, service, scope, credentials, what=what)
            response = await self._transport.open(self._told(ask, credentials), by)
        with contextlib.closing(response):
            if response.status != _OK:
                raise await response.failure()
            token = parse_token(await response.read(MAX_TOKEN_BODY))
        if token is None:
            raise AuthenticationError(what, "it answers without a token", url=response.place)
        return token

    def _told(self, request: Request, credentials: Credentials | None) -> Request:
        """Return a request to a realm with its marks: the registry named the URL, and the answer may repeat secrets."""
        login = None if credentials is None else credentials.origin
        return replace(request, secrets=self.secrets, is_told=True, login=login)


def _own_scope(repository: str) -> str:
    """Return the scope to read a repository; none where only a login is checked."""
    return f"repository:{repository}:pull" if repository else ""


def _told_scope(challenges: Sequence[Challenge]) -> str | None:
    scopes = (each.parameters.get("scope", "") for each in challenges if each.scheme == "bearer")
    return pull_scope(" ".join(scopes))


def _next_scope(
    repository: str, challenges: Sequence[Challenge], last: _Grant | None, refused: str | None
) -> str:
    """Choose the scope to ask a token for.

    The repository's own comes first: at some registries the challenge's is a placeholder. A proxy whose repositories have other
    names behind it refuses a token for its own scope, and names the right one.
    """
    own = _own_scope(repository)
    if last is None or not last.scope:
        return own
    if refused is None:  # the token has expired, and was right
        return last.scope
    told = _told_scope(challenges)
    return told if told is not None and last.header == refused and last.scope == own else own


def _failed(request: Request, reason: str) -> AuthenticationError:
    return AuthenticationError(request.what, reason, url=shown_url(request.url), status=401)
