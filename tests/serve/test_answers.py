"""What the service answers is what the package answers, for every kind of example."""

import json

import pytest
import torch
from safetensors.torch import load as load_bytes
from serving import images, png, sentence, task, vectors
from torch import nn

import mcdi as package
from mcdi.errors import McdiError
from mcdi.serve.decode import examples_of
from mcdi.serve.limits import Limits
from mcdi.serve.models import Models, describe
from mcdi.serve.wire import Task


def read(folder, body):
    generator = package.load(folder)
    return generator, examples_of(Task(**body), generator, Limits())


def weights_of(response):
    assert response.status_code == 200, response.text
    return load_bytes(response.content)


class TestGenerate:
    def test_bytes_are_the_weights_of_the_package(self, client, folders):
        response = client.post("/v1/generate", json=task(format="safetensors", seed=3, steps=4, temperature=1.0, samples=2))
        weights = weights_of(response)
        generator, examples = read(folders["drawings"], task())
        expected = generator.generate((examples.x, examples.y), seed=3, steps=4, temperature=1.0, samples=2)
        for n, w in expected.items():
            torch.testing.assert_close(weights[n], w)
        nn.Linear(64, 2).load_state_dict(weights)
        header = json.loads(response.content[8 : 8 + int.from_bytes(response.content[:8], "little")])["__metadata__"]
        assert json.loads(header["classes"]) == ["ring", "stroke"] and json.loads(header["model"]) == "drawings"
        assert response.headers["content-type"] == "application/octet-stream"
        assert float(response.headers["x-mcdi-milliseconds"]) > 0 and float(response.headers["x-mcdi-trust"]) == 1

    def test_a_handle_predicts_as_the_weights_do(self, client, folders):
        kept = client.post("/v1/generate", json=task()).json()
        assert kept["names"] == {"weight": [2, 64], "bias": [2]} and kept["classes"] == ["ring", "stroke"]
        assert kept["trust"] == 1 and kept["milliseconds"] > 0 and kept["model"] == "drawings"
        asked = images("stroke", "ring", "ring")
        found = client.post("/v1/predict", json={"handle": kept["handle"], "queries": asked}).json()
        generator, examples = read(folders["drawings"], task())
        weights = generator.generate((examples.x, examples.y))
        _, queries = read(folders["drawings"], task(support=asked, labels=["stroke", "ring", "ring"]))
        expected = generator.predict(weights, queries.x).softmax(-1)
        torch.testing.assert_close(torch.tensor(found["probabilities"]), expected)
        assert found["labels"] == [["ring", "stroke"][i] for i in expected.argmax(-1)] and found["outputs"] == []
        once = client.post("/v1/predict", json={**task(), "queries": asked}).json()
        assert once["labels"] == found["labels"] and once["classes"] == found["classes"]
        torch.testing.assert_close(torch.tensor(once["probabilities"]), expected)

    def test_trust_is_the_packages(self, folders, tmp_path):
        import shutil

        from serving import serving

        folder = shutil.copytree(folders["drawings"], tmp_path / "doubting")
        config = json.loads((folder / "config.json").read_text())
        config["settings"]["sampling"]["usual"] = {"2": [-99.0] * 11}
        (folder / "config.json").write_text(json.dumps(config))
        with serving({"doubting": folder}) as client:
            assert client.post("/v1/generate", json=task("doubting")).json()["trust"] == 0
            assert client.post("/v1/generate", json=task("doubting", steps=2)).json()["trust"] == 1

    def test_classes_are_the_labels_that_were_sent(self, client):
        body = {"model": "vectors", "support": vectors(), "labels": [7, 7, -2, -2, 40, 40]}
        kept = client.post("/v1/generate", json=body).json()
        assert kept["classes"] == [-2, 7, 40] and kept["names"]["weight"] == [3, 6]
        found = client.post("/v1/predict", json={"handle": kept["handle"], "queries": vectors(1)}).json()
        assert set(found["labels"]) <= {-2, 7, 40} and found["classes"] == [-2, 7, 40]

    def test_files_of_every_format_and_data_addresses(self, client):
        import base64

        for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP"):
            files = [base64.b64encode(png(k, form=form)).decode() for k in ("ring", "stroke")]
            body = {"model": "closed", "support": {"images": files}, "labels": ["a", "b"]}
            assert client.post("/v1/generate", json=body).status_code == 200
        body["support"]["images"] = [f"data:image/webp;base64,{f}" for f in files]
        assert client.post("/v1/generate", json=body).status_code == 200

    def test_curves(self, client, folders):
        x = torch.linspace(-3, 3, 6)[:, None]
        body = {"model": "curves", "support": {"features": x.tolist()}, "labels": x[:, 0].sin().tolist()}
        kept = client.post("/v1/generate", json=body).json()
        assert kept["classes"] == []
        found = client.post("/v1/predict", json={"handle": kept["handle"], "queries": {"features": x.tolist()}}).json()
        generator, examples = read(folders["curves"], body)
        expected = generator.predict(generator.generate((examples.x, examples.y)), x)
        torch.testing.assert_close(torch.tensor(found["outputs"]), expected)
        assert found["labels"] == [] == found["probabilities"]
        assert "numbers" in sentence(client.post("/v1/generate", json={**body, "labels": list("abcdef")}), 422)

    def test_a_method_without_a_chain_is_asked_nothing_of_one(self, client):
        assert client.post("/v1/generate", json=task("closed")).status_code == 200
        assert "no chain" in sentence(client.post("/v1/generate", json=task("closed", steps=3)), 422)
        assert "no chain" in sentence(client.post("/v1/chain", json=task("closed")), 422)


