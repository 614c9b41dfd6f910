"""TLS contexts are made once, as long as what they trust is what is on disk."""

import os
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from gateway.connecting import trusting


def issuers(context: ssl.SSLContext) -> set[str]:
    return {str(one["serialNumber"]) for one in context.get_ca_certs()}


def write(path: Path, authority: trustme.CA, *, at: int) -> None:
    authority.cert_pem.write_to_path(str(path))
    os.utime(path, (at, at))


def test_one_context_serves_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = ssl.create_default_context

    def counted(**options: Any) -> ssl.SSLContext:
        made.append(options)
        return make(**options)

    monkeypatch.setattr(ssl, "create_default_context", counted)
    of_all = {trusting(None, "of", "this", "test") for _ in range(5)}
    assert (len(of_all), len(made)) == (1, 1)
    (context,) = of_all
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert trusting(None) is not context  # who offers no protocol is offered none


def test_a_bundle_that_has_changed_is_read_again(tmp_path: Path) -> None:
    bundle, old, new = tmp_path / "ca.pem", trustme.CA(), trustme.CA()
    write(bundle, old, at=1_000)
    before = trusting(str(bundle))
    assert trusting(str(bundle)) is before
    write(bundle, new, at=2_000)
    after = trusting(str(bundle))
    assert issuers(before).isdisjoint(issuers(after))
    assert len(issuers(after)) == 1


def test_a_bundle_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        trusting(str(tmp_path / "none.pem"))
