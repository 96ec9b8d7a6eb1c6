"""The values that images are made of, under the path that callers import them from."""

from .core.model import *  # noqa: F403 - of all that has a public name there
