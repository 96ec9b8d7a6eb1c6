"""Progress as JSON: every line of standard error is one object, ASCII, written at once.

``event`` is its kind. An event always has all of its keys; later versions may add keys. Sizes are bytes of blobs as the
source has them, digests are ``algorithm:hex``.

==================  ==============================================================================================
``event``           and its keys
==================  ==============================================================================================
``save_started``    ``total``: bytes of all blobs, each counted once. ``layers``: the blobs in order, each with
                    ``digest`` and ``size`` (null where it is not known). ``images``: in order, each with
                    ``reference``, ``image_id``, ``manifest_digest`` and ``repo_tags``, as ``plan --json`` has them
``layer_started``   ``digest``, ``size``, ``resumed``: bytes that an earlier save has left
``layer_advanced``  ``digest``, ``size``, ``done``, ``total_done``, ``total``: bytes read or resumed, of this layer
                    and of all. At most one in 100 ms for each layer
``layer_retried``   ``digest``, ``retries``: times that the layer was asked for again
``layer_finished``  ``digest``, ``size``, ``total_done``, ``total``: the layer is in the archive, verified
``layer_reused``    ``digest``: another image has the layer too; it is not read again
``image_finished``  ``reference``, ``image_id``
``save_finished``   ``size`` of the archive in bytes, its ``sha256`` (``--checksum``; else null), ``total_done``, ``total``,
                    ``left_as_is``: whether the file was whole already (``--resume``)
``waiting``         ``what``, ``reason``, ``seconds``, ``limit``: a registry is waited for, for longer than 2 s; once a second
``message``         ``level`` (``info``, ``warning`` or ``error``), ``message``: the line that people are told
``error``           ``message``, ``exit_code``, ``traceback`` (null without ``--verbose``): the last line, if it fails
==================  ==============================================================================================

Layers overlap. Neither a layer's ``done`` nor ``total_done`` ever goes back. A save that succeeds has one
``save_finished``; a save that fails has an ``error`` instead. With exit code 141 (the reader of standard output has
left) there is neither. Where nobody reads the lines, ``layer_advanced`` is left out, so that the save does not wait.
``--quiet`` leaves out everything but errors. A wrong command line is an ``error`` with exit code 2.
"""

from __future__ import annotations

from typing import Any, Final

from aiodockersave.core.model import Descriptor
from aiodockersave.pipeline.progress import (
    Event,
    ImageFinished,
    LayerAdvanced,
    LayerFinished,
    LayerRetried,
    LayerReused,
    LayerStarted,
    SaveFinished,
    SaveStarted,
    Waiting,
)
from aiodockersave.pipeline.resolve import PreparedImage

from .reporters import Reporter
from .terminal import Terminal

_NAMES: Final = {
    SaveStarted: "save_started",
    LayerStarted: "layer_started",
    LayerAdvanced: "layer_advanced",
    LayerRetried: "layer_retried",
    LayerFinished: "layer_finished",
    LayerReused: "layer_reused",
    ImageFinished: "image_finished",
    SaveFinished: "save_finished",
    Waiting: "waiting",
}


class JsonLines(Reporter):
    """A line for each event."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal

    def show(self, event: Event) -> None:
        """Print the event."""
        if not self._terminal.is_quiet:
            self._terminal.put(self._as_json(event), may_drop=isinstance(event, LayerAdvanced | Waiting))

    def _as_json(self, event: Event) -> dict[str, Any]:
        fields: dict[str, Any]
        match event:
            case SaveStarted(prepared, total):
                layers = [_layer(each) for each in prepared.layers]
                fields = {
                    "total": total,
                    "layers": layers,
                    "images": [_image(each) for each in prepared.images],
                }
            case LayerStarted(layer, resumed):
                fields = {**_layer(layer), "resumed": resumed}
            case LayerAdvanced(layer):
                fields = {**_layer(layer), "done": self.tally.of(layer).done, **self._total()}
            case LayerRetried(layer, retries):
                fields = {"digest": str(layer.digest), "retries": retries}
            case LayerFinished(layer):
                fields = {**_layer(layer), **self._total()}
            case LayerReused(layer):
                fields = {"digest": str(layer.digest)}
            case ImageFinished(image):
                fields = _name(image)
            case Waiting(wait):
                seconds = round(wait.seconds, 1)
                fields = {"what": wait.what, "reason": wait.reason, "seconds": seconds, "limit": wait.limit}
            case SaveFinished(report):
                sha256 = str(report.sha256) if report.sha256 else None
                fields = {
                    "size": report.size,
                    "sha256": sha256,
                    **self._total(),
                    "left_as_is": report.left_as_is,
                }
        return {"event": _NAMES[type(event)], **fields}

    def _total(self) -> dict[str, int]:
        return {"total_done": self.tally.total_done, "total": self.tally.total}


def _layer(layer: Descriptor) -> dict[str, Any]:
    return {"digest": str(layer.digest), "size": layer.size}


def _name(image: PreparedImage) -> dict[str, Any]:
    return {"reference": str(image.request), "image_id": str(image.image.config.image_id)}


def _image(image: PreparedImage) -> dict[str, Any]:
    return {
        **_name(image),
        "manifest_digest": str(image.resolved.digest),
        "repo_tags": list(image.repo_tags),
    }
