"""API keys, and a server shared by tenants."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import listening, message, serving, task
from test_batching import Gate
from test_deployment import FEW

from mcdi.errors import McdiError
from mcdi.serve.batching import Batcher, Job
from mcdi.serve.client import Client
from mcdi.serve.limits import Keys, Refused


def key_file(folder, *lines):
    path = folder / "keys"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


KEY = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=16, max_size=40)


class TestKeys:
    @FEW
    @given(key=KEY, tenant=st.from_regex(r"[a-z]{1,8}", fullmatch=True))
    def test_every_key_of_a_file_can_be_sent(self, tmp_path, key, tenant):
        keys = Keys(key_file(tmp_path, f"{tenant}:{key}"))
        assert keys.tenant(key.encode()) == tenant
        if max(key) <= "\xff":
            assert keys.tenant(key.encode("latin-1")) == tenant
        for wrong in (None, b"", key.encode() + b"x", key.encode()[:-1]):
            with pytest.raises(Refused):
                keys.tenant(wrong)

    def test_keys_over_http(self, folders, tmp_path):
        secrets = [
            "x" * 16,
            "schlüssel-für-anna",
            "ключ-из-шестнадцати",
            "a:b:c#d%20&=" * 2,
            "ends-with-nbsp-utf8-à",
            "ÿ\u0085x"[0] * 16,
        ]
        path = key_file(tmp_path, *(f"t{i}:{key}" for i, key in enumerate(secrets)))
        with listening({"drawings": folders["drawings"]}, path) as ((_, port), _, _):
            for key in secrets:
                with Client(f"http://127.0.0.1:{port}", key=key) as client:
                    assert client.models()
        for wrong in ("x" * 15 + "\n", "a key with blanks!", "x" * 20 + "\r\nX: y"):
            with pytest.raises(McdiError, match="key"):
                Client("http://127.0.0.1", key=wrong)

    @pytest.mark.parametrize(
        ("lines", "text"),
        [
            (["a:" + "k" * 16, "b:" + "k" * 16], "line 2 has the key of another tenant, a"),
            (["a:" + "ÿ" * 16, "b:" + "ÿ".encode().decode("latin-1") * 16], "line 2 has the key of another tenant, a"),
            (["a: " + "k" * 16], "without blanks"),
            (["a:kkkkkkkk kkkkkkkk"], "without blanks"),
            (["a:kkkkkkkk\tkkkkkkkk"], "without blanks"),
            (["a:kkkkkkkk\u00a0kkkkkkkk"], "without blanks"),
            (["a:" + "k" * 1001], "16 to 1000"),
        ],
    )
    def test_files_that_are_refused(self, tmp_path, lines, text):
        with pytest.raises(McdiError, match=text) as refused:
            Keys(key_file(tmp_path, *lines))
        assert "k" * 16 not in str(refused.value)

    def test_a_tenant_may_have_several_keys(self, tmp_path):
        keys = Keys(key_file(tmp_path, "\ufeffa:" + "k" * 16, "  # a comment", "a:" + "l" * 16 + "  ", "a:" + "k" * 16))
        assert keys.tenants == {"a"} == Keys(key_file(tmp_path, "a :" + "k" * 16, "a:" + "l" * 16)).tenants
        assert keys.tenant(b"l" * 16) == "a"

    def test_they_are_read_anew(self, folders, tmp_path, caplog):
        path = key_file(tmp_path, "ann:" + "a" * 20, "bob:" + "b" * 20)
        ann, bob, eve = ({"Authorization": f"Bearer {k * 20}"} for k in "abe")
        with serving({"drawings": folders["drawings"]}, path) as client:
            handle = client.post("/v1/generate", json=task(), headers=ann).json()["handle"]
            kept = client.post("/v1/generate", json=task(), headers=bob).json()["handle"]
            path.write_text("bob:" + "b" * 20 + "\neve:" + "e" * 20)
            client.service.reload()
            assert [client.get("/v1/models", headers=h).status_code for h in (ann, bob, eve)] == [401, 200, 200]
            query = {"handle": kept, "queries": task()["support"]}
            assert client.post("/v1/predict", json=query, headers=bob).status_code == 200
            assert len(client.service.handles) == 1 and handle != kept  # those of ann are gone
            for broken in ("bob:short", ""):
                path.write_text(broken)
                client.service.reload()
                assert client.get("/v1/models", headers=eve).status_code == 200
            assert caplog.text.count("the old API keys stay in use") == 2


@pytest.fixture(scope="module")
def waiting(folders, tmp_path_factory):
    path = key_file(tmp_path_factory.mktemp("keys"), *(f"{t}:{t * 20}" for t in "abcd"))
    with serving({"closed": folders["closed"]}, path) as client:

        def fresh(queue):
            client.service.limits = replace(client.service.limits, queue=queue)
            client.service.active.clear()
            return client.service

        yield fresh


class TestTenants:
    @FEW
    @given(queue=st.integers(2, 40), arrivals=st.lists(st.sampled_from("abcd"), min_size=1, max_size=200))
    def test_whoever_has_nothing_in_the_queue_finds_a_place(self, waiting, queue, arrivals):
        """As long as there is one, and no tenant can take the last half alone."""
        service = waiting(queue)
        for tenant in arrivals:
            left = queue - service.active.total()
            try:
                service.refuse_if_full(tenant)
                service.active[tenant] += 1
            except Refused as refused:
                assert refused.status == 429 and service.active[tenant] >= left
            assert service.active.total() <= queue
            if len(set(arrivals)) == 1:
                assert service.active[tenant] <= (queue + 1) // 2

    def test_a_flood_of_one_tenant_does_not_stop_another(self, folders, tmp_path):
        gate, path = Gate(), key_file(tmp_path, "a:" + "a" * 20, "b:" + "b" * 20)
        a, b = ({"Authorization": f"Bearer {k * 20}"} for k in "ab")
        with serving({"closed": folders["closed"]}, path, queue=8) as client, ThreadPoolExecutor(24) as pool:
            blocked = client.service.batcher.submit(Job("gate", gate, 0))
            flood = [pool.submit(client.post, "/v1/generate", json=task("closed"), headers=a) for _ in range(20)]
            while sum(f.done() for f in flood) < 16:
                pass
            other = pool.submit(client.post, "/v1/generate", json=task("closed"), headers=b)
            gate.open.set()
            blocked.result(10)
            assert other.result(30).status_code == 200
            statuses = sorted(f.result(30).status_code for f in flood)
            assert statuses == [200] * 4 + [429] * 16
            refused = next(f.result() for f in flood if f.result().status_code == 429)
            assert "of this API key" in message(refused, 429)

    def test_files_are_written_by_turns(self, folders):
        """Whoever waits first is not followed by all others of its own."""
        order = []

        async def write(service, tenant):
            async with service.writer(tenant):
                order.append(tenant)
                await asyncio.sleep(0)

        async def all_at_once(service):
            await asyncio.gather(*(write(service, tenant) for tenant in "aaaabbc"))

        with serving({"closed": folders["closed"]}) as client:
            asyncio.run(all_at_once(client.service))
        assert set(order[:3]) == set("abc") and order[3:] == ["a", "b", "a", "a"]

    def test_batches_alternate_between_tenants(self):
        gate, batcher = Gate(), Batcher(1, 0.0)
        first = batcher.submit(Job("gate", gate, 0))
        while batcher._waiting:
            pass
        jobs = [Job(object(), gate, f"{t}{i}", tenant=t) for t, n in (("a", 4), ("b", 2), ("c", 1)) for i in range(n)]
        futures = [batcher.submit(job) for job in jobs]
        gate.open.set()
        for future in (first, *futures):
            future.result(10)
        batcher.close()
        assert [p for (p,) in gate.batches] == [0, "a0", "b0", "c0", "a1", "b1", "a2", "a3"]
