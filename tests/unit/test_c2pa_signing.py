"""C2PA signatures: read back by c2pa's own reader; what they leave alone, what they find, and every refusal."""

import io
import json
import os
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from PIL import Image

from krea.disclosure import FORMATS, Disclosure, encode, read
from krea.picture_file import DigitalSourceType

c2pa = pytest.importorskip("c2pa")
from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519  # noqa: E402

from krea.c2pa_signing import Credentials, SigningError, check, local_credentials, main, sign  # noqa: E402

GENERATED = Disclosure(DigitalSourceType.GENERATED, "flux-krea", "0.1.0")
METADATA = {"prompt": json.dumps({"1": {"inputs": {"text": "a gull"}}}), "workflow": json.dumps({"nodes": []})}


@pytest.fixture(scope="module")
def credentials(tmp_path_factory):
    return local_credentials(tmp_path_factory.mktemp("installation") / "c2pa")


def file(file_format="png", disclosure=GENERATED):
    image = np.random.default_rng(0).random((96, 64, 3), dtype=np.float32)
    return encode(image, file_format, disclosure, METADATA).data


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def verdict(data, file_format, anchor=None):
    """c2pa's state of a file (Trusted, Valid, Invalid), the codes of what is wrong with it, and its manifest."""
    settings = {"trust": {"user_anchors": anchor}} if anchor else {}
    with (
        c2pa.Context.from_dict(settings) as context,
        c2pa.Reader(f"image/{file_format}", io.BytesIO(data), context=context) as reader,
    ):
        report = json.loads(reader.json())
        return (
            reader.get_validation_state(),
            {status["code"] for status in report.get("validation_status", [])},
            reader.get_active_manifest(),
        )


def pem(key, password=None, form=serialization.PrivateFormat.PKCS8):
    protection = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, protection)


def studio(key, days=30):
    """Credentials as a studio's own authority would give them for this key."""
    authority = ec.generate_private_key(ec.SECP256R1())
    names = {
        common: x509.Name(
            [
                x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Studio"),
                x509.NameAttribute(x509.NameOID.COMMON_NAME, common),
            ]
        )
        for common in ("Studio signer", "Studio authority")
    }
    usage = dict.fromkeys(
        ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign"]
        + ["encipher_only", "decipher_only"],
        False,
    )
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(names["Studio signer"])
        .issuer_name(names["Studio authority"])
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=60))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA256())
    )
    return Credentials(certificate.public_bytes(serialization.Encoding.PEM), pem(key))


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_signature_is_valid_and_says_what_the_mark_says(file_format, credentials):
    signed = sign(file(file_format), file_format, GENERATED, credentials)
    state, wrong, manifest = verdict(signed, file_format)
    assert (state, wrong) == ("Valid", {"signingCredential.untrusted"})
    (actions,) = manifest["assertions"]
    assert actions["data"]["actions"] == [
        {"action": "c2pa.created", "digitalSourceType": DigitalSourceType.GENERATED.uri}
    ]
    (generator,) = manifest["claim_generator_info"]
    assert (generator["name"], generator["version"]) == ("flux-krea", "0.1.0")
    assert "thumbnail" not in manifest and "time" not in manifest["signature_info"]


def test_an_edited_picture_is_signed_as_edited(credentials):
    edited = replace(GENERATED, source_type=DigitalSourceType.EDITED)
    _, _, manifest = verdict(sign(file(disclosure=edited), "png", edited, credentials), "png")
    (action,) = manifest["assertions"][0]["data"]["actions"]
    assert action["digitalSourceType"].endswith("/compositeWithTrainedAlgorithmicMedia")


@pytest.mark.parametrize("file_format", FORMATS)
def test_who_trusts_the_local_authority_trusts_the_file(file_format, credentials):
    signed = sign(file(file_format), file_format, GENERATED, credentials)
    authority = x509.load_pem_x509_certificates(credentials.certificate_chain)[-1]
    anchor = authority.public_bytes(serialization.Encoding.PEM).decode()
    assert verdict(signed, file_format, anchor)[:2] == ("Trusted", set())


@pytest.mark.parametrize("file_format", FORMATS)
def test_pixels_mark_and_metadata_stay_as_they_were(file_format, credentials):
    plain = file(file_format)
    signed = sign(plain, file_format, GENERATED, credentials)
    assert np.array_equal(pixels(signed), pixels(plain))
    assert read(signed) == read(plain)
    assert read(signed).metadata == METADATA
    assert len(signed) - len(plain) < 10_000


