"""The formats of an archive: each has a builder, which knows the members of its archives."""

from __future__ import annotations

from typing import TypeAlias

from .docker_archive import DockerBuilder
from .model import Format, check_choice
from .oci_archive import OciBuilder

__all__ = ["Builder", "new_builder"]

Builder: TypeAlias = DockerBuilder | OciBuilder


def new_builder(format: Format) -> Builder:
    """Return the builder of an empty archive.

    Raises:
        InvalidInputError: There is no such format.
    """
    check_choice("format", format, Format)
    return OciBuilder() if format == "oci" else DockerBuilder()
