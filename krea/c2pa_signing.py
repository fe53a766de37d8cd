"""C2PA Content Credentials: a signature over a marked picture file, its check, and a certificate to sign with.

The manifest says what the mark says (c2pa.org, "Technical Specification", action c2pa.created with its digital source
type) and binds it to the file's bytes, so that a changed byte is found. Signing comes last: saving the file again with
another program removes it. It needs the extra "c2pa"; nothing is sent or fetched.

`python3 -m krea.c2pa_signing FILE ...` checks files.
"""

import argparse
import contextlib
import io
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from . import files
from .disclosure import FORMATS, Disclosure

_CHAIN, _KEY = "certificate_chain.pem", "private_key.pem"

# A thumbnail would be many times as large as all the rest.
_SETTINGS = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"ocsp_fetch": False, "remote_manifest_fetch": False},
}
_UNTRUSTED = "signingCredential.untrusted"
# C2PA's name of the signature algorithm for each elliptic curve.
_ALGORITHMS = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


class SigningError(RuntimeError):
    """A file that cannot be signed or checked; the message says why and what to do."""


class Credentials(NamedTuple):
    """What signs, as PEM: the certificate chain, the signer's own certificate first, and that one's private key."""

    certificate_chain: bytes
    private_key: bytes


def sign(data: bytes, file_format: str, disclosure: Disclosure, credentials: Credentials) -> bytes:
    """The file with a signed C2PA manifest in it; pixels and metadata stay as they are. There is no time stamp.

    Args:
        data: a whole file, as `disclosure.encode` makes it.
        file_format: "png", "jpeg" or "webp".
        disclosure: what the file was marked with.
        credentials: the key is EC (P-256, P-384, P-521), RSA or Ed25519, without a password.

    Raises:
        ValueError: another format, or a disclosure of nothing.
        SigningError: the extra "c2pa" is missing, or the file or the credentials cannot be used.
    """
    if file_format not in FORMATS:
        raise ValueError(f"Found the file format {file_format!r}. Expected {', '.join(FORMATS)}.")
    if disclosure.source_type is None:
        raise ValueError("Found nothing to sign: the disclosure has no source type. Choose one, or do not sign.")
    with _extra():
        import c2pa

    algorithm, private_key = _key(credentials.private_key)
    created = {"action": "c2pa.created", "digitalSourceType": disclosure.source_type.uri}
    manifest = {
        "claim_generator_info": [{"name": disclosure.tool, "version": disclosure.version}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}],
    }
    signed = io.BytesIO()
    try:
        info = c2pa.C2paSignerInfo(algorithm, credentials.certificate_chain, private_key, ta_url=None)
        with (
            c2pa.Signer.from_info(info) as signer,
            c2pa.Context.from_dict(_SETTINGS) as context,
            c2pa.Builder(manifest, context) as builder,
        ):
            builder.sign(signer, f"image/{file_format}", io.BytesIO(data), signed)
    except c2pa.C2paError as error:
        raise SigningError(
            f"The {file_format.upper()} file was not signed: {error}. Check that the file is whole, and that the "
            "certificate belongs to the private key, is valid today, and is meant for digital signatures and e-mail."
        ) from error
    return signed.getvalue()


class Checked(NamedTuple):
    """What the content credentials of a file say, and whether they hold.

    problems: why they do not, in c2pa's words; none where the signature is right and the file is as it was signed.
    trusted: whether c2pa knows an authority that vouches for the signer; for a certificate made here nobody does.
    source_types: the digital source types of what was done, as URIs. tool, signer: as they call themselves.
    """

    problems: tuple[str, ...]
    trusted: bool
    source_types: tuple[str, ...]
    tool: str
    signer: str


def check(data: bytes) -> Checked:
    """Whether the content credentials of a picture file hold.

    Raises:
        SigningError: there are none or they cannot be read, it is no picture, or the extra "c2pa" is missing.
    """
    with _extra():
        import c2pa
    try:
        kind = Image.open(io.BytesIO(data)).get_format_mimetype()
        with (
            c2pa.Context.from_dict(_SETTINGS) as context,
            c2pa.Reader(kind, io.BytesIO(data), context=context) as reader,
        ):
            state, manifest = reader.get_validation_state(), reader.get_active_manifest()
            statuses = json.loads(reader.json()).get("validation_status", [])
    except (OSError, Image.DecompressionBombError) as error:
        raise SigningError(f"This is no picture that can be read ({error}).") from error
    except c2pa.C2paError as error:
        raise SigningError(f"Found no content credentials that can be read ({error}).") from error
    actions = [
        action
        for assertion in manifest.get("assertions", [])
        if assertion["label"].startswith("c2pa.actions")
        for action in assertion["data"].get("actions", [])
    ]
    tool, signature = (manifest.get("claim_generator_info") or [{}])[0], manifest.get("signature_info", {})
    return Checked(
        problems=tuple(status.get("explanation", status["code"]) for status in statuses if status["code"] != _UNTRUSTED)
        or (("c2pa calls it invalid",) if state == "Invalid" else ()),
        trusted=state == "Trusted",
        source_types=tuple(action["digitalSourceType"] for action in actions if "digitalSourceType" in action),
        tool=f"{tool.get('name', 'an unnamed tool')} {tool.get('version', '')}".strip(),
        signer=", ".join(filter(None, (signature.get("common_name"), signature.get("issuer")))),
    )