def test_text_chunks_of_a_png_stay_byte_for_byte(credentials):
    signed = sign(file(), "png", GENERATED, credentials)
    for name, text in METADATA.items():
        assert f"tEXt{name}\0{text}".encode() in signed


@pytest.mark.parametrize("file_format", FORMATS)
def test_one_changed_byte_is_found(file_format, credentials):
    """In the picture, and in the metadata."""
    signed = sign(file(file_format), file_format, GENERATED, credentials)
    picture_at = {"png": signed.find(b"IDAT") + 2000, "jpeg": len(signed) - 2000, "webp": signed.find(b"VP8 ") + 2000}
    for place in (picture_at[file_format], signed.index(b"a gull")):
        changed = bytearray(signed)
        changed[place] ^= 1
        state, wrong, _ = verdict(bytes(changed), file_format)
        assert state == "Invalid" and "assertion.dataHash.mismatch" in wrong


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: ec.generate_private_key(ec.SECP521R1()),
        lambda: rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate,
    ],
    ids=["P-256", "P-384", "P-521", "RSA", "Ed25519"],
)
def test_a_studios_own_certificate_signs(make):
    signed = sign(file(), "png", GENERATED, studio(make()))
    state, _, manifest = verdict(signed, "png")
    assert state == "Valid"
    assert manifest["signature_info"]["issuer"] == "Studio"


def test_a_key_in_the_older_form_signs():
    key = ec.generate_private_key(ec.SECP256R1())
    older = pem(key, form=serialization.PrivateFormat.TraditionalOpenSSL)
    assert b"BEGIN EC PRIVATE KEY" in older
    signed = sign(file(), "png", GENERATED, studio(key)._replace(private_key=older))
    assert verdict(signed, "png")[0] == "Valid"


