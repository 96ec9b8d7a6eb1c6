"""The documents of images, under the path that callers import them from."""

from .core.documents import *  # noqa: F403 - of all that has a public name there
