"""The places of plain tars in an archive, by what is known of their sizes; and the size that a gzip blob tells ahead.

Pure: the sizes come from elsewhere, and may be guesses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from aiodockersave.core.docker_archive import Image, new_builder
from aiodockersave.core.model import OCI_LAYER, Descriptor, Digest, Format
from aiodockersave.core.plan import Plan, plan_images

__all__ = ["ISIZE", "PlainLayout", "least_plain_size", "plausible_size"]

ISIZE: Final = 4
_MODULUS: Final = 1 << 32
_RECORD: Final = 512
_LEAST_RATIO: Final = 0.99
"""Plain bytes for one of gzip, at least: stored blocks add 5 bytes to 65,535, the frame 18 to all."""
_MOST_RATIO: Final = 1032
"""Plain bytes for one of deflate, at most."""


def plausible_size(last: bytes, size: int) -> int | None:
    """Return the plain size that the last bytes of a gzip blob of ``size`` bytes tell, if it can be that of a tar."""
    if len(last) != ISIZE or not any(last):  # eStargz has an empty member at its end, which tells 0
        return None
    told, least = int.from_bytes(last, "little"), least_plain_size(size)
    told += max(0, -(-(least - told) // _MODULUS)) * _MODULUS
    return told if told % _RECORD == 0 and _RECORD <= told <= _MOST_RATIO * size else None


def least_plain_size(size: int) -> int:
    """Return how large the plain tar of a blob of ``size`` bytes is at least, whatever that is compressed by."""
    return max(0, int(_LEAST_RATIO * size) - 64)


class PlainLayout:
    """The places of plain tars, by what is known of their sizes.

    Attributes:
        order: The diff IDs in the order in which they are stored.
        sizes: The size of each, where it is known or guessed.

    Args:
        images: The images, of whose layers the plain tars are stored.
        format: The layout of the archive.
    """

    def __init__(self, images: Sequence[Image], format: Format) -> None:
        self._images = images
        self._format = format
        self.sizes: dict[Digest, int | None] = {}
        empty = self._plan(lambda _: 0)
        blobs = [segment for segment in empty.segments if segment.descriptor is not None]
        self.order = [segment.descriptor.digest for segment in blobs if segment.descriptor is not None]
        self._builder = new_builder(format)
        self._known_sizes: dict[tuple[Digest, int], tuple[int, int]] = {}
        self._no_size = {each: self._member_sizes(each, 0) for each in self.order}
        # What is between one plain tar and the next, besides headers and padding.
        self._starts = {
            each: blob.offset - self._no_size[each][0] for each, blob in zip(self.order, blobs, strict=True)
        }

    def places(self) -> dict[Digest, int]:
        """Return where the data of each plain tar start that has a place yet."""
        places = {}
        growth = 0
        for each in self.order:
            size = self.sizes.get(each)
            header, total = self._no_size[each] if size is None else self._member_sizes(each, size)
            places[each] = self._starts[each] + growth + header
            if size is None:
                break
            growth += total - self._no_size[each][1]
        return places

    def rank(self, diff_id: Digest) -> int:
        """Return what plain tars are sorted by in the order in which they are stored."""
        return self._starts[diff_id]

    def header_size(self, diff_id: Digest, size: int) -> int:
        """Return the size of a plain tar's header, in bytes."""
        return self._member_sizes(diff_id, size)[0]

    def plan(self) -> Plan:
        """Return the plan of the archive, once all sizes are known.

        Raises:
            AssertionError: A plain tar has another place in it.
        """
        plan = self._plan(lambda diff_id: self.sizes[diff_id])
        planned = {
            each.descriptor.digest: each.offset for each in plan.segments if each.descriptor is not None
        }
        if planned != self.places():
            raise AssertionError("the layers are not where the plan has them")
        return plan

    def _member_sizes(self, diff_id: Digest, size: int) -> tuple[int, int]:
        """Return the size of a member's header, and of the whole member."""
        sizes = self._known_sizes.get((diff_id, size))
        if sizes is None:
            (member,) = self._builder.prepare_blob(diff_id, size, OCI_LAYER).members
            sizes = self._known_sizes[diff_id, size] = len(member.header), member.total_size
        return sizes

    def _plan(self, size_of: Callable[[Digest], int | None]) -> Plan:
        images = []
        for image in self._images:
            layers = tuple(Descriptor(OCI_LAYER, each, size_of(each)) for each in image.config.diff_ids)
            images.append(Image(image.config, layers, image.repo_tags))
        return plan_images(images, format=self._format)
