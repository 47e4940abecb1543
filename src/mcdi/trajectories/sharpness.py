"""How sharp are the minima that weight preparation finds? Hessian spectra of many tasks at once, and Theorem 2's bound.

The parameters of N tasks are stacked and the tasks do not touch each other, so the gradient of sum_n g_n . v_n, g_n the
gradient of task n, is every task's own H_n v_n: one double backward serves all of them.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mcdi.errors import McdiError

Loss = Callable[[dict[str, Tensor]], Tensor]


class Spectrum(NamedTuple):
    """Of each task's Hessian: the algebraically largest eigenvalue (N,), and an estimate of the trace (N,)."""

    largest: Tensor
    trace: Tensor


def hessian_spectrum(
    loss: Loss,
    params: Mapping[str, Tensor],
    *,
    iterations: int = 20,
    probes: int = 8,
    generator: torch.Generator | None = None,
) -> Spectrum:
    """Largest eigenvalue and trace of the Hessians of N independent tasks; params: {name: (N, *shape)}, loss(params): (N,).

    largest: Lanczos (1950) with full reorthogonalisation, which approaches it from below; exact after as many
    iterations as the Hessian has distinct eigenvalues. Negative curvature does not disturb it.
    trace: mean over Rademacher z of z . H z (Hutchinson, 1990); exact for a diagonal Hessian. Its variance is
    2 sum_{i != j} H_ij^2 / probes. probes = 0 skips it: it is then NaN.

    All tasks share the random vectors of `generator` (default: seed 0), one of P numbers for the start and one a probe,
    so a task's result is the same in every batch; the errors of different tasks are for the same reason not independent.
    Products are in the parameters' dtype. float32 is enough: a product errs by ~1e-6 of the norm |H|, so the eigenvalue
    does too (1e-4 of itself if the most negative one is 100 times as large). It is not where a cross-entropy falls to
    1e-6, whose Hessian is made of differences of numbers near 1 (0.2 % off at a loss of 5e-6, 10 % at 7e-7): use float64.
    Memory: the graph of a double backward and N * iterations * P numbers; cut many tasks into batches.

    Raises McdiError for iterations < 1 or probes < 0, for a loss that is no (N,), not finite or does not depend on the
    parameters, and for second derivatives that are not finite.

    >>> spectrum = hessian_spectrum(lambda p: p["a"] ** 2 - p["b"] ** 2, {"a": torch.ones(1), "b": torch.ones(1)})
    >>> round(float(spectrum.largest), 4), float(spectrum.trace)
    (2.0, 0.0)
    """
    if iterations < 1 or probes < 0:
        raise McdiError(f"iterations = {iterations} must be at least 1, probes = {probes} at least 0 (0 skips the trace)")
    hessian = _Hessian(loss, params)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    start = torch.randn(hessian.size, generator=generator, device=generator.device)
    largest = _largest(hessian, hessian.everywhere(start), min(iterations, hessian.size))
    total = torch.zeros_like(largest)
    for _ in range(probes):
        signs = torch.randint(0, 2, (hessian.size,), generator=generator, device=generator.device) * 2 - 1
        z = hessian.everywhere(signs)
        total += (z * hessian(z)).sum(-1)
    return Spectrum(largest, total / probes)


def convergence_bound(
    largest: Tensor,
    gap: Tensor,
    mu: float,
    smoothness: float,
    epochs: int,
    reconstruction: Tensor | float = 0.0,
) -> Tensor:
    """Theorem 2 of the paper in our reading: L(theta_hat) - L* <= lambda/2 (c + 2 psi / mu) (1 - mu/l)^M, of `gap`'s shape.

    largest: lambda, the largest Hessian eigenvalue on the segment from theta* to theta_hat; gap: psi = L(theta_0) - L*;
    mu, smoothness: the strong convexity and l; epochs: M gradient steps; reconstruction: |theta_hat - theta_M|.
    With r^2 = 2 psi/mu (1 - mu/l)^M it is lambda/2 (reconstruction + r)^2, so c (1 - mu/l)^M = reconstruction^2
    + 2 r reconstruction. At rate 1/l itself the squared distance falls as (1 - mu/l)^(2 M): pass 2 M for that bound.
    Derivation: docs/method.md, "Sharpness and Theorem 2".

    Raises McdiError unless 0 < mu <= smoothness, and for a negative epochs, gap or reconstruction.
    """
    if not 0 < mu <= smoothness:
        raise McdiError(f"mu = {mu} and smoothness = {smoothness}: a strongly convex loss has 0 < mu <= smoothness")
    if epochs < 0 or not bool((gap >= 0).all()) or not bool((torch.as_tensor(reconstruction) >= 0).all()):
        raise McdiError(f"epochs = {epochs}, every gap and every reconstruction error must not be negative (or NaN)")
    distance = (2 * gap / mu * (1 - mu / smoothness) ** epochs).sqrt()
    return largest / 2 * (reconstruction + distance) ** 2


