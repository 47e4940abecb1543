"""Download from and upload to the Hugging Face Hub, without a network: a local cache, and a stub of the client."""

import json
import shutil

import pytest
import torch
from conftest import mcdi
from test_export import examples

from mcdi import Generator, load
from mcdi.errors import McdiError
from mcdi.generator.saving import MINILM, base_model, model_card
from mcdi.methods import make_method
from mcdi.networks.linear_head import LinearHead
from mcdi.utils.files import read_json, write_json

hub = pytest.importorskip("huggingface_hub", reason="needs mcdi[hub]")


@pytest.fixture
def generator():
    return Generator("prototypes", make_method("prototypes", {}), LinearHead(6, 3))


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def cache(generator, tmp_path, offline):
    """A cache with one snapshot of user/letters under main, which also contains a pickle."""
    repo, commit = tmp_path / "cache" / "models--user--letters", "a" * 40
    generator.save_pretrained(repo / "snapshots" / commit)
    (repo / "snapshots" / commit / "pytorch_model.bin").write_bytes(b"a pickle")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    return tmp_path / "cache"


@pytest.fixture
def sent(monkeypatch):
    """The calls of the stub, and the files of the commit."""
    calls = {}

    class Stub:
        def __init__(self, token=None):
            calls["token"] = token

        def create_repo(self, repo_id, **options):
            calls["repo"] = (repo_id, options)
            return hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, *, folder_path, **options):
            calls["commit"] = options
            calls["files"] = {p.name: p.read_bytes() for p in folder_path.iterdir()}
            return f"https://huggingface.co/{options['repo_id']}/commit/1"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Stub)
    return calls


class TestLoad:
    def test_from_the_cache(self, cache, generator):
        support = examples(2, 4, 2)
        for loaded in (load("user/letters", cache_dir=cache), Generator.from_pretrained("user/letters", cache_dir=cache)):
            torch.testing.assert_close(loaded.generate(support), generator.generate(support))
        assert load("user/letters", cache_dir=cache, revision="a" * 40).name == "prototypes"

    def test_a_local_folder_comes_first(self, cache, generator, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("the folder exists"))
        generator.name = "prototypes"
        generator.save_pretrained("user/letters")
        assert load("user/letters").name == "prototypes"

    def test_only_files_of_a_generator_are_fetched(self, generator, tmp_path, monkeypatch):
        generator.save_pretrained(tmp_path)
        call = {}

        def download(name, **options):
            call.update(options, name=name)
            return str(tmp_path)

        monkeypatch.setattr(hub, "snapshot_download", download)
        load("user/letters", revision="v1", token="secret", cache_dir=tmp_path)
        assert call["allow_patterns"] == ["config.json", "model.safetensors", "README.md"]
        assert (call["name"], call["revision"], call["token"]) == ("user/letters", "v1", "secret")

    def test_neither_a_folder_nor_on_the_hub(self, cache):
        for name, options in (("user/nothing", {}), ("user/letters", {"revision": "v9"})):
            with pytest.raises(McdiError, match=rf"^{name} is not a local folder, and the Hugging Face Hub does not") as error:
                load(name, cache_dir=cache, **options)
            assert "\n" not in str(error.value)
        with pytest.raises(McdiError, match="does not exist"):
            load("runs/glyphs/methods/mc-di-9", cache_dir=cache)

    def test_pickles_are_not_read(self, cache):
        (cache / "models--user--letters" / "snapshots" / ("a" * 40) / "model.safetensors").unlink()
        with pytest.raises(McdiError, match=r"has no model.safetensors: choose a repository that mcdi push made"):
            load("user/letters", cache_dir=cache)


