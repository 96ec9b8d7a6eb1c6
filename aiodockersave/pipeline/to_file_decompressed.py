"""Saving to a file with layers as plain tars: several at once where their places can be told ahead.

A layer's place follows from the plain sizes of those before it. A size is known when the layer is in, or ahead by a
**hint**: the last four bytes of a gzip member have the plain size modulo 2^32 (RFC 1952 § 2.3.1). ::

    layer   0          1          2          3
    size    known      hint       none       …
            place ───▶ place ───▶ place      waits for 2

Small layers are not asked for a hint: they are received into memory while they wait, and have it with them.

A hint may be wrong: the blob may have several members, or lie. A layer that would leave its region, or does not fill
it, shows that. Then the layers behind it, which are in the wrong place, are read once more: a wrong hint costs time, and
never a byte of the result.

What is no layer's (headers, configs, metadata) is written last, from the plan of what is there then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from aiodockersave._aio import Worker, end_tasks, ending
from aiodockersave.blobs.filling import fetch, fill
from aiodockersave.blobs.in_place import move_back, write_literals
from aiodockersave.blobs.placing import Crew, Lane, PlainBlob
from aiodockersave.core.errors import DockerSaveError
from aiodockersave.core.model import Descriptor, Format, compression
from aiodockersave.sources import SupportsLastBytes

from .plain_layout import ISIZE, PlainLayout, least_plain_size, plausible_size
from .prefetch import RECEIVED, SMALL
from .resolve import naming

if TYPE_CHECKING:
    from aiodockersave.blobs.content import Batch
    from aiodockersave.blobs.open_file import OpenFile
    from aiodockersave.blobs.space import Free, Space
    from aiodockersave.core.model import Digest, Limits
    from aiodockersave.core.plan import Plan

    from .resolve import Prepared
    from .tracker import Blob, Books

__all__ = ["file_plain"]

_SMALL: Final = SMALL
_RECEIVED: Final = RECEIVED
_ASKING: Final = 8
"""Hints that are asked for at once."""
_PATIENCE: Final = 10.0
"""Seconds after which a layer is begun without its hint."""
_MOVED: Final = 32 << 20
"""Bytes that are moved by one blocking call: how long a cancel may have to wait."""


async def plain_size_hint(blob: Blob) -> int | None:
    """Return what the plain size of a blob may be; None where that cannot be told ahead."""
    layer, source = blob.layer, blob.image.request.source
    if layer.size is None:
        return None
    last = None
    if compression(layer.media_type) == "gzip" and isinstance(source, SupportsLastBytes):
        # On an error the blob itself will tell.
        with contextlib.suppress(DockerSaveError, OSError):
            async with asyncio.timeout(_PATIENCE):
                last = await source.last_bytes(layer, ISIZE)
    return _told_size(layer, last)


def _told_size(layer: Descriptor, last: bytes | None) -> int | None:
    """Return what the plain size may be of a blob with these last bytes."""
    match compression(layer.media_type):
        case None:
            return layer.size
        case "gzip" if last is not None and layer.size is not None:
            return plausible_size(last, layer.size)
        case _:
            return None


async def file_plain(
    file: OpenFile,
    prepared: Prepared,
    books: Books,
    *,
    format: Format,
    jobs: int,
    limits: Limits,
    space: Space | None = None,
    written: Callable[[int], None],
) -> Plan:
    """Write the archive of images into an empty file, layers decompressed.

    Args:
        file: The file.
        prepared: The images.
        books: Their blobs.
        format: The layout of the archive.
        jobs: How many blobs are read at once.
        limits: How far layers may expand.
        space: What there is room for.
        written: Is called with a number of bytes that are being written.

    Returns:
        The plan of what is in the file.

    Raises:
        ContentError, SourceError: A blob is not what was promised, or cannot be had.
        InsufficientSpaceError: They do not fit, as far as that is told ahead, or turns out.
        OSError: The file cannot be written.

    Cancel: nothing goes on.
    """
    worker = Worker("aiodockersave-file")
    layout = await worker.run(PlainLayout, [each.image for each in prepared.images], format)

    free = None if space is None else await worker.run(space.look)
    filer = _Filer(file, books, layout, space, free=free, jobs=jobs, limits=limits, written=written)
    books.begin()
    await filer.run()
    plan = await worker.run(layout.plan)
    await worker.run(write_literals, file, plan.segments, plan.size)
    return plan


class _Lane:
    """The threads that bring one blob at a time into its place, kept for the next one."""

    def __init__(self, crew: Crew) -> None:
        self.worker = Worker("aiodockersave-blob")
        self.threads = Lane(crew)
        self._held = ExitStack()
        self._held.enter_context(self.worker.held())

    async def close(self, _: object, fault: BaseException | None, __: object) -> None:
        """End the threads."""
        with self._held:
            # The coroutine is being closed: nothing can be awaited any more.
            if isinstance(fault, GeneratorExit):
                self.worker.leave(self.threads.close)  # behind what hands over to them
            else:
                await self.worker.run_always(self.threads.close)


class _Run(NamedTuple):
    """A blob that is being brought into its place."""

    blob: Blob
    is_read: bool  # and not in memory already


def _is_small(blob: Blob) -> bool:
    return (blob.layer.size or 0) <= _SMALL


@asynccontextmanager
async def _open_received(
    chunks: Sequence[Batch],
    _: Descriptor,
    /,
    *,
    start: int = 0,  # noqa: ARG001 - as sources have it: what was received is read as a whole
    stop: int | None = None,  # noqa: ARG001
) -> AsyncGenerator[AsyncIterator[bytes], None]:
    """Open a blob that was received."""

    async def iterate() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield bytes(chunk)

    yield iterate()


class _Filer:
    """Starts what can be started, and looks at what comes of it."""

    def __init__(
        self,
        file: OpenFile,
        books: Books,
        layout: PlainLayout,
        space: Space | None,
        *,
        free: Free | None,
        jobs: int,
        limits: Limits,
        written: Callable[[int], None],
    ) -> None:
        self._archive = file
        self._books = books
        self._layout = layout
        self._jobs = jobs
        self._space = space
        self._free = free
        self._limits = limits
        self._written = written
        self._stored = {blob.diff_id: blob for blob in reversed(books.blobs)}
        self._waiting = [self._stored[each] for each in layout.order]
        self._needed = sum(least_plain_size(blob.layer.size or 0) for blob in self._waiting)
        # Another blob of a plain tar that is stored already is verified like any other.
        self._copies = [blob for blob in books.blobs if not self._is_stored(blob)]
        # Nothing is placed behind the last one, so nobody needs its size ahead.
        self._unasked = [] if jobs == 1 else [blob for blob in self._waiting[:-1] if not _is_small(blob)]
        self._placed: dict[Digest, int] = {}
        self._received: dict[Digest, Sequence[Batch]] = {}
        self._lanes = AsyncExitStack()
        self._crew = Crew()
        self._idle: list[_Lane] = []
        self._running: dict[asyncio.Task[None], _Run] = {}
        self._receiving: dict[asyncio.Task[None], Blob] = {}
        self._asking: dict[asyncio.Task[None], Blob] = {}

    async def run(self) -> None:
        """Bring all blobs into their places."""
        self._check_space()
        async with self._lanes, ending(self._tasks):
            while self._start_some():
                done, _ = await asyncio.wait(self._tasks(), return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # one that failed stays in its table, to be looked at with the others
                    for tasks in (self._running, self._receiving, self._asking):
                        tasks.pop(task, None)
                await self._replace()

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [*self._running, *self._receiving, *self._asking]

    def _start_some(self) -> bool:
        """Start what can be started now; tell whether anything runs."""
        while self._unasked and len(self._asking) < _ASKING:
            blob = self._unasked.pop(0)
            self._asking[asyncio.ensure_future(self._ask(blob))] = blob
        if self._placed or self._unasked or len(self._asking) <= 1:
            self._place_some()
            self._receive_some()
        # else the largest is to be begun first, and the answers come together
        return bool(self._tasks())

    def _place_some(self) -> None:
        """Start blobs whose place is known, and those that need none."""
        places, sizes = self._layout.places(), self._layout.sizes
        asked = {blob.diff_id for blob in (*self._unasked, *self._asking.values())}
        receiving = {blob.layer.digest for blob in self._receiving.values()}
        waiting = [
            blob for blob in self._waiting if blob.diff_id in places and blob.layer.digest not in receiving
        ]
        waiting.sort(key=lambda blob: -(blob.layer.size or 0))
        for blob in waiting:
            # What runs without knowing its end could run over what is put behind it later.
            knows_its_end = sizes.get(blob.diff_id) is not None or blob.diff_id not in asked
            if knows_its_end and self._has_room(blob):
                self._waiting.remove(blob)
                self._start(blob, places[blob.diff_id])
        while self._copies and self._has_room(self._copies[0]):
            self._start(self._copies.pop(0), None)

    def _receive_some(self) -> None:
        """Start to receive small blobs that have no place yet, while memory is granted for them."""
        receiving = {blob.layer.digest: blob.layer.size or 0 for blob in self._receiving.values()}
        room = min(self._jobs * _SMALL, _RECEIVED) - sum(receiving.values())
        room -= sum(len(chunk) for chunks in self._received.values() for chunk in chunks)
        room -= sum(run.blob.layer.size or 0 for run in self._running.values() if not run.is_read)
        for blob in self._waiting:
            digest, size = blob.layer.digest, blob.layer.size or 0
            if not _is_small(blob) or digest in self._received or digest in receiving:
                continue
            if size > room or not self._may_read():
                break
            room -= size
            self._receiving[asyncio.ensure_future(self._receive(blob))] = blob

    def _is_stored(self, blob: Blob) -> bool:
        """Tell whether this is the blob of its plain tar that is stored, and not only verified."""
        return self._stored[blob.diff_id] is blob

    def _has_room(self, blob: Blob) -> bool:
        """Tell whether a lane is free for a blob, which may be read besides those that are, unless it was received."""
        return len(self._running) < self._jobs and (blob.layer.digest in self._received or self._may_read())

    def _may_read(self) -> bool:
        return sum(run.is_read for run in self._running.values()) + len(self._receiving) < self._jobs

    def _start(self, blob: Blob, place: int | None) -> None:
        if place is not None:
            self._placed[blob.diff_id] = place
        received = self._received.pop(blob.layer.digest, None)
        task = asyncio.ensure_future(self._file(blob, place, received))
        self._running[task] = _Run(blob, is_read=received is None)

    @contextmanager
    def _lane(self) -> Generator[_Lane, None, None]:
        if self._idle:
            lane = self._idle.pop()
        else:
            lane = _Lane(self._crew)
            self._lanes.push_async_exit(lane.close)
        self._crew.busy += 1
        try:
            yield lane
        finally:
            self._crew.busy -= 1
            self._idle.append(lane)

    async def _receive(self, blob: Blob) -> None:
        """Receive a small blob whose place is not known yet."""
        self._books.meter.started(blob.layer)
        with naming(blob.image.request):
            received = await fetch(blob.open, blob.layer, meter=self._books.meter)
        self._received[blob.layer.digest] = received
        last = b"".join(bytes(chunk[-ISIZE:]) for chunk in received[-ISIZE:])[-ISIZE:]  # no chunk is empty
        self._expect(blob, _told_size(blob.layer, last))

    async def _ask(self, blob: Blob) -> None:
        """Find out the plain size ahead, if the source can tell."""
        self._expect(blob, await plain_size_hint(blob))

    def _expect(self, blob: Blob, size: int | None) -> None:
        most = self._limits.max_plain_size
        if size is not None and (most is None or size <= most) and blob.diff_id not in self._layout.sizes:
            self._know(blob.diff_id, size)
            self._check_space()

    def _know(self, diff_id: Digest, size: int | None) -> None:
        """Take down the size of a plain tar, or that it is not known after all."""
        least = least_plain_size(self._stored[diff_id].layer.size or 0)
        before = self._layout.sizes.get(diff_id)
        self._needed += (least if size is None else size) - (least if before is None else before)
        self._layout.sizes[diff_id] = size

    def _check_space(self) -> None:
        if self._space is not None and self._free is not None:
            self._space.check(self._needed, self._free)

    async def _file(self, blob: Blob, place: int | None, received: Sequence[Batch] | None) -> None:
        """Bring one blob into its place, and take down its true size; else it waits once more."""
        region = None if place is None else self._layout.sizes.get(blob.diff_id)
        with self._lane() as lane, naming(blob.image.request):
            placement = PlainBlob(
                None if place is None else self._archive,
                place or 0,
                blob.layer,
                blob.diff_id,
                lane.threads,
                region=region,
                limits=self._limits,
                space=self._space,
            )
            self._books.meter.started(blob.layer)
            try:
                size = await fill(
                    placement,
                    blob.open if received is None else partial(_open_received, received),
                    blob.layer,
                    worker=lane.worker,
                    meter=self._books.meter,
                    readers=min(self._jobs, len(self._books.blobs)),
                    written=self._written,
                )
            except Exception:  # the source may have made one of its own of what it was told
                if not placement.is_overfull:
                    raise
                self._know(blob.diff_id, None)
                del self._placed[blob.diff_id]
                self._again(blob)
                return
            if place is not None:
                if region is None:
                    place = await self._make_room(blob.diff_id, place, size, lane.worker)
                self._placed[blob.diff_id] = place
                self._know(blob.diff_id, size)
        self._books.finished(blob.layer)

    async def _make_room(self, diff_id: Digest, place: int, size: int, worker: Worker) -> int:
        """Move a plain tar behind a header that became longer than was left for it: from 8 GiB on it has PAX records.

        Returns:
            Where it is then.
        """
        shift = self._layout.header_size(diff_id, size) - self._layout.header_size(diff_id, 0)
        stop = size
        while shift and stop:
            step = min(_MOVED, stop)
            stop -= step
            await worker.run(move_back, self._archive, place + stop, shift, step)
        return place + shift

    async def _replace(self) -> None:
        """Give up what turns out to be in the wrong place, and read it again."""
        places = self._layout.places()
        wrong = {each for each, place in self._placed.items() if places.get(each) != place}
        misplaced = [
            task
            for task, run in self._running.items()
            if run.blob.diff_id in wrong and self._is_stored(run.blob)
        ]
        await end_tasks(misplaced)
        for task in misplaced:
            del self._running[task]
        for diff_id in wrong:
            del self._placed[diff_id]
            self._again(self._stored[diff_id])

    def _again(self, blob: Blob) -> None:
        self._books.meter.retried(blob.layer)
        self._waiting.append(blob)
        self._waiting.sort(key=lambda each: self._layout.rank(each.diff_id))
