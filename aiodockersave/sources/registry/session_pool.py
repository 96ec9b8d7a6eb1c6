"""The connections for one address of a registry: its sessions, kept apart by the addresses that they may dial.

=========  ==================================  ==========================================================
way        leads to                            which addresses are dialled
=========  ==================================  ==========================================================
named      the registry itself                 any: the user named it
followed   redirects, token servers            public ones, and those of the class of the host that points there
proxied    hosts for which the environment     the proxy's; a host that is itself an address is checked as
           names a proxy                       above, a name is resolved by the proxy
lent       all of these, where the caller      as for named and followed, but the caller's connector dials:
           gave a session                      names are resolved and checked just before
=========  ==================================  ==========================================================

Each way has its own connections, so that a connection that was opened under a laxer rule is never used under a stricter
one. For the same reason "followed" has its own connections for each class of address that points there.

A host that points somewhere is of the class of the other end of the connection on which its answer came. The addresses to
which its name resolves do not count, since a name may have many, and others each time. Behind a proxy the other end is
the proxy. There a host that is itself an address is of that address's class, and a name is public.

A caller's session lends its connections only: headers, cookies and settings are ours, and the session's own are not
touched. If its connector is a plain ``TCPConnector``, the other end of a connection is checked before anything is sent.
Another connector may go through a proxy of its own. With it, a resolver that changes its answer between our check and
the dialling is not noticed, and a host has a class only if it is itself an address, as behind a proxy.

aiohttp takes a class for requests and one for responses. Ours (:func:`head_classes`) check the other end of a connection
before anything is sent, keep its address with the response, and bound the wait for status and headers: aiohttp reads
interim answers (1xx) for as long as somebody sends them.

Proxies are chosen as by Go's ``httpproxy``, which Docker and podman use. ``HTTP_PROXY`` and ``HTTPS_PROXY`` name the proxy
for URLs of that scheme. ``NO_PROXY`` lists the hosts that are asked directly: ``*``, addresses, networks (``10.0.0.0/8``)
and domains (with their subdomains; with a leading dot the subdomains alone), each with a port or without. This machine
itself is always asked directly.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import ipaddress
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit, urlunsplit

from aiodockersave._aio import close_all
from aiodockersave.core.errors import InvalidInputError
from aiodockersave.sources.waits import Waits

from .addresses import AddressClass, AddressRefusedError, DialGuard, is_loopback_name, numeric
from .answers import Origin, load_aiohttp
from .timeouts import Timeouts

if TYPE_CHECKING:
    import aiohttp

__all__ = [
    "MAX_INTERIM",
    "Dialler",
    "HeadError",
    "Proxies",
    "Proxy",
    "Settings",
    "head_classes",
    "peer_of",
]

# ── heads ──

MAX_INTERIM: Final = 16
"""Interim answers (1xx) that are read before the final one. None of our requests calls for more than one or two."""


class HeadError(Exception):
    """The end of a request by a check of :func:`head_classes`; aiohttp passes this error on as it is.

    Attributes:
        is_lasting: Whether the same request will fail again.
    """

    def __init__(self, reason: str, *, is_lasting: bool) -> None:
        super().__init__(reason)
        self.is_lasting = is_lasting


def head_classes(check: Callable[[str | None], None], seconds: float) -> tuple[type[Any], type[Any]]:
    """Make the classes of requests and responses for a session.

    Args:
        check: Is called with the address at the other end of a connection (None where it is not known) before a request is
            sent, and raises :class:`HeadError` where the request must not be sent there.
        seconds: The limit on status and headers, from the request on.

    Returns:
        The classes. A response has an attribute ``peer``, the result of :func:`peer_of`.
    """
    library = load_aiohttp()

    # 1. The request checks the other end of its connection, and notes its address on the response.
    class HeadRequest(library.ClientRequest):  # type: ignore[misc, name-defined]
        """A request that is sent only after ``check`` has seen the other end of its connection."""

        async def send(self, conn: aiohttp.connector.Connection) -> Any:
            peer = peer_of(conn.transport)
            check(peer)
            response = await super().send(conn)
            response.peer = peer
            return response

    # 2. The response bounds its head: the interim answers by number, and all of it by time.
    class HeadResponse(library.ClientResponse):  # type: ignore[misc, name-defined]
        """A response whose status and headers come in time, or not at all."""

        peer: str | None = None

        async def start(self, connection: aiohttp.connector.Connection) -> Any:
            protocol: Any = connection.protocol
            read, interim = protocol.read, -1

            async def read_counted() -> Any:
                nonlocal interim
                interim += 1
                if interim > MAX_INTERIM:
                    reason = f"it sends more than {MAX_INTERIM} interim answers before the one that counts"
                    raise HeadError(reason, is_lasting=True)
                return await read()

            protocol.read = read_counted  # of this object only, and only until the head is read
            limit = asyncio.timeout(seconds)
            try:
                async with limit:
                    return await super().start(connection)
            except TimeoutError:
                if not limit.expired():  # a time-out of aiohttp's own, for silence
                    raise
            finally:
                del protocol.read
            raise HeadError(f"its status and headers were not whole within {seconds:g} s", is_lasting=False)

    return HeadRequest, HeadResponse


def peer_of(transport: asyncio.BaseTransport | None) -> str | None:
    """Return the address at the other end of a connection; None where it is closed, or not one of IP."""
    peer = None if transport is None else transport.get_extra_info("peername")
    return peer[0] if isinstance(peer, tuple) and peer else None


# ── proxies ──


class Proxy(NamedTuple):
    """A proxy.

    Attributes:
        url: The URL, without user and password.
        authorization: The header ``Proxy-Authorization`` made of user and password; None where there are none.
    """

    url: str
    authorization: str | None


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies of an environment.

    Attributes:
        http: The URL of the proxy for http, or empty.
        https: The URL of the proxy for https, or empty.
        exceptions: The rules of ``NO_PROXY`` for hosts that are asked directly.
    """

    http: str = field(default="", repr=False)  # may hold a password
    https: str = field(default="", repr=False)
    exceptions: tuple[str, ...] = ()

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Proxies:
        """Read the variables of an environment, in upper or lower case."""
        http, https, exceptions = (
            environment.get(name) or environment.get(name.lower()) or ""
            for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
        )
        if environment.get("REQUEST_METHOD"):  # in a CGI program, HTTP_PROXY is the request's header Proxy
            http = ""
        names = [name.strip().lower() for name in exceptions.split(",")]
        return cls(_proxy_url(http), _proxy_url(https), tuple(filter(None, names)))

    @property
    def secrets(self) -> Sequence[bytes]:
        """The logins at the proxies and their passwords, which no message may show, should a proxy repeat them."""
        found: list[bytes] = []
        for url in filter(None, (self.http, self.https)):
            with contextlib.suppress(InvalidInputError):  # no request uses a proxy whose URL is not valid
                login = _split_login(url).authorization or ""
                pair = base64.b64decode(login.removeprefix("Basic "))
                found += [pair, pair.partition(b":")[2]]
        return found

    def find(self, origin: Origin) -> Proxy | None:
        """Return the proxy for requests to an origin; None where the origin is asked directly.

        Raises:
            InvalidInputError: The environment's value for the proxy is not a URL.
        """
        scheme, host, port = origin
        proxy = self.https if scheme == "https" else self.http
        if not proxy or is_loopback_name(host) or any(_matches(rule, host, port) for rule in self.exceptions):
            return None
        return _split_login(proxy)


