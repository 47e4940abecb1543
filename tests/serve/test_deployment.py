"""A server behind a proxy and beside pages of other sites."""

import gzip
import json
import tracemalloc

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from serving import listening, message, png, serving, task

from mcdi.errors import McdiError
from mcdi.serve.app import create_app
from mcdi.serve.bodies import decompressed
from mcdi.serve.client import Client
from mcdi.serve.deployment import LOCAL, Deployment
from mcdi.serve.limits import Limits, Refused

JSON = {"Content-Type": "application/json"}
FEW = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class TestRootPath:
    @pytest.mark.parametrize("removed", [True, False])
    def test_below_a_path_that_a_proxy_removes_or_not(self, folders, removed):
        with serving({"drawings": folders["drawings"]}, deployment=Deployment("/a/mcdi")) as client:
            front = "" if removed else "/a/mcdi"
            for path in ("/healthz", "/v1/models", "/page/app.js", "/", "/openapi.json"):
                assert client.get(front + path).status_code == 200
            assert client.post(f"{front}/v1/generate", json=task()).status_code == 200
            message(client.get(f"{front}/a/mcdi"), 404) if not removed else None
            message(client.get("/a/mcdix/healthz"), 404)
            assert client.get("/openapi.json").json()["servers"] == [{"url": "/a/mcdi"}]
            alone = client.get("/a/mcdi", follow_redirects=False)
            assert alone.status_code == 307 and alone.headers["location"] == "/a/mcdi/"
            metrics = client.get("/metrics").text
            assert 'route="/page",status="200"' in metrics and 'route="/v1/generate"' in metrics

    def test_the_client(self, folders):
        with listening({"drawings": folders["drawings"]}, deployment=Deployment("/mcdi")) as ((_, port), _, _):
            for end in ("", "/"):
                with Client(f"http://localhost:{port}/mcdi{end}") as client:
                    assert client.health()["status"] == "ok" and client.models()[0]["name"] == "drawings"
                    files = {"images": [png("ring"), png("stroke")]}
                    assert client.predict(client.keep("drawings", files, ["a", "b"]), files).classes == ["a", "b"]

    @pytest.mark.parametrize("path", ["mcdi", "/a//b", "/..", "/a/../b", "/a b", "/a?b", "//host", "/v1", "/page", "/é"])
    def test_paths_that_cannot_be(self, client, path):
        with pytest.raises(McdiError, match="root path"):
            create_app(client.service, Deployment(path))
        assert Deployment.of("/mcdi/", [], [], "127.0.0.1", keys=False).root_path == "/mcdi"


class TestHost:
    NAMES = st.from_regex(r"[a-z0-9-]{1,20}(\.[a-z0-9-]{1,20}){0,3}\.?", fullmatch=True)

    @FEW
    @given(name=NAMES, port=st.none() | st.integers(0, 65535))
    def test_other_names_are_refused_without_keys(self, client, name, port):
        assume(name not in LOCAL)
        host = name if port is None else f"{name}:{port}"
        for path in ("/v1/models", "/", "/healthz", "/v1/models/", "/page"):
            answer = client.get(path, headers={"Host": host}, follow_redirects=False)
            assert "does not answer to the host" in message(answer, 421) and "location" not in answer.headers

    @pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]", "[::1]:8000", "localhost:"])
    def test_names_of_this_machine(self, client, host):
        assert client.get("/healthz", headers={"Host": host}).status_code == 200

    def test_names_that_are_allowed(self):
        def answers(host, listened, names=(), keys=False):
            deployment = Deployment.of("", [], list(names), listened, keys=keys)
            try:
                deployment.check({"headers": [(b"host", host.encode())], "http_version": "1.1"})
            except Refused as error:
                assert error.status == 421
                return False
            return True

        assert answers("10.0.0.5:80", "0.0.0.0") and answers("[fe80::1]", "::") and answers("10.0.0.5", "10.0.0.5")
        assert not answers("10.0.0.5", "127.0.0.1") and not answers("evil.example", "0.0.0.0")
        assert not answers("10.0.0.5.evil.example", "0.0.0.0") and not answers("1.2.3.4x", "0.0.0.0")
        assert answers("mcdi.example.org:8000", "127.0.0.1", ["*.Example.org"]) and answers("x", "127.0.0.1", ["*"])
        for name in ("example.org:80", "https://example.org", "example.org/a", "", "a b", "[::1]:80"):
            with pytest.raises(McdiError, match="no name of a host"):
                answers("example.org", "127.0.0.1", [name])
        assert answers("[2001:db8::1]:80", "127.0.0.1", ["[2001:db8::1]"])
        assert not answers("example.org", "127.0.0.1", ["*.example.org"]) and answers("any.thing", "127.0.0.1", keys=True)

    @FEW
    @given(path=st.sampled_from(["/v1/models", "/healthz", "/v1/generate", "/page", "/metrics"]), host=NAMES)
    def test_no_redirect_names_a_host(self, folders, anyhost, path, host):
        answer = anyhost.get(path + "/", headers={"Host": host}, follow_redirects=False)
        assert "location" not in answer.headers and answer.status_code == 404


