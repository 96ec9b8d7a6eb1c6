"""The certificates for a registry's TLS, ours and those that it is trusted by, as Docker and podman lay them out.

As with them, a certificate is for the hosts that it has as subject alternative names, and its common name is not one.

::

    ~/.config/containers/certs.d/HOST[:PORT]/     the first of these directories that is there (podman's order);
    /etc/containers/certs.d/HOST[:PORT]/          HOST[:PORT] as in the reference
    /etc/docker/certs.d/HOST[:PORT]/
        *.crt                                     authorities, besides the system's
        NAME.cert, NAME.key                       a client certificate and its key

Sources: Docker's "Verify repository client with certificates", containers-certs.d(5). A directory given by the
caller (``--cert-dir``) is such a directory itself, and the only one.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from aiodockersave._aio import Worker, running_task
from aiodockersave.core.errors import ConfigurationError, ContentTooLargeError, InvalidInputError
from aiodockersave.core.text import one_line, quoted
from aiodockersave.sources.regular_file import read_file

__all__ = ["tls_context"]

MAX_FILE = 4 << 20
"""Bytes of a file of certificates; a distribution's bundle of all authorities has 0.2 MiB."""

_USER_PLACE = (
    ".config/containers/certs.d"  # podman takes it from the home directory, whatever XDG_CONFIG_HOME says
)
_SYSTEM_PLACES = ("/etc/containers/certs.d", "/etc/docker/certs.d")
_REGISTRY = re.compile(
    r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~-]+)?\])(?::[0-9]+)?"
)

# What OpenSSL says of a key that is not the certificate's: one of the same algorithm, and one of another.
_OTHER_CERTIFICATE = frozenset({"KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})

# What OpenSSL says where the host, or the address, is none of the certificate's names (x509_vfy.h).
_OTHER_HOST = frozenset({62, 64})
# Go's crypto/x509: "certificate relies on legacy Common Name field, use SANs instead".
_NAMELESS = (
    "it has no subject alternative name, and a common name alone does not count; the registry needs a new one"
)

logger = logging.getLogger("aiodockersave")


async def tls_context(
    registry: str,
    *,
    ca_file: str | os.PathLike[str] | None = None,
    cert_dir: str | os.PathLike[str] | None = None,
    home: str | os.PathLike[str] | None = None,
    shows_client: bool = True,
) -> ssl.SSLContext:
    """Make the context for TLS with a registry: its name is checked, TLS 1.2 and newer.

    It takes some 20 ms, in a thread: keep it.

    Args:
        registry: Host and perhaps port, as in the reference.
        ca_file: More authorities, in PEM, besides the system's.
        cert_dir: A directory of certificates, instead of the default places.
        home: The home directory, instead of the user's.
        shows_client: Whether a client certificate in ``cert_dir`` is shown. It is for the registry, not for the hosts to
            which that redirects.

    Raises:
        ConfigurationError: A file or directory that is named, or lies in its place, cannot be used.

    Cancel: what was begun is finished and dropped.
    """
    running_task()
    if not _REGISTRY.fullmatch(registry):  # it becomes a path
        raise InvalidInputError(f"no name of a registry: {quoted(registry, 200)}")
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
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the name is checked, a certificate is required
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
    """One side of a TLS connection. If a certificate is not for the host as it has no names, it says so."""

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
        with suppress(AttributeError, OSError, ValueError):  # it is only for the message
            return any("subjectAltName" not in each.get_info() for each in own.get_unverified_chain()[:1])
        return False


def _load_default_directory(context: ssl.SSLContext, registry: str, home: str) -> None:
    for place in (os.path.join(home, _USER_PLACE), *_SYSTEM_PLACES):
        directory = os.path.join(place, registry)
        try:
            names = os.listdir(directory)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:  # podman passes over what it may not look into, too
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
    # Looked at first, since one error of OpenSSL's stands for both files.
    _load_authorities(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), certificate)
    _read_text(key)

    def refuse() -> NoReturn:  # else OpenSSL asks on the terminal
        raise ConfigurationError(key, "it is encrypted; leave it in plain text, readable by its owner alone")

    try:
        context.load_cert_chain(certificate, key, password=refuse)
    except ssl.SSLError as error:
        if error.reason in _OTHER_CERTIFICATE:
            raise ConfigurationError(
                key, f"it belongs to another certificate than {one_line(certificate)}"
            ) from None
        raise ConfigurationError(key, "it is no valid private key in PEM") from None


def _read_text(path: str) -> str:
    try:
        raw = read_file(path, MAX_FILE)
    except ContentTooLargeError:
        raise ConfigurationError(path, f"it is larger than {MAX_FILE} bytes") from None
    except OSError as error:
        raise ConfigurationError(path, str(error.strerror)) from None
    return raw.decode("ascii", "ignore")  # PEM is ASCII, the text around it may be anything
