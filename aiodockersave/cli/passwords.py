"""Passwords from a terminal or from standard input; no command line, no message and no log has one."""

from __future__ import annotations

import contextlib
import getpass
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from aiodockersave.core.errors import InvalidInputError
from aiodockersave.core.reference import Reference

from . import exit_codes
from .image_argument import ImageArgument, LayoutImage
from .printing import printable

if TYPE_CHECKING:
    from aiodockersave.sources.credentials import Credentials, CredentialStore

    from .sources import RegistryOptions

__all__ = ["ask_login", "given_credentials", "read_login"]

_LONGEST: Final = 64 << 10
"""Bytes that are read of standard input: tokens have a few thousand, and no server takes a larger header."""


# ── standard input ──


def read_login(username: str) -> Credentials:
    """Read the password of a user from standard input.

    Raises:
        click.UsageError: There is none, or none that can be used.
    """
    return _checked("--password-stdin", username, _read("--password-stdin"))


def given_credentials(images: Sequence[ImageArgument], options: RegistryOptions) -> CredentialStore:
    """Read ``USER:PASSWORD`` from standard input, for the one registry of the images.

    Mirrors are never shown them, and have those that Docker and podman keep.

    Raises:
        click.UsageError: The images are of several registries or of none, or the text cannot be used.
    """
    registries = {
        Reference.parse(image.reference).registry for image in images if not isinstance(image, LayoutImage)
    }
    if len(registries) != 1:
        said = "images of one registry; run one command for each" if registries else "an image in a registry"
        raise click.UsageError(f"--creds-stdin needs {said}")
    username, colon, password = _read("--creds-stdin").partition(":")
    if not colon:
        raise click.UsageError("--creds-stdin reads USER:PASSWORD, and there is no colon")
    return _Given(registries.pop(), _checked("--creds-stdin", username, password), options.authfile)


class _Given:
    """The credentials that the user has given for one registry; for mirrors those that Docker and podman keep."""

    def __init__(self, registry: str, credentials: Credentials, authfile: str | None) -> None:
        from aiodockersave.sources.credentials import DockerCredentials  # noqa: PLC0415 - not needed for --help

        self._registry = registry
        self._credentials = credentials
        self._kept = DockerCredentials(authfile=authfile)

    async def get(self, registry: str, repository: str) -> Credentials | None:
        """Return the credentials for a repository.

        Cancel: as :meth:`.DockerCredentials.get`.
        """
        if registry == self._registry:
            return self._credentials
        return await self._kept.get(registry, repository)


def _read(option: str) -> str:
    if sys.stdin is None:
        raise click.UsageError(f"{option}: standard input is closed")
    if sys.stdin.isatty():  # which would show it
        raise click.UsageError(f"{option} reads from a pipe or a file, not from a terminal")
    data = sys.stdin.buffer.read(_LONGEST + 1)
    if len(data) > _LONGEST:
        raise click.UsageError(f"{option}: standard input has more than {_LONGEST} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = None
    if text is None:  # raised outside of the handler, whose error has the bytes
        raise click.UsageError(f"{option}: standard input is not UTF-8")
    return text.removesuffix("\n").removesuffix("\r")


def _checked(option: str, username: str, password: str) -> Credentials:
    from aiodockersave.sources.credentials import Credentials  # noqa: PLC0415 - not needed for --help
    from aiodockersave.sources.credentials.logins import check_login_text  # noqa: PLC0415

    credentials = Credentials(username, password, origin=option)
    try:
        check_login_text(credentials)
    except InvalidInputError as error:
        raise click.UsageError(f"{option}: {error}") from None
    return credentials


# ── a terminal ──


def ask_login(registry: str, username: str | None) -> Credentials:
    """Ask for the password on the terminal, which does not show it, and for the user if there is none yet.

    Raises:
        click.UsageError: There is no terminal, or what was typed cannot be used.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError(
            "there is no terminal to ask for the password: use --username and --password-stdin"
        )
    with _signals_raise():
        if username is None:
            username = click.prompt(f"Username for {registry}", err=True)
        question = f"Password for {printable(username)} at {registry}: "
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "error", getpass.GetPassWarning
                )  # which would go on, and show what is typed
                password = getpass.getpass(question)
        except (getpass.GetPassWarning, UnicodeError):
            password = None
    if password is None:
        raise click.UsageError("the password cannot be read from this terminal: use --password-stdin")
    return _checked("the terminal", username, password)


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Let the signals that end a command raise, so that the terminal shows again what is typed."""

    def end(number: int, _: Any) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt  # for which click ends the line
        raise click.exceptions.Exit(exit_codes.SIGNAL + number)

    ending = [number for number in exit_codes.ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in ending}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