class TestChains:
    def test_every_state_with_its_loss(self, client, folders):
        found = client.post("/v1/chain", json=task(seed=5)).json()
        assert [s["t"] for s in found["steps"]] == list(range(11)) and found["shape"] == [2, 65]
        generator, examples = read(folders["drawings"], task())
        chain = generator.chain((examples.x, examples.y), seed=5)
        torch.testing.assert_close(torch.tensor([s["weights"] for s in found["steps"]]), chain.weights, atol=1e-3, rtol=0)
        torch.testing.assert_close(torch.tensor([s["loss"] for s in found["steps"]]), chain.losses)
        assert len(client.post("/v1/chain", json=task(steps=3)).json()["steps"]) == 4

    def test_the_plane_holds_the_chain(self, client):
        chain = client.post("/v1/chain", json=task(seed=5)).json()
        found = client.post("/v1/landscape", json=task(seed=5, grid=9)).json()
        assert found["losses"] == pytest.approx([s["loss"] for s in chain["steps"]], rel=1e-4)
        assert found["times"] == list(range(11)) and found["path"][-1] == [0, 0]
        loss = torch.tensor(found["loss"])
        assert loss.shape == (9, 9) and len(found["x"]) == len(found["y"]) == 9
        x, y = torch.tensor(found["path"]).T
        assert found["x"][0] < float(x.min()) and float(y.max()) < found["y"][-1]
        middle = loss[torch.tensor(found["y"]).abs().argmin(), torch.tensor(found["x"]).abs().argmin()]
        assert float(middle) < float(loss.max())


class TestTexts:
    def test_rows_over_a_language_model(self, models, tmp_path, client):
        from serving import serving
        from tiny_models import PAIR, lora

        from mcdi.generator.api import Generator
        from mcdi.methods import make_method
        from mcdi.networks.lora import LoraClassifier

        network = LoraClassifier(lora(models, generate="rows"), 2)
        Generator("prototypes", make_method("prototypes", {}), network).save_pretrained(tmp_path / "texts")
        texts = [list(PAIR[i % 3]) for i in range(4)]
        body = {"model": "texts", "support": {"texts": texts}, "labels": [0, 1, 0, 1]}
        with serving({"texts": tmp_path / "texts"}) as client:
            (about,) = client.get("/v1/models").json()["models"]
            assert about["texts"] and about["images"] is None and about["features"] is None
            kept = client.post("/v1/generate", json=body).json()
            found = client.post("/v1/predict", json={"handle": kept["handle"], "queries": {"texts": texts}}).json()
            mixed = sentence(client.post("/v1/generate", json={**body, "support": {"texts": [*texts[:3], ["one"]]}}), 422)
            assert "pairs" in mixed
            assert "reads texts" in sentence(client.post("/v1/generate", json={**body, "support": vectors(count=4)}), 422)
        generator, examples = read(tmp_path / "texts", body)
        expected = generator.predict(generator.generate((examples.x, examples.y)), examples.x)
        torch.testing.assert_close(torch.tensor(found["probabilities"]), expected.softmax(-1), rtol=1e-4, atol=1e-5)


