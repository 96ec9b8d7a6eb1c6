"""Three hundred saves from a failing registry: recoverable faults end in the right archive, others in their error.

The seed of a run decides everything in it; ``pytest -k 'test_run and [137]'`` repeats one. Back-off is counted, not
waited for, and a clock is put forward where the registry is silent, so that all of them together take less than a minute.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from aiodockersave import (
    AuthenticationError,
    BlobNotFoundError,
    ContentTooLargeError,
    DecompressionError,
    DigestMismatchError,
    DockerSaveError,
    ImageNotFoundError,
    ImageRequest,
    InvalidDocumentError,
    Platform,
    RateLimitedError,
    RegistryError,
    ResolvedImage,
    SizeMismatchError,
    TransferError,
    save,
)
from aiodockersave.core.model import Layers
from aiodockersave.sources.credentials import StaticCredentials
from aiodockersave.sources.registry import RegistrySource, Timeouts
from tests.support.clock import LoopClock
from tests.support.faulty_registry import (
    PASSWORD,
    SECRETS,
    USER,
    Auth,
    Fault,
    FaultyRegistry,
    Kind,
    content_range,
    crawl,
    digest_header,
    drop,
    drop_at_once,
    endless,
    error_page,
    flip,
    ignore_range,
    label,
    multipart,
    no_length,
    redirect,
    refuse,
    refuse_range,
    resize,
    start_at,
    wrong_part,
    wrong_total,
)
from tests.support.images import Image, archive_of, make_image, make_layer
from tests.support.interruption import (
    TasksDriver,
    Way,
    by_cancel_scope,
    by_task_cancel,
    by_task_cancel_when_ready,
    by_timeout,
)

RUNS = 300
SILENCE = (
    10.0  # seconds of a clock that is put forward where the registry falls silent: a busy machine is no fault
)
TIME_LIMIT = 250.0  # seconds of that clock for one run, whatever happens in it
NAME = "example.com/app:1.0"


def noise(seed: int, size: int) -> bytes:
    """Return bytes that compress badly, so that a blob is as large as its files."""
    return random.Random(seed).randbytes(size)


IMAGES: dict[str, Image] = {
    "one layer": make_image(make_layer({"data": noise(1, 300_000)})),
    "five layers": make_image(*(make_layer({f"{number}": noise(number, 40_000)}) for number in range(5))),
    "plain layer": make_image(
        make_layer({"plain": noise(2, 200_000)}, None), make_layer({"small": b"small"})
    ),
    "zstd": make_image(make_layer({"data": noise(3, 150_000)}, "zstd")),
    "gzip members": make_image(make_layer({"data": noise(4, 150_000)}, members=40)),
    "layer twice": make_image(*[make_layer({"data": noise(5, 60_000)})] * 2),
}


# ── what can be recovered from ──


def break_of(choose: random.Random, kind: Kind) -> Fault:
    """Choose a fault that spoils some answers, and is over then."""
    at = choose.random()
    ending = choose.choice(["close", "reset"])
    fault = choose.choice(
        [
            drop(at, ending),  # type: ignore[arg-type]
            drop(at, ending),  # type: ignore[arg-type]
            drop_at_once(ending),  # type: ignore[arg-type]
            refuse(429),
            refuse(429, retry_after="7"),
            refuse(429, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),
            refuse(choose.choice([500, 502, 503, 504])),
            refuse(503, retry_after="2"),
        ]
    )
    return fault.of(kind).often(choose.randint(1, 2))


def stall_of(choose: random.Random, kind: Kind) -> Fault:
    """Choose a silence, once."""
    return choose.choice([drop(choose.random(), "stall"), drop_at_once("stall")]).of(kind).often(1)


def oddity_of(choose: random.Random) -> Fault:
    """Choose something that is allowed, or that does no harm, and goes on all the time."""
    status = choose.choice([301, 302, 303, 307, 308])
    return choose.choice(
        [
            no_length().of(choose.choice(["manifest", "config", "blob"])),
            digest_header(None).of("manifest"),
            redirect("{elsewhere}{path}", status),
            redirect("{elsewhere}{path}?signature=abc", status).of("blob", "config"),
        ]
    )


def broken_range(choose: random.Random) -> list[Fault]:
    """Choose a break in a blob, and a registry that goes on in its own way after it."""
    # An orderly end: the client has all that was sent, and asks for the rest.
    breaks = drop(choose.uniform(0.1, 0.9), "close").often(1)
    if choose.random() < 0.2:
        return [crawl(0.5)]  # one and a half times the blob's size
    return [breaks, choose.choice([ignore_range(), start_at(-1), start_at(-512), start_at(-(10**9))])]


def recoverable(choose: random.Random, kinds: Sequence[Kind]) -> list[Fault]:
    """Choose faults that a save gets over: no more than four answers that bring nothing new, of five attempts."""
    continued = broken_range(choose) if choose.random() < 0.4 else []
    if continued:
        # Where a registry starts again from the beginning, a second break may use up the budget.
        kinds = [kind for kind in kinds if kind != "blob"]
    faults = [break_of(choose, choose.choice(kinds)) for _ in range(choose.randint(0, 2))]
    if len(faults) < 2 and choose.random() < 0.5:
        faults.append(stall_of(choose, choose.choice(kinds)))
    if choose.random() < 0.5 or not faults + continued:
        faults.append(oddity_of(choose))
    return faults + continued


# ── what cannot ──

Errors = tuple[type[DockerSaveError], ...]

BROKEN_OFF = drop(0.5, "close").often(1)
"""The faults that make a client ask for the rest of a blob."""

OTHER_BYTES: Errors = (DigestMismatchError, DecompressionError)
"""A checksum inside the blob may speak before its digest does."""

FATAL: dict[str, tuple[list[Fault], Errors]] = {
    # other bytes than were promised
    "blob flipped": ([flip(0.3)], OTHER_BYTES),
    "last bit of the blob": ([flip(1)], OTHER_BYTES),
    "config flipped": ([flip(0.5).of("config")], (DigestMismatchError,)),
    "manifest flipped": ([flip(0.5).of("manifest")], (DigestMismatchError,)),
    "blob longer": ([resize(+1)], (SizeMismatchError,)),
    "blob longer, chunked": ([resize(+1000, has_length=False)], (SizeMismatchError,)),
    "blob shorter": ([resize(-1)], (SizeMismatchError,)),
    "blob shorter, chunked": ([resize(-1000, has_length=False)], (SizeMismatchError,)),
    "config longer": ([resize(+1).of("config")], (SizeMismatchError,)),
    "config shorter": ([resize(-1).of("config")], (SizeMismatchError,)),
    "manifest longer": ([resize(+1).of("manifest")], (DigestMismatchError,)),
    "page for the blob": ([error_page()], (SizeMismatchError,)),
    "page for the config": ([error_page().of("config")], (SizeMismatchError,)),
    "page for the manifest": ([error_page().of("manifest")], (InvalidDocumentError, DigestMismatchError)),
    "endless blob": ([endless()], (SizeMismatchError,)),
    "endless config": ([endless().of("config")], (ContentTooLargeError,)),
    "endless manifest": ([endless().of("manifest")], (ContentTooLargeError,)),
    "labelled br": ([label("br")], (RegistryError,)),
    # another part than was asked for
    "wrong part": ([BROKEN_OFF, wrong_part()], OTHER_BYTES),
    "later start": ([BROKEN_OFF, start_at(+1)], (RegistryError,)),
    "total too large": ([BROKEN_OFF, wrong_total(+1)], (SizeMismatchError,)),
    "total too small": ([BROKEN_OFF, wrong_total(-1)], (RegistryError,)),
    "no Content-Range": ([BROKEN_OFF, content_range(None)], (RegistryError,)),
    "nonsense for Content-Range": (
        [BROKEN_OFF, content_range("bytes 1_0-٢/x")],
        (RegistryError,),
    ),
    "multipart": ([BROKEN_OFF, multipart()], (RegistryError,)),
    "no range at all": ([BROKEN_OFF, refuse_range()], (RegistryError,)),
    # more than is borne
    "always 429": ([refuse(429)], (RateLimitedError,)),
    "always 429, manifest": ([refuse(429, retry_after="1").of("manifest")], (RateLimitedError,)),
    "429 for a day": ([refuse(429, retry_after="86400").of("manifest")], (RateLimitedError,)),
    "always 500": ([refuse(500)], (TransferError,)),
    "always 503, config": ([refuse(503).of("config")], (TransferError,)),
    "always dropped": ([drop_at_once()], (TransferError,)),
    "always reset": ([drop_at_once("reset").of("manifest")], (TransferError,)),
    "always silent": ([drop_at_once("stall").of("config")], (TransferError,)),
    "half of each answer": ([drop(0.5, "close")], (TransferError,)),
    "a little more each time, from the start": ([crawl(0.1)], (TransferError,)),
    "dropped and never continued": ([ignore_range(), drop(0.8, "close")], (TransferError,)),
    # no
    "no such blob": ([refuse(404, code="BLOB_UNKNOWN")], (BlobNotFoundError,)),
    "no such manifest": ([refuse(404, code="MANIFEST_UNKNOWN").of("manifest")], (ImageNotFoundError,)),
    "bad request": ([refuse(400)], (RegistryError,)),
    "teapot": ([refuse(418).of("manifest")], (RegistryError,)),
    "denied": ([refuse(403, code="DENIED").of("manifest")], (AuthenticationError,)),
    "unauthorized": ([refuse(401, code="UNAUTHORIZED")], (AuthenticationError,)),
    # redirects that lead nowhere
    # A token may be used up on the way.
    "redirected in a circle": ([redirect("{path}")], (RegistryError, AuthenticationError)),
    "redirected to a file": ([redirect("file:///etc/passwd")], (RegistryError,)),
    "redirected to nothing": ([redirect("")], (RegistryError,)),
    "redirected to a host that is no name": ([redirect("http://[::1/x")], (RegistryError,)),
}
PINNED = {"manifest flipped", "manifest longer"}
"""Cases that bring wrong bytes, which only a digest in the reference shows."""


# ── a run ──


@dataclass(frozen=True)
class Run:
    """The choices of one seed.

    Attributes:
        errors: Those that it may end in; none where it must end in the right archive.
    """

    image: str
    layers: Layers
    auth: Auth
    token_uses: int | None
    pinned: bool
    faults: list[Fault]
    fatal: str | None

    @property
    def errors(self) -> Errors:
        return FATAL[self.fatal][1] if self.fatal else ()

    @classmethod
    def of(cls, seed: int) -> Run:
        """Draw the run of a seed: every third ends in an error, each of them in turn."""
        choose = random.Random(seed)
        auth: Auth = choose.choice(["none", "basic", "bearer", "bearer"])
        kinds: list[Kind] = ["manifest", "config", "blob", "blob"]
        if auth == "bearer":
            kinds.append("token")
        fatal = list(FATAL)[seed // 3 % len(FATAL)] if seed % 3 == 0 else None
        if fatal:
            faults = [fault.often(fault.times) for fault in FATAL[fatal][0]]  # fresh ones
            faults += (
                [break_of(choose, "token").often(1)] if auth == "bearer" and choose.random() < 0.5 else []
            )
        else:
            faults = recoverable(choose, kinds)
        return cls(
            image=choose.choice(list(IMAGES)),
            layers=choose.choice(["keep", "decompress"]),
            auth=auth,
            token_uses=choose.choice([None, 1, 2, 3]),
            pinned=fatal in PINNED or choose.random() < 0.3,
            faults=faults,
            fatal=fatal,
        )

    def __str__(self) -> str:
        wanted = self.fatal or "the right archive"
        faults = "; ".join(map(str, self.faults))
        return f"{self.image}, {self.layers}, {self.auth} ({self.token_uses} uses) → {wanted}: {faults}"


_archives: dict[tuple[str, Layers], bytes] = {}


async def archive_from_memory(image: str, layers: Layers) -> bytes:
    """Return the right archive, made once."""
    if (image, layers) not in _archives:
        _archives[image, layers] = await archive_of([IMAGES[image].tagged(NAME)], layers=layers)
    return _archives[image, layers]


class Naps:
    """A replacement for ``asyncio.sleep`` that records the delays and does not wait."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