def _split_login(url: str) -> Proxy:
    try:
        parts = urlsplit(url)
    except ValueError:  # the value is not repeated, as it may hold a password
        raise InvalidInputError("the environment names a proxy by a text that is not a URL") from None
    login, at, host = parts.netloc.rpartition("@")
    bare = urlunsplit(parts._replace(netloc=host))
    if not at:
        return Proxy(bare, None)
    user, _, password = login.partition(":")
    # Bytes, since neither the environment nor the percent-encoded login need be UTF-8.
    pair = b":".join(unquote_to_bytes(os.fsencode(part)) for part in (user, password))
    return Proxy(bare, f"Basic {base64.b64encode(pair).decode()}")


def _proxy_url(text: str) -> str:
    text = text.strip()
    return text if not text or "://" in text else f"http://{text}"


def _matches(rule: str, host: str, port: int) -> bool:
    if rule == "*":
        return True
    if "/" in rule:
        return _in_network(host, rule)
    name, rule_port = _split_port(rule)
    if rule_port and rule_port != str(port):
        return False
    address = _address(host)
    if address is not None:
        return _address(name) == address
    name = name.removeprefix("*")
    return host.endswith(name) if name.startswith(".") else host == name or host.endswith(f".{name}")


def _split_port(rule: str) -> tuple[str, str]:
    if rule.count(":") > 1 and not rule.startswith("["):
        return rule, ""  # an IPv6 address
    name, colon, port = rule.rpartition(":")
    name, port = (name, port) if colon and port.isdigit() else (rule, "")
    return name.strip("[]"), port


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _in_network(host: str, rule: str) -> bool:
    address = _address(host)
    try:
        return address is not None and address in ipaddress.ip_network(rule, strict=False)
    except ValueError:
        return False


