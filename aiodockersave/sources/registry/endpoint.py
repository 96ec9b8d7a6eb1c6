"""The addresses of a registry: the order in which they are asked, and one of them with its scheme and its login.

:class:`Turns` goes through the addresses that have the same content. An address that *refuses* (404, 403, a wrong size)
is not asked again. An address that *breaks off* (a dropped connection, 429, 5xx) gets another turn. The wait comes when
every address has broken off once since the last progress, so a fresh address is asked at once. The decision is plain code
(:meth:`Turns.next_turn`); only :meth:`Turns.failed` waits.

:class:`Endpoint` is one address: it makes the URLs, finds out the scheme and logs in.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

from aiodockersave.core.errors import (
    DockerSaveError,
    InvalidInputError,
    InvalidReferenceError,
    RegistryError,
    TransferError,
)
from aiodockersave.core.text import Secrets, shown_url
from aiodockersave.sources.waits import Waits

from .addresses import AddressClass, is_loopback_name
from .answers import InterruptedTransfer, Origin, discretion, origin
from .auth import Anonymous, Authorizer, Challenge, parse_challenges
from .cache import Recent
from .session_pool import Settings
from .transport import Request, Response, Transport

if TYPE_CHECKING:
    from aiodockersave.sources.credentials import CredentialStore

__all__ = ["Endpoint", "Place", "Retries", "Turns", "check_mirror"]

P = TypeVar("P")
T = TypeVar("T")

logger = logging.getLogger("aiodockersave")

# ── attempts ──


@dataclass(frozen=True, slots=True)
class Retries:
    """The limits on asking a registry again.

    Attributes:
        attempts: Requests to each address in a row that bring nothing new; the failure of the last one is final.
        min_delay: The wait before the second attempt, in seconds; the wait doubles with each further attempt.
        max_delay: The longest of these waits, in seconds.
        retry_after_limit: The longest wait that a registry may ask for, in seconds. A registry that asks for a longer one
            is not asked again; if no other address is left, its error (:class:`RateLimitedError`) is raised at once.

    Raises:
        InvalidInputError: There is no attempt, or a delay is negative, or ``min_delay`` is above ``max_delay``.
    """

    attempts: int = 5
    min_delay: float = 0.5
    max_delay: float = 30.0
    retry_after_limit: float = 300.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or not 0 <= self.min_delay <= self.max_delay or self.retry_after_limit < 0:
            raise InvalidInputError("retries need at least one attempt and delays that are not negative")

    def delay(self, rounds: int) -> float:
        """Return the wait after ``rounds`` fruitless rounds, in seconds.

        The wait is shortened by up to a quarter at random, so that many clients do not come back in the same moment.
        """
        longest = min(self.max_delay, self.min_delay * 2.0 ** min(rounds - 1, 60))
        return longest * random.uniform(0.75, 1.0)  # noqa: S311 - no secret


class Turns(Generic[P]):
    """The addresses of one content, in the order in which they are asked.

    Args:
        what: The name of the content, for errors.
        places: The addresses; the last one is the registry itself. The registry's refusal is raised where no address helps.
        retries: The limits on attempts.
        waits: Where waits between attempts are noted.

    Attributes:
        failures: The number of attempts that broke off since the last progress.
        last_error: The error of the last attempt that broke off, whether or not there was progress since.
    """

    def __init__(self, what: str, places: Sequence[P], retries: Retries, waits: Waits) -> None:
        self._what = what
        self._places = list(places)
        self._registry = self._places[-1]
        self._refusal: DockerSaveError | None = None
        self._retries = retries
        self._waits = waits
        self._turn = 0
        self.failures = 0
        self.last_error: DockerSaveError | None = None
        self._wanted_delay = 0.0

    @property
    def place(self) -> P:
        """The address that is asked now."""
        return self._places[self._turn]

    async def run(self, ask: Callable[[P], Awaitable[T]]) -> T:
        """Ask one place after the other until one answers.

        Raises:
            DockerSaveError: No place answers.

        Cancel: ends the request or the wait at once; only a request that had failed before is counted as failed.
        """
        while True:
            try:
                return await ask(self.place)
            except (InterruptedTransfer, DockerSaveError) as exc:
                fault = exc
            await self.failed(fault)

    def progressed(self) -> None:
        """Note that new content came: the count of attempts starts again."""
        self.failures = 0
        self._wanted_delay = 0.0

    async def failed(self, fault: InterruptedTransfer | DockerSaveError) -> None:
        """Give the next address its turn, after a wait if need be.

        Raises:
            DockerSaveError: No address is left, or the attempts are used up.

        Cancel: ends the wait; the failure is counted and the next address has its turn.
        """
        delay = self.next_turn(fault)
        logger.info("%s; next attempt in %.1f s", fault, delay)
        if delay > 0:
            error = fault.error if isinstance(fault, InterruptedTransfer) else fault
            reason = error.reason if isinstance(error, RegistryError) else str(error)
            await self._waits.pause(self._what, f"the next attempt, as {reason}", delay)

    def next_turn(self, fault: InterruptedTransfer | DockerSaveError) -> float:
        """Choose the next address after a failure; return the wait before it is asked, in seconds. Errors as :meth:`failed`."""
        # 1. An address that refuses, or wants a longer wait than is allowed, is not asked again.
        if isinstance(fault, DockerSaveError):
            return self._drop(fault)
        self.last_error = fault.error
        wanted = fault.retry_after or 0.0
        if wanted > self._retries.retry_after_limit:
            return self._drop(fault.error)
        # 2. Give up where the attempts are used up. The registry's refusal says more than an address that broke off.
        self.failures += 1
        self._wanted_delay = max(self._wanted_delay, wanted)
        if self.failures >= self._retries.attempts * len(self._places):
            if self._refusal is not None:
                raise self._refusal
            raise self._given_up(fault) from fault.error if not fault.is_final else None
        # 3. The next address has its turn; wait only when all of them have had one.
        self._turn = (self._turn + 1) % len(self._places)
        rounds, rest = divmod(self.failures, len(self._places))
        if rest:
            return 0.0
        delay = max(self._retries.delay(rounds), self._wanted_delay)
        self._wanted_delay = 0.0
        return delay

    def _drop(self, error: DockerSaveError) -> float:
        if self.place is self._registry:
            self._refusal = error
        if len(self._places) == 1:
            raise self._refusal or error
        del self._places[self._turn]
        self._turn %= len(self._places)
        return 0.0

    def _given_up(self, fault: InterruptedTransfer) -> DockerSaveError:
        if fault.is_final:
            return fault.error
        return TransferError(self._what, self.failures, str(fault.error))


# ── addresses ──

_HUB: Final = {"docker.io": "registry-1.docker.io"}
"""The hosts that answer for registries of another name."""
_MAX_LOGINS = 3
"""Logins for one request: a token may have expired, or been used up by others, when it is used."""
_MAX_GUESTS = 16
"""Other registries, to which this one redirects, whose tokens are kept."""
_CONTENT = re.compile("/v2/([A-Za-z0-9._/-]{1,255})/(?:manifests|blobs)/[^/]+")
"""The paths of content at a registry (distribution specification, "Pull")."""
_SHUNNED: Final = 60.0
"""Seconds for which a mirror that broke off is not asked for other content."""
_UNAUTHORIZED = 401


class Endpoint:
    """A registry, or a mirror of it, as the user named it.

    Args:
        name: The name under which its credentials and certificates are kept.
        authority: The host and perhaps the port.
        scheme: ``http`` or ``https``; None to find out: https first, http if TLS is refused.
        settings: The settings that all requests of the source have in common.
        credentials: The store of credentials.
        prefix: The beginning of the names of repositories at a mirror, such as ``hub/``.
        secrets: The collection to which everything that is sent in confidence is added.

    Attributes:
        secrets: The texts that no message may show, should the registry repeat them.
    """

    def __init__(
        self,
        name: str,
        authority: str,
        scheme: str | None,
        settings: Settings,
        credentials: CredentialStore,
        *,
        prefix: str = "",
        secrets: Secrets | None = None,
    ) -> None:
        self.secrets = Secrets() if secrets is None else secrets
        self.secrets.add(*settings.proxies.secrets)
        parts = urlsplit(f"//{authority.lower()}")
        self._authority = authority.lower()
        self._scheme = scheme
        self._prefix = prefix
        self._transport = Transport(parts.hostname or "", parts.port, settings, name)
        self._authorizer = Authorizer(name, self._transport, credentials, secrets=self.secrets)
        self._guests: Recent[Origin | None, Authorizer] = Recent(_MAX_GUESTS)
        self._silent_until = 0.0

    @property
    def is_answering(self) -> bool:
        """False for a minute after the address broke off, so that not every layer waits for a dead mirror anew."""
        return time.monotonic() >= self._silent_until

    @classmethod
    def of_registry(
        cls,
        name: str,
        settings: Settings,
        credentials: CredentialStore,
        *,
        plain_http: bool,
        has_authorities: bool,
        secrets: Secrets | None = None,
    ) -> Endpoint:
        """Make the endpoint of a registry by its name in references.

        Raises:
            InvalidReferenceError: The name is valid for Docker, but no such address or port can exist.
        """
        authority = _HUB.get(name, name)
        found = origin(f"https://{authority}")
        if found is None:
            raise InvalidReferenceError(name, "the registry has an address or a port that cannot be")
        scheme: str | None = "https"
        if plain_http:
            scheme = "http"
        elif is_loopback_name(found[1]) and not has_authorities:
            scheme = None
        return cls(name, authority, scheme, settings, credentials, secrets=secrets)

    @classmethod
    def of_mirror(
        cls, url: str, settings: Settings, credentials: CredentialStore, secrets: Secrets | None = None
    ) -> Endpoint:
        """Make the endpoint of a mirror by its URL, whose path is put before the names of repositories.

        Raises:
            InvalidInputError: ``url`` is not the URL of a mirror.
        """
        check_mirror(url)
        parts = urlsplit(url)
        path = parts.path.strip("/")
        prefix = f"{path}/" if path else ""
        return cls(
            parts.netloc, parts.netloc, parts.scheme, settings, credentials, prefix=prefix, secrets=secrets
        )

    def place(self, repository: str) -> Place:
        """Return the place of a repository at this address."""
        return Place(self, self._prefix + repository)

    async def aclose(self) -> None:
        """Close all connections; as :meth:`.Dialler.aclose`."""
        await self._transport.dialler.aclose()

    async def open(
        self, what: str, repository: str, path: str, headers: Mapping[str, str], *, is_head: bool = False
    ) -> Response:
        """Ask for ``path`` in a repository, and log in where the registry asks for a login. Any status may come back.

        Where ``repository`` is empty, the registry itself is asked.

        Raises:
            InterruptedTransfer: Another attempt may help.
            DockerSaveError: The request cannot be made, or the login fails.

        Cancel: nothing stays open.
        """
        try:
            url = await self._base(what) + (f"{repository}/{path}" if repository else path)
            with discretion(self.secrets, what, url):
                request = Request(what, url, headers, is_head=is_head, secrets=self.secrets)
                response = await self._open(request, repository, self._authorizer)
                other = _other_registry(request, response)
                if other is not None:
                    await response.discard()
                    response = await self._open_as_guest(
                        replace(request, url=response.url), other, response.by
                    )
                return response
        except InterruptedTransfer as exc:
            fault = exc
            self._silent_until = time.monotonic() + _SHUNNED
        raise fault

    async def _open(
        self, request: Request, repository: str, authorizer: Authorizer, by: AddressClass | None = None
    ) -> Response:
        header = await authorizer.header(request, repository)
        request = replace(request, authorization=header, login=authorizer.login(repository))
        was_fresh = False
        for _ in range(_MAX_LOGINS):
            response = await self._transport.open(request, by)
            challenges = parse_challenges(response.headers("WWW-Authenticate"))
            # A login that is asked for after a redirect to another host, be it by the registry again, is not given.
            is_asked = response.status == _UNAUTHORIZED and response.is_own and challenges
            if not is_asked:
                return response
            is_worthwhile = any(map(_is_expiry, challenges)) or authorizer.has_other_scope(
                repository, challenges
            )
            if was_fresh and not is_worthwhile:
                return response
            await response.discard()
            header, was_fresh = await authorizer.answer(
                request, repository, challenges, refused=request.authorization, by=response.by
            )
            request = replace(request, authorization=header, login=authorizer.login(repository))
        return await self._transport.open(request, by)

    async def _open_as_guest(self, request: Request, repository: str, by: AddressClass) -> Response:
        """Ask another registry, which this one redirects to, with a token that anybody gets: it has no claim to credentials.

        The connections are those of this address, so that the other registry stays one that the user did not name.
        """
        where = origin(request.url)
        guest = self._guests.get(where)
        if guest is None:
            guest = Authorizer(
                urlsplit(request.url).netloc, self._transport, Anonymous(), secrets=self.secrets
            )
            self._guests.put(where, guest)
        return await self._open(replace(request, is_told=True), repository, guest, by)

    @property
    def is_logged_in(self) -> bool:
        """Whether the registry itself has asked for credentials, and was given some."""
        return self._authorizer.login("") is not None

    def url(self, repository: str) -> str:
        """Return the URL of a repository, as it may stand in a message; that of the registry itself for an empty name."""
        return f"{self._scheme or 'http'}://{self._authority}/v2/{repository and f'{repository}/'}"

    async def _base(self, what: str) -> str:
        scheme = self._scheme
        if scheme is None:
            speaks_tls = await self._transport.speaks_tls(Request(what, f"https://{self._authority}/v2/"))
            scheme = "https" if speaks_tls else "http"
            if (
                speaks_tls is not None
            ):  # None: the registry may only be about to start, so ask again next time
                self._scheme = scheme
        return f"{scheme}://{self._authority}/v2/"


def check_mirror(url: str) -> None:
    """Refuse a URL that cannot be that of a mirror.

    Raises:
        InvalidInputError: The URL is not absolute, not of HTTP, or has a user, a query or a fragment.
    """
    if origin(url) is None or "?" in url or "#" in url:
        # A text with an @ is not repeated: it may hold a password, and nobody knows where in a text that is not a URL.
        given = "; user and password come from the credentials" if "@" in url else f": {shown_url(url)!r}"
        raise InvalidInputError(f"no URL of a mirror, such as https://mirror.example.com{given}")


class Place(NamedTuple):
    """A repository at one address."""

    endpoint: Endpoint
    repository: str

    async def open(
        self, what: str, path: str, headers: Mapping[str, str], *, is_head: bool = False
    ) -> Response:
        """Ask for ``path`` in the repository; as :meth:`Endpoint.open`.

        Cancel: nothing stays open.
        """
        return await self.endpoint.open(what, self.repository, path, headers, is_head=is_head)

    @property
    def url(self) -> str:
        """The URL of the repository, as it may stand in a message."""
        return self.endpoint.url(self.repository)

    def discretion(self, what: str, path: str) -> AbstractContextManager[None]:
        """Hide secrets in the errors of ours that leave the block.

        Nothing is hidden in ``what`` or in the URL of ``path``: a gap in the user's own words would tell the secret.
        """
        return discretion(self.endpoint.secrets, what, self.url + path, self.url)


def _other_registry(request: Request, response: Response) -> str | None:
    """Return the repository at another registry that redirects have led to, and that wants a token; None if it is none."""
    if response.status != _UNAUTHORIZED or origin(response.url) == origin(request.url):
        return None
    wants_token = any(
        each.scheme == "bearer" for each in parse_challenges(response.headers("WWW-Authenticate"))
    )
    found = _CONTENT.fullmatch(urlsplit(response.url).path) if wants_token else None
    return None if found is None else found[1]


def _is_expiry(challenge: Challenge) -> bool:
    """Tell whether a token is refused for its age, and not for what it allows (RFC 6750 § 3.1)."""
    return challenge.parameters.get("error") == "invalid_token"