class _Hessian:
    """v (N, P) -> H v (N, P), all tasks in one backward through the gradients' graph, which is built once."""

    def __init__(self, loss: Loss, params: Mapping[str, Tensor]) -> None:
        with torch.enable_grad():
            at = {n: p.detach().requires_grad_() for n, p in params.items()}
            value = loss(dict(at))
            tasks = {len(p) for p in at.values()}
            if len(tasks) != 1 or value.shape != (next(iter(tasks)),):
                shapes = {n: tuple(p.shape) for n, p in at.items()}
                raise McdiError(f"N tasks need parameters (N, ...) and a loss (N,), not {shapes} and {tuple(value.shape)}")
            if not value.requires_grad:
                raise McdiError("the loss does not depend on the parameters: compute it from those it is given, with gradients")
            _finite(value, "losses")
            self.at, self.tasks = list(at.values()), len(value)
            self.gradient = torch.autograd.grad(value.sum(), self.at, create_graph=True, materialize_grads=True)
        self.sizes = [p.shape[1:].numel() for p in self.at]
        self.size = sum(self.sizes)
        self.like = torch.cat([p.detach().flatten()[:1] for p in self.at])  # the widest dtype of them, and the device

    def everywhere(self, v: Tensor) -> Tensor:
        """One vector (P,) for all tasks: (N, P)."""
        return v.to(self.like).expand(self.tasks, -1)

    def __call__(self, v: Tensor) -> Tensor:
        parts = [part.reshape(p.shape) for part, p in zip(v.split(self.sizes, -1), self.at, strict=True)]
        with torch.enable_grad():
            along = torch.stack([(g * part).sum() for g, part in zip(self.gradient, parts, strict=True)]).sum()
        if not along.requires_grad:  # a loss linear in all parameters
            return torch.zeros_like(v)
        product = torch.autograd.grad(along, self.at, retain_graph=True, materialize_grads=True)
        out = torch.cat([h.reshape(v.shape[0], -1) for h in product], -1)
        _finite(out.sum(-1), "second derivatives")
        return out


def _finite(values: Tensor, what: str) -> None:
    bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
    if bad:
        raise McdiError(
            f"{what} of {len(bad)} of {len(values)} tasks are not finite, the first is task {bad[0]}: leave them out"
        )


def _largest(hessian: _Hessian, start: Tensor, iterations: int) -> Tensor:
    """(N,) largest Ritz values of the Krylov spaces of start (N, P); iterations <= P.

    A task whose residual vanishes has reached an invariant space, which holds the wanted eigenvector as `start` has a
    part along it. From there on its tridiagonal is padded with the first diagonal entry, a Rayleigh quotient and hence no
    larger than the largest Ritz value, and its later vectors are zero.
    """
    tolerance = 100 * torch.finfo(start.dtype).eps  # above the rounding error of a product, below what is promised
    v = start / start.norm(dim=-1, keepdim=True)
    basis = v.new_zeros(len(v), iterations, v.shape[1])
    going, scale = torch.ones_like(v[:, 0], dtype=torch.bool), torch.zeros_like(v[:, 0])
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for j in range(iterations):
        basis[:, j] = v
        known = basis[:, : j + 1]
        w = hessian(v)
        alpha = (v * w).sum(-1)
        for _ in range(2):  # one pass leaves parts of a much more negative direction, which then come back: twice is enough
            w = w - torch.einsum("njp,nj->np", known, torch.einsum("njp,np->nj", known, w))
        beta = w.norm(dim=-1)
        diagonal.append(torch.where(going, alpha, diagonal[0] if diagonal else alpha))
        scale = torch.maximum(scale, torch.maximum(alpha.abs(), beta))
        going = going & (beta > tolerance * scale)
        beside.append(torch.where(going, beta, 0))
        v = torch.where(going[:, None], w / beta[:, None], 0)
    off = torch.stack(beside, -1)[:, :-1].double()
    ritz = torch.diag_embed(torch.stack(diagonal, -1).double())
    ritz = ritz + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    return torch.linalg.eigvalsh(ritz)[:, -1].to(start.dtype)
