"""Images in registries (OCI distribution-spec), on aiohttp."""

from .addresses import DialGuard
from .client import RegistrySource
from .endpoint import Retries
from .timeouts import Timeouts

__all__ = ["DialGuard", "RegistrySource", "Retries", "Timeouts"]
