"""Logins that are stored and removed: what the files and helpers have afterwards, and what is read back."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aiodockersave.core.errors import ConfigurationError, InvalidInputError
from aiodockersave.sinks.private_file import change_private
from aiodockersave.sources.credentials import Credentials
from aiodockersave.sources.credentials import auth_files as _auth_files
from aiodockersave.sources.credentials.logins import DockerLogins, check_login_text, parse_host
from tests.support.interruption import WAYS, Driver, Way

from .test_stores import (
    AUTH_JSON,
    CONFIG_AUTH_JSON,
    DOCKER_JSON,
    DOCKERCFG,
    LIMIT,
    SECRET,
    Computer,
    auths,
    entry,
)

NEW = Credentials("new", f"{SECRET}:with a colon, Ünïcode and a \N{KEY}")
NEW_ENTRY = {"auth": base64.b64encode(f"new:{NEW.password}".encode()).decode()}
HUB = "https://index.docker.io/v1/"

KEEPING = """\
case $1 in
  store) cat >"${0%/*}/../kept" ;;
  get)   read -r server; grep -q "\\"$server\\"" "${0%/*}/../kept" 2>/dev/null && cat "${0%/*}/../kept" ||
         { echo credentials not found in native keychain; exit 1; } ;;
  erase) read -r server; echo "$server" >"${0%/*}/../erased"; rm "${0%/*}/../kept" ;;
