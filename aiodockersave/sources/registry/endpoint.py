"""One address of a registry: how its URLs are made, which scheme it speaks, and who asks it.

Attempts go across the addresses that have the same content. Which is asked next, and when: the decisions are plain functions of what has failed so far; the only thing that waits is :meth:`Turns.failed`. An
address that *refuses* (404, 403, a wrong size) is asked no more; one that *breaks* (a dropped connection, 429, 5xx) gets
another turn. There is no wait before an address is asked that has not failed since there was progress last.
"""

from __future__ import annotations

import logging
import random
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
    TransferError,
)
from aiodockersave.core.text import Secrets, shown_url

from .addresses import is_loopback_name
from .answers import InterruptedTransfer, discretion, origin
from .auth import Authorizer, Challenge, parse_challenges
from .session_pool import Settings
from .transport import Request, Response, Transport

if TYPE_CHECKING:
    from aiodockersave.sources.credentials import CredentialStore

__all__ = ["Endpoint", "Place", "Retries", "Turns", "check_mirror"]

P = TypeVar("P")
T = TypeVar("T")

logger = logging.getLogger("aiodockersave")

Sleep = Callable[[float], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Retries:
    """The limits on asking a registry again.

    Attributes:
        attempts: Requests in a row, to each address, that bring nothing new; the last one's failure is final.
        min_delay: The wait before the second attempt, in seconds; it doubles with each further one.
        max_delay: The longest of these waits, in seconds.
        retry_after_limit: The longest wait that a registry may ask for, in seconds. One that asks for more
            is not waited for: :class:`RateLimitedError` is raised at once.
    """

    attempts: int = 5
    min_delay: float = 0.5
    max_delay: float = 30.0
    retry_after_limit: float = 300.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or not 0 <= self.min_delay <= self.max_delay or self.retry_after_limit < 0:
            raise InvalidInputError("retries need at least one attempt and delays that are not negative")

    def delay(self, rounds: int) -> float:
        """Return the wait after ``rounds`` fruitless rounds, shortened by up to a quarter at random.

        The chance keeps many clients from coming back in the same moment.
        """
        longest = min(self.max_delay, self.min_delay * 2.0 ** min(rounds - 1, 60))
        return longest * random.uniform(0.75, 1.0)  # noqa: S311 - no secret


class Turns(Generic[P]):
    """The addresses of one content, in the order in which they are asked.

    Args:
        what: What is fetched, for the error.
        places: The addresses. The refusal of the last one, the registry itself, is the error where no other helps.
        retries: When to give up.
        sleep: Waits for seconds.

    Attributes:
        failures: How many attempts broke off since there was progress.
        last_error: What broke off the last one, whether or not there was progress since.
    """

    def __init__(self, what: str, places: Sequence[P], retries: Retries, sleep: Sleep) -> None:
        self._what = what
        self._places = list(places)
        self._registry = self._places[-1]
        self._refusal: DockerSaveError | None = None
        self._retries = retries
        self._sleep = sleep
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
            DockerSaveError: None does.
        """
        while True:
            try:
                return await ask(self.place)
            except (InterruptedTransfer, DockerSaveError) as exc:
                fault = exc
            await self.failed(fault)

    def progressed(self) -> None:
        """Note that something new came: the count of attempts starts again."""
        self.failures = 0
        self._wanted_delay = 0.0

    async def failed(self, fault: InterruptedTransfer | DockerSaveError) -> None:
        """Let the next address have its turn, after a wait if need be.

        Raises:
            DockerSaveError: Nobody is left, or the attempts are used up.
        """
        delay = self.next_turn(fault)
        logger.info("%s; next attempt in %.1f s", fault, delay)
        if delay > 0:
            await self._sleep(delay)

    def next_turn(self, fault: InterruptedTransfer | DockerSaveError) -> float:
        """Decide what :meth:`failed` does; return how long to wait."""
        if isinstance(fault, DockerSaveError):
            return self._drop(fault)
        self.last_error = fault.error
        wanted = fault.retry_after or 0.0
        if wanted > self._retries.retry_after_limit:
            return self._drop(fault.error)
        self.failures += 1
        self._wanted_delay = max(self._wanted_delay, wanted)
        if self.failures >= self._retries.attempts * len(self._places):
            if self._refusal is not None:
                raise self._refusal
            raise self._given_up(fault) from fault.error if not fault.is_final else None
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


_HUB: Final = {"docker.io": "registry-1.docker.io"}
"""The host that answers for a registry of another name."""
_MAX_LOGINS = 3
"""Tokens that are tried for one request: one may have expired when it is used, or been used up by others."""
_SHUNNED: Final = 60.0
"""Seconds for which a mirror that cannot be reached is not asked for other content."""
_UNAUTHORIZED = 401


class Endpoint:
    """A registry, or a mirror of it, as the user named it.

    Args:
        name: The name under which credentials and certificates for it are kept.
        authority: Its host and perhaps port.
        scheme: ``http`` or ``https``; None where that is found out: https first, http if TLS is refused.
        settings: What all requests have in common.
        credentials: Knows credentials.
        prefix: What stands before the names of repositories at a mirror, such as ``hub/``.
        secrets: Is told what is sent in confidence.

    Attributes:
        secrets: What must not be seen in a message, should the registry repeat it.
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
        self._silent_until = 0.0

    @property
    def is_answering(self) -> bool:
        """Whether it was not out of reach just now: waiting for a dead mirror anew for every layer helps nobody."""
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
            InvalidReferenceError: Docker takes it for a name, but there is no such address or port.
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
        """Make the endpoint of a mirror by its URL; a path is what stands before the names of repositories.

        Raises:
            InvalidInputError: It is no URL of a mirror.
        """
        check_mirror(url)
        parts = urlsplit(url)
        path = parts.path.strip("/")
        prefix = f"{path}/" if path else ""
        return cls(
            parts.netloc,
            parts.netloc,
            parts.scheme,
            settings,
            credentials,
            prefix=prefix,
            secrets=secrets,
        )

    def place(self, repository: str) -> Place:
        """Return where a repository is at this address."""
        return Place(self, self._prefix + repository)

    async def aclose(self) -> None:
        """Close all connections.

        Cancel: ends the wait for their ends, not their closing.
        """
        await self._transport.dialler.aclose()

    async def open(
        self, what: str, repository: str, path: str, headers: Mapping[str, str], *, is_head: bool = False
    ) -> Response:
        """Ask for something in a repository, logging in where that is wanted; any status may come back.

        Raises:
            InterruptedTransfer: Another attempt may help.
            DockerSaveError: It cannot be asked.

        Cancel: nothing stays open.
        """
        try:
            url = f"{await self._base(what)}{repository}/{path}"
            with discretion(self.secrets, what, url):
                request = Request(what, url, headers, is_head=is_head, secrets=self.secrets)
                return await self._open(request, repository)
        except InterruptedTransfer as exc:
            fault = exc
            self._silent_until = time.monotonic() + _SHUNNED
        raise fault

    async def _open(self, request: Request, repository: str) -> Response:
        request = replace(request, authorization=await self._authorizer.header(request, repository))
        was_fresh = False
        for _ in range(_MAX_LOGINS):
            response = await self._transport.open(request)
            challenges = parse_challenges(response.headers("WWW-Authenticate"))
            # What is asked for behind a redirect to another host, be it by the registry again, is not ours to give.
            is_asked = response.status == _UNAUTHORIZED and response.is_own and challenges
            if not is_asked or (was_fresh and not any(map(_is_expiry, challenges))):
                return response
            await response.discard()
            header, was_fresh = await self._authorizer.answer(
                request, repository, challenges, refused=request.authorization, by=response.by
            )
            request = replace(request, authorization=header)
        return await self._transport.open(request)

    async def failure(self, response: Response) -> InterruptedTransfer | DockerSaveError:
        """Return what is to be raised for an answer with a status that is none of success."""
        return await response.failure()

    def url(self, repository: str) -> str:
        """Return the URL of a repository, as it may stand in a message."""
        return f"{self._scheme or 'http'}://{self._authority}/v2/{repository}/"

    async def _base(self, what: str) -> str:
        scheme = self._scheme
        if scheme is None:
            speaks_tls = await self._transport.speaks_tls(Request(what, f"https://{self._authority}/v2/"))
            scheme = "https" if speaks_tls else "http"
            if speaks_tls is not None:  # it may only be about to start
                self._scheme = scheme
        return f"{scheme}://{self._authority}/v2/"


def check_mirror(url: str) -> None:
    """Look whether a URL can be that of a mirror.

    Raises:
        InvalidInputError: It cannot.
    """
    if origin(url) is None or "?" in url or "#" in url:
        # What may hold a password is not repeated: where it ends is not sure in what is no URL.
        given = "; user and password come from the credentials" if "@" in url else f": {shown_url(url)!r}"
        raise InvalidInputError(f"no URL of a mirror, such as https://mirror.example.com{given}")


class Place(NamedTuple):
    """A repository at one address."""

    endpoint: Endpoint
    repository: str

    async def open(
        self, what: str, path: str, headers: Mapping[str, str], *, is_head: bool = False
    ) -> Response:
        """Ask for ``path`` in the repository; as :meth:`Endpoint.open`."""
        return await self.endpoint.open(what, self.repository, path, headers, is_head=is_head)

    @property
    def url(self) -> str:
        """The URL of the repository, as it may stand in a message."""
        return self.endpoint.url(self.repository)

    def discretion(self, what: str, path: str) -> AbstractContextManager[None]:
        """Hide what was sent in confidence in the errors of ours that leave the block.

        But not in ``what``, nor in the URL of ``path``: a hole in what the user gave would tell the secret.
        """
        return discretion(self.endpoint.secrets, what, self.url + path, self.url)


def _is_expiry(challenge: Challenge) -> bool:
    """Tell whether a token is refused for its age, and not for what it allows (RFC 6750 § 3.1)."""
    return challenge.parameters.get("error") == "invalid_token"
