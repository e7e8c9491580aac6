"""TLS for Redis: a URL's options mean the same for every connection of this process."""

import ssl
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

from tangram.redis_url import is_false

__all__ = ["redis_tls_context"]

_FILES: Final = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
"""Options that name a file or a folder."""


def redis_tls_context(options: Mapping[str, str]) -> ssl.SSLContext:
    """Return the TLS context for a ``rediss://`` URL.

    A context is kept until one of its files changes: each guide of a failover is asked over a connection of
    its own, and to read the certificates of the system takes a processor more than 20 ms.

    Args:
        options: the options of the URL, with redis-py's names; see ``tangram.redis_url.TLS_OPTIONS``.

    Raises:
        OSError: a file that is named cannot be read, or is no certificate or key.
    """
    system = ssl.get_default_verify_paths()
    given = [options[name] for name in _FILES if name in options]
    files = (*given, *filter(None, (system.cafile, system.capath)))
    return _make_context(tuple(options.items()), tuple(_versions(files)))


def _versions(files: Iterable[str]) -> Iterable[tuple[int, ...]]:
    """Yield the version of each file; an empty one for a file that cannot be read."""
    for file in files:
        try:
            found = Path(file).stat()
        except OSError:
            yield ()
        else:
            yield (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=8)
def _make_context(named: tuple[tuple[str, str], ...], _versions: tuple[object, ...]) -> ssl.SSLContext:
    options = dict(named)
    context = ssl.create_default_context(
        cafile=options.get("ssl_ca_certs"),
        capath=options.get("ssl_ca_path"),
        cadata=options.get("ssl_ca_data"),
    )
    wanted = options.get("ssl_cert_reqs", "required")
    if wanted != "required":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE if wanted == "none" else ssl.CERT_OPTIONAL
    if is_false(options.get("ssl_check_hostname", "true")):
        context.check_hostname = False
    if "ssl_certfile" in options:
        context.load_cert_chain(
            options["ssl_certfile"], options.get("ssl_keyfile"), options.get("ssl_password")
        )
    if "ssl_ciphers" in options:
        context.set_ciphers(options["ssl_ciphers"])
    if "ssl_min_version" in options:
        context.minimum_version = ssl.TLSVersion(int(options["ssl_min_version"]))
    return context
