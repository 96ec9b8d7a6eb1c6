"""The work of ``login`` and ``logout``."""

from __future__ import annotations

from typing import Any

import click

from aiodockersave.pipeline.waiting import TellingWaits
from aiodockersave.sinks.private_file import change_private
from aiodockersave.sources.credentials import DockerCredentials, MappingCredentials
from aiodockersave.sources.credentials.logins import DockerLogins

from .passwords import ask_login, read_login
from .reporters import WaitLines
from .run import run
from .sources import RegistryOptions, load_client
from .terminal import Terminal


def login(
    *,
    registry: str,
    username: str | None,
    password_stdin: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> int:
    """Ask a registry whether a password is right, store the login, and return the exit code.

    Raises:
        click.UsageError: There is no username, or no password.
    """
    registries = RegistryOptions.taken_from(options)
    if not password_stdin:
        credentials = ask_login(registry, username)
    elif username is None:
        raise click.UsageError("--password-stdin needs --username")
    else:
        credentials = read_login(username)
    load_client()
    terminal = Terminal(quiet=quiet, verbose=verbose)

    async def work() -> None:
        async with (
            registries.open(MappingCredentials({registry: credentials})) as source,
            TellingWaits([source], WaitLines(terminal)),
        ):
            was_asked = await source.check_login(registry)
        places = await DockerLogins(change_private, authfile=registries.authfile).store(registry, credentials)
        if not was_asked:
            terminal.note("warning", f"{registry} did not ask for a password, so this one may be wrong")
        terminal.say(f"logged in at {registry} as {credentials.username}; stored in {' and '.join(places)}")
        found = await DockerCredentials(authfile=registries.authfile).get(registry, "")
        if found is not None and found != credentials:
            terminal.note("warning", f"{found.origin} has another login for {registry}, which is used first")

    return run(work, terminal, target=registry)


def logout(*, registry: str, authfile: str | None, quiet: bool, verbose: bool) -> int:
    """Remove the logins at a registry, and return the exit code."""
    terminal = Terminal(quiet=quiet, verbose=verbose)

    async def work() -> None:
        places = await DockerLogins(change_private, authfile=authfile).remove(registry)
        if places:
            terminal.say(f"logged out of {registry}; removed from {' and '.join(places)}")
        else:
            terminal.say(f"there is no login at {registry} to remove")
        if authfile is None:
            left = await DockerCredentials().get(registry, "")
            if left is not None:
                terminal.note("warning", f"{left.origin} still has a login for {registry}")

    return run(work, terminal, target=registry)
