"""Store and remove logins in the places that :mod:`.stores` reads.

A login is written into Docker's file, ``$DOCKER_CONFIG/config.json`` or ``~/.docker/config.json``: Docker reads no other, and
podman and skopeo read it too. podman's own files come before it. So where one of these has a login for the registry already,
it is replaced there too; the old one would win otherwise. ``--authfile`` and ``$REGISTRY_AUTH_FILE`` name the only file.

Where a file names a helper for the registry, the helper stores the login, and the file has an entry without a password.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Literal, Protocol

from aiodockersave._aio import Worker, running_task
from aiodockersave.core.errors import ConfigurationError, InvalidInputError, InvalidReferenceError
from aiodockersave.core.reference import Reference
from aiodockersave.core.text import one_line
from aiodockersave.sources.regular_file import is_text

from .auth_files import MAX_FILE, AuthFile, Credentials, Place, names_of, object_of, parse_document, places
from .helper import HelperError, ask_helper, described, tell_helper
from .keys import HUB, HUB_SERVER, Helper, for_registry, helper_for, registry_of

__all__ = ["ChangeFile", "DockerLogins", "check_login_text", "parse_host"]


class ChangeFile(Protocol):
    """Replaces the content of a file in one step, as :func:`.sinks.private_file.change_private` does."""

    def __call__(self, path: str, change: Callable[[bytes], bytes | None], *, limit: int) -> bool:
        """Replace the content by what ``change`` makes of it; tell whether that was done. Blocks."""
        ...


def parse_host(text: str) -> str:
    """Return the registry that a HOST names: as in references, or as Docker's address of its API.

    Raises:
        InvalidInputError: ``text`` is not the name of a registry.
    """
    if "@" in text:  # a password may stand there: it is not repeated
        raise InvalidInputError("user and password are not part of HOST; use --username")
    host = registry_of(text)
    with contextlib.suppress(InvalidReferenceError):
        if host and Reference.parse(f"{host}/name").registry == host:
            return host
    raise InvalidInputError(
        f"not the name of a registry, such as quay.io or localhost:5000: {one_line(text)}"
    )


def check_login_text(credentials: Credentials) -> None:
    """Refuse a username or a password that no registry can be shown (RFC 7617 § 2).

    Raises:
        InvalidInputError: One of them is empty or has control characters, or the username has a colon.
    """
    for name, text in (("username", credentials.username), ("password", credentials.password)):
        if not text:
            raise InvalidInputError(f"the {name} is empty")
        if not is_text(text):  # a username from a command line may have any bytes
            raise InvalidInputError(f"the {name} is not UTF-8")
        if any(char < " " or char == "\x7f" for char in text):
            raise InvalidInputError(f"the {name} has control characters, such as a line end")
    if ":" in credentials.username:
        raise InvalidInputError("the username has a colon")


class DockerLogins:
    """The logins of this package, of Docker and of podman, to be changed.

    Args:
        change_file: Replaces the content of a file.
        authfile: The only file, which may be missing.
        environ: The environment, instead of this process's; helpers run with it too.
        home: The home directory, instead of the environment's or the user's.
        helper_timeout: The limit on a helper's work, in seconds.
    """

    def __init__(
        self,
        change_file: ChangeFile,
        *,
        authfile: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
        home: str | os.PathLike[str] | None = None,
        helper_timeout: float = 30.0,
    ) -> None:
        self._change_file = change_file
        self._authfile = None if authfile is None else os.fspath(authfile)
        self._environ = os.environ if environ is None else environ
        self._home = None if home is None else os.fspath(home)
        self._helper_timeout = helper_timeout

    async def store(self, registry: str, credentials: Credentials) -> list[str]:
        """Store the login for a registry; return the files and helpers that have it now.

        Args:
            registry: As :func:`parse_host` returns it.
            credentials: Username and password.

        Raises:
            ConfigurationError: A file is not JSON or too large, or a helper fails.
            OSError: A file cannot be changed.

        Cancel: each file has either its old content or the new one; a helper is killed and gone.
        """
        running_task()
        stored = []
        worker = Worker("aiodockersave-logins")
        with worker.held():
            for place in await self._places(worker):
                file = await worker.run(place.read)
                if place.is_for_logins or _has(file, registry):
                    stored.append(await self._put(worker, place, file, registry, credentials))
                if place.is_for_logins:
                    break
        return stored

    async def remove(self, registry: str) -> list[str]:
        """Remove the logins for a registry everywhere; return the files and helpers that had one.

        Entries for a path in the registry stay. Arguments, errors and cancel are those of :meth:`store`.
        """
        running_task()
        removed = []
        worker = Worker("aiodockersave-logins")
        with worker.held():
            for place in await self._places(worker):
                file = await worker.run(place.read)
                if await worker.run(self._change, place, registry, None):
                    removed.append(one_line(place.path))
                helper = helper_for(file, registry)
                if helper is not None and await self._is_known(helper):
                    await self._tell(helper, "erase", helper.server.encode())
                    removed.append(described(helper.name))
        return removed

    async def _places(self, worker: Worker) -> list[Place]:
        found = await worker.run(places, self._authfile, self._environ, self._home)
        return [replace(place, if_missing="fine") for place in found if place.text is None]

    async def _put(
        self, worker: Worker, place: Place, file: AuthFile, registry: str, credentials: Credentials
    ) -> str:
        helper = helper_for(file, registry)
        if helper is None:
            pair = f"{credentials.username}:{credentials.password}"
            await worker.run(
                self._change, place, registry, {"auth": base64.b64encode(pair.encode()).decode()}
            )
            return one_line(place.path)
        login = {
            "ServerURL": helper.server,
            "Username": credentials.username,
            "Secret": credentials.password,
        }
        await self._tell(helper, "store", json.dumps(login).encode())
        await worker.run(
            self._change, place, registry, {}
        )  # as Docker does; an old password does not stay there
        return described(helper.name)

    # ── helpers ──

    async def _is_known(self, helper: Helper) -> bool:
        try:
            answer = await ask_helper(
                helper.name, helper.server, environ=self._environ, time_limit=self._helper_timeout
            )
        except HelperError as error:
            raise _unhelpful(helper, error) from None
        return answer is not None

    async def _tell(self, helper: Helper, verb: Literal["store", "erase"], text: bytes) -> None:
        try:
            await tell_helper(helper.name, verb, text, environ=self._environ, time_limit=self._helper_timeout)
        except HelperError as error:
            raise _unhelpful(helper, error) from None

    # ── files, in a thread ──

    def _change(self, place: Place, registry: str, entry: Mapping[str, str] | None) -> bool:
        """Replace the entry of a registry, or remove it; tell whether that changed the file."""
        if entry is not None:
            with contextlib.suppress(FileExistsError):
                os.mkdir(os.path.dirname(place.path) or ".", 0o700)
        change = partial(_changed, place=place, registry=registry, entry=entry)
        try:
            return self._change_file(place.path, change, limit=MAX_FILE)
        except (FileNotFoundError, NotADirectoryError):
            if entry is not None:
                raise
            return False


def _has(file: AuthFile, registry: str) -> bool:
    return for_registry(file.entries, registry) is not None or helper_for(file, registry) is not None


def _unhelpful(helper: Helper, error: HelperError) -> ConfigurationError:
    return ConfigurationError(
        described(helper.name), f"the helper that the file of credentials names does not do its work: {error}"
    )


def _changed(raw: bytes, *, place: Place, registry: str, entry: Mapping[str, str] | None) -> bytes | None:
    """Return a file with another entry for a registry, or without one; None where there is none to remove.

    Everything else is kept.

    Raises:
        ConfigurationError: The file cannot be parsed, or its entries are not an object.
    """
    document = parse_document(raw, place.path)
    faults: list[str] = []
    entries = document if place.is_legacy else object_of(document, "auths", faults)
    if faults:
        raise ConfigurationError(place.path, f"{faults[0]}; mend or remove the file")
    old = [key for key in entries if registry_of(key) == registry]
    if entry is None and not old:
        return None
    for key in old:
        del entries[key]
    if entry is not None:
        entries[_key(place, registry)] = entry
    if not place.is_legacy:
        for name in names_of(document, "auths")[1:]:  # other spellings, which are in `entries` too
            del document[name]
        document[next(iter(names_of(document, "auths")), "auths")] = entries
    try:
        return json.dumps(document, indent="\t", allow_nan=False).encode()
    except ValueError:
        raise ConfigurationError(place.path, "it has a number that is too large to keep") from None


def _key(place: Place, registry: str) -> str:
    # Docker knows its hub by this name alone; podman reads that one, and "logs out" of its own alone.
    is_dockers = os.path.basename(place.path) == "config.json"
    return HUB_SERVER if registry == HUB and is_dockers else registry
