"""Open, read and close a content: any object that a caller passes as a source of bytes.

======================================  ===================================================================
content                                 treatment
======================================  ===================================================================
bytes, bytearray, memoryview            read as it is
an object with ``async read(n)``        read to its end; wins over ``__aiter__``, which may go by lines
an async iterable of bytes              iterated; an async generator is closed
a callable, also a class                called; the result is closed
an awaitable                            awaited; the result is closed
an async context manager                entered and left; a result of the two rows above too
======================================  ===================================================================

``aiofiles.open(…)`` and aiohttp's ``session.get(…)`` are awaitables and context managers: they are entered.
An object that the caller passes open (a file, a ``StreamReader``) stays open, unless it is an iterator or has
``aclose()``.

The idea to know first: one task opens, iterates and closes a content, since a content may hold a cancel scope
or ``asyncio.timeout`` open while it yields. When the consumer fails, the fault is thrown into the content
(``athrow``, ``__aexit__``), so that a time-out inside the content can turn its own cancel into
``TimeoutError``.

A blob of a source is a content too: :class:`BlobContent` reads all of the blob or a part of it. This module
does not verify bytes.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Protocol

from aiodockersave._aio import Fairness, run_up_to_wait, weightier
from aiodockersave.core.errors import ContentError
from aiodockersave.core.model import Descriptor

__all__ = [
    "BATCH_SIZE",
    "MAX_BATCH_SIZE",
    "Batch",
    "BlobContent",
    "Buffer",
    "Closer",
    "Content",
    "OpenBlob",
    "OpenContent",
    "SupportsAsyncRead",
]

BATCH_SIZE = 256 << 10
"""The least size in bytes of a batch: smaller chunks are joined before work is done on them."""
MAX_BATCH_SIZE = 1 << 20
"""The largest size of a batch in bytes: a larger chunk is cut."""

Buffer = bytes | bytearray | memoryview
Batch = bytes | memoryview
"""Bytes that nobody can change. A piece of a large ``bytes`` object is a view, which costs no copy."""


class SupportsAsyncRead(Protocol):
    """An object with the ``read`` that ``StreamReader``, aiofiles, anyio and aiohttp share."""

    def read(self, size: int, /) -> Awaitable[Buffer]:
        """Return up to ``size`` bytes; empty at the end."""
        ...


Content = (
    Buffer
    | SupportsAsyncRead
    | AsyncIterable[Buffer]
    | AbstractAsyncContextManager[Any]
    | Awaitable[Any]
    | Callable[[], Any]
)
"""Any content that a caller may pass; the module's table lists the kinds."""
Closer = Callable[[BaseException | None], Awaitable[None]]

_MAX_STEPS = 8
_EXPECTED = (
    "pass bytes, an object with async read(n), an async iterable of bytes, or a callable, awaitable or async "
    "context manager that gives one"
)


