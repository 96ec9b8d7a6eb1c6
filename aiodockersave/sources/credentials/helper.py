"""Ask a credential helper: a program ``docker-credential-NAME`` that reads a store of passwords.

::

    docker-credential-NAME get      standard input:   the server, as the store knows it
                                    standard output:  {"ServerURL": …, "Username": …, "Secret": …}, exit 0
                                                      credentials not found in native keychain, exit 1
    docker-credential-NAME store    standard input:   {"ServerURL": …, "Username": …, "Secret": …}
    docker-credential-NAME erase    standard input:   the server

Source: the protocol of docker-credential-helpers. A helper is somebody else's program. Its name is checked before it is
searched for on the PATH, and its output is bounded. It runs in a session of its own, all of which is killed when the
helper hangs or the caller no longer waits. Its messages are not repeated, because they may hold secrets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from aiodockersave._aio import Worker, wait_out
from aiodockersave.core import gojson
from aiodockersave.core.errors import InvalidDocumentError
from aiodockersave.core.text import cut, one_line
from aiodockersave.sources.regular_file import is_text

__all__ = ["HelperAnswer", "HelperError", "ask_helper", "described", "tell_helper"]

MAX_ANSWER = 1 << 20
"""Bytes of an answer that are accepted; real answers have a few thousand, most of them a token."""

_NAME = re.compile("[A-Za-z0-9._-]+")
_NOT_FOUND: Final = b"credentials not found in native keychain"


class HelperError(Exception):
    """A helper gave no usable answer; ``str()`` is the reason, without any of the helper's text."""


@dataclass(frozen=True, slots=True)
class HelperAnswer:
    """The credentials that a helper has for a server."""

    username: str
    secret: str = field(repr=False)


async def ask_helper(
    name: str, server: str, *, environ: Mapping[str, str], time_limit: float
) -> HelperAnswer | None:
    """Ask a helper for the credentials of a server.

    Args:
        name: The part of the program's name after ``docker-credential-``.
        server: The server's name in the store.
        environ: The helper's environment; its PATH is searched for the program.
        time_limit: The limit on the helper's answer, in seconds.

    Returns:
        The credentials, or None if the helper has none.

    Raises:
        HelperError: The helper is missing, fails, hangs, or gives another kind of answer.

    Cancel: the helper is killed and gone when the cancel is raised.
    """
    status, output = await _run(name, "get", server.encode(), environ, time_limit)
    return await Worker("aiodockersave-helper").run(_read_answer, status, output)


async def tell_helper(
    name: str, verb: Literal["store", "erase"], text: bytes, *, environ: Mapping[str, str], time_limit: float
) -> None:
    """Have a helper store credentials, or erase those of a server.

    Args:
        name: As for :func:`ask_helper`.
        verb: What to do.
        text: The credentials in JSON, or the server's name.
        environ: As for :func:`ask_helper`.
        time_limit: The limit on the helper's work, in seconds.

    Raises:
        HelperError: The helper is missing, fails, or hangs.

    Cancel: the helper is killed and gone when the cancel is raised; it may have done its work.
    """
    status, _ = await _run(name, verb, text, environ, time_limit)
    if status != 0:
        raise _failed(status)


async def _run(
    name: str, verb: str, text: bytes, environ: Mapping[str, str], time_limit: float
) -> tuple[int, bytes]:
    program = await Worker("aiodockersave-helper").run(_find_program, name, environ.get("PATH", ""))
    return await _converse([program, verb], text, environ, time_limit)


def _find_program(name: str, search: str) -> str:
    if not _NAME.fullmatch(name):
        raise HelperError("its name is made of other characters than letters, digits, '.', '_' and '-'")
    # As Go's exec.LookPath does: a relative entry of the PATH is passed over, so the current directory is not searched.
    folders = os.pathsep.join(folder for folder in search.split(os.pathsep) if os.path.isabs(folder))
    program = shutil.which(f"docker-credential-{name}", path=folders)
    if program is None:
        raise HelperError("there is no such program on the PATH")
    return program


# ── the program ──


