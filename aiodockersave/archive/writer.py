"""Write an archive by public calls, each of which ends in a commit or takes its bytes back.

The idea to know first: every public call is one transaction. The state after an interruption (a cancel, a
failing source, a wrong digest or size, a failing sink) depends on its moment, and on whether the sink can
rewind:

=====================================================  ============================  ========================
interrupted                                            sink can rewind               sink cannot
=====================================================  ============================  ========================
while it waits, while staging, before its first byte   OPEN, nothing written         OPEN, nothing written
after its first byte                                   OPEN, rewound to its start    BROKEN
after its last byte, when all is verified              OPEN, the blob is in          OPEN, the blob is in
inside ``close()``                                     OPEN, as before ``close()``   BROKEN
the rewind itself fails                                BROKEN                        –
``open_archive``, after the rename                     CLOSED, the file stays        –
=====================================================  ============================  ========================

A BROKEN writer refuses every later call, and reports the first cause. When a call has returned or raised,
none of its threads works any more and nothing that it opened is open. The writer knows no sources: callers
pass contents.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import ParamSpec, Self, TypedDict, TypeVar, Unpack

from aiodockersave._aio import closing, running_task
from aiodockersave.blobs.calls import Call
from aiodockersave.blobs.content import Content, OpenContent
from aiodockersave.blobs.space import SharedExpansion
from aiodockersave.blobs.staging import Memory, Stage, check_bytes
from aiodockersave.core import tar
from aiodockersave.core.docker_archive import Addition, read_image
from aiodockersave.core.documents import ImageIndex, ImageManifest
from aiodockersave.core.formats import new_builder
from aiodockersave.core.model import (
    MAX_EXPANSION,
    Descriptor,
    Digest,
    Format,
    Layers,
    Limits,
    check_format,
    check_limits,
)
from aiodockersave.core.plan import Report
from aiodockersave.sinks.adapters import AnySink
from aiodockersave.sinks.atomic_file import Target

from .layers import LayerWriter, Ledger, Receiver, Wanted
from .transaction import Output, Transaction, check_promise
from .turns import Turns

P = ParamSpec("P")
T = TypeVar("T")

STAGING_SLOTS = 2
_COMPUTE_INLINE = 64 << 10
"""The most bytes of documents to process on the loop, which takes about a millisecond."""
_NAME_COST = 512
"""The cost of a layer or tag in bytes of documents: its legacy metadata, its entry in ``manifest.json``."""


class WriterOptions(TypedDict, total=False):
    """The options of :class:`ArchiveWriter`."""

    format: Format
    layers: Layers
    stage_memory: int
    stage_dir: str | os.PathLike[str] | None
    max_plain_size: int | None
    max_expansion: int | None
    verify_diff_ids: bool
    checksum: bool


class ArchiveWriter:
    """Write a ``docker save`` archive to any async byte sink.

    Many tasks may call the writer; one lock orders the members. The writer never closes the sink. As a
    context manager, the writer closes the archive at the end of the block, and aborts it if the block or the
    closing raises.

    Attributes:
        report: The report of the archive, once it is closed; None before.
    """

    def __init__(
        self,
        sink: AnySink,
        *,
        format: Format = "docker",
        layers: Layers = "keep",
        stage_memory: int = 8 << 20,
        stage_dir: str | os.PathLike[str] | None = None,
        max_plain_size: int | None = None,
        max_expansion: int | None = MAX_EXPANSION,
        verify_diff_ids: bool = False,
        checksum: bool = False,
    ) -> None:
        """Begin an archive; nothing is written yet.

        Args:
            sink: Any sink that :func:`as_sink` takes.
            format: The layout of the archive.
            layers: ``"keep"`` stores blobs as they are, ``"decompress"`` as plain tars.
            stage_memory: Bytes of memory for content that is staged; more content goes to temporary files.
            stage_dir: The directory of those files; by default the system's directory for temporary files.
            max_plain_size: The largest plain tar of a layer to accept when decompressing, in bytes.
            max_expansion: The most plain bytes to accept for each compressed one, beyond the first 64 MiB of
                a layer; None for any number. gzip never exceeds the default; zstd does with sparse files.
            verify_diff_ids: Whether to verify the plain tar of each layer that is kept, which takes the time
                of decompressing it. Layers that are decompressed are always verified.
            checksum: Whether the report has the SHA-256 of the archive.

        Raises:
            InvalidInputError: The format or mode does not exist, the two do not go together, or a number is too
                small.
            TypeError: ``sink`` is no sink.
        """
        check_format(format, layers)
        self.report: Report | None = None
        self._builder = new_builder(format)
        self._stores_manifests = format == "oci"
        self._output = Output(sink, checksum=checksum)
        self._decompress = layers == "decompress"
        self._memory = Memory(check_bytes("stage_memory", stage_memory))
        self._stage_dir = stage_dir
        check_limits(max_plain_size=max_plain_size, max_expansion=max_expansion)
        self._verifies = verify_diff_ids and not self._decompress
        self._ledger = Ledger()
        limits = Limits(max_plain_size, max_expansion, SharedExpansion())
        self._receiver = Receiver(
            self._ledger,
            self._output.worker,
            limits,
            decompress=self._decompress,
            verify_plain=self._verifies,
        )
        self._layers = LayerWriter(self._builder, self._ledger, decompress=layers == "decompress")
        self._turns = Turns(self._output)
        self._slots = asyncio.Semaphore(STAGING_SLOTS)
        self._end_cost = 0

    @classmethod
    def at(cls, target: Target, sink: AnySink, **options: Unpack[WriterOptions]) -> Self:
        """Begin an archive whose file gets its final name when it is closed.

        Args:
            target: The target, which must be open.
            sink: Writes the file of the target.
            options: As for any other archive.
        """
        archive = cls(sink, **options)
        archive._turns.target, archive._receiver.space = target, target.space()
        return archive

    def has_blob(self, digest: Digest | str) -> bool:
        """Return whether a layer is in the archive, by the digest it was put or is stored under."""
        return self._ledger.get(Digest.parse(digest)) is not None

    def stages(self, descriptor: Descriptor | None) -> bool:
        """Return whether a layer must be received completely before it is written, to know its header."""
        known = not self._decompress and descriptor is not None and descriptor.size is not None
        return not known and not self._output.can_patch

    # ── layers ──

    async def put_layer(
        self,
        content: Content,
        descriptor: Descriptor | None = None,
        *,
        diff_id: Digest | str | None = None,
        stage: bool = False,
    ) -> Descriptor:
        """Add a layer, and return its descriptor as it is stored.

        A layer whose digest is in the archive already is not read again. If the size or digest is unknown and
        the sink cannot be patched, the layer is staged: the whole content is received before its turn, in
        memory or a temporary file.

        The content is closed while this call has its turn; other calls wait meanwhile. The content must not
        call this writer, not even through a task that it waits for.

        Args:
            content: The content to read, see :mod:`aiodockersave.blobs.content`. It is opened when its turn
                has come, and closed.
            descriptor: The descriptor that the content must match; its size may be None. Without a descriptor
                the first bytes determine the media type.
            diff_id: The digest that the plain tar must have; only verified with ``layers="decompress"`` or
                ``verify_diff_ids``.
            stage: Receive everything before a byte is written, so that a fault of the source cannot break the
                archive.

        Raises:
            ContentError: The content does not match ``descriptor`` or ``diff_id``, or cannot be decompressed.
            InvalidInputError: The digest is in the archive already, with another size.
            WriterClosedError, WriterBrokenError: See there; nothing was read.

        Cancel: before the first byte is written, the archive is unchanged. After that the archive is as it
        was before the call if the sink can rewind, and broken if it cannot. Once all bytes are out and
        verified, the layer is in the archive, even if the content raises while it is closed.
        """
        opened = OpenContent(content)
        del content  # the first cause of a broken writer keeps this frame, which must not keep the content
        try:
            wanted = Wanted.of(descriptor, diff_id, is_stored=self._decompress, is_verified=self._verifies)
            with self._turns.enter() as call:
                self._turns.check_open()
                if (stored := self._ledger.find(wanted)) is not None:
                    return stored
                if stage or self.stages(descriptor):
                    return await self._put_staged(call, opened, wanted)
                return await self._put_streamed(call, opened, wanted)
        finally:
            await opened.discard()

    async def _put_streamed(self, call: Call, opened: OpenContent, wanted: Wanted) -> Descriptor:
        async with self._turns.lock:
            self._turns.begin(call)
            if (stored := self._ledger.find(wanted)) is not None:
                return stored
            transfer = self._receiver.transfer(opened, wanted)

            async def work(transaction: Transaction) -> Callable[[], Descriptor]:
                await opened.open()
                commit = await self._layers.stream(transaction, transfer, wanted)
                self._ledger.know_plain(transfer.blob, transfer.plain_digest)
                return commit

            return await self._turns.transact(call, work, content=opened, closing=[transfer])

    async def _put_staged(self, call: Call, opened: OpenContent, wanted: Wanted) -> Descriptor:
        async with self._slots:
            self._turns.check_open()
            if (stored := self._ledger.find(wanted)) is not None:
                return stored
            stage = Stage(self._memory, self._stage_dir)
            async with closing(stage):
                blob, stored = await self._receiver.stage(call, opened, wanted, stage)
                async with self._turns.lock:
                    self._turns.begin(call)
                    return await self._turns.transact(
                        call, lambda transaction: self._layers.write_known(transaction, stage, blob, stored)
                    )

    # ── images ──

    async def put_image(
        self,
        config: bytes,
        image: ImageManifest | Sequence[Descriptor],
        repo_tags: Sequence[str] = (),
        *,
        index: ImageIndex | None = None,
    ) -> None:
        """Add an image whose layers are in the archive: write its config, and its legacy metadata or manifest.

        Adding the same image again adds its tags.

        Args:
            config: The bytes of the config, at most 4 MiB.
            image: The manifest, or the layers: descriptors as passed to :meth:`put_layer`, or returned by it.
                ``format="oci"`` needs the manifest, which it stores.
            repo_tags: Names such as ``example.com/app:1.0``; a name without a tag means ``latest``.
            index: The index that the manifest was chosen from; ``format="oci"`` repeats its words about the
                manifest.

        Raises:
            InvalidInputError: A layer is not in the archive, or the numbers of layers and diff IDs differ.
            InvalidDocumentError: ``config`` is no image config.
            InvalidReferenceError: A repo tag is no valid name.
            DigestMismatchError, SizeMismatchError: The config does not match the manifest, or (with
                ``layers="decompress"`` or ``verify_diff_ids``) a layer does not match its diff ID in the
                config.
            ImageConflictError: The same config is in the archive, with other layers.
            NameConflictError: Another image in the archive has one of the names; nothing was written.
            WriterClosedError, WriterBrokenError: See there.

        Cancel: as :meth:`put_layer`; either the whole image is in the archive or nothing of it.
        """
        with self._turns.enter() as call:
            self._turns.check_open()
            # 1. Check the image before its turn, without the archive.
            layers = image.layers if isinstance(image, ImageManifest) else image
            cost = len(config) + _NAME_COST * (len(layers) + len(repo_tags))
            if self._stores_manifests:
                documents = (each for each in (image, index) if isinstance(each, ImageManifest | ImageIndex))
                cost += sum(len(each.raw) for each in documents)
            checked = await self._compute(cost, read_image, config, image, repo_tags, index)
            async with self._turns.lock:
                self._turns.begin(call)
                # 2. Compare its layers with those in the archive, and build its members.
                stored = [self._ledger.look_up(layer).digest for layer in checked.layers]
                if self._decompress or self._verifies:
                    self._ledger.check_diff_ids(checked, are_kept=self._verifies)
                addition = await self._compute(
                    cost, lambda: self._builder.prepare_image(checked, stored).made()
                )

                # 3. Write and commit the members.
                async def work(transaction: Transaction) -> Callable[[], None]:
                    transaction.writing = f"image {checked.config.digest}"
                    if addition.members:
                        await transaction.write(*(member.literal for member in addition.members), last=True)
                    return lambda: self._commit(transaction, addition)

                await self._turns.transact(call, work)
                self._end_cost += cost - len(config)

    def _commit(self, transaction: Transaction, addition: Addition) -> None:
        transaction.commit(addition)
        self._builder.commit(addition)
        transaction.settle()

    async def _compute(self, cost: int, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a pure function on the loop, or in a thread if it costs more than ``_COMPUTE_INLINE`` bytes."""
        if cost <= _COMPUTE_INLINE:
            return call(*args, **kwargs)
        return await self._output.worker.run(call, *args, **kwargs)

    # ── the end ──

    async def close(self) -> None:
        """Finish the archive; a second call does nothing.

        The call waits for its turn. Calls of :meth:`put_layer` that wait behind it, or are staging, raise
        :class:`WriterClosedError`.

        Raises:
            WriterClosedError: The writer was aborted.
            WriterBrokenError: An earlier call broke the archive.
            SinkError: The sink has promised another size.

        Cancel: if the sink can rewind, the archive is as before the call, and ``close()`` may be called
        again; if it cannot, the archive is broken. An archive of :func:`open_archive` that has its final name
        already stays there.
        """
        with self._turns.enter() as call:
            if self._turns.is_closed():
                return
            self._turns.check_open()
            async with self._turns.lock:
                if self._turns.is_closed():
                    return
                self._turns.begin(call)
                await self._turns.transact(call, self._finish_locked)

    async def _finish_locked(self, transaction: Transaction) -> Callable[[], None]:
        addition = await self._compute(self._end_cost, lambda: self._builder.prepare_end().made())
        data = b"".join((*(member.literal for member in addition.members), tar.END_OF_ARCHIVE))
        check_promise(self._output, transaction.cursor + len(data))
        transaction.writing = "the end of the archive"
        await transaction.write(data, last=True)
        await self._output.flush()
        sha256 = await transaction.checksum()

        def commit() -> None:
            transaction.commit(addition)
            output = self._output
            self.report = Report(output.position, tuple(output.members), self._builder.items, sha256)
            self._turns.close(transaction)

        await self._turns.publish(transaction, commit)
        return commit

    async def abort(self) -> None:
        """Abort the archive: running calls are interrupted and raise :class:`WriterClosedError`.

        Returns when no call runs. An incomplete member is taken back if the sink can rewind; complete members
        stay in the caller's sink, but the archive never gets an end. On a closed or broken writer the call
        only waits for calls that still close their content.

        Cancel: the archive is aborted all the same, but calls may still be running.
        """
        self._turns.check_entry()
        self._turns.give_up()
        await self._turns.wait()

    async def __aenter__(self) -> Self:
        running_task()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc_type is GeneratorExit:  # the caller's coroutine is being closed, so nothing can be awaited
            self._turns.give_up()
        elif exc_type is None and not self._turns.is_aborted():
            try:
                await self.close()
                await self._turns.wait()
            except GeneratorExit:
                self._turns.give_up()
                raise
            except BaseException:
                await self.abort()
                raise
        else:
            await self.abort()