esac
"""
"""A helper that keeps one login in the file ``kept``, as JSON."""


@pytest.fixture(autouse=True)
def _no_system_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_auth_files, "SYSTEM_FILE", str(tmp_path / "etc" / "auth.json"))


@pytest.fixture
def computer(tmp_path: Path) -> Computer:
    computer = Computer(tmp_path)
    computer.environ["PATH"] += f":{os.environ['PATH']}"  # for cat and grep
    return computer


def logins(computer: Computer, authfile: Path | None = None) -> DockerLogins:
    return DockerLogins(change_private, authfile=authfile, environ=computer.environ)


def content(computer: Computer) -> dict[str, Any]:
    """Return every file of credentials that is there."""
    files = (AUTH_JSON, CONFIG_AUTH_JSON, DOCKER_JSON, DOCKERCFG, "mine.json", "kept")
    return {
        name: json.loads((computer.folder / name).read_bytes() or b"{}")
        for name in files
        if (computer.folder / name).exists()
    }


# ── HOST ──


@pytest.mark.parametrize(
    ("text", "registry"),
    [
        ("quay.io", "quay.io"),
        ("https://quay.io", "quay.io"),
        ("https://quay.io/v2/", "quay.io"),
        ("localhost", "localhost"),
        ("localhost:5000", "localhost:5000"),
        ("[::1]:5000", "[::1]:5000"),
        *((name, "docker.io") for name in ("docker.io", "index.docker.io", "registry-1.docker.io", HUB)),
    ],
)
def test_hosts(text: str, registry: str) -> None:
    assert parse_host(text) == registry


@pytest.mark.parametrize(
    "text", ["", "team", "quay.io/team", "a b.io", "quay.io:x", "-x.io", "https://", "\x1b[.io"]
)
def test_no_hosts(text: str) -> None:
    with pytest.raises(InvalidInputError, match="not the name of a registry") as caught:
        parse_host(text)
    assert str(caught.value).isprintable()


def test_a_password_before_a_host_is_not_repeated() -> None:
    with pytest.raises(InvalidInputError, match="--username") as caught:
        parse_host(f"me:{SECRET}@quay.io")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("username", "password", "fault"),
    [
        ("", SECRET, "username is empty"),
        ("me", "", "password is empty"),
        ("a:b", SECRET, "username has a colon"),
        ("me\n", SECRET, "username has control characters"),
        ("me", f"{SECRET}\r\n", "password has control characters"),
        ("me", f"\0{SECRET}", "password has control characters"),
        ("m\udcff", SECRET, "username is not UTF-8"),
    ],
)
def test_texts_that_no_registry_can_be_shown(username: str, password: str, fault: str) -> None:
    with pytest.raises(InvalidInputError, match=fault) as caught:
        check_login_text(Credentials(username, password))
    assert SECRET not in str(caught.value)


# ── where a login goes ──


@dataclass(frozen=True)
class Store:
    id: str
    files: Mapping[str, Any]
    after: Mapping[str, Any]
    registry: str = "quay.io"
    places: tuple[str, ...] = (DOCKER_JSON,)
    env: Mapping[str, str] = field(default_factory=dict)
    authfile: str | None = None


QUAY = auths(**{"quay.io": NEW_ENTRY})
KEPT = {"ServerURL": "quay.io", "Username": "new", "Secret": NEW.password}
HELPER = "docker-credential-keep"
STORES = [
    Store("nothing yet", {}, {DOCKER_JSON: QUAY}),
    Store("an empty file", {DOCKER_JSON: b""}, {DOCKER_JSON: QUAY}),
    Store("the hub, as Docker names it", {}, {DOCKER_JSON: auths(**{HUB: NEW_ENTRY})}, "docker.io"),
    Store(
        "other content stays",
        {DOCKER_JSON: {"psFormat": "{{.ID}}\u00fc", "n": 1.5, "auths": {"a.io": entry("me")}, "x": [None, True]}},
        {DOCKER_JSON: {"psFormat": "{{.ID}}\u00fc", "n": 1.5, "auths": {"a.io": entry("me"), "quay.io": NEW_ENTRY}, "x": [None, True]}},
    ),
    Store(
        "every form of the old entry goes",
        {DOCKER_JSON: auths(**{"https://quay.io/v1/": entry("me"), "quay.io": {"identitytoken": SECRET}, "quay.io/team": entry("me")})},
        {DOCKER_JSON: auths(**{"quay.io/team": entry("me"), "quay.io": NEW_ENTRY})},
    ),
    Store(
        "every form of the hub goes",
        {DOCKER_JSON: auths(**{"docker.io": entry("me"), "index.docker.io": entry("me"), HUB: entry("me")})},
        {DOCKER_JSON: auths(**{HUB: NEW_ENTRY})},
        "docker.io",
    ),
    Store("no object yet", {DOCKER_JSON: {"auths": None}}, {DOCKER_JSON: QUAY}),
    Store(
        "other spellings",
        {DOCKER_JSON: {"Auths": {"a.io": entry("me")}, "AUTHS": {"quay.io": entry("me")}}},
        {DOCKER_JSON: {"Auths": {"a.io": entry("me"), "quay.io": NEW_ENTRY}}},
    ),
    Store(
        "podman's file, where it has a login that would win",
        {AUTH_JSON: auths(**{"quay.io": entry("me"), "a.io": entry("me")}), CONFIG_AUTH_JSON: auths(**{"a.io": entry("me")})},
        {
            AUTH_JSON: auths(**{"a.io": entry("me"), "quay.io": NEW_ENTRY}),
            CONFIG_AUTH_JSON: auths(**{"a.io": entry("me")}),
            DOCKER_JSON: QUAY,
        },
        places=(AUTH_JSON, DOCKER_JSON),
    ),
    Store(
        "the hub in podman's file, as podman names it",
        {AUTH_JSON: auths(**{"docker.io": entry("me")})},
        {AUTH_JSON: auths(**{"docker.io": NEW_ENTRY}), DOCKER_JSON: auths(**{HUB: NEW_ENTRY})},
        "docker.io",
        (AUTH_JSON, DOCKER_JSON),
    ),
    Store("a file behind is not touched", {DOCKERCFG: {"quay.io": entry("me")}}, {DOCKERCFG: {"quay.io": entry("me")}, DOCKER_JSON: QUAY}),
    Store("REGISTRY_AUTH_FILE", {DOCKER_JSON: QUAY}, {DOCKER_JSON: QUAY, "mine.json": QUAY}, env={"REGISTRY_AUTH_FILE": "mine.json"}, places=("mine.json",)),
    Store("--authfile", {AUTH_JSON: QUAY}, {AUTH_JSON: QUAY, "mine.json": QUAY}, authfile="mine.json", places=("mine.json",)),
    Store("the hub in --authfile", {}, {"mine.json": auths(**{"docker.io": NEW_ENTRY})}, "docker.io", ("mine.json",), authfile="mine.json"),
    Store(
        "a helper for all registries",
        {DOCKER_JSON: {"credsStore": "keep", **auths(**{"quay.io": entry("me")})}},
        {DOCKER_JSON: {"credsStore": "keep", "auths": {"quay.io": {}}}, "kept": KEPT},
        places=(HELPER,),
    ),
    Store(
        "a helper for all registries, and the hub",
        {DOCKER_JSON: {"credsStore": "keep"}},
        {DOCKER_JSON: {"credsStore": "keep", "auths": {HUB: {}}}, "kept": {**KEPT, "ServerURL": HUB}},
        "docker.io",
        (HELPER,),
    ),
    Store(
        "a helper for the registry",
        {DOCKER_JSON: {"credHelpers": {"quay.io": "keep"}, "credsStore": "other"}},
        {DOCKER_JSON: {"credHelpers": {"quay.io": "keep"}, "credsStore": "other", "auths": {"quay.io": {}}}, "kept": KEPT},
        places=(HELPER,),
    ),
    Store(
        "a helper that is excluded",
        {DOCKER_JSON: {"credHelpers": {"quay.io": ""}, "credsStore": "other"}},
        {DOCKER_JSON: {"credHelpers": {"quay.io": ""}, "credsStore": "other", **QUAY}},
    ),
    Store(
        "a helper in podman's file",
        {AUTH_JSON: {"credHelpers": {"quay.io": "keep"}}},
        {AUTH_JSON: {"credHelpers": {"quay.io": "keep"}, "auths": {"quay.io": {}}}, DOCKER_JSON: QUAY, "kept": KEPT},
        places=(HELPER, DOCKER_JSON),
    ),
]  # fmt: skip


def prepare(computer: Computer, case: Store) -> Path | None:
    computer.install("keep", KEEPING)
    for name, document in case.files.items():
        computer.write(name, document)
    for name, path in case.env.items():
        computer.environ[name] = str(computer.folder / path)
    return computer.folder / case.authfile if case.authfile else None


@pytest.mark.parametrize("case", STORES, ids=lambda case: case.id)
async def test_a_login_is_stored_and_found_and_removed(computer: Computer, case: Store) -> None:
    authfile = prepare(computer, case)
    before = content(computer)

    places = await logins(computer, authfile).store(case.registry, NEW)

    assert content(computer) == case.after
    assert [os.path.relpath(place, computer.folder) if "/" in place else place for place in places] == list(
        case.places
    )
    written = [
        name
        for name, document in content(computer).items()
        if document != before.get(name) and name != "kept"
    ]
    assert {stat.S_IMODE((computer.folder / name).stat().st_mode) for name in written} <= {0o600}
    found = await computer.credentials(authfile).get(case.registry, "team/app")
    if "quay.io/team" not in json.dumps(case.after):
        assert found == NEW
        assert found.origin == places[0]
    assert not list(computer.folder.rglob("*.tmp"))

    assert await logins(computer, authfile).remove(case.registry)

    assert await computer.credentials(authfile).get(case.registry, "") is None
    assert not (computer.folder / "kept").exists()
    assert await logins(computer, authfile).remove(case.registry) == []
    # What is not the registry's own is as it was.
    for name, document in before.items():
        if name not in {"kept", DOCKERCFG}:
            others = {key: value for key, value in document.items() if key.lower() != "auths"}
            left = content(computer)[name]
            assert {key: value for key, value in left.items() if key.lower() != "auths"} == others


async def test_a_new_directory_is_private(computer: Computer) -> None:
    await logins(computer).store("quay.io", NEW)
    assert stat.S_IMODE((computer.folder / DOCKER_JSON).parent.stat().st_mode) == 0o700


async def test_a_file_that_others_could_read_becomes_private(computer: Computer) -> None:
    path = computer.write(DOCKER_JSON, QUAY)
    path.chmod(0o644)
    await logins(computer).store("quay.io", NEW)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("broken", "reason"),
    [(b"{", "it is not JSON"), (b"[]", "not a JSON object"), (b'{"auths": []}', '"auths" is not used'), (b'{"n": 1e999}', "too large to keep")],
)  # fmt: skip
async def test_a_file_that_cannot_be_changed_stays(computer: Computer, broken: bytes, reason: str) -> None:
    path = computer.write(DOCKER_JSON, broken)
    with pytest.raises(ConfigurationError, match=reason) as caught:
        await logins(computer).store("quay.io", NEW)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == broken
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("script", "reason"),
    [("exit 3", "it fails with exit status 3"), ("kill -9 $$", "it fails with signal 9"), (None, "there is no such program")],
)  # fmt: skip
async def test_a_helper_that_fails_leaves_the_file(
    computer: Computer, script: str | None, reason: str
) -> None:
    if script is not None:
        computer.install("bad", f"cat >&2; {script}")
    path = computer.write(DOCKER_JSON, {"credsStore": "bad"})
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=f"docker-credential-bad.*{reason}") as caught:
        await logins(computer).store("quay.io", NEW)
    assert path.read_bytes() == before
    assert SECRET not in str(caught.value)


async def test_a_helper_that_hangs_is_killed(computer: Computer) -> None:
    computer.install("bad", 'echo $$ >"${0%/*}/../pid"; exec sleep 1000')
    computer.write(DOCKER_JSON, {"credsStore": "bad"})
    short = 1.0  # not a verdict: it never answers
    hurried = DockerLogins(change_private, environ=computer.environ, helper_timeout=short)
    with pytest.raises(ConfigurationError, match="does not answer within 1 s"):
        await hurried.store("quay.io", NEW)
    with pytest.raises(ProcessLookupError):
        os.kill(int((computer.folder / "pid").read_text()), 0)


async def test_the_password_is_not_on_a_helpers_command_line(computer: Computer) -> None:
    computer.install("see", 'cat >/dev/null; echo "$@" >"${0%/*}/../arguments"; env >>"${0%/*}/../arguments"')
    computer.write(DOCKER_JSON, {"credsStore": "see"})
    await logins(computer).store("quay.io", NEW)
    said = (computer.folder / "arguments").read_text()
    assert said.startswith("store\n")
    assert SECRET not in said


async def test_an_old_form_of_docker_is_logged_out_of(computer: Computer) -> None:
    path = computer.write(DOCKERCFG, {"https://quay.io/v1/": entry("me"), "a.io": entry("me")})
    assert await logins(computer).remove("quay.io") == [str(path)]
    assert json.loads(path.read_bytes()) == {"a.io": entry("me")}


async def test_nothing_is_written_where_nothing_is_removed(computer: Computer) -> None:
    path = computer.write(DOCKER_JSON, auths(**{"a.io": entry("me")}))
    before = path.stat()
    assert await logins(computer).remove("quay.io") == []
    assert path.stat() == before


@pytest.mark.parametrize("way", WAYS)
async def test_an_interrupt_leaves_the_old_files_or_the_new_ones(tmp_path: Path, way: Way) -> None:
    """At each suspension: every file is whole, and no other is left."""
    old: dict[str, Any] = {AUTH_JSON: auths(**{"quay.io": entry("me")}), DOCKER_JSON: {"x": 1}}
    new: dict[str, Any] = {AUTH_JSON: QUAY, DOCKER_JSON: {"x": 1, **QUAY}}
    for at in range(1, 100):
        (tmp_path / str(at)).mkdir()
        computer = Computer(tmp_path / str(at))
        for name, document in old.items():
            computer.write(name, document)

        async def store(computer: Computer = computer) -> None:
            await logins(computer).store("quay.io", NEW)

        driver = Driver(at)
        await asyncio.wait_for(asyncio.create_task(way(driver, store)), LIMIT)
        after = content(computer)
        assert all(after[name] in (old[name], new[name]) for name in old)
        assert not list(computer.folder.rglob("*.tmp"))
        if driver.suspensions < at:
            assert after == new
            break
    else:
        pytest.fail("it never ends")
    assert at > 5
