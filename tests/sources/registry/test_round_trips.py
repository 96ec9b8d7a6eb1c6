"""The number of requests before the first byte of an archive, and of bytes of blobs."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from aiodockersave import (
    AuthenticationError,
    Digest,
    ImageNotFoundError,
    ImageSpec,
    Plan,
    Platform,
    RegistrySource,
    ResolvedImage,
    plan_archive,
    stream_plan,
)
from aiodockersave.core.model import OCI_INDEX
from aiodockersave.sources.credentials import StaticCredentials
from tests.support.faulty_registry import (
    PASSWORD,
    USER,
    Answer,
    Ask,
    Auth,
    Fault,
    FaultyRegistry,
    digest_header,
    drop,
    drop_at_once,
    ignore_range,
    refuse,
)
from tests.support.images import Image, archive_of, make_image, make_layer, to_document, to_json

AMD64 = Platform("linux", "amd64")
NOISE = random.Random(6)
IMAGE = make_image(make_layer(NOISE.randbytes(300_000), None), make_layer(NOISE.randbytes(200_000), None))
OTHER = make_image(make_layer({"other": b"other"}))
DIGEST, IMAGE_ID = str(IMAGE.manifest.digest), str(IMAGE.image_id)


def index_of(image: Image) -> bytes:
    child = to_document(image.manifest.descriptor) | {"platform": {"os": "linux", "architecture": "amd64"}}
    return to_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child]})


@dataclass
class Counter:
    """A fault that changes nothing and counts the bytes that a registry sends of each blob."""

    given: dict[str, int] = field(default_factory=dict)

    def fault(self) -> Fault:
        return Fault("counted", self._count)

    def _count(self, ask: Ask, answer: Answer) -> Answer:
        digest = ask.path.rpartition("/")[2]
        self.given[digest] = self.given.get(digest, 0) + len(answer.body[: answer.sent])
        return answer


Start = Callable[..., Awaitable[FaultyRegistry]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a registry that has `IMAGE` as ``team/app:1``, and behind the index ``team/app:index``."""
    async with AsyncExitStack() as stack:

        async def start(*faults: Fault, auth: Auth = "none", prefix: str = "") -> FaultyRegistry:
            registry = FaultyRegistry({f"{prefix}team/app:1": IMAGE}, faults, auth=auth)
            registry.add_document(f"{prefix}team/app:index", index_of(IMAGE), OCI_INDEX)
            return await stack.enter_async_context(registry)

        yield start


async def no_sleep(seconds: float) -> None:
    """Replace sleep: return at once."""


def new_source(**options: Any) -> RegistrySource:
    credentials = StaticCredentials(USER, PASSWORD)
    return RegistrySource(plain_http=True, credentials=credentials, sleep=no_sleep, **options)


def taken(registry: FaultyRegistry) -> list[str]:
    """Return the requests since the last call, without the common beginning of their paths."""
    shown = [
        f"{ask.method} {ask.path.partition('?')[0].removeprefix('/v2/team/app/').replace(DIGEST, 'IMAGE')}"
        for ask in registry.asks
    ]
    registry.asks.clear()
    return shown


def plan_of(image: ResolvedImage) -> Plan:
    return plan_archive([ImageSpec(image.config, image.manifest, ["example.com/app:1.0"])])


INDEX = str(Digest.of(index_of(IMAGE)))
HEAD, BY_TAG, BY_DIGEST = "HEAD manifests/1", "GET manifests/1", "GET manifests/IMAGE"
CONFIG = f"GET blobs/{IMAGE_ID}"
BLOB = f"GET blobs/{IMAGE.layers[0].descriptor.digest}"


# ── before the first byte ──


async def first_bytes(source: RegistrySource, reference: str, registry: FaultyRegistry) -> list[str]:
    """Read the first bytes of an archive; return the requests until then."""
    image = await source.resolve(reference, AMD64)
    async with stream_plan(plan_of(image), source.open_blob) as chunks:
        assert await anext(chunks)
        asked = taken(registry)
        assert await anext(chunks)  # the first bytes of the first blob
        assert taken(registry)[:1] == [BLOB]
    return [each for each in asked if each != BLOB]


LOGIN = {"none": [], "basic": ["401"], "bearer": ["401", "GET /token"]}


@pytest.mark.parametrize("auth", LOGIN)
@pytest.mark.parametrize(
    ("tag", "requests"),
    [("1", [BY_TAG, CONFIG]), ("index", ["GET manifests/index", BY_DIGEST, CONFIG])],
    ids=["manifest", "index"],
)
async def test_requests_with_an_empty_cache(start: Start, auth: Auth, tag: str, requests: list[str]) -> None:
    registry = await start(auth=auth)
    async with new_source() as source:
        asked = await first_bytes(source, f"{registry.address}/team/app:{tag}", registry)
    if auth != "none":  # the first is refused, and asked again
        login = [requests[0], *LOGIN[auth][1:]]
        assert asked[: len(login)] == login
        asked = asked[len(login) :]
    assert asked == requests