# ── connections ──

_READ_BUFFER: Final = 256 << 10
"""Bytes of one answer that wait to be read; aiohttp buffers up to twice as many. Memory grows with this number most."""
_SMALL_BODY: Final = 16 << 20
"""Bytes of a body up to which it is read in small portions: there may be hundreds, and unused memory grows with each."""
_PORTION: Final = 256 << 10
"""Bytes that are taken from a connection at once: asyncio's own default."""
_SMALL_PORTION: Final = 128 << 10
"""Bytes that are taken from a connection at once for a small body."""
_CONNECTS: Final = 3
"""Bound on all attempts on the addresses of a host together, in limits on one connection: a host may have hundreds."""

Tls = Callable[[str, bool], Awaitable["ssl.SSLContext | bool"]]
"""Returns the TLS context for ``HOST[:PORT]``, with or without a client certificate; True for a lent connector's own."""


class Settings(NamedTuple):
    """The settings that all requests of a source have in common.

    Attributes:
        tls: Returns TLS contexts.
        timeouts: The limits on time.
        guard: The rules for addresses.
        proxies: The proxies of the environment.
        session: A caller's session, whose connector is used; None for connectors of ours.
        waits: The waits of the source.
    """

    tls: Tls
    timeouts: Timeouts = Timeouts()
    guard: DialGuard = DialGuard()
    proxies: Proxies = Proxies()
    session: aiohttp.ClientSession | None = None
    waits: Waits = Waits()


