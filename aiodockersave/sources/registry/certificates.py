"""TLS contexts for registries, out of the directories of certificates that Docker and podman use.

A registry's certificate counts for the hosts that it has as subject alternative names, as with Docker and podman. Its
common name does not count.

::

    ~/.config/containers/certs.d/HOST[:PORT]/     the first of these directories that is there (podman's order);
    /etc/containers/certs.d/HOST[:PORT]/          HOST[:PORT] as in the reference
    /etc/docker/certs.d/HOST[:PORT]/
        *.crt                                     authorities, besides the system's
        NAME.cert, NAME.key                       a client certificate and its key

Sources: Docker's "Verify repository client with certificates", containers-certs.d(5). Where the caller names a directory
(``cert_dir``), only that directory is read.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NoReturn

from aiodockersave._aio import Worker, running_task
from aiodockersave.core.errors import ConfigurationError, ContentTooLargeError, InvalidInputError
from aiodockersave.core.text import one_line, quoted
from aiodockersave.sources.regular_file import read_file

from .cache import Recent

__all__ = ["TlsContexts", "tls_context"]

MAX_FILE = 4 << 20
"""The largest file of certificates that is read, in bytes; a distribution's bundle of all authorities has 0.2 MiB."""
_MAX_CONTEXTS: Final = 64
"""Contexts that a source keeps: a registry may redirect to any number of hosts, and each has its own."""

Path = str | os.PathLike[str]

_USER_PLACE = (
    ".config/containers/certs.d"  # podman takes it from the home directory, whatever XDG_CONFIG_HOME says
)
_SYSTEM_PLACES = ("/etc/containers/certs.d", "/etc/docker/certs.d")
_REGISTRY = re.compile(
    r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~-]+)?\])(?::[0-9]+)?"
)

