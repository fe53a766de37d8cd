"""The client behind proxies that want to know who asks, and what it tells of its secrets: nothing."""

import datetime
import ipaddress
import logging
import ssl
import uuid

import pytest
from aiohttp import web
from PIL import Image

from krea_client import KreaClient, errors
from krea_client.connection import tls_context
from krea_client.events import Notice
from tests.server.proxy import Proxy, drop
from tests.server.small_jobs import small


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A certificate authority of one's own: its file, and the context of a server that it vouches for."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder, key, now = tmp_path_factory.mktemp("tls"), ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a studio's own")])
    day = datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(certificate.public_bytes(pem))
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(secret)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    return folder / "ca.pem", context


def test_a_private_authority_is_trusted_when_it_is_named(server, tmp_path, authority):
    ca_file, context = authority
    with Proxy(server.url, tls=context) as proxy:
        with (
            KreaClient(proxy.url) as client,
            pytest.raises(errors.ServerUnreachable, match="was not trusted.*--ca-file"),
        ):
            client.server()
        for tls in (tls_context(ca_file=str(ca_file)), tls_context(verify=False)):
            with KreaClient(proxy.url, tls=tls) as client:
                *events, last = client.events(small(), tmp_path)
                assert last.result.paths and not any(isinstance(event, Notice) for event in events)


def test_a_certificate_that_cannot_be_used_is_named_beside_a_good_authority(authority):
    with pytest.raises(errors.InvalidRequest, match=r"\(gone.pem with key.pem\)"):
        tls_context(ca_file=str(authority[0]), certificate="gone.pem", key="key.pem")


@pytest.mark.parametrize("given", ["a header", "a login in the address"])
def test_a_proxy_that_wants_to_know_who_asks_is_told_and_nobody_else(server, tmp_path, caplog, hurry, given):
    expected = "Bearer s3cret" if given == "a header" else "Basic bWU6czNjcmV0L2tleQ=="  # me:s3cret/key
    faults = iter([drop] * 2)

    async def rule(request, forward):
        if request.headers.get("Authorization") != expected:
            return web.Response(status=401, text="who are you")
        if request.path in ("/queue", "/view") and (fault := next(faults, None)):
            return await fault(request)  # so that there is something to log
        return await forward()

    caplog.set_level(logging.DEBUG)
    told = []
    with Proxy(server.url, rule) as proxy:
        url, headers = proxy.url, {"Authorization": "Bearer s3cret\n"}
        if given != "a header":
            url, headers = proxy.url.replace("//", "//me:s3cret%2Fkey@"), {}
        with KreaClient(url, headers=headers) as client:
            told += [*client.events(small(), tmp_path, job_id=str(uuid.uuid4())), client.url, client.server()]
        with KreaClient(proxy.url, headers={"Authorization": "Bearer wr0ng"}) as client:
            with pytest.raises(errors.AccessDenied, match="HTTP 401.*--header") as denied:
                client.generate(small(), tmp_path)
        told.append(denied.value)
    with KreaClient(url, headers=headers) as client, pytest.raises(errors.ServerUnreachable) as gone:
        client.server()
    told += [gone.value, *(file.read_bytes() for file in tmp_path.glob("*.json"))]
    assert "No answer" in caplog.text
    for secret in ("s3cret", "wr0ng", "bWU6", "me:"):
        assert secret not in caplog.text and not any(secret in f"{each} {each!r}" for each in told)


def test_a_login_that_ends_in_the_middle_is_told_at_once(server, tmp_path):
    async def rule(request, forward):
        return web.Response(status=403) if request.path == "/prompt" else await forward()

    with Proxy(server.url, rule) as proxy, KreaClient(proxy.url) as client, pytest.raises(errors.AccessDenied):
        client.generate(small(), tmp_path)


def test_a_proxy_that_takes_no_large_upload_is_told_with_its_setting_and_no_page(server, tmp_path):
    async def rule(request, forward):
        if request.path != "/upload/image":
            return await forward()
        return web.Response(status=413, text="<html><h1>Request Entity Too Large", content_type="text/html")

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with Proxy(server.url, rule) as proxy, KreaClient(proxy.url) as client:
        with pytest.raises(errors.InvalidRequest, match="HTTP 413.*client_max_body_size") as caught:
            client.generate(small(style_references=[str(tmp_path / "a.png")]), tmp_path)
    assert "<" not in str(caught.value)


def test_a_proxys_page_of_an_error_is_not_told(server):
    async def rule(request, forward):
        return web.Response(status=500, text="<html><h1>Oh no", content_type="text/html")

    with Proxy(server.url, rule) as proxy, KreaClient(proxy.url) as client:
        with pytest.raises(errors.ServerUnreachable, match="answers HTTP 500: a page in place of data"):
            client.server()


def test_an_address_that_moved_is_told(server):
    async def rule(request, forward):
        raise web.HTTPMovedPermanently("https://new.example/login?key=s3cret")

    with Proxy(server.url, rule) as proxy, KreaClient(proxy.url) as client:
        with pytest.raises(errors.AccessDenied, match=r"points to https://new.example\. ") as caught:
            client.server()
    assert "s3cret" not in str(caught.value)


def test_a_server_on_this_machine_is_not_asked_through_the_proxy_of_the_environment(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with KreaClient(server.url) as client:
        assert client.server().url == server.url