class Dialler:
    """The connections of one address of a registry.

    Args:
        host: The registry's host, in lower case.
        port: The registry's port; None for the default of the scheme.
        settings: The settings that all requests of the source have in common.
        name: The user's name for the registry, under which its certificates are kept; by default host and port.
    """

    def __init__(self, host: str, port: int | None, settings: Settings, name: str = "") -> None:
        self._host = host
        self._port = port
        self._name = name
        self._settings = settings
        self._sessions: dict[tuple[str, AddressClass | None], aiohttp.ClientSession] = {}
        self._looked_up: AddressClass | None = None
        self._is_closed = False

    async def aclose(self) -> None:
        """Close all connections, except those of a caller's session.

        Cancel: the connections are closed all the same, but their ends are not waited for.
        """
        self._is_closed = True
        sessions, self._sessions = list(self._sessions.values()), {}
        # One after the other, in this task: a separate task might be cancelled before it starts.
        await close_all(session.close for session in sessions)

    async def options(self, target: Origin, *, is_own: bool = True) -> dict[str, Any]:
        """Return aiohttp's options for requests to an origin: the proxy, the TLS context, and headers for the proxy.

        Args:
            target: The origin.
            is_own: Whether no other host has led there. Only then may a client certificate be shown to the registry.

        Raises:
            DockerSaveError: The certificates or the proxy cannot be used.

        Cancel: a TLS context that is being made is finished and dropped.
        """
        options: dict[str, Any] = {}
        proxy = self._settings.proxies.find(target)
        login = {"Proxy-Authorization": proxy.authorization} if proxy and proxy.authorization else {}
        if proxy is not None:
            if not proxy.url.startswith(("http://", "https://")):
                # The URL is not repeated, as it may hold a password.
                raise InvalidInputError(
                    "only proxies by http and https are known; the environment names another"
                )
            options["proxy"] = proxy.url
        if target[0] == "https":
            is_named = self.is_named(target)
            name = (is_named and self._name) or _host_port(target)
            options["ssl"] = await self._settings.tls(name, is_named and is_own)
            options["proxy_headers"] = login
        else:  # the proxy itself reads a request by http, so its login is a header of the request
            options["headers"] = login
        return options

    async def choose(self, target: Origin, by: AddressClass | None = None) -> aiohttp.ClientSession:
        """Choose the session for requests to an origin.

        Args:
            target: The origin.
            by: The class of the host that points there; None if the user named the origin.

        Raises:
            AddressRefusedError: That host may not point there.
            OSError: The name cannot be resolved.

        Cancel: no session was made; a look-up ends as the guard's resolver ends it.
        """
        if self._is_closed:
            raise RuntimeError("the source is closed")
        by = self.class_by_name if by is None else by
        is_proxied = self._settings.proxies.find(target) is not None
        if is_proxied or self._settings.session is not None:
            await self.check(target, by)
        if self._settings.session is not None:
            if self._settings.session.closed:
                raise RuntimeError("the session that the source was given is closed")
            is_checked = self._shows_peers(target) and not self.is_named(target)
            return self._session("lent", by if is_checked else None)
        if is_proxied:
            return self._session("proxied")
        return self._session("named") if self.is_named(target) else self._session("followed", by)

    async def speaks_tls(self) -> bool | None:
        """Find out by a handshake whether the registry speaks TLS at all.

        No request is sent over the connection, so the registry's certificate need not be checked yet.

        Returns:
            Whether it speaks TLS; None if it closed the connection without a word, which tells neither.

        Raises:
            OSError: There is no connection.

        Cancel: no connection stays open.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        port = self._port or 443
        fault = OSError(errno.EHOSTUNREACH, "it has no address")
        for address in await self._resolve(self._host, port):
            try:
                async with asyncio.timeout(self._settings.timeouts.connect):
                    _, writer = await asyncio.open_connection(address, port, ssl=context)
            except ssl.SSLError as exc:  # an alert is TLS; an answer of HTTP is "wrong version number"
                return "ALERT" in (exc.reason or "")
            except ConnectionResetError:
                return None
            except TimeoutError:
                fault = OSError(
                    errno.ETIMEDOUT, f"no connection within {self._settings.timeouts.connect:g} s"
                )
            except OSError as exc:
                fault = exc
            else:
                writer.transport.abort()
                return True
        raise fault

    def set_portion(self, connection: aiohttp.connector.Connection | None, size: int | None) -> None:
        """Set how much of a body is taken from its connection at once.

        Args:
            connection: The connection; None where the whole body has come.
            size: The size of the body in bytes; None where it is not known.
        """
        if (
            connection is None or self._settings.session is not None
        ):  # a lent connection is not ours to change
            return
        transport: Any = connection.transport
        if hasattr(transport, "max_size"):  # asyncio's transports without TLS have it
            is_small = size is not None and size <= _SMALL_BODY
            transport.max_size = _SMALL_PORTION if is_small else _PORTION

    # ── what may be dialled ──

    def is_named(self, target: Origin) -> bool:
        """Tell whether an origin has the host and port that the user named."""
        default = 443 if target[0] == "https" else 80
        return target[1:] == (self._host, self._port or default)

    @property
    def class_by_name(self) -> AddressClass:
        """The class of address of the registry by its very name; public where the name does not tell."""
        return self._class_by_name(self._host)

    def _class_by_name(self, host: str) -> AddressClass:
        address = numeric(host) or ("127.0.0.1" if is_loopback_name(host) else None)
        return AddressClass.PUBLIC if address is None else self._settings.guard.classify(address)

    def class_of(self, target: Origin, peer: str | None) -> AddressClass:
        """Return the class of the host that has answered a request to an origin.

        Args:
            target: The origin.
            peer: The address at the other end of the connection on which the answer came; None where it is not known.
        """
        if peer is None or not self._shows_peers(target):
            return self._class_by_name(target[1])
        kind = self._settings.guard.classify(peer)
        is_doubtful = (
            self._settings.session is not None and self.is_named(target) and kind is not self._looked_up
        )
        return AddressClass.PUBLIC if is_doubtful else kind

    def _shows_peers(self, target: Origin) -> bool:
        """Tell whether the other end of a connection for an origin is the origin itself."""
        if self._settings.proxies.find(target) is not None:
            return False
        lender = self._settings.session
        # A connector of another class may go through a proxy of its own, as those for SOCKS do.
        return lender is None or type(lender.connector) is load_aiohttp().TCPConnector

    async def check(self, target: Origin, by: AddressClass) -> None:
        """Refuse an origin that a host of the class ``by`` may not point at, before anything is prepared for it.

        Raises:
            AddressRefusedError: The host may not point there.
            OSError: The name cannot be resolved.

        Cancel: a look-up ends as the guard's resolver ends it.
        """
        guard = self._settings.guard
        if self.is_named(target):
            await self._look_up_registry()
            return
        guard.check_literal(target[1], by)
        if self._settings.proxies.find(target) is None:
            for address in await self._resolve(*target[1:]):
                guard.check(address, by)

    async def _look_up_registry(self) -> None:
        """Look up the class of the registry where a caller's connector dials it, perhaps by another resolver.

        This class alone does not count: the other end of the connection must be of it too. Where only the caller's
        resolver knows the name, the registry is taken to be public.
        """
        if self._settings.session is not None and self._looked_up is None:
            try:
                addresses = await self._resolve(self._host, self._port or 443)
            except socket.gaierror:
                return
            kinds = {self._settings.guard.classify(address) for address in addresses}
            self._looked_up = kinds.pop() if len(kinds) == 1 else AddressClass.PUBLIC

    async def _resolve(self, host: str, port: int) -> Sequence[str]:
        try:
            async with asyncio.timeout(self._settings.timeouts.connect):
                return await self._settings.guard.resolve(numeric(host) or host, port)
        except TimeoutError:
            raise OSError(errno.ETIMEDOUT, "the resolver does not answer") from None

    async def _resolve_followed(self, by: AddressClass, host: str, port: int) -> Sequence[str]:
        """Resolve a host to the addresses that may be dialled; each is checked once more when it is dialled."""
        guard = self._settings.guard
        addresses = await self._resolve(host, port)
        allowed = [address for address in addresses if guard.may_follow(address, by)]
        if addresses and not allowed:
            guard.check(addresses[0], by)
        return allowed

    def _followed_socket(self, by: AddressClass, info: Any) -> socket.socket:
        self._settings.guard.check(info[4][0], by)
        return _new_socket(info)

    def _check_peer(self, by: AddressClass | None, peer: str | None) -> None:
        """Refuse to send a request over a connection to an address that a host of the class ``by`` may not point at."""
        if by is None or peer is None:
            return
        try:
            self._settings.guard.check(peer, by)
        except AddressRefusedError as exc:
            raise HeadError(str(exc.strerror), is_lasting=True) from None

    # ── sessions ──

    def _session(self, way: str, by: AddressClass | None = None) -> aiohttp.ClientSession:
        session = self._sessions.get((way, by))
        if session is None:
            session = self._sessions[way, by] = self._new_session(way, by)
        return session

    def _new_session(self, way: str, by: AddressClass | None) -> aiohttp.ClientSession:
        library = load_aiohttp()
        lender = self._settings.session
        timeouts = self._settings.timeouts
        for_request, for_response = head_classes(partial(self._check_peer, by), timeouts.longest_head)
        # Nothing else limits a proxy's answer to CONNECT, so behind a proxy the limit is that of one connection.
        all_connects = timeouts.connect * (1 if way == "proxied" else _CONNECTS)
        session: aiohttp.ClientSession = library.ClientSession(
            connector=self._new_connector(by) if lender is None else lender.connector,
            connector_owner=lender is None,
            cookie_jar=library.DummyCookieJar(),
            timeout=library.ClientTimeout(
                total=None,
                # aiohttp counts the wait for a free connection too. In a lent session that may be long, so there
                # `_timing` counts from the start of a new connection.
                connect=all_connects if lender is None else None,
                sock_connect=timeouts.connect,
                sock_read=timeouts.silence,
            ),
            trace_configs=[] if lender is None else [_timing(all_connects)],
            request_class=for_request,
            response_class=for_response,
            auto_decompress=False,
            read_bufsize=_READ_BUFFER,
        )
        return session

    def _new_connector(self, by: AddressClass | None) -> aiohttp.TCPConnector:
        resolve: Callable[[str, int], Awaitable[Sequence[str]]] = self._resolve
        new_socket: Callable[[Any], socket.socket] = _new_socket
        if by is not None:
            resolve, new_socket = partial(self._resolve_followed, by), partial(self._followed_socket, by)
        connector: aiohttp.TCPConnector = load_aiohttp().TCPConnector(
            limit=0,  # the callers limit how many requests run at once
            use_dns_cache=False,  # with a cache, look-ups are the connector's own tasks, which outlive a cancel
            resolver=_resolver(resolve),
            socket_factory=new_socket,
        )
        return connector


def _timing(seconds: float) -> aiohttp.TraceConfig:
    """Make the trace that starts a request's time-out, its ``trace_request_ctx``, while a connection is made."""

    async def begin(_: object, context: SimpleNamespace, __: object) -> None:
        context.trace_request_ctx.reschedule(asyncio.get_running_loop().time() + seconds)

    async def end(_: object, context: SimpleNamespace, __: object) -> None:
        context.trace_request_ctx.reschedule(None)

    trace: aiohttp.TraceConfig = load_aiohttp().TraceConfig()
    trace.on_connection_create_start.append(begin)
    trace.on_connection_create_end.append(end)
    return trace


def _new_socket(info: Any) -> socket.socket:
    return socket.socket(*info[:3])


def _resolver(resolve: Callable[[str, int], Awaitable[Sequence[str]]]) -> Any:
    """Make a resolver of aiohttp's class, which aiohttp does not ask for hosts that are addresses."""
    from aiohttp.abc import AbstractResolver, ResolveResult  # noqa: PLC0415 - loaded late

    class Resolver(AbstractResolver):
        async def resolve(
            self,
            host: str,
            port: int = 0,
            family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 - all are asked for
        ) -> list[ResolveResult]:
            return [
                ResolveResult(
                    hostname=host,
                    host=address,
                    port=port,
                    family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                    proto=0,
                    flags=socket.AI_NUMERICHOST,
                )
                for address in await resolve(host, port)
            ]

        async def close(self) -> None:
            """Nothing is kept open."""

    return Resolver()


def _host_port(target: Origin) -> str:
    scheme, host, port = target
    host = f"[{host}]" if ":" in host else host
    return host if (scheme, port) == ("https", 443) else f"{host}:{port}"
