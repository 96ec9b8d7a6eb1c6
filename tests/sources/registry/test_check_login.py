"""Asking a registry whether it takes a login."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aiodockersave.core.errors import AuthenticationError, DockerSaveError, InvalidReferenceError
from aiodockersave.sources.credentials import (
    Credentials,
    CredentialStore,
    MappingCredentials,
    StaticCredentials,
)
from aiodockersave.sources.registry import RegistrySource, Retries
from tests.support.faulty_registry import PASSWORD, USER, Auth, FaultyRegistry, drop_at_once, refuse
from tests.support.interruption import WAYS, Way

from .test_failures import closed, each_suspension, tasks_but_the_servers

HERE = StaticCredentials(USER, PASSWORD)
AT_ONCE = Retries(min_delay=0, max_delay=0)


async def check(registry: FaultyRegistry, credentials: CredentialStore = HERE) -> bool:
    async with RegistrySource(credentials=credentials, plain_http=True, retries=AT_ONCE) as source:
        return await source.check_login(registry.address)


@pytest.mark.parametrize(("auth", "asked"), [("none", False), ("basic", True), ("bearer", True)])
async def test_a_login_that_is_right(auth: Auth, asked: bool) -> None:
    async with FaultyRegistry(auth=auth) as registry:
        assert await check(registry) is asked
        shown = [ask for ask in registry.asks if "Authorization" in ask.headers]
        assert bool(shown) is asked
        assert {ask.path.partition("?")[0] for ask in registry.asks} <= {"/v2/", "/token"}


@pytest.mark.parametrize("auth", ["basic", "bearer"])
@pytest.mark.parametrize(
    ("credentials", "said"),
    [
        (StaticCredentials(USER, "wrong battery"), "the credentials are refused: "),
        (MappingCredentials({}), "a password is needed|log in"),
    ],
    ids=["wrong", "none"],
)
async def test_a_login_that_is_refused(auth: Auth, credentials: CredentialStore, said: str) -> None:
    async with FaultyRegistry(auth=auth) as registry:
        with pytest.raises(AuthenticationError, match=said) as caught:
            await check(registry, credentials)
    assert f"login at {registry.address}" in str(caught.value)
    assert caught.value.status == 401
    assert "battery" not in str(caught.value)


async def test_the_place_of_a_refused_login_is_named() -> None:
    kept = MappingCredentials({"127.0.0.1": Credentials(USER, "wrong battery", origin="/etc/a file")})

    class Anywhere:
        async def get(self, registry: str, repository: str) -> Credentials | None:
            return await kept.get(registry.partition(":")[0], repository)

    for auth in ("basic", "bearer"):
        async with FaultyRegistry(auth=auth) as registry:
            with pytest.raises(AuthenticationError, match="the credentials from /etc/a file are refused: "):
                await check(registry, Anywhere())


async def test_faults_that_pass() -> None:
    faults = [drop_at_once().of("ping").often(2), refuse(503).of("ping", "token").often(2)]
    for fault in faults:
        fault.when = lambda *_: True
    async with FaultyRegistry(faults=faults, auth="bearer") as registry:
        assert await check(registry)
    assert [fault.fired for fault in faults] == [2, 2]


@pytest.mark.parametrize("status", [404, 403])
async def test_faults_that_stay(status: int) -> None:
    fault = refuse(status).of("ping")
    async with FaultyRegistry(faults=[fault]) as registry:
        with pytest.raises(DockerSaveError, match=f"status {status}"):
            await check(registry)
        assert fault.fired == 1


async def test_no_registry() -> None:
    async with RegistrySource(credentials=HERE) as source:
        with pytest.raises(InvalidReferenceError):
            await source.check_login("quay.io:99999")


@pytest.fixture(params=["basic", "bearer"])
async def registry(request: pytest.FixtureRequest) -> AsyncIterator[FaultyRegistry]:
    async with FaultyRegistry(auth=request.param) as registry:
        yield registry


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_cancelled_anywhere_nothing_stays_open(registry: FaultyRegistry, way: Way, twice: bool) -> None:
    tasks = tasks_but_the_servers()

    async def nothing_is_left() -> None:
        assert tasks_but_the_servers() == tasks
        await closed(registry)

    suspensions = await each_suspension(
        way, lambda: check(registry), twice=twice, check=nothing_is_left, prepare=lambda: None
    )
    assert suspensions > 3