@pytest.mark.parametrize("tag", ["1", "index"])
async def test_requests_with_all_in_the_cache(start: Start, tag: str) -> None:
    registry = await start(auth="bearer")
    async with new_source() as source:
        name = f"{registry.address}/team/app:{tag}"
        await source.resolve(name, AMD64)
        taken(registry)
        for _ in range(2):
            assert await first_bytes(source, name, registry) == [f"HEAD manifests/{tag}"]


async def test_a_cached_digest_needs_no_request(start: Start) -> None:
    registry = await start()
    async with new_source() as source:
        await source.resolve(f"{registry.address}/team/app:1", AMD64)
        taken(registry)
        assert await first_bytes(source, f"{registry.address}/team/app@{DIGEST}", registry) == []


@pytest.mark.parametrize(
    ("tag", "requests"),
    [
        ("1", [HEAD, BY_DIGEST, CONFIG]),
        ("index", ["HEAD manifests/index", f"GET manifests/{INDEX}", BY_DIGEST, CONFIG]),
    ],
    ids=["manifest", "index"],
)
async def test_requests_with_another_image_in_the_cache(start: Start, tag: str, requests: list[str]) -> None:
    registry = await start()
    registry.add("team/app:other", OTHER)
    async with new_source() as source:
        await source.resolve(f"{registry.address}/team/app:other", AMD64)
        taken(registry)
        assert await first_bytes(source, f"{registry.address}/team/app:{tag}", registry) == requests


async def test_a_tag_that_moves(start: Start) -> None:
    registry = await start()
    name = f"{registry.address}/team/app:1"
    async with new_source() as source:
        assert (await source.resolve(name, AMD64)).config == IMAGE.config
        registry.add("team/app:1", OTHER)
        taken(registry)
        for expected in (3, 1):
            assert (await source.resolve(name, AMD64)).config == OTHER.config
            assert len(taken(registry)) == expected


async def test_a_mirror_gives_what_the_tag_means(start: Start) -> None:
    """The registry is asked only for the digest of the tag, so that no pull is counted there."""
    registry, mirror = await start(), await start(prefix="hub/")
    async with new_source(mirrors=[f"{mirror.here.url}/hub"]) as source:
        await source.resolve(f"{registry.address}/team/app:index", AMD64)
    assert taken(registry) == ["HEAD manifests/index"]
    assert [ask.path.rpartition("/")[2] for ask in mirror.asks] == [INDEX, DIGEST, IMAGE_ID]


# ── where HEAD does not help ──


def of_head(fault: Fault) -> Fault:
    """Return the same fault, of HEAD requests only."""
    condition = fault.when
    return replace(
        fault, kinds=("manifest",), when=lambda ask, answer: ask.method == "HEAD" and condition(ask, answer)
    )


def two_digests() -> Fault:
    """Answer with two digests, one of them right."""

    def change(_: Ask, answer: Answer) -> Answer:
        headers = answer.headers.copy()
        headers.add("Docker-Content-Digest", str(OTHER.manifest.digest))
        return replace(answer, headers=headers)

    return Fault("two digests", change, kinds=("manifest",))


NO_HEAD: dict[str, tuple[Fault, list[str]]] = {
    "405": (refuse(405), [HEAD, BY_TAG]),
    "404": (refuse(404), [HEAD, BY_TAG]),
    "403": (refuse(403), [HEAD, BY_TAG]),
    "400": (refuse(400), [HEAD, BY_TAG]),
    "401 without a challenge": (refuse(401), [HEAD, BY_TAG]),
    "503": (refuse(503), [HEAD, BY_TAG]),
    "429": (refuse(429, retry_after="1"), [HEAD, BY_TAG]),
    "closed": (drop_at_once(), [HEAD, BY_TAG]),
    "no digest": (digest_header(None), [HEAD, BY_TAG]),
    "no proper digest": (digest_header("sha256:abc"), [HEAD, BY_TAG]),
    "an unknown algorithm": (digest_header("md5:" + "0" * 32), [HEAD, BY_TAG]),
    "empty": (digest_header(""), [HEAD, BY_TAG]),
    "two digests": (two_digests(), [HEAD, BY_TAG]),
    "spaces": (digest_header(f" {DIGEST} "), [HEAD]),
}


@pytest.mark.parametrize(("fault", "requests"), NO_HEAD.values(), ids=NO_HEAD)
async def test_the_document_is_fetched_by_its_tag(start: Start, fault: Fault, requests: list[str]) -> None:
    registry = await start(of_head(fault))
    async with new_source() as source:
        name = f"{registry.address}/team/app:1"
        await source.resolve(name, AMD64)
        taken(registry)
        assert (await source.resolve(name, AMD64)).manifest == IMAGE.manifest
    asked = taken(registry)
    assert [each for each, _ in itertools.groupby(asked)] == requests  # aiohttp repeats what was not answered


