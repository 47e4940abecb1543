"""Classifiers with scikit-learn's interface whose weights are generated, or solved in closed form, instead of trained.

All three read the same inputs, so that they compare in one line:

    for head in (GeneratedClassifier(), PrototypeHead(), RidgeHead()): print(cross_val_score(head, features, labels))
"""

from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from mcdi.errors import McdiError, explained, optional
from mcdi.generator.api import Generator, load
from mcdi.generator.saving import CONFIG
from mcdi.networks.support import class_means, least_squares_rows, prototype_rows
from mcdi.tasks.images.files import fit_image, read_image
from mcdi.utils.files import tensor_bytes, tensors_of
from mcdi.utils.settings import check_number
from mcdi.utils.tensors import pixels_of, tensor_of
from mcdi.utils.torch_state import plain_torch

_base = optional("sklearn.base", "sklearn", "mcdi.sklearn")
_checks = optional("sklearn.utils.validation", "sklearn", "mcdi.sklearn")
_labels = optional("sklearn.utils.multiclass", "sklearn", "mcdi.sklearn")


@lru_cache(maxsize=4)
def _loaded(generator: str, device: str, saved: int) -> Generator:
    """Grid searches make the same classifier again and again. saved: when, for a folder that is written anew."""
    return load(generator, device)


def _reader(generator: str | Path | Generator | None, device: str) -> Generator | None:
    if generator is None or isinstance(generator, Generator):
        return generator
    config = Path(generator) / CONFIG
    return _loaded(str(generator), device, config.stat().st_mtime_ns if config.exists() else 0)


class _Classifier(_base.ClassifierMixin, _base.BaseEstimator):  # type: ignore[misc, name-defined]
    """Base class: keeps the examples, as features, and makes weights of them.

    X is an array of features (n, F), the images of a generator's backbone as an array (n, H, W) or (n, H, W, 3), as PIL
    images or as paths, or texts; y (n,) are labels of any type.
    """

    generator: str | Path | Generator | None
    device: str
    _generator: Generator | None
    _x: Tensor
    _y: NDArray[Any]

    @property
    def _source(self) -> Generator | None:
        """The generator, the same from `fit` on, whatever becomes of its folder."""
        if "_generator" not in self.__dict__:
            self._generator = _reader(self.generator, self.device)
        return self._generator

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Weights from these examples alone.

        Args:
            X: n examples, see the class.
            y: their labels (n,).

        Returns:
            The classifier.

        Raises:
            ValueError: inputs of the wrong shape or kind; a McdiError where the generator refuses them.
        """
        for name in ("_x", "_generator"):
            self.__dict__.pop(name, None)
        return self.partial_fit(X, y)

    @plain_torch()
    def partial_fit(self, X: Any, y: ArrayLike, classes: ArrayLike | None = None) -> Self:
        """New weights from the examples so far and these, whose classes may be new.

        Args:
            X: n examples, as for `fit`.
            y: their labels (n,).
            classes: not needed, as classes may come later; scikit-learn passes it.

        Returns:
            The classifier.
        """
        first = "_x" not in self.__dict__
        x, labels = self._features(X, y, reset=first)
        _labels.check_classification_targets(labels)
        examples = x if first else torch.cat([self._x, x])
        known = labels if first else np.concatenate([self._y, labels])
        present, numbers = np.unique(known, return_inverse=True)
        if len(present) < 2:
            raise ValueError(f"{type(self).__name__} needs examples of at least 2 classes, not of 1 class: add some")
        weights = self._weights(examples, torch.from_numpy(numbers), len(present))
        self._x, self._y, self.classes_, self.weights_ = examples, known, present, weights
        return self

    @abstractmethod
    def _weights(self, x: Tensor, y: Tensor, way: int) -> dict[str, Tensor]:
        """Of features (n, F) and their classes (n,), numbers below `way`."""

    def _logits(self, x: Tensor) -> Tensor:
        return x @ self.weights_["weight"].T + self.weights_["bias"]

    def _features(self, X: Any, y: ArrayLike | None = None, *, reset: bool) -> tuple[Tensor, Any]:
        """Examples as what weights read, (n, ...) float32, and labels (n,)."""
        X = np.asarray(tensor_of(X, "X").cpu()) if isinstance(X, Tensor) else X
        if _plain_features(X):
            kind: dict[str, Any] = {"reset": reset, "dtype": np.float32}
            checked = _checks.validate_data(self, X, **kind) if y is None else _checks.validate_data(self, X, y, **kind)
            x, y = (checked, None) if y is None else checked
            return torch.from_numpy(np.ascontiguousarray(x)), y
        source = self._source
        if source is None:
            raise McdiError(f"{type(self).__name__} reads features (n, F): name a generator, whose backbone reads more")
        raw = list(X) if source.network.embedder is None else as_images(X, source.image_shape)
        if y is not None:
            y = _checks.column_or_1d(y, warn=True)
            _checks.check_consistent_length(X, y)
        return source.embed(source.network.read(raw), query=y is None).cpu(), y

    @plain_torch()
    def decision_function(self, X: Any) -> NDArray[np.float32]:
        """Logits (n, classes); for two classes the difference (n,), as scikit-learn has it."""
        _checks.check_is_fitted(self)
        with torch.no_grad():
            logits = self._logits(self._features(X, reset=False)[0])
        return (logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits).numpy()

    @plain_torch()
    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Probabilities (n, classes)."""
        logits = torch.from_numpy(self.decision_function(X))
        return (torch.stack([-logits, logits], -1) / 2 if logits.ndim == 1 else logits).softmax(-1).numpy()

    def predict(self, X: Any) -> NDArray[Any]:
        """The most likely class of every example (n,)."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(1)]

    def __getstate__(self) -> dict[str, Any]:
        """Tensors as the bytes of a safetensors file."""
        state = {n: v for n, v in super().__getstate__().items() if n != "_generator"}
        tensors = {"x": state.pop("_x")} | state.pop("weights_") if "_x" in state else {}
        return {**state, "_tensors": tensor_bytes(tensors)} if tensors else state

    def __setstate__(self, state: dict[str, Any]) -> None:
        data = state.pop("_tensors", None)
        super().__setstate__(state)
        if data is not None:
            self.weights_, _ = tensors_of(data, "the pickled classifier")
            self._x = self.weights_.pop("x")


def _plain_features(X: Any) -> bool:
    """Whether X is not images or texts: what is neither is refused by scikit-learn's own checks."""
    if hasattr(X, "ndim"):
        return X.ndim == 2 or (X.ndim == 1 and getattr(X.dtype, "kind", "f") not in "OUS")
    if isinstance(X, Sequence) and len(X):
        return not isinstance(X[0], str | Path | Image.Image | tuple) and np.ndim(X[0]) < 2
    return True


