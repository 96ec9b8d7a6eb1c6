"""The faults of a connection, and what they mean: the only place that reads aiohttp's exceptions.

They are turned into ours, not chained: theirs may hold whole URLs, whose queries give access. What ours say is looked
through before anybody sees it, by :func:`discretion`: a registry may repeat what it was sent in all that is quoted of it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any, Final

from aiodockersave.core.errors import AuthenticationError, DockerSaveError, RateLimitedError, RegistryError
from aiodockersave.core.text import Secrets, shown, shown_url

from .addresses import AddressRefusedError
from .answers import ErrorBody
from .importing import load_aiohttp
from .retry import InterruptedTransfer
from .timeouts import Timeouts

__all__ = ["discretion", "explain", "explain_status", "fault_kinds", "is_tls_refusal"]

_PHRASES: Final = {
    401: "access is not granted",
    403: "access is denied",
    404: "there is no such thing",
    416: "there are no such bytes",
    429: "there were too many requests",
}

# What a resolver says of a name that does not exist; anything else may be better next time.
_NO_SUCH_NAME: Final = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


def fault_kinds() -> tuple[type[Exception], ...]:
    """Return what a request, or reading an answer, may raise: aiohttp's errors and the system's.

    Where aiohttp has no compiled parser, faults in the framing of a body are no errors of its client.
    """
    aiohttp = load_aiohttp()
    return (aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError, OSError, ValueError)


def explain(
    exc: Exception, *, what: str, url: str, timeouts: Timeouts
) -> InterruptedTransfer | DockerSaveError:
    """Turn a fault into what is raised: an interruption if another attempt may help, else an error."""
    lasting = _lasting_reason(exc)
    reason = lasting or _passing_reason(exc, timeouts)
    error = RegistryError(what, reason, url=shown_url(url))
    return error if lasting else InterruptedTransfer(error)


_ACCESS = frozenset({401, 403})
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_OWN_LIMIT = 520  # to 599: what content delivery networks say of the servers behind them


def explain_status(
    status: int, said: ErrorBody, *, what: str, url: str, retry_after: float | None
) -> InterruptedTransfer | DockerSaveError:
    """Turn the status of an answer that is none into what is raised; as :func:`explain`."""
    phrase = _PHRASES.get(status, "this answer was not expected")
    advice = "; log in, or check the name" if status == 401 else ""
    reason = f"{said.message or phrase}{advice} (status {status})"
    place = shown_url(url)
    if status == 429:
        limited = RateLimitedError(what, reason, url=place, codes=said.codes, retry_after=retry_after)
        return InterruptedTransfer(limited, retry_after=retry_after)
    kind = AuthenticationError if status in _ACCESS else RegistryError
    error = kind(what, reason, url=place, status=status, codes=said.codes)
    is_passing = status in _PASSING or status >= _OWN_LIMIT
    return InterruptedTransfer(error, retry_after=retry_after) if is_passing else error


# ── what must not be seen ──


@contextlib.contextmanager
def discretion(secrets: Secrets, *own: str) -> Iterator[None]:
    """Hide secrets in the errors of ours that leave the block: in messages, attributes, notes and causes.

    It stands where the errors of a registry leave this room, and where they are logged.

    Args:
        secrets: What was sent in confidence.
        own: What stands in messages and is not the registry's: the name that the user gave, the URL made of it.
    """
    try:
        yield
    except (DockerSaveError, InterruptedTransfer) as exc:
        if secrets:
            _hide(exc, secrets, own)
        raise


def _hide(exc: BaseException, secrets: Secrets, own: tuple[str, ...]) -> None:
    def hidden(value: object) -> Any:
        if isinstance(value, str):
            return secrets.hide(value, own=own)
        if type(value) is tuple:  # an item that is no text, such as a platform, is left out with what it says
            return tuple(
                hidden(each) for each in value if isinstance(each, str) or hidden(str(each)) == str(each)
            )
        return list(map(hidden, value)) if type(value) is list else value

    seen: list[BaseException] = []
    waiting: list[object] = [exc]
    while waiting:
        each = waiting.pop()
        if isinstance(each, DockerSaveError | InterruptedTransfer) and each not in seen:
            seen.append(each)
            each.args = hidden(each.args)
            for name, value in vars(each).items():
                setattr(each, name, hidden(value))
            waiting += [each.__cause__, each.__context__, getattr(each, "error", None)]


def is_tls_refusal(exc: Exception) -> bool:
    """Tell whether the other side does not speak TLS, rather than speaking it with a fault."""
    # An alert is TLS; "wrong version number" is how HTTP looks to it. A connection that breaks off says neither.
    return isinstance(exc, load_aiohttp().ClientConnectorSSLError) and "ALERT" not in (
        getattr(exc.os_error, "reason", None) or ""
    )


def _lasting_reason(exc: Exception) -> str:
    """Say why the same request will fail again; empty if it may not."""
    aiohttp = load_aiohttp()
    if isinstance(exc, aiohttp.ClientConnectorError):
        return _lasting_connector_reason(exc)
    if isinstance(exc, AddressRefusedError):
        return str(exc.strerror)
    if isinstance(exc, aiohttp.ClientHttpProxyError):
        return "" if exc.status >= 500 else f"the proxy refuses with status {exc.status}"
    if isinstance(exc, aiohttp.ClientResponseError):
        return "it does not answer in HTTP, or with headers that are too long"
    if isinstance(exc, ValueError):  # aiohttp's InvalidURL is one too
        return "this address, or that of the proxy, cannot be used"
    return _no_such_name(exc)


def _lasting_connector_reason(exc: Any) -> str:
    aiohttp = load_aiohttp()
    cause = exc.os_error
    if isinstance(cause, AddressRefusedError):
        return str(cause.strerror)
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not valid: {shown(getattr(cause, 'verify_message', '') or str(cause))}"
    if isinstance(exc, aiohttp.ClientConnectorSSLError):
        return f"TLS failed: {shown(getattr(cause, 'reason', None) or str(cause))}"
    return _no_such_name(cause)


def _no_such_name(exc: Exception) -> str:
    is_final = isinstance(exc, socket.gaierror) and exc.errno in _NO_SUCH_NAME
    return "there is no such host" if is_final else ""


def _passing_reason(exc: Exception, timeouts: Timeouts) -> str:
    aiohttp = load_aiohttp()
    if isinstance(exc, aiohttp.SocketTimeoutError) or (isinstance(exc, TimeoutError) and not exc.args):
        return f"nothing came for {timeouts.silence:g} s"
    if isinstance(exc, aiohttp.ServerTimeoutError):
        return f"no connection within {timeouts.connect:g} s"
    if isinstance(exc, aiohttp.ClientHttpProxyError):
        return f"the proxy fails with status {exc.status}"
    if isinstance(exc, aiohttp.ClientConnectorError):
        party = "the proxy" if isinstance(exc, aiohttp.ClientProxyConnectionError) else "it"
        return f"{party} cannot be reached: {_system_reason(exc.os_error)}"
    if isinstance(exc, OSError) and exc.strerror:
        event = "the connection broke" if isinstance(exc, aiohttp.ClientError) else "it cannot be reached"
        return f"{event}: {_system_reason(exc)}"
    return "the connection was closed before the answer was whole"


def _system_reason(exc: Any) -> str:
    # asyncio says nothing at all of a connection that is closed during the handshake.
    silent = "the connection was closed" if isinstance(exc, ConnectionError) else type(exc).__name__
    return shown(exc.strerror or str(exc) or silent)
