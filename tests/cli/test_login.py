"""``login``, ``logout`` and ``--creds-stdin`` as processes, with registries in this one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aiodockersave.cli import exit_codes
from aiodockersave.cli.commands import command as commands
from tests.sinks.test_adapters import ROOT
from tests.support.faulty_registry import (
    BASIC,
    PASSWORD,
    SECRETS,
    USER,
    Answer,
    Fault,
    FaultyRegistry,
    redirect,
)
from tests.support.images import make_image, make_layer, write_layout

from .test_program import LIMIT, command, wait_until

IMAGE = make_image(make_layer({"etc/name": b"base\n"}))
WRONG = "wrong battery"
HIDDEN = (*SECRETS, WRONG, base64.b64encode(f"{USER}:{WRONG}".encode()).decode())


class Result(NamedTuple):
    """The end of a command."""

    code: int
    out: str
    lines: list[str]


class Home:
    """A home directory without any login, in which commands are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / ".docker" / "config.json"
        (folder / "run").mkdir(parents=True)
        known = ("DOCKER_", "REGISTRY_AUTH_FILE", "XDG_")
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(known)},
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder / "run"),
        }

    async def run(self, *arguments: object, given: str | bytes | None = None) -> Result:
        """Run a command to its end; no secret may be in what it says."""
        return await asyncio.to_thread(self.run_now, *arguments, given=given)

    def run_now(self, *arguments: object, given: str | bytes | None = None) -> Result:
        ended = subprocess.run(
            command(*arguments),
            cwd=ROOT,
            env=self.environ,
            input=given.encode() if isinstance(given, str) else given or b"",
            capture_output=True,
            timeout=LIMIT,
            check=False,
        )
        result = Result(ended.returncode, ended.stdout.decode(), ended.stderr.decode().splitlines())
        said = "\n".join([result.out, *result.lines])
        assert not [secret for secret in HIDDEN if secret in said]
        return result

    @property
    def auths(self) -> Any:
        return json.loads(self.file.read_bytes())["auths"]

    def keep(self, registry: str, password: str) -> None:
        self.file.parent.mkdir(exist_ok=True)
        auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
        self.file.write_text(json.dumps({"auths": {registry: {"auth": auth}}}))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture(params=["basic", "bearer"])
async def registry(request: pytest.FixtureRequest) -> AsyncIterator[FaultyRegistry]:
    """A registry that asks for a password, in each way."""
    async with FaultyRegistry({"team/app:1": IMAGE}, auth=request.param) as registry:
        yield registry


LOGIN = ("-u", USER, "--password-stdin")


# ── login, logout ──


