"""Batching: requests of one batch get the same results as single ones; too many requests are refused."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from serving import message, serving, task, vectors
from worlds import GENERATOR, SETTINGS

from mcdi.errors import McdiError
from mcdi.generator.api import Generator
from mcdi.methods.sampling import Sampling
from mcdi.serve.batching import Batcher, Job
from mcdi.serve.decode import SupportSet
from mcdi.serve.handles import StoredWeights
from mcdi.serve.work import Options, generation, prediction

SHORT = {"meta": "none", "iterations": 3, "inner_steps": 1, "tasks": 4, "learners": 2}


def some_tasks(count, width=6):
    g = torch.Generator().manual_seed(1)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    draws = [torch.randn(6, width, generator=g) for _ in range(count)]
    x = [v / v.norm(dim=1, keepdim=True) * width**0.5 for v in draws]  # meta-baseline needs vectors of one length
    return [SupportSet(v, y if i % 2 else y.flip(0), (0, 1, 2)) for i, v in enumerate(x)]


def together(generator, tasks, seeds, options=Options()):  # noqa: B008
    calls = [generation(generator, t, s, options) for t, s in zip(tasks, seeds, strict=True)]
    assert len({c.key for c in calls}) == 1
    return calls[0].run([c.payload for c in calls])


class TestSameAsSingle:
    @pytest.mark.parametrize("name", ["mc-di", "metadiff", "d2nwg", "ocd-residual", "meta-baseline", "adam"])
    def test_any_order_and_any_other_tasks(self, worlds, name):
        world = worlds["gauss"]
        training = {"training": SHORT} if "training" in SETTINGS.get(name, GENERATOR) else {}
        generator = Generator(name, world.fit(name, **training), world.family.downstream)
        tasks, seeds = some_tasks(4), [3, 1, 2, 3]
        if not generator.seed_per_task:
            seeds = [3] * 4
        for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 0]):
            batch = together(generator, [tasks[i] for i in order], [seeds[i] for i in order])
            for i, one in zip(order, batch, strict=True):
                single = generator.generate((tasks[i].x, tasks[i].y), seed=seeds[i])
                for n, w in single.items():
                    torch.testing.assert_close(one.weights[n], w, rtol=1e-4, atol=1e-4)

    def test_noise_depends_on_the_seed_of_a_task_only(self, worlds):
        world = worlds["gauss"]
        method = world.method("mc-di").with_sampling(Sampling(samples=3, pick="support loss"))
        generator = Generator("mc-di", method, world.family.downstream)
        (one, *_) = some_tasks(1)
        first, second, third = together(generator, [one] * 3, [5, 6, 5])
        torch.testing.assert_close(first.weights["weight"], third.weights["weight"], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(first.weights["weight"], second.weights["weight"], atol=1e-3)
        single = generator.generate((one.x, one.y), seed=6)
        torch.testing.assert_close(second.weights["weight"], single["weight"], rtol=1e-4, atol=1e-4)
        assert first.weights["weight"].untyped_storage().nbytes() == first.weights["weight"].nbytes  # not a view

    def test_keys_of_batches(self, worlds):
        world = worlds["gauss"]
        generator = Generator("mc-di", world.method("mc-di"), world.family.downstream)
        adam = Generator("adam", world.method("adam"), world.family.downstream)
        (one, *_) = some_tasks(1)
        fewer = SupportSet(one.x[:3], one.y[:3], one.classes)
        key = generation(generator, one, 0, Options()).key
        assert key == generation(generator, one, 1, Options()).key
        others = [generation(generator, fewer, 0, Options()), generation(generator, one, 0, Options(steps=2))]
        others += [generation(adam, one, 0, Options()), generation(adam, one, 1, Options())]
        assert len({key, *(c.key for c in others)}) == 5

    def test_samples_count_towards_the_size_of_a_batch(self, worlds):
        generator = Generator("mc-di", worlds["gauss"].method("mc-di"), worlds["gauss"].family.downstream)
        (one,) = some_tasks(1)
        assert [generation(generator, one, 0, Options(samples=n)).size for n in (None, 1, 7)] == [1, 1, 7]

    def test_predictions(self, worlds):
        world = worlds["gauss"]
        generator = Generator("mc-di", world.method("mc-di"), world.family.downstream)
        tasks = some_tasks(3)
        stored = [StoredWeights(generator, generator.generate((t.x, t.y)), (0, 1, 2)) for t in tasks]
        calls = [prediction(k, t.x) for k, t in zip(stored, tasks, strict=True)]
        for k, t, predicted in zip(stored, tasks, calls[0].run([c.payload for c in calls]), strict=True):
            torch.testing.assert_close(predicted, generator.predict(k.weights, t.x).softmax(-1))

    def test_numbers_that_are_not_finite_fail_one_task_only(self, worlds, batcher):
        world = worlds["gauss"]
        generator = Generator("mc-di", world.method("mc-di"), world.family.downstream)
        good, bad = some_tasks(2)
        calls = [generation(generator, t, 0, Options()) for t in (good, bad._replace(x=bad.x * 1e30))]
        finite, infinite = [batcher.submit(call) for call in calls]
        assert finite.result(10).weights["weight"].isfinite().all()
        with pytest.raises(McdiError, match="not finite"):
            infinite.result(10)

    def test_over_http(self, client, folders):
        bodies = [{"model": "vectors", "support": vectors(s), "labels": [0, 0, 1, 1, 2, 2], "seed": s} for s in range(12)]
        single = [client.post("/v1/generate", json={**b, "format": "safetensors"}).content for b in bodies]
        with serving({"vectors": folders["vectors"]}, wait=0.05) as busy, ThreadPoolExecutor(12) as pool:
            batched = list(pool.map(lambda b: busy.post("/v1/generate", json={**b, "format": "safetensors"}).content, bodies))
            shared = busy.service.metrics.registry.get_sample_value("mcdi_batch_size_count")
        from safetensors.torch import load

        for one, other in zip(single, batched, strict=True):
            for n, w in load(one).items():
                torch.testing.assert_close(load(other)[n], w, rtol=1e-4, atol=1e-4)
        assert shared < 12


class Gate:
    """A run function that waits until it is opened and records its batches."""

    def __init__(self):
        self.open, self.batches = threading.Event(), []

    def __call__(self, payloads):
        assert self.open.wait(10)
        self.batches.append(payloads)
        return [p if p != "bad" else McdiError("bad") for p in payloads]


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def batcher():
    batcher = Batcher(3, 0.0)
    yield batcher
    batcher.close()


class TestBatcher:
    def test_queued_jobs_run_together_by_key_and_size(self, gate, batcher):
        first = batcher.submit(Job("other", gate, 0))
        time.sleep(0.05)  # the thread runs it
        futures = [batcher.submit(Job("a", gate, n)) for n in (1, 2)] + [batcher.submit(Job("b", gate, 9))]
        futures += [batcher.submit(Job("a", gate, n)) for n in (3, 4)] + [batcher.submit(Job("a", gate, 5, size=7))]
        gate.open.set()
        assert [f.result(5) for f in [first, *futures]] == [0, 1, 2, 9, 3, 4, 5]
        assert gate.batches == [[0], [1, 2, 3], [9], [4], [5]]

    def test_the_longest_wait(self, gate):
        gate.open.set()
        slow = Batcher(3, 0.2)
        start = time.monotonic()
        assert [slow.submit(Job("a", gate, n)) for n in (1, 2, 3)][2].result(5) == 3
        assert time.monotonic() - start < 0.15 and gate.batches == [[1, 2, 3]]
        assert slow.submit(Job("a", gate, 4)).result(5) == 4 and time.monotonic() - start >= 0.2
        slow.close()

    def test_a_single_request_is_not_delayed(self, gate):
        batcher, others = Batcher(8, 60.0, expects_more=lambda: bool(others)), []
        assert batcher.submit(Job("a", lambda jobs: jobs, 1)).result(20) == 1
        others.append(1)
        waits = batcher.submit(Job("a", lambda jobs: jobs, 2))
        time.sleep(0.2)
        assert not waits.done()
        others.clear()
        assert batcher.submit(Job("a", lambda jobs: jobs, 3)).result(20) == 3 and waits.done()
        batcher.close()

    def test_a_failing_job_fails_only_itself(self, gate, batcher):
        def fragile(payloads):
            if "worse" in payloads:
                raise RuntimeError("worse")
            return gate(payloads)

        first = batcher.submit(Job("other", gate, 0))
        time.sleep(0.05)
        bad, worse, good = (batcher.submit(Job("a", fragile, p)) for p in ("bad", "worse", "good"))
        gate.open.set()
        assert first.result(5) == 0 and good.result(5) == "good"
        with pytest.raises(McdiError, match="bad"):
            bad.result(5)
        with pytest.raises(RuntimeError, match="worse"):
            worse.result(5)

    def test_cancelled_jobs_are_skipped_and_closing_finishes_the_rest(self, gate):
        batcher = Batcher(3, 0.0)
        first = batcher.submit(Job("other", gate, 0))
        time.sleep(0.05)
        cancelled, waiting = batcher.submit(Job("a", gate, 1)), batcher.submit(Job("a", gate, 2))
        assert cancelled.cancel() and not first.cancel()
        gate.open.set()
        batcher.close()
        assert waiting.result(0) == 2 and gate.batches == [[0], [2]]
        with pytest.raises(RuntimeError):
            batcher.submit(Job("a", gate, 3))


class TestOverload:
    def test_a_full_queue_refuses(self, folders, gate):
        with serving({"drawings": folders["drawings"]}, queue=3) as client, ThreadPoolExecutor(10) as pool:
            blocked = client.service.batcher.submit(Job("gate", gate, 0))
            answers = [pool.submit(client.post, "/v1/generate", json=task()) for _ in range(10)]
            while sum(a.done() for a in answers) < 7:
                time.sleep(0.01)
            message(client.get("/readyz"), 503)
            gate.open.set()
            blocked.result(10)
            responses = [a.result(30) for a in answers]
            assert sorted(r.status_code for r in responses) == [200] * 3 + [429] * 7
            refused = next(r for r in responses if r.status_code == 429)
            assert "active already" in message(refused, 429) and refused.headers["retry-after"] == "1"
            assert client.post("/v1/generate", json=task()).status_code == 200 and client.get("/readyz").status_code == 200

    def test_timeouts_before_and_during_the_computation(self, folders, gate, monkeypatch):
        with serving({"drawings": folders["drawings"]}, timeout=0.2) as client:
            client.service.batcher.submit(Job("gate", gate, 0))
            waiting = client.post("/v1/generate", json=task())
            assert "did not start" in message(waiting, 503) and waiting.headers["retry-after"] == "1"
            gate.open.set()
            slow = threading.Event()
            generator = client.service.models.get("drawings")
            monkeypatch.setattr(generator, "sample", lambda *_, **__: slow.wait(10) and None)
            assert "took more than" in message(client.post("/v1/generate", json=task()), 504)
            slow.set()
