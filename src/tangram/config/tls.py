"""TLS for Redis: a URL's options mean the same for every connection of this process."""

import ssl
from collections.abc import Mapping

from tangram.redis_url import is_false

__all__ = ["redis_tls_context"]


def redis_tls_context(options: Mapping[str, str]) -> ssl.SSLContext:
    """Return the TLS context for a ``rediss://`` URL.

    Args:
        options: the options of the URL, with redis-py's names; see ``tangram.redis_url.TLS_OPTIONS``.

    Raises:
        OSError: a file that is named cannot be read, or is no certificate or key.
    """
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
