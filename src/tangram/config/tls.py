"""TLS as the options of a Redis URL ask for it: one reading for all who connect to the same Redis."""

import ssl
from collections.abc import Mapping

__all__ = ["redis_tls_context"]


def redis_tls_context(options: Mapping[str, str]) -> ssl.SSLContext:
    """The context for ``rediss://``, from the query of the URL; the names are redis-py's.

    Raises:
        OSError: a file that is named cannot be read, or is no certificate or key.
    """
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    wanted = options.get("ssl_cert_reqs", "required")
    if wanted != "required":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE if wanted == "none" else ssl.CERT_OPTIONAL
    if options.get("ssl_check_hostname", "true").lower() in {"false", "0", "no"}:
        context.check_hostname = False
    if "ssl_certfile" in options:
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    return context