def test_an_image_may_have_so_many_pixels(folders):
    """All images of a request together: test_serve_hostile.py."""
    generator, body = package.load(folders["drawings"]), Task(**task())
    with pytest.raises(McdiError, match="56 x 56 pixels: send at most 3135"):
        examples_of(body, generator, Limits(pixels=56 * 56 - 1))
    assert len(examples_of(body, generator, Limits(pixels=56 * 56)).y) == len(body.labels)


class TestOperation:
    def test_backbones_in_bfloat16(self, folders):
        plain, half = (Models({"m": folders["drawings"], "v": folders["vectors"]}, bf16=b) for b in (False, True))
        x = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        want, got = (m.get("m").embed(x) for m in (plain, half))
        assert 1e-5 < float((got - want).norm() / want.norm()) < 0.03 and half.get("v").network.embedder is None

    def test_models(self, client):
        found = {m["name"]: m for m in client.get("/v1/models").json()["models"]}
        drawings, curves = found["drawings"], found["curves"]
        assert drawings["images"] == [1, 28, 28] and drawings["features"] == 64 and drawings["classes"] == [2, 100]
        assert drawings["chain"] and drawings["T"] == 10 and drawings["steps"] == 10 and not found["closed"]["chain"]
        assert curves["labels"] == "numbers" and curves["classes"] is None and found["vectors"]["images"] is None

    def test_a_regression_has_no_chain(self, worlds):
        """It is asked for no steps, and POST /v1/chain refuses it."""
        gauss = worlds["gauss"]
        about = describe(
            "h", package.Generator("hypernetwork", gauss.method("hypernetwork"), gauss.family.downstream), Limits()
        )
        assert (about.chain, about.steps, about.T) == (False, None, None)

    def test_health_and_metrics(self, client):
        assert client.get("/healthz").json() == {"status": "ok", "version": package.__version__}
        assert client.get("/readyz").json()["status"] == "ready"
        client.post("/v1/generate", json=task())
        client.get("/v1/none-such")
        text = client.get("/metrics").text
        assert 'mcdi_requests_total{route="/v1/generate",status="200"}' in text
        assert 'route="other",status="404"' in text and "none-such" not in text
        for name in ("mcdi_request_seconds_bucket", "mcdi_batch_size_sum", "mcdi_queue_length 0.0", "mcdi_handles "):
            assert name in text

    def test_page_and_headers(self, client):
        for path in ("/", "/page/index.html"):
            response = client.get(path)
            assert response.status_code == 200 and "text/html" in response.headers["content-type"]
            assert response.headers["content-security-policy"].startswith("default-src 'self'")
        for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2f..%2ferrors.py", "/page/%00", "/page/" + "a" * 5000):
            sentence(client.get(path), 404)
        sentence(client.get("/v1/generate"), 405)

    def test_openapi_knows_every_body_and_error(self, client):
        found = client.get("/openapi.json").json()
        for path in ("/v1/generate", "/v1/predict", "/v1/chain", "/v1/landscape"):
            post = found["paths"][path]["post"]
            name = post["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            assert name in found["components"]["schemas"]
            assert {"200", "400", "401", "404", "413", "422", "429", "503", "504"} <= set(post["responses"])
        assert "$defs" not in json.dumps(found)