async def closed(registry: FaultyRegistry, but: int = 0) -> None:
    """Wait until the registry has no connection left, `but` so many."""
    async with asyncio.timeout(TIME_LIMIT):
        while registry.connections > but:
            await asyncio.sleep(0.005)


def in_all(error: BaseException | None) -> str:
    """Return the texts of an error and its causes."""
    parts, cause = [], error
    while cause is not None:
        parts += [str(cause), repr(cause), *getattr(cause, "__notes__", ())]
        cause = cause.__cause__ or cause.__context__
    return "\n".join(parts)


class LateSource(RegistrySource):
    """A source without early layers, so that each fault meets the request that it is meant for."""

    async def resolve(self, reference: str, platform: Platform | None = None) -> ResolvedImage:
        return await super().resolve(reference, platform)


async def attempt(
    run: Run,
    registry: FaultyRegistry,
    target: Path,
    naps: Naps,
    new_source: type[RegistrySource] = LateSource,
) -> BaseException | None:
    """Save once; return the outcome."""
    image = IMAGES[run.image]
    suffix = f"@{image.manifest.digest}" if run.pinned else ":1"
    source = new_source(
        credentials=StaticCredentials(USER, PASSWORD),
        plain_http=True,
        timeouts=Timeouts(connect=30, silence=SILENCE),
        sleep=naps.sleep,
    )
    async with source:
        request = ImageRequest(source, f"{registry.address}/team/app{suffix}", [NAME])
        try:
            await save([request], target, layers=run.layers, fsync=False)
        except Exception as error:
            return error
    return None