def test_another_key_than_the_certificates_is_refused(credentials):
    other = credentials._replace(private_key=pem(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(SigningError, match="certificate belongs to the private key"):
        sign(file(), "png", GENERATED, other)


def test_an_expired_certificate_is_refused():
    with pytest.raises(SigningError, match="valid today"):
        sign(file(), "png", GENERATED, studio(ec.generate_private_key(ec.SECP256R1()), days=-1))


@pytest.mark.parametrize("chain", [b"", b"nothing"])
def test_what_is_no_certificate_is_refused(chain, credentials):
    with pytest.raises(SigningError, match="PNG file was not signed"):
        sign(file(), "png", GENERATED, credentials._replace(certificate_chain=chain))


@pytest.mark.parametrize("key", [b"", b"nothing", pem(ec.generate_private_key(ec.SECP256R1()), b"secret")])
def test_what_is_no_open_private_key_is_refused(key, credentials):
    with pytest.raises(SigningError, match="PEM text without a password"):
        sign(file(), "png", GENERATED, credentials._replace(private_key=key))


@pytest.mark.parametrize("make", [lambda: ec.generate_private_key(ec.SECP256K1()), x25519.X25519PrivateKey.generate])
def test_a_key_that_c2pa_does_not_use_is_refused(make, credentials):
    with pytest.raises(SigningError, match="kind of private key"):
        sign(file(), "png", GENERATED, credentials._replace(private_key=pem(make())))


@pytest.mark.parametrize("data", [b"", b"nothing", file("jpeg"), file()[:200]])
def test_what_is_no_whole_file_of_the_format_is_refused(data, credentials):
    with pytest.raises(SigningError, match="Check that the file is whole"):
        sign(data, "png", GENERATED, credentials)


def test_another_format_is_refused(credentials):
    with pytest.raises(ValueError, match="Expected png, jpeg, webp"):
        sign(file(), "tiff", GENERATED, credentials)


def test_there_is_nothing_to_sign_without_disclosure(credentials):
    with pytest.raises(ValueError, match="nothing to sign"):
        sign(file(), "png", replace(GENERATED, source_type=None), credentials)


@pytest.mark.parametrize("module", ["c2pa", "cryptography.hazmat.primitives"])
def test_a_missing_package_is_named_with_its_extra(module, credentials, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SigningError, match='extra "c2pa".*c2pa-python'):
        sign(file(), "png", GENERATED, credentials)


def test_a_missing_package_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(SigningError, match='extra "c2pa"'):
        local_credentials(tmp_path / "c2pa")
    assert list(tmp_path.iterdir()) == []


def test_credentials_are_made_once(tmp_path):
    first = local_credentials(tmp_path / "deep" / "c2pa")
    assert local_credentials(tmp_path / "deep" / "c2pa") == first
    assert local_credentials(tmp_path / "other") != first


def test_two_at_once_get_the_same_credentials(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: local_credentials(tmp_path / "c2pa"), range(8)))
    assert len(set(found)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["c2pa"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_only_the_owner_may_read_the_credentials(tmp_path):
    local_credentials(tmp_path / "c2pa")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "c2pa").iterdir()}
    assert modes == {"certificate_chain.pem": 0o600, "private_key.pem": 0o600}
    assert stat.S_IMODE((tmp_path / "c2pa").stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["certificate_chain.pem", "private_key.pem"])
def test_a_missing_file_is_named_and_nothing_is_overwritten(tmp_path, name):
    local_credentials(tmp_path / "c2pa")
    (tmp_path / "c2pa" / name).unlink()
    left = {path.name: path.read_bytes() for path in (tmp_path / "c2pa").iterdir()}
    with pytest.raises(SigningError, match=f"has no {name}"):
        local_credentials(tmp_path / "c2pa")
    assert {path.name: path.read_bytes() for path in (tmp_path / "c2pa").iterdir()} == left


def test_a_disk_that_fails_leaves_no_half_written_folder(tmp_path, monkeypatch):
    def fails(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("krea.c2pa_signing.files.create", fails)
    with pytest.raises(OSError, match="No space"):
        local_credentials(tmp_path / "c2pa")
    assert list(tmp_path.iterdir()) == []


def test_the_local_certificates_are_what_c2pa_asks_for(credentials):
    signer, authority = x509.load_pem_x509_certificates(credentials.certificate_chain)
    assert isinstance(signer.public_key().curve, ec.SECP256R1)
    key = serialization.load_pem_private_key(credentials.private_key, None)
    assert key.public_key() == signer.public_key() != authority.public_key()
    signer.verify_directly_issued_by(authority)
    authority.verify_directly_issued_by(authority)
    extensions = signer.extensions
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        x509.ExtendedKeyUsageOID.EMAIL_PROTECTION
    ]
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature and not usage.key_cert_sign
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert signer.not_valid_after_utc.year == 9999


# Checking


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_check_says_who_signed_what(file_format, credentials):
    found = check(sign(file(file_format), file_format, GENERATED, credentials))
    assert found.problems == () and not found.trusted
    assert found.source_types == (DigitalSourceType.GENERATED.uri,)
    assert (found.tool, found.signer) == ("flux-krea 0.1.0", "Local signer, flux-krea on this computer")


def test_the_command_is_content_with_files_that_hold(tmp_path, credentials, capsys):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(sign(file(), "png", GENERATED, credentials))
    assert main([str(tmp_path / "a.png"), str(tmp_path / "b.png")]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert f"a.png: holds. It says {DigitalSourceType.GENERATED.uri}, by flux-krea 0.1.0, signed by Local" in first
    assert "b.png: holds." in second and "no known authority vouches" in second


def flipped(signed):
    return signed[:-200] + bytes([signed[-200] ^ 1]) + signed[-199:]


def saved_anew(signed):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(signed)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "spoil, words",
    [
        (flipped, "DOES NOT HOLD (asset hash error"),
        (saved_anew, "NOT CHECKED. Found no content credentials that can be read (ManifestNotFound"),
        (lambda signed: signed[: len(signed) // 2], "NOT CHECKED. Found no content credentials that can be read"),
        (lambda _: b"no picture", "NOT CHECKED. This is no picture that can be read"),
        (None, "NOT CHECKED. [Errno 2] No such file"),
    ],
    ids=["one changed bit", "saved anew", "cut", "no picture", "no file"],
)
def test_the_command_names_a_file_that_does_not_hold(tmp_path, credentials, capsys, spoil, words):
    signed = sign(file(), "png", GENERATED, credentials)
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(signed)
    if spoil is not None:
        bad.write_bytes(spoil(signed))
    assert main([str(bad), str(good)]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert f"{bad}: {words}" in first and f"{good}: holds." in second


def test_without_the_extra_nothing_is_called_checked(tmp_path, credentials, capsys, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(sign(file(), "png", GENERATED, credentials))
    monkeypatch.setitem(sys.modules, "c2pa", None)
    assert main([str(path)]) == 1
    assert 'needs the extra "c2pa"' in capsys.readouterr().out