class _Conversation(asyncio.SubprocessProtocol):
    """The program's output, up to a limit. More is read and dropped, since a full pipe would keep the program from ending."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.output = bytearray()
        self.is_too_long = False
        self.decided: asyncio.Future[None] = loop.create_future()
        """Done when the output has ended, or is too long."""
        self.gone: asyncio.Future[None] = loop.create_future()
        """Done when the program is reaped and its pipes are closed."""

    def pipe_data_received(self, fd: int, data: bytes) -> None:  # noqa: ARG002 - only standard output is a pipe
        if len(self.output) + len(data) <= MAX_ANSWER:
            self.output += data
        else:
            self.is_too_long = True
            self._decide()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - how it ended says the exit status
        self._decide()
        self.gone.set_result(None)

    def _decide(self) -> None:
        if not self.decided.done():
            self.decided.set_result(None)


_Started: TypeAlias = tuple[asyncio.SubprocessTransport, _Conversation]


async def _converse(
    command: Sequence[str], question: bytes, environ: Mapping[str, str], time_limit: float
) -> tuple[int, bytes]:
    """Run the program to its end; return its exit status and its output."""
    conversation = _Conversation()
    loop = asyncio.get_running_loop()
    # 1. Start the program in a task of its own, which a cancel does not reach: asyncio would kill a program that is being
    #    started without its children, and a second cancel would interrupt even that.
    starting = loop.create_task(
        loop.subprocess_exec(
            lambda: conversation,
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=dict(environ),
            start_new_session=True,  # so that its children can be killed too, and Ctrl-C does not reach it
        )
    )
    # 2. Ask, and wait for the end of the output. However that ends, no program is left behind.
    try:
        transport, _ = await wait_out(starting)
        _send(transport, question)
        await asyncio.wait([conversation.decided], timeout=time_limit)
        is_silent = not conversation.decided.done()
    except GeneratorExit:  # the coroutine is being closed: nothing can be awaited any more
        starting.add_done_callback(lambda _: _kill(starting, conversation))
        raise
    except OSError as error:
        await _end(starting, conversation)
        raise HelperError(f"it cannot be started: {error.strerror}") from None
    except BaseException:
        if not starting.done():  # an interrupt by a signal handler: a cancel has waited in `wait_out`
            await asyncio.wait([starting])
        await _end(starting, conversation)
        raise
    else:
        await _end(starting, conversation)
    # 3. The program is gone: judge its output.
    if is_silent:
        raise HelperError(f"it does not answer within {time_limit:g} s")
    if conversation.is_too_long:
        raise HelperError(f"it answers with more than {MAX_ANSWER} bytes")
    status = transport.get_returncode()
    assert status is not None, "it is gone"  # noqa: S101
    return status, bytes(conversation.output)


async def _end(starting: asyncio.Task[_Started], conversation: _Conversation) -> None:
    """Kill what is left of a program, and wait until it is gone."""
    if _kill(starting, conversation):
        await wait_out(conversation.gone)


def _kill(starting: asyncio.Task[_Started], conversation: _Conversation) -> bool:
    """Kill what is left of a program; tell whether there was one."""
    if starting.cancelled() or starting.exception() is not None:
        return False
    transport, _ = starting.result()
    if not conversation.gone.done():
        # A process that holds its output open belongs to its session, so the number of the group is not yet another's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(transport.get_pid(), signal.SIGKILL)
    transport.close()
    return True


def _send(transport: asyncio.SubprocessTransport, question: bytes) -> None:
    pipe = transport.get_pipe_transport(0)
    assert isinstance(pipe, asyncio.WriteTransport), "standard input is a pipe"  # noqa: S101
    pipe.write(question)
    pipe.close()  # after the question was written


# ── the answer ──


def _failed(status: int) -> HelperError:
    how = f"exit status {status}" if status > 0 else f"signal {-status}"
    return HelperError(f"it fails with {how}")


def _read_answer(status: int, output: bytes) -> HelperAnswer | None:
    if status != 0:
        if output.strip() == _NOT_FOUND:
            return None
        raise _failed(status)
    try:
        answer = gojson.parse(output, "a credential helper's answer")
    except InvalidDocumentError:
        answer = None
    if not isinstance(answer, dict):
        raise HelperError("it answers with something that is not a JSON object")
    # Go ignores the case of names, so some helpers write them in lower case.
    fields = {gojson.fold(name): value for name, value in answer.items()}
    username, secret = fields.get("username", ""), fields.get("secret", "")
    if not (is_text(username) and is_text(secret)):
        raise HelperError("its Username or Secret is not a text")
    return HelperAnswer(username, secret) if username or secret else None


def described(name: str) -> str:
    """Return the name of a helper's program, for a message."""
    return cut(one_line(f"docker-credential-{name}"), 100)
