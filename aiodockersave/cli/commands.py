"""Commands and their options, told to click.

The command that runs imports :mod:`.work`, and with it asyncio and the library: without them ``--help`` takes 62 ms of
processor time instead of 100.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import click

from aiodockersave import __version__
from aiodockersave.core.errors import InvalidInputError
from aiodockersave.core.model import Platform

from .image_argument import ImageArgument, read_images
from .printing import PROGRAM, printable

F = TypeVar("F", bound=Callable[..., Any])

# ── options and arguments ──


def _read_images(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> list[ImageArgument]:
    try:
        return read_images(values)
    except InvalidInputError as error:
        raise click.BadParameter(printable(str(error))) from None


def _read_platform(_: click.Context, __: click.Parameter, value: str | None) -> Platform | None:
    try:
        return None if value is None else Platform.parse(value)
    except InvalidInputError as error:
        raise click.BadParameter(str(error)) from None


def _read_mirrors(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    if values:
        from aiodockersave.sources.registry.endpoint import check_mirror  # noqa: PLC0415 - see the head of this file

        for value in values:
            try:
                check_mirror(value)
            except InvalidInputError as error:
                raise click.BadParameter(str(error)) from None
    return values


def _read_host(_: click.Context, __: click.Parameter, value: str) -> str:
    from aiodockersave.sources.credentials.logins import parse_host  # noqa: PLC0415 - see the head of this file

    try:
        return parse_host(value)
    except InvalidInputError as error:
        raise click.BadParameter(printable(str(error))) from None


def _option(*names: str, **settings: Any) -> Callable[[F], F]:
    """Declare an option that may also be set by ``AIODOCKERSAVE_`` and its long name."""
    (long,) = (name for name in names if name.startswith("--"))
    variable = f"{PROGRAM}_{long.removeprefix('--').replace('-', '_')}".upper()
    return click.option(*names, envvar=variable, show_envvar=True, **settings)


_Declare: TypeAlias = Callable[[Any], Any]

_MESSAGES: tuple[_Declare, ...] = (
    _option("--verbose", is_flag=True, help="Print more, and what caused an error."),
    _option("--quiet", is_flag=True, help="Print nothing but errors."),
)
_AUTHFILE: _Declare = _option(
    "--authfile",
    type=click.Path(exists=True, dir_okay=False),
    help="Credentials, as docker login and podman login write them.",
)
_CONNECTION: tuple[_Declare, ...] = (
    _option(
        "--cert-dir",
        type=click.Path(exists=True, file_okay=False),
        help="Authorities (*.crt) and a client certificate (*.cert, *.key) for registries.",
    ),
    _option(
        "--ca-file",
        type=click.Path(exists=True, dir_okay=False),
        help="More authorities for registries, in PEM.",
    ),
    _option("--plain-http", is_flag=True, help="Ask registries by http."),
)
_HOST: _Declare = click.argument("registry", callback=_read_host, metavar="HOST")
_COMMON: tuple[_Declare, ...] = (
    *_MESSAGES,
    _option(
        "--platform",
        callback=_read_platform,
        metavar="OS/ARCH[/VARIANT]",
        help="The platform of an image to take, of Windows also :BUILD; by default linux on this machine's architecture.",
    ),
    _option(
        "--allow-other-platform",
        is_flag=True,
        help="Take an image, too, that is for another platform than the one that --platform names.",
    ),
    _option(
        "--format",
        type=click.Choice(["docker", "oci"]),
        default="docker",
        show_default=True,
        help="Layout of the archive: docker is skopeo's and podman's, oci is that of current Docker and containerd, which "
        "keeps the registry's digest.",
    ),
    _option(
        "--mirror",
        "mirrors",
        multiple=True,
        callback=_read_mirrors,
        metavar="URL",
        help="Ask this mirror first for everything that has a digest; may be given several times.",
    ),
    _AUTHFILE,
    _option(
        "--creds-stdin",
        is_flag=True,
        help="Read USER:PASSWORD for the registry of the images from standard input.",
    ),
    *_CONNECTION,
    click.argument("images", nargs=-1, required=True, callback=_read_images, metavar="IMAGE..."),
)
"""The options and arguments of every command that takes images."""


def _all_of(*declared: _Declare) -> Callable[[F], F]:
    """Declare options and arguments for a command."""

    def declare(function: F) -> F:
        for each in declared:
            function = each(function)
        return function

    return declare


_common = _all_of(*_COMMON)


@click.group(context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def command() -> None:
    """Write container images into archives for "docker load"."""


# ── save ──


@command.command()
@_common
@_option("-o", "--output", required=True, metavar="FILE", help="The file to write, or - for standard output.")
@_option(
    "--layers",
    type=click.Choice(["keep", "decompress"]),
    default="keep",
    show_default=True,
    help="Store layers as they are, or as plain tars.",
)
@_option(
    "--verify-diff-ids",
    is_flag=True,
    help="Decompress layers that are kept, too, and compare their plain tars with the diff IDs.",
)
@_option(
    "--max-plain-size",
    type=click.IntRange(min=0),
    metavar="BYTES",
    help="The largest plain tar of a layer to accept, where layers are decompressed or verified.",
)
@_option(
    "--max-expansion",
    type=click.IntRange(min=0),
    metavar="NUMBER",
    help="Plain bytes to accept for each compressed byte, beyond 64 MiB of a layer; by default 1100, 0 for any number.",
)
@_option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    help="The number of layers that are read at once.",
)
@_option(
    "--resume",
    is_flag=True,
    help="Resume an interrupted save; if this one is interrupted, keep the bytes that were received. A FILE that is whole "
    "already, by its size and headers, is left as it is. Needs a file and --layers keep.",
)
@_option("--restart", is_flag=True, help="With --resume: fetch everything anew, whatever is there.")
@_option(
    "--checksum", is_flag=True, help="End with the SHA-256 of the archive, too: one more pass over its bytes."
)
@_option("--no-fsync", is_flag=True, help="Do not wait until the archive is on the disk.")
@_option(
    "--progress",
    type=click.Choice(["auto", "plain", "json", "none"]),
    default="auto",
    show_default=True,
    help="Progress on standard error: bars on a terminal and lines elsewhere, lines, JSON objects, or nothing.",
)
def save(**options: Any) -> int:
    """Save images into one archive.

    IMAGE is an image in a registry, as Docker writes it (alpine:3.20), or oci:DIR[:REF], one in an OCI image layout.
    =NAME:TAG[,NAME:TAG...] behind it gives it other names. @LIST stands for the images in a file, one in each line. An
    existing FILE is not touched before the archive is whole.
    """
    from . import work  # noqa: PLC0415 - see the head of this file

    return work.save(**options)


# ── plan ──


@command.command()
@_common
@_option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(**options: Any) -> int:
    """Show size, ETag and members of an archive ahead of time.

    IMAGE is as for "save", which writes exactly this with --layers keep. No layer is read.
    """
    from . import work  # noqa: PLC0415 - see the head of this file

    return work.plan(**options)


# ── login, logout ──


@command.command()
@_all_of(*_MESSAGES, *_CONNECTION)
@_option(
    "--authfile",
    type=click.Path(dir_okay=False),
    help="The file for the login; by default Docker's config.json, which podman reads too.",
)
@_option(
    "--password-stdin",
    is_flag=True,
    help="Read the password from standard input; by default the terminal asks for it.",
)
@_option("-u", "--username", metavar="USER", help="The user; by default the terminal asks for it.")
@_HOST
def login(**options: Any) -> int:
    """Log in at a registry.

    HOST is a registry as in the names of images: docker.io, ghcr.io, localhost:5000. The registry is asked whether the
    password is right. Then the login is stored where docker and podman find it: in the file, or with its credential helper.
    """
    from . import login as work  # noqa: PLC0415 - see the head of this file

    return work.login(**options)


@command.command()
@_all_of(*_MESSAGES)
@_option("--authfile", type=click.Path(dir_okay=False), help="Remove the login from this file alone.")
@_HOST
def logout(**options: Any) -> int:
    """Log out of a registry.

    HOST is as for "login". The login is removed from all files and helpers that have it.
    """
    from . import login as work  # noqa: PLC0415 - see the head of this file

    return work.logout(**options)


# ── help ──


@command.command("help")
@click.argument("name", metavar="[COMMAND]", required=False)
@click.pass_context
def show_help(context: click.Context, name: str | None) -> None:
    """Show the options of a command, or all commands."""
    group = context.find_root()
    if name is None:
        click.echo(group.get_help())
    elif (found := command.get_command(group, name)) is None:
        raise click.UsageError(f"there is no command {name!r}", group)
    else:
        click.echo(found.get_help(click.Context(found, info_name=name, parent=group)))
