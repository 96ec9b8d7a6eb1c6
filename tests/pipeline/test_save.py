"""Images from sources into one archive: resolved and checked first, each layer read once, told step by step."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aiodockersave import ImageRequest, ResolvedImage, Source, plan_archive, prepare, save
from aiodockersave.blobs import file_region
from aiodockersave.core.errors import (
    BlobNotFoundError,
    DigestMismatchError,
    DockerSaveError,
    EventLoopError,
    ImageConflictError,
    InvalidInputError,
    InvalidReferenceError,
    NameConflictError,
    PlatformNotFoundError,
    SizeMismatchError,
    UnsupportedImageError,
)
from aiodockersave.core.model import Descriptor, Digest, Layers, Platform
from aiodockersave.pipeline import progress as progress_room
from aiodockersave.pipeline import to_file
from aiodockersave.pipeline.progress import (
    Event,
    ImageFinished,
    LayerAdvanced,
    LayerFinished,
    LayerReused,
    LayerStarted,
    SaveFinished,
    SaveStarted,
)
from aiodockersave.sources import default_platform
from tests.support.images import Image, ListSink, MemorySink, archive_of, make_config, make_image, make_layer
from tests.support.interruption import Driver, by_task_cancel, step
from tests.support.stores import Store

BASE = make_layer({"etc/name": b"base\n"})
APP = make_layer({"app": b"app\n" * 20_000}, "zstd")
ONE = make_image(BASE, APP, author="one")
TWO = make_image(BASE, make_layer({"two": b"two\n"}, None), author="two")
MODES: tuple[Layers, ...] = ("keep", "decompress")


class MemorySource(Store):
    """A store that also keeps the platforms it was asked for, and the faults that its open blobs were told.

    Attributes:
        resolved: The references and platforms that it was asked to resolve.
        faults: The exceptions that left the blocks of open blobs.
    """

    def __init__(self, *, default_tags: tuple[str, ...] = (), **images: Image) -> None:
        super().__init__(images, chunk_size=100)
        self.resolved: list[tuple[str, Platform]] = []
        self.faults: list[BaseException] = []
        self._default_tags = default_tags

    @property
    def opened(self) -> list[Digest]:
        """The digests of the blobs that were opened."""
        return [digest for digest, _ in self.openings]

    async def resolve(self, reference: str, platform: Platform) -> ResolvedImage:
        self.resolved.append((reference, platform))
        return replace(await super().resolve(reference, platform), default_tags=self._default_tags)

    @contextlib.asynccontextmanager
    async def open_blob(
        self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[AsyncIterator[bytes], None]:
        async with super().open_blob(descriptor, start=start, stop=stop) as chunks:
            try:
                yield chunks
            except BaseException as exc:
                self.faults.append(exc)
                raise


def both(source: Source) -> list[ImageRequest]:
    return [ImageRequest(source, "one", ["a:1"]), ImageRequest(source, "two", ["b:2", "example.com/b:2"])]


BOTH = [ONE.tagged("a:1"), TWO.tagged("b:2", "example.com/b:2")]


@pytest.fixture
def source() -> MemorySource:
    return MemorySource(one=ONE, two=TWO)


# ── what is written ──


@pytest.mark.parametrize("layers", MODES)
@pytest.mark.parametrize("make_sink", [ListSink, MemorySink])
async def test_the_archive_is_the_writers(source: MemorySource, make_sink: Any, layers: Layers) -> None:
    sink = make_sink()
    report = await save(both(source), sink, layers=layers)
    assert sink.getvalue() == await archive_of(BOTH, layers=layers)
    assert (report.size, report.sha256) == (len(sink.getvalue()), None)
    assert [item.image_id for item in report.images] == [ONE.image_id, TWO.image_id]


@pytest.mark.parametrize("layers", MODES)
async def test_a_file_is_the_archive(source: MemorySource, tmp_path: Path, layers: Layers) -> None:
    path = tmp_path / "archive"
    report = await save(both(source), path, layers=layers, fsync=False, checksum=True)
    assert path.read_bytes() == await archive_of(BOTH, layers=layers)
    assert report.sha256 == Digest.of(path.read_bytes())


async def test_each_layer_is_read_once(source: MemorySource) -> None:
    await save([*both(source), ImageRequest(source, "one")], ListSink())
    assert source.opened == [BASE.descriptor.digest, APP.descriptor.digest, TWO.layers[1].descriptor.digest]


@pytest.mark.parametrize(
    ("default", "given", "tags"),
    [
        (("c:3",), None, ("docker.io/library/c:3",)),
        (("c:3",), ["d:4"], ("docker.io/library/d:4",)),
        (("c:3",), [], ()),
        ((), None, ()),
    ],
    ids=["the source's", "the caller's", "none", "no default"],
)
async def test_tags_are_the_callers_or_the_sources(
    default: tuple[str, ...], given: list[str] | None, tags: tuple[str, ...]
) -> None:
    source = MemorySource(one=ONE, default_tags=default)
    report = await save([ImageRequest(source, "one", given)], ListSink())
    assert report.images[0].repo_tags == tags


async def test_images_of_several_sources() -> None:
    requests = [ImageRequest(MemorySource(one=ONE), "one"), ImageRequest(MemorySource(two=TWO), "two")]
    sink = ListSink()
    await save(requests, sink)
    assert sink.getvalue() == await archive_of([ONE, TWO])


# ── what is known ahead ──


async def test_one_image_needs_no_list(source: MemorySource) -> None:
    request = ImageRequest(source, "one", ["a:1"])
    sink, listed = ListSink(), ListSink()
    assert await save(request, sink) == await save([request], listed)
    assert sink.getvalue() == listed.getvalue()
    assert (await prepare(request)).plan == (await prepare([request])).plan


async def later(_: Event) -> None: ...


class Later:
    async def __call__(self, _: Event) -> None: ...


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"images": []}, InvalidInputError, "no image to save: pass at least one ImageRequest"),
        ({"images": ["alpine:3.20"]}, TypeError, "images are ImageRequests, not str"),
        ({"images": 3}, TypeError, "images are ImageRequests, not int"),
        ({"jobs": "2"}, TypeError, "jobs is an int, not str"),
        (
            {"platform": "linux/arm64"},
            TypeError,
            r"Platform or None, not str: pass Platform.parse\('linux/arm64'\)",
        ),
        ({"progress": later}, TypeError, "progress is called and not awaited: pass a plain function"),
        ({"progress": Later()}, TypeError, "progress is called and not awaited: pass a plain function"),
        ({"progress": 5}, TypeError, "progress is a function, not int"),
    ],
)
async def test_wrong_arguments_are_refused(
    source: MemorySource, arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    sink = ListSink()
    with pytest.raises(error, match=said):
        await save(**{"images": both(source), "target": sink, **arguments})
    assert (sink.writes, source.resolved) == ([], [])


async def test_a_report_is_a_line(source: MemorySource) -> None:
    report = await save(both(source), ListSink())
    names = "docker.io/library/a:1, docker.io/library/b:2, example.com/b:2"
    assert str(report) == f"{names}: {report.size} bytes in {len(report.members)} members"
    with_checksum = await save(ImageRequest(source, "one"), ListSink(), checksum=True)
    assert str(with_checksum).startswith("1 image without a name: ")
    assert str(with_checksum).endswith(f" members, {with_checksum.sha256}")


async def test_a_plan_of_what_a_source_has(source: MemorySource) -> None:
    source = MemorySource(default_tags=("a:1",), one=ONE)
    resolved = await source.resolve("one", AMD64)
    assert plan_archive([resolved]) == plan_archive([ONE.tagged("a:1").spec])
    with pytest.raises(TypeError, match="what a source has resolved, not ImageRequest"):
        plan_archive([ImageRequest(source, "one")])  # type: ignore[list-item]


async def test_prepare_plans_and_reads_no_layer(source: MemorySource) -> None:
    prepared = await prepare(both(source))
    assert prepared.plan == plan_archive(image.spec for image in BOTH)
    assert prepared.layers == (BASE.descriptor, APP.descriptor, TWO.layers[1].descriptor)
    assert [str(tag) for tag in prepared.images[0].image.repo_tags] == ["docker.io/library/a:1"]
    assert source.opened == []
    assert (await prepare(both(source), layers="decompress")).plan is None


async def test_the_platform_is_the_callers_or_this_machines(source: MemorySource) -> None:
    other = Platform("linux", "s390x")
    await prepare([ImageRequest(source, "one")], platform=other, allow_other_platform=True)
    await prepare([ImageRequest(source, "one")])
    assert source.resolved == [("one", other), ("one", default_platform())]


FOR_ARM = make_image(BASE, architecture="arm64", variant="v8")
AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")


@pytest.fixture
def on_amd64(monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.uname_result(("Linux", "host", "6", "#1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: name)


@pytest.mark.usefixtures("on_amd64")
@pytest.mark.parametrize("layers", MODES)
async def test_an_image_for_another_platform_than_was_asked_for(
    tmp_path: Path, layers: Layers, caplog: pytest.LogCaptureFixture
) -> None:
    """A source takes a single manifest whatever it is for; what the config says is looked at."""
    source = MemorySource(amd64=ONE, arm64=FOR_ARM, silent=make_image(BASE, architecture=None))
    path, sink = tmp_path / "archive", ListSink()
    path.write_bytes(b"old")
    for target in (path, sink):
        with pytest.raises(PlatformNotFoundError, match="no image for platform linux/arm64") as caught:
            await save(
                [ImageRequest(source, name) for name in ("arm64", "silent", "amd64")],
                target,
                layers=layers,
                platform=ARM64,
            )
        assert (caught.value.wanted, caught.value.available) == (ARM64, (AMD64,))
        assert caught.value.__notes__ == ["image amd64"]
        assert "pass allow_other_platform=True" in str(caught.value)
    assert source.opened == []
    assert (sink.writes, path.read_bytes(), list(tmp_path.iterdir())) == ([], b"old", [path])
    with pytest.raises(PlatformNotFoundError):
        await prepare([ImageRequest(source, "amd64")], layers=layers, platform=ARM64)
    assert caplog.records == []


BY_DIGEST = f"app@{ONE.manifest.digest}"


@pytest.mark.usefixtures("on_amd64")
@pytest.mark.parametrize(
    ("options", "reference", "said"),
    [
        ({"platform": AMD64}, "amd64", ""),
        ({"platform": ARM64}, "arm64", ""),
        ({"platform": ARM64}, "silent", ""),
        ({}, "amd64", ""),
        ({}, "silent", ""),
        (
            {},
            "arm64",
            "is for linux/arm64, not for linux/amd64, which is this machine's platform; it is taken",
        ),
        ({"allow_other_platform": True}, "arm64", "is for linux/arm64, not for linux/amd64, which is this"),
        (
            {"platform": ARM64, "allow_other_platform": True},
            "amd64",
            "is for linux/amd64, not for linux/arm64; it",
        ),
        ({"platform": ARM64, "allow_other_platform": True}, "arm64", ""),
        # Who names the manifest by its digest has chosen it.
        ({"platform": ARM64}, BY_DIGEST, "is for linux/amd64, not for linux/arm64; it is taken"),
    ],
    ids=lambda value: (
        ", ".join(f"{name}={each}" for name, each in value.items()) if isinstance(value, dict) else ""
    ),
)
async def test_a_platform_that_is_another_is_never_taken_in_silence(
    options: dict[str, Any], reference: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    silent = make_image(BASE, architecture=None)
    source = MemorySource(amd64=ONE, arm64=FOR_ARM, silent=silent)
    source.images[BY_DIGEST] = ONE
    sink = ListSink()
    await save([ImageRequest(source, reference, ["a:1"])], sink, **options)
    assert sink.getvalue() == await archive_of([source.images[reference].tagged("a:1")])
    lines = [(each.name, each.levelname, each.getMessage()) for each in caplog.records]
    assert len(lines) == (1 if said else 0)
    for name, level, line in lines:
        assert (name, level) == ("aiodockersave", "WARNING")
        assert line.startswith(f"image {reference} {said}")


@pytest.mark.parametrize(
    ("machine", "platform"),
    [
        ("x86_64", "linux/amd64"),
        ("aarch64", "linux/arm64"),
        ("armv6l", "linux/arm/v6"),
        ("armv7l", "linux/arm/v7"),
        ("i686", "linux/386"),
        ("ppc64le", "linux/ppc64le"),
        ("loongarch64", "linux/loong64"),
    ],
)
def test_this_machines_platform(machine: str, platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.uname_result(("Linux", "host", "6", "#1", machine))
    monkeypatch.setattr(os, "uname", lambda: name)
    assert str(default_platform()) == platform


WRONG_CONFIG = replace(ONE, config=make_config([]))
WRONG_COUNT = make_image(BASE, config_bytes=make_config([]))
ENCRYPTED = make_image(make_layer(b"x", media_type=f"{BASE.descriptor.media_type}+encrypted"))
CONFLICT = make_image(APP, BASE, config_bytes=ONE.config)
RESIZED = make_image(
    replace(BASE, descriptor=replace(BASE.descriptor, size=1)), config_bytes=make_config([BASE.diff_id])
)


@pytest.mark.parametrize(
    ("image", "tags", "error", "modes"),
    [
        (WRONG_CONFIG, [], SizeMismatchError, MODES),
        (WRONG_COUNT, [], InvalidInputError, MODES),
        (ENCRYPTED, [], UnsupportedImageError, MODES),
        (TWO, ["UPPER"], InvalidReferenceError, MODES),
        (TWO, [f"b@sha256:{'0' * 64}"], InvalidReferenceError, MODES),
        (CONFLICT, [], ImageConflictError, ["keep"]),
        (RESIZED, [], InvalidInputError, ["keep"]),
    ],
    ids=["config", "diff IDs", "encrypted", "tag", "tag with digest", "same config", "two sizes"],
)
async def test_what_can_be_known_ahead_is_found_before_anything_is_written(
    image: Image, tags: list[str], error: type[Exception], modes: list[Layers], tmp_path: Path
) -> None:
    source = MemorySource(one=ONE, bad=image)
    for layers in modes:
        with pytest.raises(error):
            await save(
                [ImageRequest(source, "one"), ImageRequest(source, "bad", tags)],
                tmp_path / "archive",
                layers=layers,
            )
    assert source.opened == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layers", MODES)
@pytest.mark.parametrize(
    ("default", "tags"),
    [
        ((), [["x:1"], ["x:1"]]),
        ((), [["y", "x"], ["example.com/z", "docker.io/library/x:latest"]]),
        (("x:1",), [None, None]),
        (("x:1",), [["index.docker.io/library/x:1"], None]),
    ],
    ids=["given", "in other words", "the source's", "given and the source's"],
)
async def test_one_name_for_two_images_is_refused_before_anything_is_written(
    tmp_path: Path, layers: Layers, default: tuple[str, ...], tags: list[list[str] | None]
) -> None:
    """Some tools would load the first of them under that name and some the last, and one never loads the other."""
    source = MemorySource(one=ONE, two=TWO, three=make_image(author="three"), default_tags=default)
    requests = [
        ImageRequest(source, "one", tags[0]),
        ImageRequest(source, "three", ["example.com/three:3"]),
        ImageRequest(source, "two", tags[1], name="the second"),
    ]
    path, sink = tmp_path / "archive", ListSink()
    path.write_bytes(b"old")
    for target in (path, sink):
        with pytest.raises(NameConflictError) as caught:
            await save(requests, target, layers=layers)
        assert caught.value.image_ids == (ONE.image_id, TWO.image_id)
        assert caught.value.name.startswith("docker.io/library/x:")
        assert caught.value.__notes__ == ["image one", "image the second"]
    with pytest.raises(NameConflictError):
        await prepare(requests, layers=layers)
    assert source.opened == []
    assert (sink.writes, path.read_bytes(), list(tmp_path.iterdir())) == ([], b"old", [path])


@pytest.mark.parametrize("layers", MODES)
async def test_one_image_may_be_given_one_name_twice(source: MemorySource, layers: Layers) -> None:
    tags = [["a:1"], ["docker.io/a:1", "b:2"], ["b:2"]]
    report = await save([ImageRequest(source, "one", each) for each in tags], ListSink(), layers=layers)
    (item,) = report.images
    assert item.repo_tags == ("docker.io/library/a:1", "docker.io/library/b:2")


@pytest.mark.parametrize("option", ["format", "layers"])
async def test_options_are_looked_at_first(source: MemorySource, option: str) -> None:
    options: dict[str, Any] = {option: "other"}
    with pytest.raises(InvalidInputError, match=f"{option}='other'"):
        await save(both(source), ListSink(), **options)
    assert source.resolved == []


def test_without_asyncio(source: MemorySource) -> None:
    with pytest.raises(EventLoopError):
        step(save(both(source), ListSink()))


# ── what is told ──


@pytest.mark.parametrize("layers", MODES)
async def test_progress(source: MemorySource, layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_room, "INTERVAL", 0)
    events: list[Event] = []
    report = await save(both(source), ListSink(), layers=layers, jobs=1, progress=events.append)
    start, *rest = events
    assert isinstance(start, SaveStarted)
    sizes = [len(layer.blob) for layer in (BASE, APP, TWO.layers[1])]
    assert start.total == sum(sizes)
    assert start.prepared.plan is None or start.prepared.plan.size == report.size
    two = TWO.layers[1]
    one, other = start.prepared.images
    assert [event for event in rest if not isinstance(event, LayerAdvanced)] == [
        LayerReused(BASE.descriptor),
        LayerStarted(BASE.descriptor),
        LayerFinished(BASE.descriptor, sizes[0]),
        LayerStarted(APP.descriptor),
        LayerFinished(APP.descriptor, sum(sizes[:2])),
        ImageFinished(one),
        LayerStarted(two.descriptor),
        LayerFinished(two.descriptor, sum(sizes)),
        ImageFinished(other),
        SaveFinished(report),
    ]
    for layer in (BASE, APP, two):
        counts = [
            event.done
            for event in rest
            if isinstance(event, LayerAdvanced) and event.layer == layer.descriptor
        ]
        assert counts == [*range(100, len(layer.blob), 100), len(layer.blob)]
    totals = [event.total_done for event in rest if isinstance(event, LayerAdvanced)]
    assert totals == sorted(totals)
    assert totals[-1] == sum(sizes)


@pytest.mark.parametrize("kind", [SaveStarted, LayerStarted, LayerAdvanced, LayerFinished, ImageFinished])
@pytest.mark.parametrize("layers", MODES)
async def test_what_progress_raises_ends_the_save(
    source: MemorySource, kind: type[Event], layers: Layers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_room, "INTERVAL", 0)
    monkeypatch.setattr(file_region, "BATCH_SIZE", 50)

    def progress(event: Event) -> None:
        if isinstance(event, kind):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await save(both(source), tmp_path / "archive", layers=layers, progress=progress)
    assert source.open_now == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("jobs", "readers"), [(1, 1), (2, 2), (64, 3)])
async def test_blobs_are_told_how_many_are_read_at_once(
    source: MemorySource,
    jobs: int,
    readers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: set[int] = set()
    fill = file_region.fill

    async def telling(*args: Any, **options: Any) -> int:
        told.add(options["readers"])
        return await fill(*args, **options)

    monkeypatch.setattr(to_file, "fill", telling)
    await save(both(source), tmp_path / "archive", jobs=jobs)
    assert told == {readers}


# ── what goes wrong ──


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda blob: blob[:-1] + bytes([blob[-1] ^ 1]), DigestMismatchError),
        (lambda blob: blob[:-1], SizeMismatchError),
        (lambda blob: blob + b"x", SizeMismatchError),
    ],
    ids=["other bytes", "short", "long"],
)
async def test_errors_name_blob_and_image(
    source: MemorySource, damage: Callable[[bytes], bytes], error: type[DockerSaveError], tmp_path: Path
) -> None:
    digest = TWO.layers[1].descriptor.digest
    source.blobs[digest] = damage(source.blobs[digest])
    path = tmp_path / "archive"
    path.write_bytes(b"old")
    with pytest.raises(error, match=str(digest)) as caught:
        await save([replace(each, name=f"memory:{each.reference}") for each in both(source)], path)
    assert caught.value.__notes__ == ["image memory:two"]
    told = [fault for fault in source.faults if not isinstance(fault, asyncio.CancelledError)]
    assert told == [caught.value]  # the source is told; what was read besides is given up
    assert source.open_now == 0
    assert path.read_bytes() == b"old"


async def test_a_source_that_cannot_resolve(source: MemorySource) -> None:
    """An error that is not ours passes as it is."""
    sink = ListSink()
    with pytest.raises(KeyError) as caught:
        await save([*both(source), ImageRequest(source, "three")], sink)
    assert not hasattr(caught.value, "__notes__")
    assert sink.writes == []


class UnopenableSource(MemorySource):
    """Has images, and no blob of them."""

    def __init__(self, image: Image, error: Exception) -> None:
        super().__init__(one=image)
        self._error = error

    def open_blob(self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None) -> Any:
        raise self._error


@pytest.mark.parametrize(
    "error",
    [BlobNotFoundError(Digest.of(b""), "nowhere"), OSError("gone")],
    ids=lambda error: type(error).__name__,
)
async def test_a_blob_that_cannot_be_opened(error: Exception) -> None:
    sink = ListSink()
    with pytest.raises(type(error)) as caught:
        await save([ImageRequest(UnopenableSource(ONE, error), "one")], sink)
    assert caught.value is error
    assert sink.writes == []


class SlowSource(MemorySource):
    """Stops in the middle of a blob, and has a time-out of its own around it."""

    @contextlib.asynccontextmanager
    async def open_blob(
        self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[AsyncIterator[bytes], None]:
        limit = asyncio.timeout(0.01)  # not a verdict: whenever it is over, nothing else comes
        async with limit, super().open_blob(descriptor) as chunks:
            yield chunks

    async def _chunks(self, digest: Digest, start: int) -> AsyncIterator[bytes]:
        yield self.blobs[digest][:10]
        await asyncio.Event().wait()


async def test_a_time_out_of_the_source_comes_out_as_one() -> None:
    source = SlowSource(one=ONE)
    with pytest.raises(TimeoutError):
        await save([ImageRequest(source, "one")], ListSink())
    assert source.open_now == 0


# ── cancelled ──


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
async def test_cancelled_anywhere_the_target_is_old_or_whole(tmp_path: Path, twice: bool) -> None:
    small = make_image(BASE)
    whole = await archive_of([small])
    path = tmp_path / "archive"
    at = 0
    outcomes = set()
    while True:
        at += 1
        source = MemorySource(one=small)
        path.write_bytes(b"old")

        async def work(source: Source = source) -> None:
            await save([ImageRequest(source, "one")], path)

        driver = Driver(at=at, twice=twice)
        await asyncio.ensure_future(by_task_cancel(driver, work))
        outcomes.add(path.read_bytes())
        assert source.open_now == 0
        assert [entry.name for entry in tmp_path.iterdir()] == ["archive"]
        if driver.suspensions < at:
            break
    assert outcomes == {b"old", whole}
    assert path.read_bytes() == whole
