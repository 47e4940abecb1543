"""Classifiers with scikit-learn's habits: its own checks, pipelines, searches, pickles, and inputs of every kind."""

import io
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from worlds import World

import mcdi
from mcdi.errors import McdiError
from mcdi.generator.api import Generator
from mcdi.methods import make_method
from mcdi.networks.linear_head import LinearHead
from mcdi.sklearn import GeneratedClassifier, PrototypeHead, RidgeHead


class AnyWidth(GeneratedClassifier):
    """With a generator for features of as many numbers as it is given: a trained one has numbers of its own."""

    @property
    def _source(self) -> Generator:
        return Generator("prototypes", make_method("prototypes", {}), LinearHead(self.n_features_in_, 2))


@parametrize_with_checks([PrototypeHead(), RidgeHead(), AnyWidth()])
def test_the_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.fixture
def vectors(worlds: dict[str, World]) -> Generator:
    """Of heads for features of six numbers."""
    world = worlds["gauss"]
    return Generator("mc-di", world.method("mc-di"), world.family.downstream)


@pytest.fixture(params=["generated", "prototypes", "ridge"])
def head(request: pytest.FixtureRequest, vectors: Generator) -> Any:
    return {"generated": GeneratedClassifier(vectors), "prototypes": PrototypeHead(), "ridge": RidgeHead()}[request.param]


