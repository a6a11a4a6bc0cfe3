"""Decrypts the protected settings with the real openssl, and with certificates like those of Azure."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.protected_settings import CIPHERS, KeyPair, encrypt, key_pair, make_key_pair
from vmsnapshot.handler.secret import Secret
from vmsnapshot.handler.settings import protected
from vmsnapshot.handler.settings.protected import ProtectedSettingsError, decrypt

MARK = "c2VjcmV0"
PLAIN: dict[str, Any] = {"objectStr": MARK, "statusBlobUri": f"https://b/s?sig={MARK}", "name": "Müller"}


@pytest.fixture
def lib(tmp_path: Path) -> Path:
    """The agent's directory, with the session's certificate and key."""
    key_pair().write(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def stranger() -> Iterator[KeyPair]:
    yield make_key_pair()


def refusal(text: str, lib: Path, *, thumbprint: str | None = None, **options: Any) -> ProtectedSettingsError:
    """The error that a decryption raises. Neither it nor an error in its context shows the plain text."""
    with pytest.raises(ProtectedSettingsError) as caught:
        decrypt(Secret(text), thumbprint or key_pair().thumbprint, lib, **options)
    error: BaseException | None = caught.value
    while error is not None:
        assert MARK not in f"{error} {error!r} {vars(error)}"
        # Errors of `subprocess` and `json` have the text decrypted so far as an attribute.
        assert not hasattr(error, "output")
        assert not hasattr(error, "doc")
        error = error.__context__
    return caught.value


def program(directory: Path, script: str) -> str:
    path = directory / "openssl"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("cipher", CIPHERS)
def test_every_cipher_of_azure_is_decrypted(lib: Path, cipher: str) -> None:
    assert decrypt(Secret(encrypt(PLAIN, cipher)), key_pair().thumbprint, lib) == PLAIN


def test_thumbprint_may_be_in_lower_case(lib: Path) -> None:
    assert decrypt(Secret(encrypt(PLAIN)), key_pair().thumbprint.lower(), lib) == PLAIN


def test_files_without_bag_attributes_are_fine(lib: Path) -> None:
    pair = key_pair()
    (lib / f"{pair.thumbprint}.crt").write_bytes(pair.certificate_pem)
    (lib / f"{pair.thumbprint}.prv").write_bytes(pair.key_pem)
    assert decrypt(Secret(encrypt(PLAIN)), pair.thumbprint, lib) == PLAIN


def test_base64_may_have_line_breaks(lib: Path) -> None:
    text = encrypt(PLAIN)
    broken = "\r\n".join(text[at : at + 64] for at in range(0, len(text), 64))
    assert decrypt(Secret(broken), key_pair().thumbprint, lib) == PLAIN


def test_large_settings_pass_through_the_pipes(lib: Path) -> None:
    plain = {"objectStr": "A" * 1_000_000}
    assert decrypt(Secret(encrypt(plain)), key_pair().thumbprint, lib) == plain


@pytest.mark.parametrize(
    "thumbprint",
    ["", "AB", "../" + "A" * 37, "A" * 41, "G" * 40, "A" * 40 + "\n", "/etc/" + "A" * 35, "٣" * 40],
)
def test_thumbprint_that_is_none_names_no_file(lib: Path, thumbprint: str) -> None:
    with pytest.raises(ProtectedSettingsError) as caught:
        decrypt(Secret(encrypt(PLAIN)), thumbprint, lib)
    assert caught.value.code == "bad-thumbprint"


def test_missing_certificate_is_an_error(lib: Path) -> None:
    (lib / f"{key_pair().thumbprint}.crt").unlink()
    assert refusal(encrypt(PLAIN), lib).code == "no-certificate"


def test_missing_key_is_an_error(lib: Path) -> None:
    (lib / f"{key_pair().thumbprint}.prv").unlink()
    assert refusal(encrypt(PLAIN), lib).code == "no-key"


def test_damaged_certificate_is_an_error(lib: Path) -> None:
    (lib / f"{key_pair().thumbprint}.crt").write_text("Bag Attributes\n")
    assert refusal(encrypt(PLAIN), lib).code == "no-certificate"


def test_damaged_key_is_an_error(lib: Path) -> None:
    (lib / f"{key_pair().thumbprint}.prv").write_bytes(key_pair().key_pem[:200])
    assert refusal(encrypt(PLAIN), lib).code == "no-key"


def test_missing_openssl_is_an_error(lib: Path) -> None:
    for openssl in (str(lib / "no-openssl"), str(lib), str(lib / f"{key_pair().thumbprint}.crt"), "a\0b"):
        assert refusal(encrypt(PLAIN), lib, openssl=openssl).code == "no-openssl"


@pytest.mark.parametrize("text", ["", "QQ=", "not base64", "MIIB", base64.b64encode(b"text").decode(), "é"])
def test_text_that_is_no_message_is_an_error(lib: Path, text: str) -> None:
    assert refusal(text, lib).code == "decryption-failed"


def test_truncated_message_is_an_error(lib: Path) -> None:
    message = base64.b64decode(encrypt(PLAIN))
    for length in (1, len(message) // 2, len(message) - 1):
        assert refusal(base64.b64encode(message[:length]).decode(), lib).code == "decryption-failed"


@pytest.mark.parametrize(
    "plain",
    [b"", b"[]", b"null", b"text " + MARK.encode(), b'{"a": "' + MARK.encode(), b"\xff", b"[" * 100_000],
)
def test_plain_text_that_is_no_json_object_is_an_error(lib: Path, plain: bytes) -> None:
    assert refusal(encrypt(plain), lib).code == "not-json"


@pytest.mark.parametrize("cipher", CIPHERS)
def test_message_for_another_certificate_never_passes(lib: Path, stranger: KeyPair, cipher: str) -> None:
    for _ in range(5):
        assert refusal(stranger.encrypt(PLAIN, cipher), lib).code == "decryption-failed"


def test_key_of_another_certificate_never_passes(lib: Path, stranger: KeyPair) -> None:
    # Here openssl may "decrypt" with a random key, and one time in 256 the padding looks right.
    (lib / f"{key_pair().thumbprint}.prv").write_bytes(stranger.key_pem)
    text = encrypt(PLAIN)
    for _ in range(20):
        assert refusal(text, lib).code in ("decryption-failed", "not-json")


def test_garbage_with_exit_status_0_never_passes(lib: Path) -> None:
    openssl = program(lib, "cat > /dev/null; head -c 300 /dev/urandom")
    assert refusal(encrypt(PLAIN), lib, openssl=openssl).code == "not-json"


def test_openssl_that_hangs_is_ended_and_its_output_forgotten(
    lib: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protected, "_LIMIT_SECONDS", 0.3)
    openssl = program(lib, f"echo {MARK}; echo $$ > {lib}/pid; exec sleep 60")
    assert refusal(encrypt(PLAIN), lib, openssl=openssl).code == "decryption-failed"
    pid = int((lib / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_complaints_of_openssl_are_not_repeated(lib: Path) -> None:
    openssl = program(lib, f"echo {MARK}; echo 'error:{MARK}' >&2; exit 4")
    assert refusal(encrypt(PLAIN), lib, openssl=openssl).code == "decryption-failed"


def test_openssl_gets_the_message_by_pipe_and_its_settings_but_no_other_environment(
    lib: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENSSL_FIPS", "1")
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("SOME_TOKEN", MARK)
    openssl = program(
        lib,
        f"""env > {lib}/env
        printf '%s\\n' "$@" > {lib}/arguments
        standard=$(readlink /proc/$$/fd/0 /proc/$$/fd/1)
        echo "$standard" > {lib}/standard
        cat > /dev/null
        echo '{{}}'""",
    )
    assert decrypt(Secret(encrypt(PLAIN)), key_pair().thumbprint, lib, openssl=openssl) == {}
    names = {line.partition("=")[0] for line in (lib / "env").read_text().splitlines()}
    # The shell itself sets PWD and a few others.
    assert names - {"PWD", "OLDPWD", "SHLVL", "_"} == {"PATH", "LC_ALL", "OPENSSL_FIPS"}
    thumbprint = key_pair().thumbprint
    assert (lib / "arguments").read_text().split("\n") == [
        *("cms", "-decrypt", "-inform", "DER"),
        *("-recip", f"{lib}/{thumbprint}.crt", "-inkey", f"{lib}/{thumbprint}.prv", ""),
    ]
    standard = (lib / "standard").read_text().split()
    assert [line.partition(":")[0] for line in standard] == ["pipe", "pipe"]


def test_default_openssl_is_there() -> None:
    assert shutil.which(protected.OPENSSL)


def test_decryption_leaves_no_file_behind(
    lib: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, empty = encrypt(PLAIN), tmp_path_factory.mktemp("empty")
    monkeypatch.setenv("TMPDIR", str(empty))
    monkeypatch.chdir(empty)
    before = sorted(lib.iterdir())
    decrypt(Secret(text), key_pair().thumbprint, lib)
    refusal("QQ==", lib)
    assert sorted(lib.iterdir()) == before
    assert list(empty.iterdir()) == []