class TestPush:
    def test_an_upload_can_be_loaded(self, generator, sent, tmp_path):
        assert generator.push_to_hub("user/letters", private=True, token="secret", revision="v1").endswith(
            "user/letters/commit/1"
        )
        assert sorted(sent["files"]) == ["README.md", "config.json", "model.safetensors"]
        assert sent["token"] == "secret" and sent["repo"] == ("user/letters", {"private": True, "exist_ok": True})
        assert sent["commit"]["revision"] == "v1"
        for name, data in sent["files"].items():
            (tmp_path / name).write_bytes(data)
        support = examples(2, 4, 2)
        torch.testing.assert_close(load(tmp_path).generate(support), generator.generate(support))

    def test_card_of_a_run(self, generator, sent, tmp_path, capsys):
        folder = tmp_path / "methods" / "prototypes-0"
        generator.save_pretrained(folder)
        (folder / "checkpoint.pkl").write_bytes(b"a pickle")
        (tmp_path / "recipe.json").write_text(
            json.dumps({"name": "letters", "about": "drawn", "family": {"way": 3}, "preparation": {"tasks": 77}})
        )
        (tmp_path / "results").mkdir()
        shots = {"1": {"mean": 0.91234, "ci95": 0.0056}}
        result = {"seed": 4, "tasks": 600, "family": "glyphs", "shots": shots, "provenance": {"commit": "abc1234"}}
        (tmp_path / "results" / "prototypes-0.json").write_text(json.dumps(result))
        assert mcdi("push", folder, "user/letters", "--private") == 0
        assert "mcdi.load('user/letters')" in capsys.readouterr().out
        assert sorted(sent["files"]) == ["README.md", "config.json", "model.safetensors"]
        card = sent["files"]["README.md"].decode()
        head = card.split("---\n")[1]
        assert card.startswith("---\nlibrary_name: mcdi\ntags:\n- mcdi\n") and "# license" in head and "base_model" not in head
        for text in ("| 1 | 91.23 ± 0.56 |", "600 unseen tasks of 3 classes", "mcdi.load('user/letters')"):
            assert text in card
        for text in ("recipe: letters - drawn", "training tasks: 77", "seed: 4", "commit: abc1234"):
            assert text in card

    def test_a_readme_of_the_user(self, generator, sent, tmp_path):
        generator.save_pretrained(tmp_path)
        (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nmine")
        assert mcdi("push", tmp_path, "user/letters") == 0
        assert sent["files"]["README.md"].endswith(b"mine") and sent["repo"][1]["private"] is None

    def test_errors_are_one_sentence(self, generator, sent, tmp_path, monkeypatch, capsys):
        generator.save_pretrained(tmp_path / "model")

        def refuse(*_, **__):
            raise hub.errors.HFValidationError("no such user\nmore")

        monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi.upload_folder", refuse)
        for model, name, message in (
            (tmp_path / "model", "letters", "give user/name"),
            (tmp_path / "none", "user/letters", "does not exist"),
            (tmp_path / "model", "user/letters", "on the Hugging Face Hub failed (HFValidationError: no such user)"),
        ):
            assert mcdi("push", model, name) == 1
            text = capsys.readouterr().err
            assert message in text and len(text.splitlines()) == 1

    def test_base_models(self, tmp_path):
        bases = {"minilm": MINILM, "bert-base-uncased": "bert-base-uncased", "user/bert": "user/bert", str(tmp_path): None}
        for model, base in bases.items():
            assert base_model({"network": {"lora": {"model": model}}}) == base
        assert base_model({"network": {"kind": "linear-head"}}) is None

    def test_cards_of_other_networks(self, generator, tmp_path):
        generator.save_pretrained(tmp_path)
        config = read_json(tmp_path / "config.json")
        for network, text in (
            ({"kind": "lora", "way": 2, "lora": {"model": "minilm"}}, f"base_model: {json.dumps(MINILM)}"),
            ({"kind": "curve"}, "inputs (S, 1)"),
            ({"kind": "linear-head", "embedder": {"channels": 3, "side": 32}}, "images (S, 3, 32, 32), uint8"),
        ):
            write_json(tmp_path / "config.json", {**config, "network": network})
            assert text in model_card("user/x", tmp_path)
        shutil.rmtree(tmp_path)

    def test_the_card_of_a_user_module_asks_for_it(self, generator, tmp_path):
        """No file holds its code: the code example passes it to mcdi.load."""
        generator.save_pretrained(tmp_path)
        assert "mcdi.load('user/x')" in model_card("user/x", tmp_path)
        config = read_json(tmp_path / "config.json")
        config["network"] = {"kind": "own", "example": [2]}
        write_json(tmp_path / "config.json", config)
        card = model_card("user/x", tmp_path)
        assert "mcdi.load('user/x', module=module)" in card and "inputs of your module (S, 2)" in card
