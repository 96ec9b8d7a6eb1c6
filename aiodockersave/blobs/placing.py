"""A blob into its place in a file, by threads: hashed, decompressed where asked, written at its offset.

::

    take(batch) ─┬▶ SHA-256 of the blob                                  KeptBlob: one thread
                 ├▶ write at the offset
                 └▶ inflate, SHA-256 of the plain tar                    where that is verified

    take(batch) ─┬▶ SHA-256 of the blob                                  PlainBlob: three threads, so that one
                 └▶ inflate ─▶ SHA-256 of the plain tar, write           large layer keeps two processors busy;
                                                                         one where each processor has a blob

The idea to know first: everything here blocks, and one blob is handled by one caller's thread at a time. Nothing of it
depends on what other blobs do: each writes into its own region only, and knows the bytes of it that are right.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from aiodockersave.core.errors import ContentError, ContentTooLargeError, DigestMismatchError, SinkError
from aiodockersave.core.first_bytes import is_like_a_layer
from aiodockersave.core.model import Descriptor, Digest
from aiodockersave.core.tar import BLOCK_SIZE

from .content import Batch
from .in_place import write_at

if TYPE_CHECKING:
    from aiodockersave.core.decompression import Decompressor, PlainHash
    from aiodockersave.core.model import Limits

    from .open_file import OpenFile
    from .space import Space

__all__ = ["Crew", "KeptBlob", "Lane", "Placement", "PlainBlob", "RegionFullError"]

T = TypeVar("T")

PIECE: Final = 1 << 18
"""Bytes that are decompressed, hashed and written at once."""
_RELAY_DEPTH: Final = 4
"""Pieces that may wait between two threads."""
_LAST_ZEROS: Final = 64 << 10
"""Zeros at the end of a blob that are taken for its own: a plain tar ends with a record of them."""
_LOOK_AGAIN: Final = 2.0
"""Seconds after which a thread that has nothing to do looks whether anybody is left who could give it something."""

_Item = tuple[Callable[[Any], None], Any] | threading.Event


class RegionFullError(Exception):
    """A plain tar has more bytes than its region: its size was guessed wrong."""


class Placement(Protocol):
    """One blob on its way into its region.

    Attributes:
        position: How many bytes of the region are filled.
    """

    position: int

    def take(self, batch: Sequence[Batch]) -> None:
        """Take the next bytes of the blob.

        Raises:
            OSError: They cannot be written.
            ContentError: They are not what was promised.
        """
        ...

    def finish(self) -> int:
        """Verify what was taken, and return how many bytes are in the region.

        Raises:
            ContentError: It is not what was promised.
        """
        ...

    def stop(self) -> None:
        """Let a :meth:`take` that runs in another thread end soon; its blob is given up."""
        ...

    def close(self) -> None:
        """Wait until no thread works for it, whatever they have left to do."""
        ...


class KeptBlob:
    """A blob that is stored as it is.

    Attributes:
        position: How many of its bytes are hashed and in their place.
        is_right: Whether all of them came, and have the right digest; None as long as that is not known.
        is_odd: Whether it begins as no layer does; known with that.

    Args:
        file: The file.
        offset: Where the blob starts in it.
        descriptor: The blob, with its size.
        diff_id: What its plain tar must be, where that is looked at.
        plain_hash: Hashes that.
    """

    def __init__(
        self,
        file: OpenFile,
        offset: int,
        descriptor: Descriptor,
        diff_id: Digest | None = None,
        plain_hash: PlainHash | None = None,
    ) -> None:
        self.position = 0
        self.is_right: bool | None = None
        self.is_odd = False
        self._diff_id = diff_id
        self._plain_hash = plain_hash
        self._file = file
        self._offset = offset
        self._descriptor = descriptor
        self._hash = descriptor.digest.hasher()

    def find(self) -> int:
        """Return how many bytes of an earlier attempt may be there: zeros at their end may never have been written."""
        with self._file as fd:
            stop = min(os.fstat(fd).st_size - self._offset, self._size)
            while stop > 0:
                start = max(0, stop - PIECE)
                kept = os.pread(fd, stop - start, self._offset + start).rstrip(b"\0")
                if kept:
                    return start + len(kept)
                stop = start
        return 0

    def read_back(self, stop: int) -> None:
        """Hash what is there, up to ``stop``, instead of taking it."""
        with self._file as fd:
            while self.position < stop:
                data = os.pread(fd, min(PIECE, stop - self.position), self._offset + self.position)
                if not data:
                    raise SinkError("the part file was cut while it was read")
                self._hash.update(data)
                if self._plain_hash is not None:
                    with suppress(ContentError):  # raised again by take and finish: it may be a wrong byte
                        self._plain_hash.update(data)
                self.position += len(data)

    def is_whole(self) -> bool:
        """Tell whether all of the blob is there and right, perhaps with zeros at its end."""
        missing = self._size - self.position
        if missing > _LAST_ZEROS:
            return False
        hash_ = self._hash.copy()
        hash_.update(bytes(missing))
        if hash_.hexdigest() != self._descriptor.digest.encoded:
            return False
        self.take([bytes(missing)])
        return True

    def take(self, batch: Sequence[Batch]) -> None:
        """Hash and write bytes."""
        with self._file as fd:
            for chunk in batch:
                self._hash.update(chunk)
                write_at(fd, chunk, self._offset + self.position)
                self.position += len(chunk)
                if self._plain_hash is not None:
                    self._plain_hash.update(chunk)

    def finish(self) -> int:
        """Verify the digest, and the diff ID where that is asked for."""
        self.is_right = False  # unless the next line finds that it is
        _check(self._hash, self._descriptor.digest, "blob", self._descriptor)
        self.is_right = True
        with self._file as fd:
            self.is_odd = not is_like_a_layer(os.pread(fd, min(BLOCK_SIZE, self._size), self._offset))
        if self._plain_hash is not None and self._diff_id is not None:
            _check(self._plain_hash, self._diff_id, "diff ID", self._descriptor)
        return self.position

    def stop(self) -> None:
        """Decompress no further, if it does."""
        if self._plain_hash is not None:
            self._plain_hash.stop()

    def close(self) -> None:
        """Do nothing: there is no thread."""

    @property
    def _size(self) -> int:
        return self._descriptor.size or 0


class PlainBlob:
    """A blob of which the plain tar is stored.

    Attributes:
        position: How many bytes of the plain tar are in their place.
        is_overfull: Whether there are more than its region has room for.

    Args:
        file: The file; None to verify the blob only.
        offset: Where the plain tar starts in it.
        descriptor: The blob.
        diff_id: The digest of the plain tar.
        lane: Its threads.
        region: How many bytes of the file are its own; None where no end is set.
        limits: How far the blob may expand.
        space: What there is room for.
    """

    def __init__(
        self,
        file: OpenFile | None,
        offset: int,
        descriptor: Descriptor,
        diff_id: Digest,
        lane: Lane,
        *,
        region: int | None,
        limits: Limits,
        space: Space | None = None,
    ) -> None:
        self._file = file
        self._offset = offset
        self._descriptor = descriptor
        self._diff_id = diff_id
        self._region = region
        self._limits = limits
        self._space = space
        self._blob_hash = descriptor.digest.hasher()
        self._plain_hash = diff_id.hasher()
        self.position = 0
        self.is_overfull = False
        self._taken = 0  # of what is not decompressed; a relay stores it later
        self._is_begun = False
        self._is_stopped = False
        self._decompressor: Decompressor | None = None
        self._lane = lane

    def take(self, batch: Sequence[Batch]) -> None:
        """Hash and decompress bytes, and store what comes of them."""
        if not self._is_begun:  # a batch is small only where the blob is
            self._begin(b"".join(batch)[:4])
        self._lane.hashing.put(self._hash_blob, batch)
        for data in batch:
            if self._is_stopped:
                return
            self._expand(bytes(data))

    def _hash_blob(self, batch: Sequence[Batch]) -> None:
        for data in batch:
            self._blob_hash.update(data)

    def _expand(self, data: bytes) -> None:
        if self._decompressor is None:
            self._taken += len(data)
            most = self._limits.max_plain_size
            if most is not None and self._taken > most:
                raise ContentTooLargeError(most, what=f"layer {self._descriptor.digest}")
            self._lane.storing.put(self._store, data)
            return
        self._decompressor.feed(data)
        while not self._is_stopped and (plain := self._decompressor.read(PIECE)):
            self._lane.storing.put(self._store, plain)

    def _begin(self, prefix: bytes) -> None:
        from aiodockersave.core.decompression import Decompressor, sniff  # noqa: PLC0415 - a blob that is kept has no use of it

        self._is_begun = True
        compression = sniff(prefix)
        if compression is not None:
            what = f"layer {self._descriptor.digest}"
            self._decompressor = Decompressor(compression, what=what, **self._limits._asdict())

    def _store(self, plain: Batch) -> None:
        if self._region is not None and self.position + len(plain) > self._region:
            self.is_overfull = True
            raise RegionFullError
        self._plain_hash.update(plain)
        if self._file is not None:
            if self._space is not None:
                self._space.take(len(plain))
            with self._file as fd:
                write_at(fd, plain, self._offset + self.position)
        self.position += len(plain)

    def finish(self) -> int:
        """Verify blob and plain tar, and return the size of the latter, which may be less than the region's."""
        if self._decompressor is not None:
            self._decompressor.finish()
        self._lane.hashing.finish()
        self._lane.storing.finish()
        _check(self._blob_hash, self._descriptor.digest, "blob", self._descriptor)
        _check(self._plain_hash, self._diff_id, "diff ID", self._descriptor)
        return self.position

    def stop(self) -> None:
        """Decompress no further."""
        self._is_stopped = True

    def close(self) -> None:
        """Let its threads end what they do for it."""
        self._lane.hashing.drop()
        self._lane.storing.drop()