@dataclass(frozen=True)
class Ended:
    """The outcome of a run."""

    run: Run
    registry: FaultyRegistry
    target: Path
    naps: Naps
    error: BaseException | None
    told: str


async def ended(seed: int, folder: Path, new_source: type[RegistrySource]) -> Ended:
    run = Run.of(seed)
    target, naps = folder / "app.tar", Naps()
    registry = FaultyRegistry(
        {"team/app:1": IMAGES[run.image]}, run.faults, auth=run.auth, token_uses=run.token_uses
    )
    clock = LoopClock()
    registry.on_silence = lambda: clock.put_forward(SILENCE + 1)
    async with registry, asyncio.timeout(TIME_LIMIT):
        error = await attempt(run, registry, target, naps, new_source)
        await closed(registry)
    asks = "\n".join(map(str, [*registry.asks, *registry.other.asks]))
    told = f"seed {seed}: {run}\nended in {error!r}\n{asks}"
    check_secrets(registry, error, told)
    return Ended(run, registry, target, naps, error, told)


@pytest.mark.parametrize("seed", range(RUNS))
async def test_run(seed: int, tmp_path: Path) -> None:
    end = await ended(seed, tmp_path, LateSource)
    await check_outcome(end)
    check_naps(end.run, end.naps, end.told)
    assert all(fault.fired for fault in end.run.faults), f"a fault that did not happen: {end.told}"