def blobs(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x, y = make_blobs(n, n_features=6, centers=3, cluster_std=1.0, random_state=seed)
    return (x / np.linalg.norm(x, axis=1, keepdims=True) * 6**0.5).astype(np.float32), np.array(["b", "a", "c"])[y]


class TestHeads:
    def test_weights_and_answers_are_those_of_the_generator(self, vectors: Generator) -> None:
        x, y = blobs()
        found = GeneratedClassifier(vectors).fit(x[:12], y[:12])
        classes, numbers = np.unique(y[:12], return_inverse=True)
        weights = vectors.generate((torch.from_numpy(x[:12]), torch.from_numpy(numbers)))
        assert found.classes_.tolist() == classes.tolist()
        assert all(torch.equal(found.weights_[n], w) for n, w in weights.items())
        logits = vectors.predict(weights, torch.from_numpy(x[12:]))
        np.testing.assert_allclose(found.predict_proba(x[12:]), logits.softmax(-1).numpy(), atol=1e-6)
        assert found.predict(x[12:]).tolist() == classes[logits.argmax(-1).numpy()].tolist()

    def test_it_learns(self, head: Any) -> None:
        x, y = blobs(300)
        assert head.fit(x[:30], y[:30]).score(x[30:], y[30:]) > 0.9

    def test_parts_are_the_whole(self, head: Any) -> None:
        """A class that comes later included."""
        x, y = blobs()
        order = np.argsort(y != "c", kind="stable")[::-1]  # c comes last
        x, y = x[order], y[order]
        whole, parts = clone(head).fit(x, y), clone(head)
        for start, end in ((0, 10), (10, 45), (45, 60)):
            parts.partial_fit(x[start:end], y[start:end], classes=["a", "b", "c"])
        assert parts.classes_.tolist() == ["a", "b", "c"]
        np.testing.assert_allclose(parts.predict_proba(x), whole.predict_proba(x), rtol=1e-4, atol=1e-6)
        again = whole.fit(x[:20], y[:20])  # nothing of the first call is left
        np.testing.assert_allclose(again.predict_proba(x), clone(head).fit(x[:20], y[:20]).predict_proba(x), rtol=1e-5)

    def test_pickles(self, head: Any) -> None:
        x, y = blobs()
        head.fit(x, y)
        data = pickle.dumps(head)
        assert b"torch" not in data.replace(b"torchvision", b"")
        np.testing.assert_allclose(pickle.loads(data).predict_proba(x), head.predict_proba(x), rtol=1e-5, atol=1e-7)
        more = pickle.loads(data).partial_fit(x[:3] + 0.1, y[:3])
        assert more.predict(x).shape == (60,)

    def test_pipelines_and_searches(self, head: Any) -> None:
        x, y = blobs()
        assert cross_val_score(make_pipeline(StandardScaler(), clone(head)), x, y, cv=3).min() > 0.6
        if isinstance(head, RidgeHead):
            found = GridSearchCV(head, {"ridge": [0.01, 1.0, 100.0]}, cv=3, n_jobs=2).fit(x, y)
            assert found.best_params_["ridge"] in (0.01, 1.0, 100.0)
        if isinstance(head, GeneratedClassifier):
            found = GridSearchCV(head, {"device": ["cpu"]}, cv=3, n_jobs=2).fit(x, y)
            assert found.best_score_ > 0.6

    def test_what_does_not_fit(self, head: Any, vectors: Generator) -> None:
        x, y = blobs()
        with pytest.raises(ValueError, match="at least 2 classes"):
            head.fit(x, ["a"] * 60)
        half = clone(head).fit(x, y)
        with pytest.raises(ValueError, match="features"):
            half.partial_fit(x[:3, :5], y[:3])
        np.testing.assert_allclose(half.predict_proba(x), clone(head).fit(x, y).predict_proba(x), rtol=1e-5)  # as it was
        with pytest.raises(ValueError, match="Found input variables with inconsistent numbers of samples"):
            head.fit(x, y[:-1])
        with pytest.raises(ValueError, match="NaN"):
            head.fit(np.where(x > 1, np.nan, x), y)
        with pytest.raises(ValueError, match="features"):
            head.fit(x, y).predict(x[:, :5])
        with pytest.raises(McdiError, match=r"features \(\.\.\., 6\)"):
            GeneratedClassifier(vectors).fit(x[:, :5], y)
        with pytest.raises(McdiError, match="PrototypeHead reads features"):
            PrototypeHead().fit(["a.png", "b.png"], ["a", "b"])


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits(n_class=5)
    return (data.images / 16).astype(np.float32), data.target


def test_a_folder_that_is_written_anew(worlds: dict[str, World], vectors: Generator, tmp_path: Path) -> None:
    """A fitted classifier stays what it is, and the next one has the new generator."""
    x, y = blobs()
    vectors.save_pretrained(tmp_path)
    first = GeneratedClassifier(tmp_path).fit(x, y)
    was = first.predict_proba(x)
    world = worlds["gauss"]
    Generator("prototypes", world.method("prototypes"), world.family.downstream).save_pretrained(tmp_path)
    os.utime(tmp_path / "config.json", (1, 1))
    np.testing.assert_array_equal(first.predict_proba(x), was)
    prototypes = PrototypeHead().fit(x, y).predict_proba(x)
    for anew in (GeneratedClassifier(tmp_path).fit(x, y), first.fit(x, y)):
        np.testing.assert_allclose(anew.predict_proba(x), prototypes, rtol=1e-4, atol=1e-6)
    shutil.rmtree(tmp_path)
    np.testing.assert_allclose(first.predict_proba(x), prototypes, rtol=1e-4, atol=1e-6)


class TestImages:
    """A ready-made generator of whole networks, on digits that people wrote."""

    @pytest.mark.parametrize("kind", ["arrays", "bytes", "pillow", "paths"])
    def test_the_same_images_in_every_form(self, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path, kind: str) -> None:
        images, labels = digits
        whole = (images[:60] * 255).round().astype(np.uint8)
        made: Any = {"arrays": whole / 255, "bytes": whole, "pillow": [Image.fromarray(a) for a in whole]}.get(kind)
        if made is None:
            made = [tmp_path / f"{i}.png" for i in range(60)]
            for path, array in zip(made, whole, strict=True):
                Image.fromarray(array).save(path)
        head = GeneratedClassifier("symbols")
        found = head.fit(made[:30], labels[:30]).predict_proba(made[30:])
        wanted = GeneratedClassifier("symbols").fit(whole[:30], labels[:30]).predict_proba(whole[30:])
        np.testing.assert_allclose(found, wanted, atol=1e-6)
        assert found.shape == (30, 5)

    def test_it_reads_digits(self, digits: tuple[np.ndarray, np.ndarray]) -> None:
        images, labels = digits
        assert GeneratedClassifier("symbols").fit(images[:30], labels[:30]).score(images[30:300], labels[30:300]) > 0.7

    def test_closed_forms_read_through_its_backbone(self, digits: tuple[np.ndarray, np.ndarray]) -> None:
        images, labels = digits
        head = PrototypeHead(mcdi.load("symbols")).fit(images[:30], labels[:30])
        assert head.score(images[30:200], labels[30:200]) > 0.5

    def test_no_images_and_images_in_memory_that_cannot_be_read(self, digits: tuple[np.ndarray, np.ndarray]) -> None:
        fitted = GeneratedClassifier("symbols").fit(*(part[:60] for part in digits))
        assert fitted.predict(np.zeros((0, 28, 28), np.uint8)).shape == (0,)
        assert fitted.predict([Image.new("LAB", (9, 9))]).shape == (1,)
        file = io.BytesIO()
        Image.effect_noise((200, 200), 50).save(file, "JPEG")
        with pytest.raises(McdiError, match=r"X\[0\] cannot be read as an image \(image file is truncated"):
            fitted.predict([Image.open(io.BytesIO(file.getvalue()[:3000]))])

    def test_images_that_are_none(self) -> None:
        for images, said in [
            (np.zeros((4, 8, 8, 2)), r"X\[0\] has the shape \(8, 8, 2\)"),
            (np.full((4, 8, 8), 3.0), r"the pixels of X\[0\] run from 3 to 3, but real numbers are pixels in 0..1"),
            (["no.png"] * 4, "no.png does not exist"),
        ]:
            with pytest.raises(McdiError, match=said):
                GeneratedClassifier("symbols").fit(images, [0, 1, 0, 1])