# OpenSSL's reasons for a key that is not the certificate's: a key of the same algorithm, and a key of another.
_OTHER_CERTIFICATE = frozenset({"KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})

# OpenSSL's codes for a host, and for an address, that is not among the certificate's names (x509_vfy.h).
_OTHER_HOST = frozenset({62, 64})
# Go's crypto/x509: "certificate relies on legacy Common Name field, use SANs instead".
_NAMELESS = (
    "it has no subject alternative name, and a common name alone does not count; the registry needs a new one"
)

logger = logging.getLogger("aiodockersave")


class TlsContexts:
    """The TLS contexts of one source, each made once.

    Args:
        ca_file: More authorities, in PEM, besides the system's.
        cert_dir: A directory of certificates, instead of the default places.
        is_lent: Whether a caller's connector dials, whose own TLS settings hold where no authority is given.

    Attributes:
        has_authorities: Whether ``ca_file`` or ``cert_dir`` is given.
    """

    def __init__(self, ca_file: Path | None, cert_dir: Path | None, *, is_lent: bool) -> None:
        self.has_authorities = ca_file is not None or cert_dir is not None
        self._ca_file = ca_file
        self._cert_dir = cert_dir
        self._is_lent = is_lent
        self._contexts: Recent[tuple[str, bool], ssl.SSLContext] = Recent(_MAX_CONTEXTS)

    async def get(self, registry: str, shows_client: bool) -> ssl.SSLContext | bool:  # noqa: FBT001 - a callback
        """Return the context for a host, as :func:`tls_context` makes it; True for the caller's own TLS settings.

        Cancel: a context that is being made is finished and dropped.
        """
        if self._is_lent and not self.has_authorities:
            return True
        context = self._contexts.get((registry, shows_client))
        if context is None:
            context = await tls_context(
                registry, ca_file=self._ca_file, cert_dir=self._cert_dir, shows_client=shows_client
            )
            self._contexts.put((registry, shows_client), context)
        return context


async def tls_context(
    registry: str,
    *,
    ca_file: Path | None = None,
    cert_dir: Path | None = None,
    home: Path | None = None,
    shows_client: bool = True,
) -> ssl.SSLContext:
    """Make the context for TLS 1.2 and newer with a registry, whose name is checked.

    This takes some 20 ms, in a thread, so keep the context.

    Args:
        registry: Host and perhaps port, as in the reference.
        ca_file: More authorities, in PEM, besides the system's.
        cert_dir: A directory of certificates, instead of the default places.
        home: The home directory, instead of the user's.
        shows_client: Whether a client certificate in ``cert_dir`` is shown. It is for the registry, not for the hosts
            that the registry redirects to.

    Raises:
        ConfigurationError: A file or directory that is named, or lies in its place, cannot be used.
        InvalidInputError: ``registry`` is not the name of a registry.

    Cancel: a context that is being made is finished and dropped.
    """
    running_task()
    if not _REGISTRY.fullmatch(registry):  # the name becomes a part of a path
        raise InvalidInputError(f"not the name of a registry: {quoted(registry, 200)}")
    return await Worker("aiodockersave-tls").run(
        _make_context,
        registry,
        None if ca_file is None else os.fspath(ca_file),
        None if cert_dir is None else os.fspath(cert_dir),
        None if home is None else os.fspath(home),
        shows_client=shows_client,
    )


# ── what blocks ──


def _make_context(
    registry: str, ca_file: str | None, cert_dir: str | None, home: str | None, *, shows_client: bool
) -> ssl.SSLContext:
    # Not `ssl.create_default_context`: from Python 3.13 it is stricter (VERIFY_X509_STRICT), and refuses authorities
    # that Docker and podman take. An intermediate one may be trusted alone, as there.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the name and requires a certificate
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if ssl.HAS_NEVER_CHECK_COMMON_NAME:  # nor do Go's clients take it for a name; RFC 9525 § 2
        context.hostname_checks_common_name = False
    context.sslobject_class = _Connection
    context.set_alpn_protocols(["http/1.1"])
    context.load_default_certs()
    if ca_file is not None:
        _load_authorities(context, ca_file)
    if cert_dir is not None:
        names = _list(cert_dir)
        _load_directory(context, cert_dir, names if shows_client else _authorities(names))
    else:
        _load_default_directory(context, registry, home or os.path.expanduser("~"))
    return context


class _Connection(ssl.SSLObject):
    """Our side of a TLS connection, whose error for a certificate without any names says that names are missing."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLCertVerificationError as error:
            if error.verify_code in _OTHER_HOST and self._has_nameless_certificate():
                error.verify_message = _NAMELESS
            raise

    def _has_nameless_certificate(self) -> bool:
        # From Python 3.13 there is a public method of this name. OpenSSL before 3 has no certificate after a fault.
        own: Any = getattr(self, "_sslobj", None)
        with suppress(AttributeError, OSError, ValueError):  # only the message depends on the answer
            return any("subjectAltName" not in each.get_info() for each in own.get_unverified_chain()[:1])
        return False


def _load_default_directory(context: ssl.SSLContext, registry: str, home: str) -> None:
    for place in (os.path.join(home, _USER_PLACE), *_SYSTEM_PLACES):
        directory = os.path.join(place, registry)
        try:
            names = os.listdir(directory)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:  # podman too passes over a directory that it may not read
            logger.warning("%s is not used: %s", one_line(directory), error.strerror)
            continue
        _load_directory(context, directory, names)
        return


def _list(directory: str) -> Sequence[str]:
    try:
        return os.listdir(directory)
    except OSError as error:
        raise ConfigurationError(directory, str(error.strerror)) from None


def _load_directory(context: ssl.SSLContext, directory: str, names: Sequence[str]) -> None:
    for name in sorted(_authorities(names)):
        _load_authorities(context, os.path.join(directory, name))
    certificates = _client_certificates(directory, names)
    if len(certificates) > 1:  # OpenSSL has room for one; Docker tries one after the other, in this order
        unused = ", ".join(map(one_line, certificates[1:]))
        logger.warning(
            "%s: of the client certificates, %s is used, not %s",
            one_line(directory),
            one_line(certificates[0]),
            unused,
        )
    for name in certificates[:1]:
        _load_client(context, os.path.join(directory, name), os.path.join(directory, _key_name(name)))


def _authorities(names: Sequence[str]) -> Sequence[str]:
    return [name for name in names if name.endswith(".crt")]


def _client_certificates(directory: str, names: Sequence[str]) -> Sequence[str]:
    """Return the names of the client certificates in order, each of which has a key, as each key has one."""
    certificates = sorted(name for name in names if name.endswith(".cert"))
    for name in certificates:
        if _key_name(name) not in names:
            missing = (
                f"its key {one_line(_key_name(name))} is missing; an authority's certificate ends in .crt"
            )
            raise ConfigurationError(os.path.join(directory, name), missing)
    keys_wanted = {_key_name(name) for name in certificates}
    for name in sorted(names):
        if name.endswith(".key") and name not in keys_wanted:
            raise ConfigurationError(
                os.path.join(directory, name), "its certificate, which ends in .cert, is missing"
            )
    return certificates


def _key_name(certificate: str) -> str:
    return certificate.removesuffix(".cert") + ".key"


def _load_authorities(context: ssl.SSLContext, path: str) -> None:
    text = _read_text(path)
    try:
        context.load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError):  # ValueError: it is empty
        raise ConfigurationError(path, "it is not made of valid certificates in PEM") from None


def _load_client(context: ssl.SSLContext, certificate: str, key: str) -> None:
    # The certificate is checked alone first, since OpenSSL has one error for both files.
    _load_authorities(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), certificate)
    _read_text(key)

    def refuse() -> NoReturn:  # without it OpenSSL asks on the terminal
        raise ConfigurationError(key, "it is encrypted; leave it in plain text, readable by its owner alone")

    try:
        context.load_cert_chain(certificate, key, password=refuse)
    except ssl.SSLError as error:
        if error.reason in _OTHER_CERTIFICATE:
            raise ConfigurationError(
                key, f"it belongs to another certificate than {one_line(certificate)}"
            ) from None
        raise ConfigurationError(key, "it is not a valid private key in PEM") from None


def _read_text(path: str) -> str:
    try:
        raw = read_file(path, MAX_FILE)
    except ContentTooLargeError:
        raise ConfigurationError(path, f"it is larger than {MAX_FILE} bytes") from None
    except OSError as error:
        raise ConfigurationError(path, str(error.strerror)) from None
    return raw.decode("ascii", "ignore")  # PEM is ASCII; the text around it may be anything