@pytest.fixture(scope="module")
def anyhost(folders):
    with serving({"drawings": folders["drawings"]}, deployment=Deployment(hosts=None)) as client:
        yield client


class TestOtherOrigins:
    def test_off_by_default(self, client):
        asked = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
        for answer in (client.get("/v1/models", headers=asked), client.options("/v1/generate", headers=asked)):
            assert not [n for n in answer.headers if n.startswith("access-control")]

    def test_origins_that_were_named(self, folders):
        origin = "https://example.org"
        with serving({"drawings": folders["drawings"]}, deployment=Deployment(origins=(origin,))) as client:
            headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            asked = {**headers, "Access-Control-Request-Headers": "authorization, content-type"}
            before = client.options("/v1/generate", headers=asked)
            assert before.status_code == 200 and before.headers["access-control-allow-origin"] == origin
            for answer in (client.post("/v1/generate", json=task(), headers=headers), client.get("/none", headers=headers)):
                assert answer.headers["access-control-allow-origin"] == origin
            other = client.get("/v1/models", headers={"Origin": "https://evil.example"})
            assert "access-control-allow-origin" not in other.headers
            assert "access-control-allow-credentials" not in other.headers

    @pytest.mark.parametrize("origin", ["example.org", "https://a/", "https://a/b", "ftp://a", "null", "https://[", ""])
    def test_no_origins(self, origin):
        with pytest.raises(McdiError, match="no origin"):
            Deployment(origins=(origin,))


def test_head_is_get_without_its_body(client):
    for path in ("/healthz", "/readyz", "/metrics", "/", "/page/app.js", "/v1/models", "/none"):
        head, get = client.head(path), client.get(path)
        assert head.status_code == get.status_code and head.content == b""
        assert head.headers["content-type"] == get.headers["content-type"]
    assert client.head("/v1/generate").status_code == 405


@FEW
@given(part=st.from_regex(r"(bytes=|x=)?[0-9]{0,6}-?[0-9]{0,6}(,[0-9]{0,3}-[0-9]{0,3})*", fullmatch=True), head=st.booleans())
def test_files_are_sent_whole(client, part, head):
    whole = client.get("/page/app.js")
    answer = client.request("HEAD" if head else "GET", "/page/app.js", headers={"Range": part})
    assert answer.status_code == 200 and answer.content == (b"" if head else whole.content)


class TestGzip:
    @FEW
    @given(data=st.binary(max_size=300), level=st.integers(0, 9))
    def test_within_the_limit(self, data, level):
        packed = gzip.compress(data, level)
        assert decompressed(packed, len(data)) == data
        for wrong in (packed[:-1], packed + b"x", b"x" + packed, packed[: len(packed) // 2]):
            with pytest.raises(Refused) as refused:
                decompressed(wrong, 1000)
            assert refused.value.status == 400
        if data:
            with pytest.raises(Refused) as refused:
                decompressed(packed, len(data) - 1)
            assert refused.value.status == 413

    def test_a_request(self, client):
        sent = {**JSON, "Content-Encoding": "gzip"}
        assert client.post("/v1/generate", content=gzip.compress(json.dumps(task()).encode()), headers=sent).status_code == 200
        bomb = gzip.compress(b" " * 2**26, 1)  # 300 KB
        tracemalloc.start()
        assert "once it is decompressed" in message(client.post("/v1/generate", content=bomb, headers=sent), 413)
        assert tracemalloc.get_traced_memory()[1] < 2 * Limits().body + 2**21  # of 64 MiB no more are made than are allowed
        tracemalloc.stop()
        assert "not gzip" in message(client.post("/v1/generate", content=b"{}", headers=sent), 400)
        for codings in (["br"], ["deflate"], ["gzip, gzip"], ["zstd"], ["chunked"], [""], ["gzip", "gzip"], ["identity", "br"]):
            headers = [*JSON.items(), *(("Content-Encoding", coding) for coding in codings)]
            refused = client.post("/v1/generate", content=b"{}", headers=headers)
            assert "not understood" in message(refused, 415) and refused.headers["accept-encoding"] == "gzip"
