"""The formats of an archive: each has a builder, which knows the members of its archives."""

from __future__ import annotations

from .docker_archive import Builder, DockerBuilder
from .model import Format, check_choice
from .oci_archive import OciBuilder

__all__ = ["new_builder"]


def new_builder(format: Format) -> Builder:
    """Return the builder of an empty archive.

    Raises:
        InvalidInputError: There is no such format.
    """
    check_choice("format", format, Format)
    return OciBuilder() if format == "oci" else DockerBuilder()
