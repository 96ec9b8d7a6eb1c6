"""The errors of this package, under the path that callers import them from."""

from .core.errors import *  # noqa: F403 - of all that has a public name there