class OpenContent:
    """Open, read and close one content."""

    def __init__(self, content: object) -> None:
        self._content = content
        self._closers: list[Closer] = []
        self._next: Callable[[], Awaitable[Buffer | None]] | None = None
        self._pending: list[memoryview] = []

    async def open(self) -> None:
        """Follow callables, awaitables and context managers until something can be read.

        Raises:
            TypeError: The content leads to nothing that can be read.

        Cancel: everything that was opened stays open until :meth:`close`.
        """
        content, self._content = self._content, None
        entered: object = None
        ours = False  # whether we called or awaited something to get it, so that we must enter it
        for _ in range(_MAX_STEPS):
            readable = _is_readable(content)
            if content is not entered and _is_context_manager(content) and (ours or not readable):
                _refuse_response(content, ours=ours)
                entered, content, ours = content, await self._enter(content), True
            elif readable:
                self._next = self._reader(content, owned=entered is None)
                return
            elif content is entered and (body := _body(content)) is not content:
                content = entered = body
            elif inspect.isawaitable(content):
                content, ours = await content, True
            elif callable(content):
                content, ours = content(), True
            else:
                break
        _refuse_response(content, ours=False)
        raise TypeError(f"cannot read from {_kind(content)}: {_EXPECTED}")

    async def read(self) -> Batch:
        """Return the next chunk; empty at the end.

        The chunk has at most :data:`MAX_BATCH_SIZE` bytes, and nobody can change it.

        Raises:
            TypeError: The content gave something other than bytes.

        Cancel: the content received the cancel where it waited; :meth:`close` closes the content.
        """
        while not self._pending:
            if self._next is None:
                raise AssertionError("the content is not open")
            chunk = await self._next()
            if chunk is None:
                self._next = _nothing  # do not read the content again after its end
                return b""
            if type(chunk) is bytes and 0 < len(chunk) <= MAX_BATCH_SIZE:
                return chunk
            view = _as_view(chunk)  # for bytearrays and subclasses of bytes too
            self._pending = [view[i : i + MAX_BATCH_SIZE] for i in range(0, len(view), MAX_BATCH_SIZE)]
            self._pending.reverse()
        view = self._pending.pop()
        return view if type(view.obj) is bytes else bytes(view)  # copy a buffer that may change

    async def close(self, fault: BaseException | None) -> BaseException | None:
        """Throw ``fault`` into everything that was opened, and close it; return the error of the content.

        The result is None if the content raised nothing, or only ``fault`` itself. A content that swallows
        the fault changes nothing. Never raises.

        Cancel: the rest is closed all the same, and the cancel is returned.
        """
        raised: BaseException | None = None
        self._next = None
        self._pending.clear()
        while self._closers:
            close = self._closers.pop()
            try:
                await close(raised or fault)
            except GeneratorExit:
                raise  # nothing can be awaited any more
            except BaseException as exc:  # noqa: BLE001 - given to the caller, who raises it
                if exc is not fault:  # prefer the later error: it was raised while the earlier was handled
                    raised = weightier(exc, raised)
        return raised

    def abandon(self, fault: BaseException) -> None:
        """Do as :meth:`close` does, up to the first wait of each closer, and drop all errors."""
        self._next = None
        self._pending.clear()
        while self._closers:
            run_up_to_wait(_awaiting(self._closers.pop()(fault)))

    async def discard(self) -> None:
        """Close a content that was never opened, if it would warn or leak otherwise.

        Cancel: an async generator that is being closed has received the cancel.
        """
        content, self._content = self._content, None
        # The result of aiofiles.open(…) has no close(): close the coroutine inside it.
        coroutine = getattr(content, "_coro", None) if _is_context_manager(content) else content
        if isinstance(coroutine, Coroutine):
            coroutine.close()
        elif isinstance(content, AsyncGenerator):
            await content.aclose()

    async def _enter(self, content: Any) -> object:
        leave = type(content).__aexit__

        async def close(fault: BaseException | None) -> None:
            traceback = fault.__traceback__ if fault else None
            await leave(content, type(fault) if fault else None, fault, traceback)

        result: object = await type(content).__aenter__(content)
        self._closers.append(close)
        return result

    def _reader(self, content: Any, *, owned: bool) -> Callable[[], Awaitable[Buffer | None]]:
        if isinstance(content, bytes | bytearray | memoryview):
            return _once(content)
        if _reads(content):
            if owned:
                self._close_later(content)
            return _by_reading(content)
        iterator = content.__aiter__()
        if owned or iterator is not content or isinstance(iterator, AsyncGenerator):
            self._close_later(iterator)
        return _by_iterating(iterator)

    def _close_later(self, content: Any) -> None:
        if isinstance(content, AsyncGenerator):
            self._closers.append(_teller(content))
        elif hasattr(content, "aclose"):
            self._closers.append(_closer(content.aclose))


# ── kinds of content ──


def _is_context_manager(content: object) -> bool:
    return hasattr(type(content), "__aenter__") and hasattr(type(content), "__aexit__")


def _is_readable(content: object) -> bool:
    if isinstance(content, type) or inspect.isawaitable(content):
        return False
    return (
        isinstance(content, bytes | bytearray | memoryview)
        or _reads(content)
        or hasattr(type(content), "__aiter__")
    )


def _reads(content: object) -> bool:
    """Tell whether ``content.read`` can be called with a size."""
    read = getattr(content, "read", None)
    if not callable(read):
        return False
    try:
        inspect.signature(read).bind(BATCH_SIZE)
    except TypeError:
        return False
    except ValueError:  # a C function without a signature
        return True
    return True


def _refuse_response(content: object, *, ours: bool) -> None:
    # A response that the caller opened may be an error page: the caller must check the status first.
    if not ours and callable(getattr(content, "read", None)):
        raise TypeError(
            f"the read() of {_kind(content)} takes no size: pass its stream, such as response.content of aiohttp, "
            "or response.aiter_raw() of httpx"
        )


def _body(content: Any) -> Any:
    """Return the stream of an HTTP response that we entered ourselves (aiohttp's ``session.get(…)``).

    Raises:
        ContentError: The status is not 2xx; an error page must not become a layer.
    """
    status = getattr(content, "status", None)
    body = getattr(content, "content", None) if isinstance(status, int) else None
    if not isinstance(status, int) or not _reads(body):
        return content
    if not 200 <= status < 300:  # RFC 9110 § 15.3
        raise ContentError(f"the request for the content was answered with status {status}")
    return body


def _kind(content: object) -> str:
    if content is None:
        return "None"
    return (content if isinstance(content, type) else type(content)).__qualname__