@pytest.mark.parametrize("auth", ["basic", "bearer"])
async def test_a_registry_that_refuses_head(start: Start, auth: Auth) -> None:
    """The registry refuses HEAD with and without a login."""
    challenge = 'Basic realm="x"' if auth == "basic" else 'Bearer realm="{}/token",service="x"'
    registry = await start(auth=auth)
    refusal = Answer(401).saying(WWW_Authenticate=challenge.format(registry.here.url))
    registry.faults.append(of_head(Fault("refused", lambda *_: refusal)))
    async with new_source() as source:
        name = f"{registry.address}/team/app:1"
        await source.resolve(name, AMD64)
        assert (await source.resolve(name, AMD64)).manifest == IMAGE.manifest
    assert [each for each in taken(registry) if each != "GET /token"][-1] == BY_TAG


async def test_head_gives_the_digest_of_a_tag(start: Start) -> None:
    """The tag may have moved: then another document is fetched, or taken from the cache."""
    registry = await start()
    registry.add("team/app:other", OTHER)
    registry.faults.append(of_head(digest_header(str(OTHER.manifest.digest))))
    async with new_source() as source:
        await source.resolve(f"{registry.address}/team/app:1", AMD64)
        taken(registry)
        assert (await source.resolve(f"{registry.address}/team/app:1", AMD64)).config == OTHER.config


@pytest.mark.parametrize(
    ("status", "error"), [(404, ImageNotFoundError), (403, AuthenticationError)], ids=["404", "403"]
)
async def test_the_error_is_that_of_get(start: Start, status: int, error: type[Exception]) -> None:
    """An answer to HEAD has no body with the reason."""
    registry = await start()
    async with new_source() as source:
        name = f"{registry.address}/team/app:1"
        await source.resolve(name, AMD64)
        registry.faults.append(refuse(status).of("manifest"))
        with pytest.raises(error, match="not today"):
            await source.resolve(name, AMD64)


async def test_head_leaves_no_connection_open_but_one(start: Start) -> None:
    registry = await start()
    async with new_source() as source:
        for _ in range(5):
            await source.resolve(f"{registry.address}/team/app:1", AMD64)
        assert registry.connections == 1


# ── bytes ──


def ranges() -> list[tuple[int, int]]:
    """Return ranges that cut blobs in every way: starts and stops, half-open."""
    noise = random.Random(9)
    chosen = [tuple(sorted(noise.sample(range(505_000), 2))) for _ in range(12)]
    return [(0, 600), (100_000, 100_001), (299_000, 303_000), (250_000, 450_000), *chosen]  # type: ignore[list-item]


@pytest.mark.parametrize(("begin", "end"), ranges())
async def test_a_range_costs_no_more_than_its_bytes(start: Start, begin: int, end: int) -> None:
    counter = Counter()
    registry = await start(counter.fault())
    whole = await archive_of([IMAGE.tagged("example.com/app:1.0")])
    async with new_source() as source:
        plan = plan_of(await source.resolve(f"{registry.address}/team/app:1", AMD64))
        async with stream_plan(plan, source.open_blob, start=begin, stop=end) as chunks:
            assert b"".join([chunk async for chunk in chunks]) == whole[begin:end]
    expected = {
        str(segment.descriptor.digest): size
        for segment in plan.segments
        if segment.descriptor is not None
        and (size := min(end, segment.offset + segment.size) - max(begin, segment.offset)) > 0
    }
    assert counter.given == expected


async def test_a_resumed_range_costs_only_the_lost_bytes(start: Start) -> None:
    """The bytes that came before the break are not asked for again."""
    counter = Counter()
    registry = await start(drop(0.5).often(1), counter.fault())
    whole = await archive_of([IMAGE.tagged("example.com/app:1.0")])
    async with new_source() as source:
        plan = plan_of(await source.resolve(f"{registry.address}/team/app:1", AMD64))
        async with stream_plan(plan, source.open_blob, start=100_000, stop=200_000) as chunks:
            assert b"".join([chunk async for chunk in chunks]) == whole[100_000:200_000]
    assert sum(counter.given.values()) <= 150_000


async def test_the_counter_notices_excess_bytes(start: Start) -> None:
    """A registry without ranges sends more bytes, and the counter shows them."""
    counter = Counter()
    registry = await start(ignore_range(), counter.fault())
    async with new_source() as source:
        plan = plan_of(await source.resolve(f"{registry.address}/team/app:1", AMD64))
        async with stream_plan(plan, source.open_blob, start=100_000, stop=200_000) as chunks:
            assert len(b"".join([chunk async for chunk in chunks])) == 100_000
    assert sum(counter.given.values()) > 100_000