def _key(pem: bytes) -> tuple[str, bytes]:
    """C2PA's name of the signature algorithm, and the key in the one form that c2pa reads (PKCS #8)."""
    with _extra():
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (TypeError, ValueError) as error:  # TypeError: it needs a password
        raise SigningError("The private key cannot be read. Expected PEM text without a password.") from error
    match key:
        case ec.EllipticCurvePrivateKey() if key.curve.name in _ALGORITHMS:
            algorithm = _ALGORITHMS[key.curve.name]
        case rsa.RSAPrivateKey():
            algorithm = "ps256"
        case ed25519.Ed25519PrivateKey():
            algorithm = "ed25519"
        case _:
            raise SigningError(
                "C2PA does not sign with this kind of private key. Expected EC P-256, P-384 or P-521, RSA or Ed25519."
            )
    return algorithm, _pkcs8(key)


def local_credentials(folder: Path) -> Credentials:
    """This installation's own credentials: read from `folder`, or made there if it does not exist yet.

    They show that a file is unchanged since it was signed here, not by whom: nobody vouches for them. All files signed
    with them can be seen to come from one installation. Whoever is to trust them needs the last certificate of the
    chain. The folder is made whole and then renamed into place, so it is never half written or overwritten; its files
    are for their owner only (mode 0600).

    Raises:
        SigningError: the folder lacks a file, or the extra "c2pa" is missing.
    """
    folder = Path(folder)
    if not folder.exists():
        _create(folder)
    try:
        return Credentials((folder / _CHAIN).read_bytes(), (folder / _KEY).read_bytes())
    except FileNotFoundError as error:
        raise SigningError(
            f"{folder} has no {Path(error.filename).name}. Put it back, or remove the folder to get a new certificate."
        ) from error


def _create(folder: Path) -> None:
    credentials = _new_credentials()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir(mode=0o700)
    try:
        for name, pem in zip((_CHAIN, _KEY), credentials, strict=True):
            files.create(partial / name, pem)
            (partial / name).chmod(0o600)
        os.rename(partial, folder)
    except OSError:
        shutil.rmtree(partial)
        if not folder.exists():  # else another process was first, and its credentials are the ones
            raise


def _new_credentials() -> Credentials:
    """A P-256 key, certified by an authority made for it alone: that one's key is thrown away.

    The certificates have no end (RFC 5280, 4.1.2.5): without time stamps, their end would be that of all signatures.
    """
    with _extra():
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

    def name(common_name):
        organization = x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "flux-krea on this computer")
        return x509.Name([organization, x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])

    def certificate(subject, public_key, ca):
        usage = dict.fromkeys(
            "content_commitment key_encipherment data_encipherment key_agreement crl_sign encipher_only "
            "decipher_only".split(),
            False,
        )
        usage |= {"digital_signature": not ca, "key_cert_sign": ca}
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("Local authority"))
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.now(timezone.utc) - timedelta(days=1))  # clocks differ
            .not_valid_after(datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc))
            .add_extension(x509.BasicConstraints(ca, path_length=0 if ca else None), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(issuer, critical=False)
        )
        if not ca:
            purpose = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(purpose, critical=False)
        return builder.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    signer = certificate("Local signer", key.public_key(), ca=False)
    authority = certificate("Local authority", authority_key.public_key(), ca=True)
    return Credentials(signer + authority, _pkcs8(key))


def _pkcs8(key) -> bytes:
    with _extra():
        from cryptography.hazmat.primitives import serialization as s
    return key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())


@contextlib.contextmanager
def _extra() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise SigningError(
            f'This needs the extra "c2pa": install c2pa-python into the Python that runs this ({error}).'
        ) from error


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0 where the credentials of all files hold, else 1."""
    parser = argparse.ArgumentParser(
        prog="python3 -m krea.c2pa_signing", description="Check the content credentials (C2PA) of picture files."
    )
    parser.add_argument("files", nargs="+", metavar="FILE")
    reports = [_report(path) for path in parser.parse_args(arguments).files]
    sys.stdout.write("".join(f"{text}\n" for text, _ in reports))
    return 0 if all(good for _, good in reports) else 1


def _report(path: str) -> tuple[str, bool]:
    """What to say of a file, and whether its credentials hold."""
    try:
        found = check(Path(path).read_bytes())
    except (OSError, SigningError) as error:
        return f"{path}: NOT CHECKED. {error}", False
    said = f"It says {', '.join(found.source_types) or 'nothing of its making'}, by {found.tool}"
    vouched = "" if found.trusted else ", for whom no known authority vouches"
    if found.problems:
        return f"{path}: DOES NOT HOLD ({'; '.join(found.problems)}). {said}, signed by {found.signer}{vouched}.", False
    return f"{path}: holds. {said}, signed by {found.signer}{vouched}.", True


if __name__ == "__main__":
    sys.exit(main())
