"""Commands and their options, told to click.

What does the work is imported by the command that needs it: a wrong option is told at once.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from aiodockersave import __version__
from aiodockersave.core.errors import InvalidInputError

if TYPE_CHECKING:
    from aiodockersave.core.model import Platform

    from .image_argument import ImageArgument
    from .sources import RegistryOptions

F = TypeVar("F", bound=Callable[..., Any])

PROGRAM = "aiodockersave"

# ── what commands take ──


def _read_images(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> list[ImageArgument]:
    from .image_argument import parse_image  # noqa: PLC0415 - see the head of this file

    images = []
    for value in values:
        try:
            images.append(parse_image(value))
        except InvalidInputError as error:
            from .terminal import printable  # noqa: PLC0415

            raise click.BadParameter(printable(str(error))) from None
    return images


def _read_platform(_: click.Context, __: click.Parameter, value: str | None) -> Platform | None:
    from aiodockersave.core.model import Platform  # noqa: PLC0415 - see the head of this file

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


def _option(*names: str, **settings: Any) -> Callable[[F], F]:
    """Declare an option that may also be set by ``AIODOCKERSAVE_`` and its long name."""
    (long,) = (name for name in names if name.startswith("--"))
    variable = f"{PROGRAM}_{long.removeprefix('--').replace('-', '_')}".upper()
    return click.option(*names, envvar=variable, show_envvar=True, **settings)


def _common(function: F) -> F:
    """Declare what all commands take."""
    for declare in (
        _option("--verbose", is_flag=True, help="Say where it failed, too."),
        _option("--quiet", is_flag=True, help="Say nothing but errors."),
        _option(
            "--platform",
            callback=_read_platform,
            metavar="OS/ARCH[/VARIANT]",
            help="Which of an image's platforms; by default linux on this machine's architecture.",
        ),
        _option(
            "--allow-other-platform",
            is_flag=True,
            help="Take an image also if it says that it is for another platform than the one that --platform names.",
        ),
        _option(
            "--format",
            type=click.Choice(["docker"]),
            default="docker",
            show_default=True,
            help="Layout of the archive.",
        ),
        _option(
            "--mirror",
            "mirrors",
            multiple=True,
            callback=_read_mirrors,
            metavar="URL",
            help="Ask this mirror first, for what a digest names; may be given several times.",
        ),
        _option(
            "--authfile",
            type=click.Path(dir_okay=False),
            help="Credentials, as docker login and podman login write them.",
        ),
        _option(
            "--cert-dir",
            type=click.Path(file_okay=False),
            help="Authorities (*.crt) and a client certificate (*.cert, *.key) for registries.",
        ),
        _option(
            "--ca-file", type=click.Path(dir_okay=False), help="More authorities for registries, in PEM."
        ),
        _option("--plain-http", is_flag=True, help="Ask registries by http."),
        click.argument("images", nargs=-1, required=True, callback=_read_images, metavar="IMAGE..."),
    ):
        function = declare(function)
    return _gathered(function)


def _gathered(function: F) -> F:
    """Pass the options of registries as one argument."""

    @functools.wraps(function)
    def gather(**options: Any) -> Any:
        from .sources import RegistryOptions  # noqa: PLC0415 - see the head of this file

        own = {name: options.pop(name) for name in RegistryOptions._fields}
        return function(registries=RegistryOptions(**own), **options)

    return cast("F", gather)


@click.group(context_settings={"max_content_width": 100})
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def command() -> None:
    """Write container images into archives for "docker load"."""


# ── save ──


@command.command()
@_common
@_option("-o", "--output", required=True, metavar="FILE", help="Where to: a file, or - for standard output.")
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
    help="How many plain bytes to accept for a compressed one, beyond 64 MiB of a layer; by default 1100, 0 for any number.",
)
@_option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    help="How many layers are read at once.",
)
@_option(
    "--resume",
    is_flag=True,
    help="Go on where an interrupted save ended, and keep what was received should this one be interrupted.",
)
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
def save(
    *,
    images: list[ImageArgument],
    registries: RegistryOptions,
    output: str,
    progress: str,
    resume: bool,
    no_fsync: bool,
    max_expansion: int | None,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> int:
    """Save images into one archive.

    IMAGE is an image in a registry, as Docker writes it (alpine:3.20), or oci:DIR[:REF], one in an OCI image layout.
    =NAME:TAG[,NAME:TAG...] behind it gives it other names. An existing FILE is not touched before the archive is whole.
    """
    from aiodockersave.pipeline import save as pipeline  # noqa: PLC0415 - see the head of this file

    from .heap import giving_back  # noqa: PLC0415
    from .reporters import new_reporter  # noqa: PLC0415
    from .run import run  # noqa: PLC0415
    from .sources import Sources, get_ready  # noqa: PLC0415
    from .terminal import Terminal, summary  # noqa: PLC0415

    target = _target(output)
    if resume and output == "-":
        raise click.UsageError("--resume is for a file; what went to standard output cannot be gone on with")
    if resume and options["layers"] == "decompress":
        raise click.UsageError("--resume needs --layers keep: with decompress the size is not known ahead")
    if max_expansion is not None:
        options["max_expansion"] = max_expansion or None
    get_ready(images)
    terminal = Terminal(quiet=quiet, verbose=verbose, as_json=progress == "json")
    reporter = new_reporter(progress, terminal)

    async def work() -> None:
        async with giving_back(), Sources(registries) as sources:
            requests = await sources.requests(images)
            with reporter:
                report = await pipeline.save(
                    requests,
                    target,
                    fsync=not no_fsync,
                    resume=resume,
                    progress=reporter,
                    **options,
                )
        if reporter.prepared is not None:
            for image in reporter.prepared.images:
                if image.request.tags is None and not image.image.repo_tags:
                    terminal.say(
                        f"{image.request} has no name in the archive; write {image.request}=NAME:TAG to give it one"
                    )
            name = "standard output" if output == "-" else output
            terminal.say(summary(name, report, reporter.prepared))

    return run(work, terminal, target=None if output == "-" else output)


def _target(output: str) -> Any:
    if output != "-":
        if not output or output.endswith("/"):
            raise click.UsageError("-o takes the name of a file, or - for standard output")
        return output
    if sys.stdout is None:
        raise click.UsageError("standard output is closed")
    if sys.stdout.isatty():
        raise click.UsageError("an archive is not for a terminal: use -o FILE, or send it through a pipe")
    return sys.stdout.buffer


# ── plan ──


@command.command()
@_common
@_option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(
    *,
    images: list[ImageArgument],
    registries: RegistryOptions,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> int:
    """Show size, ETag and members of an archive ahead of time.

    IMAGE is as for "save", which writes exactly this with --layers keep. No layer is read.
    """
    from aiodockersave.pipeline.resolve import prepare  # noqa: PLC0415 - see the head of this file

    from .run import run  # noqa: PLC0415
    from .sources import Sources, get_ready  # noqa: PLC0415
    from .terminal import Terminal, plan_json, plan_text, print_data  # noqa: PLC0415

    get_ready(images)

    async def work() -> None:
        async with Sources(registries) as sources:
            prepared = await prepare(await sources.requests(images), **options)
        if prepared.plan is not None:
            print_data((plan_json if as_json else plan_text)(prepared, prepared.plan))

    return run(work, Terminal(quiet=quiet, verbose=verbose), target=None)
