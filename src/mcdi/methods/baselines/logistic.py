"""Logistic regression on frozen features, as scikit-learn fits it: what most people would do first."""

from typing import Any

import torch
from torch import Tensor

from mcdi.errors import optional
from mcdi.methods.base import register_method
from mcdi.methods.baselines.closed_form import FACTS, ClosedForm
from mcdi.networks.heads import Head
from mcdi.types import Examples


@register_method("logistic-regression", label="logistic regression", colour="#7a5195", marker="d", gradient_free=False, **FACTS)
class LogisticRegression(ClosedForm):
    """scikit-learn's LogisticRegression on every support set, its penalty tuned on validation tasks."""

    name = "logistic regressions"
    grid = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)  # scikit-learn's C: features have the length sqrt(F)

    def rows(self, net: Head, support: Examples, way: int, value: float) -> Tensor:
        linear = optional("sklearn.linear_model", "sklearn", "logistic-regression")
        x = net.frozen_features(support.x)
        heads = []
        for features, labels in zip(x.double().cpu().numpy(), support.y.cpu().numpy(), strict=True):
            fitted: Any = linear.LogisticRegression(C=value, max_iter=1000).fit(features, labels)
            rows = torch.cat([torch.from_numpy(fitted.coef_), torch.from_numpy(fitted.intercept_)[:, None]], 1)
            heads.append(torch.cat([-rows, rows]) / 2 if way == 2 else rows)  # of two classes it has one row
        return torch.stack(heads).to(x)