class Crew:
    """The lanes of one save.

    Threads that help are worth their handing over while a processor has nothing else to do. Where there are as many blobs
    as processors, they only keep each other, and the loop, from running.

    Attributes:
        busy: How many lanes have a blob.

    Args:
        processors: How many there are; by default those that this process may use.
    """

    def __init__(self, processors: int | None = None) -> None:
        self.busy = 0
        self._processors = processors or _processors()

    @property
    def needs_help(self) -> bool:
        """Whether a processor is left over."""
        return self.busy < self._processors


def _processors() -> int:
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)  # not on macOS
    return (os.cpu_count() or 1) if affinity is None else len(affinity(0))


class Lane:
    """Two threads that help the one that decompresses: for one blob at a time, one after the other.

    Args:
        crew: All lanes.
    """

    def __init__(self, crew: Crew) -> None:
        self.hashing = Relay("hash", crew)
        self.storing = Relay("write", crew)

    def close(self) -> None:
        """End the threads."""
        self.hashing.close()
        self.storing.close()


class Relay:
    """Runs calls in a thread of its own, in order, some calls behind. When one has failed, the others are dropped.

    Where that is no help, a call is made at once instead.

    Args:
        name: What the thread is called.
        crew: Tells whether it is a help.
    """

    def __init__(self, name: str, crew: Crew) -> None:
        self._name = name
        self._crew = crew
        self._queue: Queue[_Item | None] = Queue(_RELAY_DEPTH)
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None
        self._is_dropping = False
        self._is_behind = False

    def put(self, call: Callable[[T], None], data: T) -> None:
        """Hand over a call, once there is room, or make it. Raises what an earlier one raised, or this one."""
        self._check()
        if self._crew.needs_help:
            self._hand_over(call, data)
        else:
            if self._is_behind:
                self.finish()
            call(data)

    def _hand_over(self, call: Callable[[T], None], data: T) -> None:
        if self._thread is None:
            thread = threading.Thread(
                target=_serve,
                args=(self._queue, weakref.ref(self)),
                name=f"aiodockersave-{self._name}",
                daemon=True,
            )
            thread.start()
            self._thread = thread
        self._is_behind = True
        self._queue.put((call, data))  # there is room sooner or later: the thread takes all, whatever fails

    def finish(self) -> None:
        """Wait for all calls. Raises what one raised."""
        self._wait()
        self._check()

    def drop(self) -> None:
        """Forget what waits and what failed, and wait for the call that runs."""
        self._is_dropping = True
        self._wait()
        self._fault, self._is_dropping = None, False  # the call that ran may have failed until now

    def _wait(self) -> None:
        if self._thread is not None and self._is_behind:
            done = threading.Event()
            self._queue.put(done)
            done.wait()
            self._is_behind = False

    def close(self) -> None:
        """End the thread."""
        self._is_dropping = True
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join()

    def _check(self) -> None:
        if self._fault is not None:
            raise self._fault

    def make(self, call: Callable[[Any], None], data: object) -> None:
        """Make a call, unless one has failed; in the thread."""
        if self._fault is None and not self._is_dropping:
            try:
                call(data)
            except BaseException as exc:  # noqa: BLE001 - raised to whoever hands over next
                self._fault = exc


def _serve(queue: Queue[_Item | None], owner: weakref.ref[Relay]) -> None:
    """Work off a relay's queue, until that says so, or the relay is gone: an interrupt may have kept it from saying it."""
    while True:
        try:
            item = queue.get(timeout=_LOOK_AGAIN)
        except Empty:
            if owner() is None:
                return
            continue
        if item is None:
            return
        if isinstance(item, threading.Event):
            item.set()
        elif (relay := owner()) is not None:
            relay.make(*item)
            del relay
        del item


def _check(hash_: Any, expected: Digest, what: str, descriptor: Descriptor) -> None:
    actual = Digest(expected.algorithm, hash_.hexdigest())
    if actual != expected:
        raise DigestMismatchError(expected, actual, what=what, descriptor=descriptor)
