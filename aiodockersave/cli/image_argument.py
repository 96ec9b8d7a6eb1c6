"""IMAGE of the command line: a reference as Docker writes it, or ``oci:DIR[:REF]``; ``=NAME:TAG[,NAME:TAG…]`` may follow.

``@FILE`` stands for the images that a file lists.

The last ``=`` splits off the tags, the last ``:`` after the last ``/`` the REF; a digest may be the REF too. Names of
directories may have both characters. So an argument that can be read in another way too, of which the directory exists, is
refused, and the error shows the ways to write it. ``::`` between DIR and REF, and a ``=`` at the end, make an argument
unambiguous: ``oci:DIR::REF=``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from aiodockersave.core.errors import InvalidInputError
from aiodockersave.core.reference import Reference
from aiodockersave.core.text import cut

_KIND = "oci:"
_REGISTRY = "docker://"
_USE = "use oci:DIR[:REF], or an image in a registry"
_COPY = f"{_USE} (skopeo copy makes a layout of it)"
_OTHER_KINDS = {
    "containers-storage:": _COPY,
    "dir:": _COPY,
    "docker-archive:": f"{_USE} (skopeo copy makes a layout of the tar)",
    "docker-daemon:": _COPY,
    "oci-archive:": "unpack the tar into a directory, and use oci:DIR[:REF]",
}
"""Kinds of images that other programs know, and what to do with them."""
_LONGEST_LIST = 1 << 20
"""Bytes of a list of images: ten thousand names, more than anybody puts into one archive."""
_LONGEST_PATH = 4096
"""Characters before REF: Linux takes no longer path (PATH_MAX), and a text of colons alone would have as many readings."""
_MAX_SHOWN = 300
"""Characters of an argument that an error shows: with five of them it stays one readable line."""
_MAX_CHOICES = 5
"""Ways to write an argument that an error shows: nobody reads more."""


class RegistryImage(NamedTuple):
    """An IMAGE in a registry.

    Attributes:
        reference: The reference as it was written, such as ``alpine:3.20``.
        tags: The names that the image gets; None where there is no ``=``.
    """

    reference: str
    tags: tuple[str, ...] | None = None

    def __str__(self) -> str:
        return self.reference


class LayoutImage(NamedTuple):
    """An IMAGE in an OCI image layout.

    Attributes:
        directory: The directory of an OCI image layout.
        reference: The REF, or empty.
        tags: The names that the image gets; None where there is no ``=``.
    """

    directory: str
    reference: str = ""
    tags: tuple[str, ...] | None = None

    def __str__(self) -> str:
        return f"{_KIND}{self.directory}:{self.reference}" if self.reference else f"{_KIND}{self.directory}"

    def written_out(self) -> str:
        """Return the argument so that it can be read in one way only."""
        text = f"{_KIND}{self.directory}::{self.reference}"
        if self.tags is None and "=" not in self.directory:
            return text
        return f"{text}={','.join(self.tags or ())}"


ImageArgument = RegistryImage | LayoutImage


def read_images(arguments: Sequence[str]) -> list[ImageArgument]:
    """Read IMAGE arguments, and the lists that they name.

    A list has an IMAGE in each line. Empty lines count for nothing, nor does ``#`` with what follows, at the beginning of a line or
    behind a space. ``@-`` is standard input.

    Raises:
        InvalidInputError: As :func:`parse_image`; or a list cannot be read, or is empty.
    """
    images: list[ImageArgument] = []
    for argument in arguments:
        images += _read_list(argument[1:]) if argument.startswith("@") else [parse_image(argument)]
    return images


def _read_list(path: str) -> list[ImageArgument]:
    if not path:
        raise InvalidInputError("the name of the list is missing: @FILE")
    name = "standard input" if path == "-" else path
    try:
        with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
            data = file.read(_LONGEST_LIST + 1)
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InvalidInputError(f"{name} is no list of images: it is not text in UTF-8") from None
    except OSError as error:
        raise InvalidInputError(f"{name}: {error.strerror or error}") from None
    if len(data) > _LONGEST_LIST:
        raise InvalidInputError(f"{name} is no list of images: it has more than {_LONGEST_LIST} bytes")
    images = []
    for number, line in enumerate(lines, 1):
        if text := f" {line}".partition(" #")[0].strip():
            try:
                images.append(parse_image(text))
            except InvalidInputError as error:
                raise InvalidInputError(f"{name}, line {number}: {error}") from None
    if not images:
        raise InvalidInputError(f"{name} lists no image")
    return images


def parse_image(text: str, is_directory: Callable[[str], bool] = os.path.isdir) -> ImageArgument:
    """Read an IMAGE.

    Args:
        text: The argument.
        is_directory: Tells whether a directory is there.

    Raises:
        InvalidInputError: The argument is malformed, ambiguous, or of a kind that is not supported.
    """
    for kind, advice in _OTHER_KINDS.items():
        if text.startswith(kind):
            raise InvalidInputError(f"{kind} is not supported; {advice}")
    return _parse_layout(text, is_directory) if text.startswith(_KIND) else _parse_registry(text)


def _parse_registry(text: str) -> RegistryImage:
    reference, equals, tags = text.removeprefix(_REGISTRY).partition("=")
    try:
        Reference.parse(reference)
    except InvalidInputError as error:
        if reference.startswith((".", "/")):
            raise InvalidInputError(
                f"{error} (an OCI image layout is written oci:{cut(reference, _MAX_SHOWN)})"
            ) from None
        raise
    image = RegistryImage(reference, _split_tags(tags) if equals else None)
    for tag in image.tags or ():
        _ = Reference.parse(tag).repo_tag
    return image


def _split_tags(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def _parse_layout(text: str, is_directory: Callable[[str], bool]) -> LayoutImage:
    readings = _readings(text.removeprefix(_KIND))
    wanted = next(readings)
    others = [other for other in readings if is_directory(other.directory)]
    if others:
        known = [wanted, *others] if is_directory(wanted.directory) else others
        choices = " or ".join(cut(each.written_out(), _MAX_SHOWN) for each in known[:_MAX_CHOICES])
        raise InvalidInputError(f"it can be read in several ways; write {choices}")
    if not wanted.directory:
        raise InvalidInputError("the directory is missing: oci:DIR[:REF]")
    _check_tags(wanted)
    return wanted


def _readings(text: str) -> Iterator[LayoutImage]:
    """Yield the readings of the text after ``oci:``, first the one by the rules."""
    head, equals, tail = text.rpartition("=")
    tags = _split_tags(tail)
    for split in _splits(head if equals else text):
        yield LayoutImage(*split, tags if equals else None)
    if tail and "::" not in text:
        for directory, reference in _splits(text):
            if "=" in directory and "=" not in reference:
                yield LayoutImage(directory, reference)


def _splits(text: str) -> list[tuple[str, str]]:
    """Return the ways to tell DIR and REF apart, first the one by the rules."""
    directory, colons, reference = text.rpartition("::")
    if colons:
        return [(directory, reference)]
    if digest := _split_digest(text):
        return [digest]
    whole = (text, "")
    places = [i for i, character in enumerate(text[:_LONGEST_PATH]) if character == ":"]
    splits = [(text[:i], text[i + 1 :]) for i in places]
    wanted = splits[-1] if splits and "/" not in splits[-1][1] else whole
    return [wanted, *(split for split in (whole, *splits) if split != wanted)]


def _split_digest(text: str) -> tuple[str, str] | None:
    for algorithm in ("sha256", "sha512"):
        for separator in "@:":
            directory, found, encoded = text.rpartition(f"{separator}{algorithm}:")
            if found and "/" not in encoded:
                return directory, f"{algorithm}:{encoded}"
    return None


def _check_tags(image: LayoutImage) -> None:
    for tag in image.tags or ():
        try:
            _ = Reference.parse(tag).repo_tag
        except InvalidInputError as error:
            whole = cut(f"{image}={','.join(image.tags or ())}=", _MAX_SHOWN)
            raise InvalidInputError(f"{error} (if '=' belongs to the directory, write {whole})") from None