# ── ways to read ──


def _as_view(chunk: object) -> memoryview:
    try:
        view = memoryview(chunk)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"the content gave {_kind(chunk)} where bytes were expected") from None
    if not view.c_contiguous:
        raise TypeError("the content gave a memoryview with gaps: pass bytes of it")
    return view.cast("B")


async def _nothing() -> None:
    """Return None, as each read after the end does."""


def _checked(chunk: object) -> Buffer:
    """Return a chunk in a form whose ``len`` counts bytes."""
    return chunk if isinstance(chunk, bytes) else _as_view(chunk)


def _once(data: Buffer) -> Callable[[], Awaitable[Buffer | None]]:
    rest = [data]

    async def read() -> Buffer | None:
        return rest.pop() if rest else None

    return read


def _by_reading(content: Any) -> Callable[[], Awaitable[Buffer | None]]:
    async def read() -> Buffer | None:
        result = content.read(BATCH_SIZE)
        if not inspect.isawaitable(result):
            raise TypeError(
                f"the read() of {_kind(content)} is not async: open files with aiofiles.open() or anyio.open_file()"
            )
        return _checked(await result) or None  # an empty chunk means the end

    return read


def _by_iterating(iterator: AsyncIterator[Buffer]) -> Callable[[], Awaitable[Buffer | None]]:
    async def read() -> Buffer | None:
        try:
            return _checked(await anext(iterator))
        except StopAsyncIteration:
            return None

    return read


# ── ways to close ──


async def _awaiting(awaitable: Awaitable[None]) -> None:
    await awaitable


def _closer(aclose: Callable[[], Awaitable[object]]) -> Closer:
    async def close(_: BaseException | None) -> None:
        await aclose()

    return close


def _teller(generator: AsyncGenerator[object, None]) -> Closer:
    """Close a generator by throwing the fault into it, as if its own ``yield`` had failed."""

    async def close(fault: BaseException | None) -> None:
        if fault is not None:
            try:
                with contextlib.suppress(StopAsyncIteration):
                    await generator.athrow(fault)
            except GeneratorExit:
                raise  # nothing can be awaited any more
            except BaseException:
                await generator.aclose()
                raise
        await generator.aclose()  # does nothing unless it yielded once more

    return close


class OpenBlob(Protocol):
    """The ``open_blob`` of a source, as :class:`~aiodockersave.Source` declares it."""

    def __call__(
        self, descriptor: Descriptor, /, *, start: int = 0, stop: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a blob from ``start`` up to ``stop``; NotImplementedError offers only the whole blob."""
        ...


class BlobContent(OpenContent):
    """Open, read and close a blob of a source, or a part of one.

    Args:
        open_blob: Opens the blob.
        descriptor: The blob.
        start: The offset of the first byte to read.
        stop: The offset after the last byte; None reads to the end of the blob, so that surplus bytes are
            noticed.
    """

    def __init__(
        self, open_blob: OpenBlob, descriptor: Descriptor, *, start: int = 0, stop: int | None = None
    ) -> None:
        self._whole = partial(open_blob, descriptor)
        self._is_part = start > 0 or stop is not None
        super().__init__(partial(self._whole, start=start, stop=stop) if self._is_part else self._whole)
        self._start = start
        self._stop = stop
        self._skip = 0
        self._left: int | None = None
        self._entered: object = None
        self._fairness = Fairness()

    @property
    def retries(self) -> int:
        """The retries of the source: the attribute ``retries`` of its iterator, or 0 without one."""
        retries = getattr(self._entered, "retries", 0)
        return retries if isinstance(retries, int) else 0

    async def _enter(self, content: Any) -> object:
        self._entered = await super()._enter(content)
        return self._entered

    async def open(self) -> None:
        """Open the wanted part; if the source offers only the whole blob, open that and skip the other bytes.

        Cancel: as :meth:`OpenContent.open`.
        """
        try:
            await super().open()
        except NotImplementedError as exc:
            if not self._is_part or await self.close(exc):
                raise
            self._content, self._skip = self._whole, self._start
            self._left = None if self._stop is None else self._stop - self._start
            await super().open()

    async def read(self) -> Batch:
        """Return the next chunk of the wanted part; empty at its end.

        Cancel: as :meth:`OpenContent.read`.
        """
        while self._left != 0 and (chunk := await super().read()):
            skipped = min(self._skip, len(chunk))
            self._skip -= skipped
            if skipped or self._left is not None:
                chunk = chunk[skipped : None if self._left is None else skipped + self._left]
            if chunk:
                if self._left is not None:
                    self._left -= len(chunk)
                return chunk
            await self._fairness.passed(skipped)
        return b""