@pytest.mark.parametrize("seed", range(0, RUNS, 3))
async def test_run_where_layers_are_asked_for_early(seed: int, tmp_path: Path) -> None:
    """The order of requests is not fixed, so a fault that was to be fatal may not happen."""
    end = await ended(seed, tmp_path, RegistrySource)
    if end.error is None and not all(fault.fired for fault in end.run.faults):
        assert end.target.read_bytes() == await archive_from_memory(end.run.image, end.run.layers), end.told
    else:
        await check_outcome(end)


async def check_outcome(end: Ended) -> None:
    run, error, told = end.run, end.error, end.told
    if run.fatal:
        assert type(error) in run.errors, told
        assert not end.target.exists(), told
        assert end.registry.address in in_all(error), f"the error does not say which registry: {told}"
        assert len(str(error).splitlines()) == 1, told
    else:
        assert error is None, told
        assert end.target.read_bytes() == await archive_from_memory(run.image, run.layers), told


def check_secrets(registry: FaultyRegistry, error: BaseException | None, told: str) -> None:
    said = [in_all(error), *(ask.everything() for ask in registry.other.asks)]
    assert not [text for text in said if any(secret in text for secret in SECRETS)], told
    for ask in registry.other.asks:
        assert not {"Authorization", "Cookie", "Proxy-Authorization"} & set(map(str.title, ask.headers)), told


def check_naps(run: Run, naps: Naps, told: str) -> None:
    """A registry is waited for as long as it asks."""
    asked = [re.search(r"Retry-After: (\d+)$", fault.name) for fault in run.faults]
    wanted = [float(found[1]) for found in asked if found]
    if run.fatal is None and wanted:
        assert max(naps.seconds) >= max(wanted), told


# ── cancelled anywhere ──

# The second layer does not fit the buffers of sockets and client: it is interrupted while more of it comes.
SMALL = make_image(make_layer({"a": b"a"}), make_layer({"b": noise(6, 6_000_000)}, None))
WAYS: tuple[Way, ...] = (by_task_cancel, by_task_cancel_when_ready, by_timeout, by_cancel_scope)
SESSION_TIMEOUT = aiohttp.ClientTimeout(total=60)


def passing_faults() -> list[Fault]:
    """Return faults that a save gets over: all ways through the source are gone."""
    return [refuse(429).of("manifest").often(1), drop(0.5, "close").often(1), redirect("{elsewhere}{path}")]


