"""The TLS context of a Redis URL is kept as long as its files are the same."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tangram.config.tls import redis_tls_context
from tests.broker.fakes import CERT


def test_a_context_is_kept_until_a_file_is_replaced(tmp_path: Path) -> None:
    """A renewed certificate is read at the next dial; without one nothing is read again."""
    cert = tmp_path / "cert.pem"
    cert.write_bytes(CERT.read_bytes())
    options = {
        "ssl_ca_certs": str(cert),
        "ssl_certfile": str(cert),
        "ssl_keyfile": str(CERT.with_name("key.pem")),
    }
    first = redis_tls_context(options)
    assert redis_tls_context(dict(options)) is first
    assert redis_tls_context({**options, "ssl_cert_reqs": "none"}).verify_mode is ssl.CERT_NONE
    assert redis_tls_context(options).verify_mode is ssl.CERT_REQUIRED

    renewed = tmp_path / "renewed.pem"
    renewed.write_bytes(CERT.read_bytes())
    renewed.replace(cert)
    second = redis_tls_context(options)
    assert second is not first

    cert.unlink()
    with pytest.raises(OSError, match="No such file"):
        redis_tls_context(options)
    cert.write_bytes(CERT.read_bytes())
    assert redis_tls_context(options).verify_mode is ssl.CERT_REQUIRED


def test_the_certificates_of_the_system_are_read_once() -> None:
    """Without files in the URL those of the system count."""
    first = redis_tls_context({})

    assert first.verify_mode is ssl.CERT_REQUIRED
    assert redis_tls_context({}) is first
