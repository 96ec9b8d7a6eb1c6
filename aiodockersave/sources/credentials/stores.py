"""Stores of credentials: the caller's own, and those of Docker and podman.

:class:`DockerCredentials` reads these places in this order, as podman does (containers-auth.json(5)). The first that has
credentials for the image decides::

    --authfile, or $REGISTRY_AUTH_FILE          if given, this one alone
    $XDG_RUNTIME_DIR/containers/auth.json       or /run/containers/UID/auth.json
    $XDG_CONFIG_HOME/containers/auth.json       or ~/.config/containers/auth.json
    $DOCKER_AUTH_CONFIG                         the JSON itself, as in CI (Docker 28)
    $DOCKER_CONFIG/config.json                  or ~/.docker/config.json
    ~/.dockercfg                                the content of "auths" alone
    /etc/containers/auth.json                   only for root; the first in a systemd unit

In a file, the first of these that has credentials decides::

    "credHelpers": {"quay.io": "NAME"}          a helper for this registry; "auths" is not used then
    "auths": {"quay.io/team/app": …}            a path, the most specific first (podman)
    "credsStore": "NAME"                        a helper for all registries (Docker)
    "auths": {"quay.io": …}                     a registry, in any form that Docker ever wrote: https://quay.io/v1/

A port is part of a registry's name: ``quay.io`` and ``quay.io:443`` are two. Docker Hub is ``docker.io`` to podman
and ``https://index.docker.io/v1/`` to Docker.

A fault of one entry or one helper is a warning, and the rest is used: an image may be public, or the next file may have
credentials. (Where a helper fails, Docker continues without a warning, and podman stops. For one entry that is not base64,
Docker and podman both refuse the whole file.) A file that cannot be parsed at all is an error. No message shows a secret.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, Protocol, runtime_checkable

from aiodockersave._aio import Worker, running_task
from aiodockersave.core.errors import InvalidInputError
from aiodockersave.core.text import one_line, quoted

from .auth_files import AuthFile, Credentials, places
from .helper import HelperError, ask_helper, described
from .keys import canonical, for_path, for_registry, helper_for

__all__ = ["CredentialStore", "Credentials", "DockerCredentials", "MappingCredentials", "StaticCredentials"]

_TOKEN_USER: Final = "<token>"  # noqa: S105 - the name of no user
"""The username of a helper's answer whose secret is an identity token."""

logger = logging.getLogger("aiodockersave")


@runtime_checkable
class CredentialStore(Protocol):
    """A store of credentials."""

    async def get(self, registry: str, repository: str) -> Credentials | None:
        """Return the credentials for a repository, or None for anonymous access.

        Args:
            registry: Host and perhaps port, as in the reference: ``docker.io``, ``localhost:5000``.
            repository: The path in the registry, such as ``library/alpine``.

        Cancel: nothing of the call goes on; a program that it started has ended.
        """
        ...


# ── the caller's credentials ──


class StaticCredentials:
    """One username and password for every registry and every mirror."""

    def __init__(self, username: str, password: str) -> None:
        self._credentials = Credentials(username, password)

    async def get(self, registry: str, repository: str) -> Credentials | None:  # noqa: ARG002 - the protocol's
        """Return the credentials.

        Cancel: nothing is waited for.
        """
        return self._credentials


class MappingCredentials:
    """Credentials by registry (``quay.io``) or path (``quay.io/team``); the most specific key counts."""

    def __init__(self, credentials: Mapping[str, Credentials]) -> None:
        self._credentials = dict(credentials)

    async def get(self, registry: str, repository: str) -> Credentials | None:
        """Return the credentials of the repository, of a path above it, or of the registry; None if there are none.

        Cancel: nothing is waited for.
        """
        registry = canonical(registry)
        return for_path(self._credentials, registry, repository) or for_registry(self._credentials, registry)


# ── credentials of Docker and podman ──


class DockerCredentials:
    """The credentials of ``docker login`` and ``podman login``.

    Each call reads the files and asks the helpers again, so that a login in the meantime is noticed.
    """

    def __init__(
        self,
        *,
        authfile: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
        home: str | os.PathLike[str] | None = None,
        on_warning: Callable[[str], None] = logger.warning,
        helper_timeout: float = 30.0,
    ) -> None:
        """Take the settings; nothing is read yet.

        Args:
            authfile: The only file that is read; it must be there.
            environ: The environment, instead of this process's; helpers run with it too.
            home: The home directory, instead of the environment's or the user's.
            on_warning: Called once with the message of each fault of an entry, a file or a helper.
            helper_timeout: The limit on a helper's answer, in seconds.
        """
        self._authfile = None if authfile is None else os.fspath(authfile)
        self._environ = os.environ if environ is None else environ
        self._home = None if home is None else os.fspath(home)
        self._on_warning = on_warning
        self._helper_timeout = helper_timeout
        self._said: set[str] = set()

    async def get(self, registry: str, repository: str) -> Credentials | None:
        """Return the credentials for a repository, or None if there are none.

        Args:
            registry: Host and perhaps port, as in the reference: ``docker.io``, ``localhost:5000``.
            repository: The path in the registry, such as ``library/alpine``.

        Raises:
            ConfigurationError: A file is not JSON or too large, ``authfile`` is missing or cannot be read, or others can
                read ``/etc/containers/auth.json``.
            InvalidInputError: ``registry`` cannot be the name of a registry.

        Cancel: a file that is being read is read to its end; a helper is killed and gone.
        """
        running_task()
        if not (registry.isascii() and registry.isprintable()) or " " in registry:
            raise InvalidInputError(f"not the name of a registry: {quoted(registry, 200)}")
        registry = canonical(registry)
        worker = Worker("aiodockersave-credentials")
        with worker.held():
            for place in await worker.run(places, self._authfile, self._environ, self._home):
                file = await worker.run(place.read)
                for fault in file.faults:
                    self._warn(fault)
                if found := await self._look_up(file, registry, repository):
                    found = found if found.origin else replace(found, origin=one_line(place.path))
                    logger.debug("credentials for %s: %s", registry, found.origin)
                    return found
        return None

    async def _look_up(self, file: AuthFile, registry: str, repository: str) -> Credentials | None:
        helper = helper_for(file, registry)
        if helper is not None and helper.is_of_registry:
            return await self._ask(helper.name, helper.server)
        if found := for_path(file.entries, registry, repository):
            return found
        if helper is not None:
            found = await self._ask(helper.name, helper.server)
        return found or for_registry(file.entries, registry)

    async def _ask(self, helper: str, server: str) -> Credentials | None:
        try:
            answer = await ask_helper(helper, server, environ=self._environ, time_limit=self._helper_timeout)
        except HelperError as error:
            self._warn(
                f"the credential helper {described(helper)} gives nothing for {one_line(server)}: {error}"
            )
            return None
        if answer is None:
            return None
        if answer.username == _TOKEN_USER:
            return Credentials("", "", identity_token=answer.secret, origin=described(helper))
        return Credentials(answer.username, answer.secret, origin=described(helper))

    def _warn(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self._on_warning(message)