@pytest.fixture
async def registry() -> AsyncIterator[FaultyRegistry]:
    async with FaultyRegistry({"team/app:1": SMALL}, auth="bearer") as registry:
        yield registry


async def save_small(
    registry: FaultyRegistry, target: Path, session: aiohttp.ClientSession | None = None
) -> None:
    source = RegistrySource(
        credentials=StaticCredentials(USER, PASSWORD), plain_http=True, session=session, sleep=Naps().sleep
    )
    async with source:
        await save([ImageRequest(source, f"{registry.address}/team/app:1", [NAME])], target, fsync=False)


def tasks_but_the_servers() -> set[asyncio.Task[Any]]:
    """Return the tasks of this loop, without those in which the registry accepts and answers."""
    servers = ("_accept_connection2", "RequestHandler.start", "RequestHandler._handle_request")
    return {task for task in asyncio.all_tasks() if not task.get_coro().__qualname__.endswith(servers)}  # type: ignore[union-attr]


async def each_suspension(
    way: Way,
    work: Callable[[], Any],
    *,
    twice: bool,
    check: Callable[[], Awaitable[None]],
    prepare: Callable[[], None],
) -> int:
    """Interrupt the work at its first suspension, its second, and so on, until it ends before."""
    for at in itertools.count(1):
        prepare()
        driver = TasksDriver(at, twice=twice)
        await asyncio.create_task(way(driver, work))
        await check()
        if driver.suspensions < at:
            return at
    raise AssertionError("counting ends")


@pytest.mark.parametrize("faults", [list, passing_faults], ids=["no faults", "faults"])
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("way", WAYS)
async def test_cancelled_anywhere(
    registry: FaultyRegistry, tmp_path: Path, way: Way, twice: bool, faults: Callable[[], list[Fault]]
) -> None:
    """A cancel leaves no connection, task or file."""
    target, expected = tmp_path / "app.tar", await archive_of([SMALL.tagged(NAME)])
    tasks = tasks_but_the_servers()

    def prepare() -> None:
        registry.faults = faults()

    async def check() -> None:
        assert tasks_but_the_servers() == tasks
        assert not target.exists() or target.read_bytes() == expected
        target.unlink(missing_ok=True)
        assert list(tmp_path.iterdir()) == []
        await closed(registry)

    suspensions = await each_suspension(
        way, lambda: save_small(registry, target), twice=twice, check=check, prepare=prepare
    )
    assert suspensions > 20


@pytest.mark.parametrize("faults", [list, passing_faults], ids=["no faults", "faults"])
@pytest.mark.parametrize("way", WAYS)
async def test_the_callers_session_still_works(
    registry: FaultyRegistry, tmp_path: Path, way: Way, faults: Callable[[], list[Fault]]
) -> None:
    """The pool has one connection; if it were not given back, the next request would wait for ever."""
    target, expected = tmp_path / "app.tar", await archive_of([SMALL.tagged(NAME)])

    def prepare() -> None:
        registry.faults = faults()

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=1), timeout=SESSION_TIMEOUT, headers={"X-Mine": "1"}
    ) as session:

        async def check() -> None:
            assert not target.exists() or target.read_bytes() == expected
            target.unlink(missing_ok=True)
            async with session.get(f"{registry.here.url}/v2/") as response:
                assert response.status == 401
                await response.read()
            assert registry.asks[-1].headers.get("X-Mine") == "1"
            assert "Authorization" not in registry.asks[-1].headers
            await closed(registry, but=2)  # kept alive, one to each host

        await each_suspension(
            way, lambda: save_small(registry, target, session), twice=False, check=check, prepare=prepare
        )
        assert not session.closed
        assert not list(session.cookie_jar)


# ── the runs above can fail ──


def test_runs_are_of_every_kind() -> None:
    runs = [Run.of(seed) for seed in range(RUNS)]
    assert {run.fatal for run in runs} == {None, *FATAL}
    assert sum(run.fatal is None for run in runs) == RUNS * 2 // 3
    kinds = {
        (re.sub(r"[\d.]+", "", fault.name), kind)
        for run in runs
        for fault in run.faults
        for kind in fault.kinds
    }
    assert len(kinds) > 60, sorted(kinds)
    assert {run.auth for run in runs} == {"none", "basic", "bearer"}
    assert {run.token_uses for run in runs if run.auth == "bearer"} == {None, 1, 2, 3}