@pytest.mark.parametrize("verbose", [(), ("--verbose",)], ids=["", "verbose"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"], ids=repr)
async def test_a_login_is_checked_and_stored_and_used(
    registry: FaultyRegistry, home: Home, tmp_path: Path, verbose: tuple[str, ...], end: str
) -> None:
    address = registry.address
    result = await home.run("login", address, *LOGIN, *verbose, given=PASSWORD + end)
    assert result == (0, "", [f"logged in at {address} as {USER}; stored in {home.file}"])
    assert home.auths == {address: {"auth": BASIC.removeprefix("Basic ")}}
    asked = [(ask.kind, ask.path) for ask in registry.asks]
    assert asked[0] == asked[-1] == ("ping", "/v2/")
    assert all("scope" not in path for _, path in asked)

    saved = await home.run("save", f"{address}/team/app:1", "-o", tmp_path / "a.tar")
    assert saved.code == 0

    result = await home.run("logout", address, *verbose)
    assert result == (0, "", [f"logged out of {address}; removed from {home.file}"])
    result = await home.run("logout", address)
    assert result == (0, "", [f"there is no login at {address} to remove"])
    assert (await home.run("plan", f"{address}/team/app:1")).code == exit_codes.LOGIN


@pytest.mark.parametrize("verbose", [(), ("--verbose",)], ids=["", "verbose"])
async def test_a_refused_password_is_not_stored(
    registry: FaultyRegistry, home: Home, verbose: tuple[str, ...]
) -> None:
    result = await home.run("login", registry.address, *LOGIN, *verbose, given=WRONG)
    assert (result.code, result.out) == (exit_codes.LOGIN, "")
    assert f"login at {registry.address}" in result.lines[0]
    assert "the credentials from --password-stdin are refused: " in result.lines[0]
    assert verbose or len(result.lines) == 1
    assert not home.file.exists()


async def test_an_old_login_stays_where_the_new_one_is_refused(registry: FaultyRegistry, home: Home) -> None:
    home.keep(registry.address, PASSWORD)
    before = home.file.read_bytes()
    assert (await home.run("login", registry.address, *LOGIN, given=WRONG)).code == exit_codes.LOGIN
    assert home.file.read_bytes() == before


async def test_another_file(registry: FaultyRegistry, home: Home, tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    address = registry.address
    result = await home.run("login", address, *LOGIN, "--authfile", mine, "--quiet", given=PASSWORD)
    assert result == (0, "", [])
    assert not home.file.exists()
    assert (await home.run("plan", f"{address}/team/app:1", "--authfile", mine)).code == 0
    assert (await home.run("logout", address, "--authfile", mine)).code == 0
    assert json.loads(mine.read_bytes()) == {"auths": {}}


async def test_a_registry_that_asks_for_no_password(home: Home) -> None:
    async with FaultyRegistry() as registry:
        result = await home.run("login", registry.address, *LOGIN, given=PASSWORD)
        assert result.code == 0
        assert result.lines == [
            f"aiodockersave: {registry.address} did not ask for a password, so this one may be wrong",
            f"logged in at {registry.address} as {USER}; stored in {home.file}",
        ]
        assert not any("Authorization" in ask.headers for ask in registry.asks)


async def test_a_variable_that_comes_first_is_reported(registry: FaultyRegistry, home: Home) -> None:
    auth = base64.b64encode(f"{USER}:other".encode()).decode()
    home.environ["DOCKER_AUTH_CONFIG"] = json.dumps({"auths": {registry.address: {"auth": auth}}})
    result = await home.run("login", registry.address, *LOGIN, given=PASSWORD)
    assert result.code == 0
    assert result.lines[1:] == [
        f"aiodockersave: $DOCKER_AUTH_CONFIG has another login for {registry.address}, which is used first"
    ]
    result = await home.run("logout", registry.address)
    assert result.lines[1:] == [
        f"aiodockersave: $DOCKER_AUTH_CONFIG still has a login for {registry.address}"
    ]


def asks_for(challenge: str) -> Fault:
    return Fault(
        challenge,
        lambda *_: Answer(401).saying(WWW_Authenticate=challenge),
        when=lambda *_: True,
        kinds=("ping",),
    )


HOSTILE: dict[str, tuple[list[Fault], str]] = {
    "a realm without TLS": ([asks_for('Bearer realm="http://example.com/token"')], "is not https"),
    "a private realm": ([asks_for('Bearer realm="https://10.0.0.1/token"')], "private address 10.0.0.1"),
    "no realm": ([asks_for("Bearer")], "is not a proper URL"),
    "an unknown scheme": ([asks_for("Negotiate")], "only Bearer and Basic are known"),
    "another host": (
        [
            replace(redirect("{elsewhere}/v2/"), kinds=("ping",)),
            replace(asks_for('Basic realm="x"'), when=lambda ask, _: ask.is_elsewhere),
        ],
        "status 401",
    ),
    "not found": (
        [Fault("404", lambda *_: Answer(404), when=lambda *_: True, kinds=("ping",))],
        "status 404",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_a_hostile_registry_learns_nothing(home: Home, case: str) -> None:
    faults, reason = HOSTILE[case]
    async with FaultyRegistry(faults=faults) as registry:
        result = await home.run("login", registry.address, *LOGIN, given=PASSWORD)
        assert result.code == (exit_codes.REGISTRY if case == "not found" else exit_codes.LOGIN)
        assert reason in "\n".join(result.lines)
        asks = [*registry.asks, *registry.other.asks]
        assert asks
        assert not any(secret in ask.everything() for ask in asks for secret in SECRETS)
    assert not home.file.exists()


async def test_plain_http_is_not_tried_for_other_hosts(home: Home) -> None:
    """A name that is not of this machine is asked by https alone, unless the user says so."""
    async with FaultyRegistry(auth="basic") as registry:
        port = registry.address.rpartition(":")[2]
        home.environ["NO_PROXY"] = "*"
        host = f"{os.uname().nodename}.invalid:{port}"
        result = await home.run("login", host, *LOGIN, given=PASSWORD)
        assert result.code == exit_codes.REGISTRY
        assert f"https://{host}/v2/" in result.lines[-1]
        assert not registry.asks


# ── a wrong command line ──


@pytest.mark.parametrize(
    ("arguments", "given", "reason"),
    [
        (("login",), "", "Missing argument 'HOST'"),
        (("login", "quay.io/team"), "", "not the name of a registry"),
        (("login", f"me:{WRONG}@quay.io"), "", "user and password are not part of HOST"),
        (("login", "quay.io"), PASSWORD, "there is no terminal to ask for the password"),
        (("login", "quay.io", "--password-stdin"), PASSWORD, "--password-stdin needs --username"),
        (("login", "quay.io", "--password", WRONG), "", "No such option"),
        (("login", "quay.io", "-p", WRONG), "", "No such option"),
        (("login", "quay.io", *LOGIN), "", "the password is empty"),
        (("login", "quay.io", *LOGIN), "\n", "the password is empty"),
        (("login", "quay.io", *LOGIN), f"{PASSWORD}\n\n", "the password has control characters"),
        (("login", "quay.io", *LOGIN), f"{PASSWORD}\xff".encode("latin-1"), "standard input is not UTF-8"),
        (("login", "quay.io", *LOGIN), PASSWORD * 6000, "standard input has more than 65536 bytes"),
        (("login", "quay.io", "-u", "a:b", "--password-stdin"), PASSWORD, "the username has a colon"),
        (("plan", "quay.io/a", "--creds-stdin"), PASSWORD, "there is no colon"),
        (("plan", "quay.io/a", "--creds-stdin"), f":{PASSWORD}", "the username is empty"),
        (("plan", "quay.io/a", "--creds-stdin"), f"{USER}:", "the password is empty"),
        (("plan", "quay.io/a", "b", "--creds-stdin"), f"{USER}:{PASSWORD}", "images of one registry"),
        (("plan", "oci:layout", "--creds-stdin"), f"{USER}:{PASSWORD}", "an image in a registry"),
    ],
)
def test_wrong_command_lines(home: Home, arguments: tuple[str, ...], given: str | bytes, reason: str) -> None:
    result = home.run_now(*arguments, given=given)
    assert result.code == 2
    assert reason in " ".join(result.lines)
    assert not home.file.exists()


def test_no_command_takes_a_password_as_an_argument() -> None:
    names = {
        name for each in commands.commands.values() for parameter in each.params for name in parameter.opts
    }
    assert {name for name in names if "pass" in name or "cred" in name} == {
        "--password-stdin",
        "--creds-stdin",
    }


# ── credentials for one command ──


async def test_credentials_for_one_command(registry: FaultyRegistry, home: Home, tmp_path: Path) -> None:
    home.keep(registry.address, WRONG)  # what is given wins
    image = f"{registry.address}/team/app:1"
    layout = write_layout(tmp_path, {"one": IMAGE})
    given = f"{USER}:{PASSWORD}\n"
    assert (await home.run("plan", image, "--creds-stdin", given=given)).code == 0
    saved = await home.run(
        "save",
        image,
        f"oci:{layout}=b:1",
        "--creds-stdin",
        "-o",
        tmp_path / "a.tar",
        "--verbose",
        given=given,
    )
    assert saved.code == 0
    result = await home.run("plan", image, "--creds-stdin", given=f"{USER}:{WRONG}")
    assert result.code == exit_codes.LOGIN
    assert "the credentials from --creds-stdin are refused" in result.lines[-1]


async def test_a_mirror_is_not_shown_the_credentials_of_one_command(home: Home) -> None:
    async with (
        FaultyRegistry({"team/app:1": IMAGE}, auth="basic") as registry,
        FaultyRegistry({"team/app:1": IMAGE}, auth="basic") as mirror,
    ):
        arguments = ("plan", f"{registry.address}/team/app:1", "--mirror", mirror.here.url, "--creds-stdin")
        assert (await home.run(*arguments, given=f"{USER}:{PASSWORD}")).code == 0
        assert mirror.asks
        assert not any("Authorization" in ask.headers for ask in mirror.asks)
        home.keep(mirror.address, PASSWORD)  # those that the user has kept for the mirror it is shown
        assert (await home.run(*arguments, given=f"{USER}:{PASSWORD}")).code == 0
        assert any("Authorization" in ask.headers for ask in mirror.asks)


# ── stored passwords that are refused ──


async def test_the_file_of_a_refused_password_is_named(registry: FaultyRegistry, home: Home) -> None:
    home.keep(registry.address, WRONG)
    result = await home.run("plan", f"{registry.address}/team/app:1")
    assert result.code == exit_codes.LOGIN
    (line,) = result.lines
    assert f"the credentials from {home.file} are refused: " in line


async def test_the_helper_of_a_refused_password_is_named(registry: FaultyRegistry, home: Home) -> None:
    program = home.folder / "docker-credential-here"
    program.write_text(f'#!/bin/sh\necho \'{{"Username": "{USER}", "Secret": "{WRONG}"}}\'\n')
    program.chmod(0o755)
    home.environ["PATH"] = f"{home.folder}:{home.environ['PATH']}"
    home.file.parent.mkdir()
    home.file.write_text(json.dumps({"credsStore": "here"}))
    result = await home.run("plan", f"{registry.address}/team/app:1")
    (line,) = result.lines
    assert "the credentials from docker-credential-here are refused: " in line


async def test_nobody_is_said_to_be_refused_without_a_password(registry: FaultyRegistry, home: Home) -> None:
    result = await home.run("plan", f"{registry.address}/team/app:1")
    (line,) = result.lines
    assert "log in" in line
    assert "refused" not in line


# ── a terminal ──


class Screen:
    """A program on a terminal of its own."""

    def __init__(self, process: subprocess.Popen[bytes], terminal: int, slave: int) -> None:
        self.process = process
        self.shown = b""
        self._terminal = terminal
        self._slave = slave
        os.set_blocking(terminal, False)

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text.encode() in self._read())

    def _read(self) -> bytes:
        """Return all that was shown."""
        with contextlib.suppress(BlockingIOError):
            self.shown += os.read(self._terminal, 4096)
        return self.shown

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def shows_typing(self) -> bool:
        return bool(termios.tcgetattr(self._slave)[3] & termios.ECHO)

    def _has_ended(self) -> bool:
        self._read()  # a terminal that is full would hold it up
        return self.process.poll() is not None

    def end(self) -> int:
        """Wait for the program's end; return its exit code."""
        wait_until(self._has_ended)
        self._read()
        return self.process.wait(LIMIT)


BECOME_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "aiodockersave", *sys.argv[1:]])
"""


@contextlib.contextmanager
def on_terminal(home: Home, *arguments: str) -> Iterator[Screen]:
    terminal, slave = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-c", BECOME_TERMINAL, *arguments],
            cwd=ROOT,
            env=home.environ,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        ) as process:
            try:
                yield Screen(process, terminal, slave)
            finally:
                process.kill()
    finally:
        os.close(terminal)
        os.close(slave)


@pytest.mark.parametrize("user", [None, USER], ids=["asks for both", "asks for the password"])
async def test_a_terminal_asks_and_does_not_show_the_password(
    registry: FaultyRegistry, home: Home, user: str | None
) -> None:
    def session() -> tuple[int, bytes]:
        with on_terminal(home, "login", registry.address, *(["-u", user] if user else [])) as screen:
            if user is None:
                screen.wait_for(f"Username for {registry.address}: ")
                assert screen.shows_typing()
                screen.type(f"{USER}\n")
            screen.wait_for(f"Password for {USER} at {registry.address}: ")
            assert not screen.shows_typing()
            screen.type(f"{PASSWORD}\n")
            code = screen.end()
            assert screen.shows_typing()
            return code, screen.shown

    code, shown = await asyncio.to_thread(session)
    assert code == 0
    assert f"logged in at {registry.address} as {USER}" in shown.decode()
    assert PASSWORD.encode() not in shown
    assert home.auths == {registry.address: {"auth": BASIC.removeprefix("Basic ")}}


@pytest.mark.parametrize(
    ("way", "expected"),
    [("Ctrl-C", 130), ("Ctrl-D", 130), (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_an_interrupt_at_the_password_leaves_a_terminal_that_shows(
    home: Home, way: str | signal.Signals, expected: int
) -> None:
    with on_terminal(home, "login", "quay.io", "-u", USER) as screen:
        screen.wait_for("Password for")
        if isinstance(way, signal.Signals):
            screen.process.send_signal(way)
        else:
            screen.type({"Ctrl-C": "\x03", "Ctrl-D": "\x04"}[way])
        assert screen.end() == expected
        assert screen.shows_typing()
        assert "Traceback" not in screen.shown.decode()
    assert not home.file.exists()


@pytest.mark.parametrize(
    "arguments", [("plan", "quay.io/a", "--creds-stdin"), ("login", "quay.io", *LOGIN)], ids=["plan", "login"]
)
def test_a_terminal_would_show_what_is_read_from_standard_input(
    home: Home, arguments: tuple[str, ...]
) -> None:
    with on_terminal(home, *arguments) as screen:
        assert screen.end() == 2
        assert re.search(r"reads from a pipe or a file, not from a\s+terminal", screen.shown.decode())
