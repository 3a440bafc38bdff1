"""Kinds of keys and dates of certificates."""

from datetime import UTC, datetime, timedelta

import pytest
from certificates import issue, self_sign
from cryptography import x509

from irv2.errors import UsageError
from irv2.system.certificate import check_key, not_valid_at


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("Ed25519", "an Ed25519 key, with which gRPC makes no connection"),
        ("ECDSA on P-521", "an ECDSA key on P-521, with which"),
        ("ECDSA on secp256k1", "an ECDSA key on secp256k1, with which"),
        ("RSA, 1024 bits", "an RSA key that is too short"),
    ],
)
def test_a_key_that_grpc_can_not_use_is_named(kind, name, tmp_path):
    issued = self_sign(tmp_path, kind)
    expected = f"^{issued.certificate}: {name}.*; expected an RSA key of 2048 bits or more, or"
    with pytest.raises(UsageError, match=expected):
        check_key(issued.certificate)


def test_the_key_of_the_first_certificate_counts(tmp_path):
    good, other = issue(tmp_path / "good"), self_sign(tmp_path / "other", "Ed25519")
    chain = tmp_path / "chain.pem"
    chain.write_text(f"text before\n{good.certificate.read_text()}{other.certificate.read_text()}")
    check_key(chain)


def test_a_file_without_a_certificate_is_told(tmp_path):
    (tmp_path / "none.pem").write_text("none")
    with pytest.raises(UsageError, match=r"none\.pem: no certificate that can be read; expected"):
        check_key(tmp_path / "none.pem")


@pytest.mark.parametrize("year", [1951, 2049, 2050])
def test_the_dates_of_a_certificate_are_read_however_they_are_written(year, tmp_path):
    """As UTCTime up to 2049, and as GeneralizedTime from then on."""
    end = datetime(year, 2, 3, 4, 5, 6, tzinfo=UTC)
    days = ((end - datetime.now(UTC)) / timedelta(days=1)) - 1
    issued = self_sign(tmp_path, "ECDSA on P-256", (days, days + 1))
    read = x509.load_pem_x509_certificate(issued.certificate.read_bytes())
    begin, end = read.not_valid_before_utc, read.not_valid_after_utc
    second = timedelta(seconds=1)
    assert (
        not_valid_at(issued.certificate, begin - second) == f"not valid before {begin.isoformat()}"
    )
    assert not_valid_at(issued.certificate, begin) is None
    assert not_valid_at(issued.certificate, end) is None
    assert not_valid_at(issued.certificate, end + second) == f"expired at {end.isoformat()}"