def as_images(X: Any, shape: tuple[int, int, int]) -> Tensor:
    """Images as a backbone reads them: arrays (n, H, W) or (n, H, W, 3), PIL images or paths -> uint8 (n, *shape)."""

    def one(image: Any, where: str) -> Tensor:
        if isinstance(image, str | Path):
            return read_image(Path(image), shape, str(image))
        if not isinstance(image, Image.Image):
            array = np.asarray(tensor_of(image, where).cpu())
            if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
                raise McdiError(f"{where} has the shape {array.shape}: give (H, W) or (H, W, 3)")
            image = Image.fromarray(pixels_of(array, f"the pixels of {where}").numpy())
        with explained(f"{where} cannot be read as an image", "replace or remove it", OSError, ValueError, SyntaxError):
            return fit_image(image, shape, where)

    images = [one(image, f"X[{i}]") for i, image in enumerate(X)]
    return torch.stack(images) if images else torch.zeros(0, *shape, dtype=torch.uint8)


class GeneratedClassifier(_Classifier):
    """A network whose weights a generator makes of the examples, in milliseconds and without a gradient step.

    Args:
        generator: a ready-made generator's name, a folder, or a `Generator`.
        device: where it generates.

    Attributes:
        classes_: labels (classes,), sorted.
        weights_: {name: tensor}, for `load_state_dict` of the plain network.
    """

    def __init__(self, generator: str | Path | Generator = "photos", device: str = "cpu") -> None:
        self.generator, self.device = generator, device

    def _weights(self, x: Tensor, y: Tensor, way: int) -> dict[str, Tensor]:
        assert self._source is not None
        return {n: w.cpu() for n, w in self._source.generate((x, y)).items()}

    def _logits(self, x: Tensor) -> Tensor:
        assert self._source is not None
        return self._source.predict(self.weights_, x).cpu()


class PrototypeHead(_Classifier):
    """The class whose mean feature is nearest: w = 2 c, b = -|c|^2 (1703.05175, eq. 8).

    Args:
        generator: whose backbone reads images or texts; None: inputs are features.
        device: where the backbone computes.
    """

    def __init__(self, generator: str | Path | Generator | None = None, device: str = "cpu") -> None:
        self.generator, self.device = generator, device

    def _weights(self, x: Tensor, y: Tensor, way: int) -> dict[str, Tensor]:
        rows = prototype_rows(class_means(x[None], y[None], way)[0])[0]
        return {"weight": rows[:, :-1], "bias": rows[:, -1]}


class RidgeHead(_Classifier):
    """Ridge regression of one-hot labels in closed form (R2-D2, 1805.08136).

    Args:
        generator: whose backbone reads images or texts; None: inputs are features.
        ridge: in units of a feature vector's mean square.
        device: where the backbone computes.
    """

    def __init__(self, generator: str | Path | Generator | None = None, ridge: float = 1.0, device: str = "cpu") -> None:
        self.generator, self.ridge, self.device = generator, ridge, device

    def _weights(self, x: Tensor, y: Tensor, way: int) -> dict[str, Tensor]:
        check_number(float, ridge=self.ridge)
        if self.ridge <= 0:
            raise McdiError(f"ridge = {self.ridge} must be above 0: 1 is usual")
        rows = least_squares_rows(x[None].double(), y[None], way, self.ridge)[0].float()
        return {"weight": rows[:, :-1], "bias": rows[:, -1]}
