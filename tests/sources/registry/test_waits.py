"""A source tells what it waits for, while it does."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from aiodockersave import RegistrySource, Retries, SupportsWaits, Timeouts, Wait
from aiodockersave.core.model import Platform
from aiodockersave.sources.waits import Waits
from tests.support.faulty_registry import Fault, FaultyRegistry, drop, drop_at_once, refuse
from tests.support.images import make_image, make_layer

LIMIT = 60.0  # seconds for what must happen
IMAGE = make_image(make_layer(b"layer " * 100_000, None), repo_tags=["app:1"])
PATIENT = Timeouts(head=50.0, silence=40.0)
AMD64 = Platform("linux", "amd64")

WAITS: list[tuple[Fault, str, str, float]] = [
    # what goes wrong; what is then waited for, why, and for how long
    (drop_at_once("stall").of("manifest"), "manifest ", "no answer yet", 50.0),
    (drop(0.5, "stall").of("manifest"), "manifest ", "no more bytes yet", 40.0),
    (drop_at_once("stall").of("config"), "config ", "no answer yet", 50.0),
    (drop(0.5, "stall").of("blob"), "blob ", "no more bytes yet", 40.0),
    (refuse(503, retry_after="30").of("manifest"), "manifest ", "the next attempt, as ", 30.0),
    (refuse(429, retry_after="25", code="TOOMANYREQUESTS").of("blob"), "blob ", "the next attempt, as ", 25.0),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "what", "reason", "limit"), WAITS, ids=[str(fault) for fault, *_ in WAITS])
async def test_what_is_waited_for(fault: Fault, what: str, reason: str, limit: float) -> None:
    async with FaultyRegistry({"team/app:1": IMAGE}, [fault]) as registry:
        retries = Retries(min_delay=1, max_delay=1)
        async with RegistrySource(timeouts=PATIENT, retries=retries) as source:
            assert isinstance(source, SupportsWaits)
            assert source.waits() == []
            reading = asyncio.create_task(read(source, f"{registry.address}/team/app:1"))
            async with asyncio.timeout(LIMIT):
                while not (found := [wait for wait in source.waits() if wait.seconds > 0.1]):
                    assert not reading.done()
                    await asyncio.sleep(0.01)
            (wait,) = found
            assert (wait.what.startswith(what), wait.reason.startswith(reason)) == (True, True), wait
            assert wait.limit == limit
            assert "\n" not in wait.reason
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
            assert source.waits() == []


async def test_a_connection_is_waited_for() -> None:
    """At a loopback address, where it is found out first whether the registry speaks TLS."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = "{}:{}".format(*silent.getsockname())
        async with RegistrySource(timeouts=Timeouts(connect=45.0)) as source:
            resolving = asyncio.create_task(source.resolve(f"{address}/team/app:1", AMD64))
            async with asyncio.timeout(LIMIT):
                while not (found := source.waits()):
                    assert not resolving.done()
                    await asyncio.sleep(0.01)
            (wait,) = found
            assert (wait.what, wait.reason, wait.limit) == (
                f"manifest {address}/team/app:1",
                "no answer yet",
                45.0,
            )
            resolving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await resolving
            assert source.waits() == []


async def read(source: RegistrySource, reference: str) -> None:
    resolved = await source.resolve(reference, AMD64)
    for layer in resolved.manifest.layers:
        async with source.open_blob(layer) as blob:
            async for _ in blob:
                pass


async def test_a_wait_grows_and_ends() -> None:
    waits = Waits()
    with waits.noted("one", "because", 5.0):
        await asyncio.sleep(0.02)
        with waits.noted("two", "why not", 6.0):
            first, second = waits.listed()
    assert (first.what, first.reason, first.limit) == ("one", "because", 5.0)
    assert first.seconds >= 0.02 > second.seconds
    assert waits.listed() == []
    with pytest.raises(KeyError), waits.noted("one", "because", 5.0):
        raise KeyError
    assert waits.listed() == []


async def test_a_pause_is_a_wait() -> None:
    async def sleep(seconds: float) -> None:
        assert seconds == 7.0
        (wait,) = waits.listed()
        assert wait == Wait("blob", "another attempt", wait.seconds, 7.0)

    waits = Waits(sleep)
    await waits.pause("blob", "another attempt", 7.0)
    assert waits.listed() == []
