"""Replays of published rules in plain NumPy float64, sharing no code with the library."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from tests.references import simplex as simplex_reference


def softmax(x: np.ndarray) -> np.ndarray:
    shares = np.exp(x - x.max())
    return shares / shares.sum()


def through_softmax(gradient: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Gradient with respect to the logits, by the softmax's Jacobian."""
    return (np.diag(shares) - np.outer(shares, shares)) @ gradient


class Adam:
    """Adam with PyTorch's L2 decay; ``step`` returns the new position."""

    def __init__(self, rate: float, decay: float = 0.0, eps: float = 1e-8) -> None:
        self.rate, self.decay, self.eps = rate, decay, eps
        self.m = self.v = np.zeros(3)
        self.count = 0

    def step(self, x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        gradient = gradient + self.decay * x
        self.count += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        m, v = self.m / (1 - 0.9**self.count), self.v / (1 - 0.999**self.count)
        return x - self.rate * m / (np.sqrt(v) + self.eps)


def project_on_simplex(v: np.ndarray) -> np.ndarray:
    """By bisection on the threshold."""
    low, high = v.min() - 1, v.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if np.maximum(v - middle, 0).sum() > 1 else (low, middle)
        )
    return np.maximum(v - low, 0)


def famo(losses, revisited, rate=0.025, decay=1e-3):
    logits, adam, weights = np.zeros(3), Adam(rate, decay), []
    for k, current in enumerate(losses):
        if k:
            rates = np.log(losses[k - 1]) - np.log(revisited[k])
            shares = softmax(logits)
            logits = adam.step(logits, through_softmax(rates, shares))
        parts = softmax(logits) / current
        weights.append(parts / parts.sum())
    return np.array(weights)


def imtl_l(losses, rate=0.025):
    s, adam, weights = np.zeros(3), Adam(rate), []
    for current in losses:
        weights.append(np.exp(s))
        s = adam.step(s, np.exp(s) * current - 1)
    return np.array(weights)


def imtl(losses, grams, rate=0.025):
    weights = []
    for scales, gram in zip(imtl_l(losses, rate), grams, strict=True):
        scaled = gram * np.outer(scales, scales)
        shares = np.linalg.solve(scaled, np.sqrt(np.diag(scaled)))
        weights.append(shares / shares.sum() * scales)
    return np.array(weights)


def stch(losses, mu, warmup, window):
    nadir = losses[warmup - window : warmup].mean(0)
    return np.array(
        [
            1 / current
            if k < warmup
            else 3 * softmax(np.log(current / nadir) / mu) / current
            for k, current in enumerate(losses)
        ]
    )


def pbi(losses, theta, preference, ideal):
    ray = np.asarray(preference) / np.linalg.norm(preference)
    gaps = losses - ideal
    beside = gaps - np.outer(gaps @ ray, ray)
    return ray + theta * beside / np.linalg.norm(beside, axis=1, keepdims=True)


def modo(products, gamma, rho):
    point, weights = np.full(3, 1 / 3), []
    for product in products:
        point = project_on_simplex(point - gamma * (product @ point + rho * point))
        weights.append(point)
    return np.array(weights)


def sdmgrad(products, pull, rate=5.0, momentum=0.5, steps=20):
    point, weights = np.full(3, 1 / 3), []
    for product in products:
        scaled = product / np.sqrt(np.maximum(np.diag(product), 0)).mean() ** 2
        velocity = np.zeros(3)
        for _ in range(steps):
            velocity = momentum * velocity + scaled @ (point + pull / 3)
            point = project_on_simplex(point - rate * velocity)
        weights.append((point + pull / 3) / (1 + pull))
    return np.array(weights)


def auto_lambda(products, rate, primary):
    logits, adam, weights = np.zeros(3), Adam(rate, eps=1e-3), []
    for product in products:
        rates = primary @ product
        rates = rates / np.linalg.norm(rates)
        logits = adam.step(logits, -through_softmax(rates, softmax(logits)))
        weights.append(softmax(logits))
    return np.array(weights)


def moml(products, rate):
    logits, adam, weights = np.zeros(3), Adam(rate, eps=1e-3), []
    for product in products:
        rows = np.array([through_softmax(row, softmax(logits)) for row in product])
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        shares = simplex_reference.min_norm_point(rows)
        logits = adam.step(logits, -shares @ rows)
        weights.append(softmax(logits))
    return np.array(weights)


def gradvac(jacobians, orders, beta):
    """The published loop over whole gradients, for given orders ``(steps, T, T)``."""
    targets, updates = np.zeros((3, 3)), []
    for jacobian, order in zip(jacobians, orders, strict=True):
        corrected = jacobian.copy()
        for i in range(3):
            for j in order[i]:
                if j == i:
                    continue
                g, other, target = corrected[i], jacobian[j], targets[i, j]
                sizes = np.linalg.norm(g), np.linalg.norm(other)
                rho = g @ other / (sizes[0] * sizes[1])
                if rho < target:
                    gap = target * np.sqrt(1 - rho**2) - rho * np.sqrt(1 - target**2)
                    factor = sizes[0] * gap / (sizes[1] * np.sqrt(1 - target**2))
                    corrected[i] = g + factor * other
                targets[i, j] = (1 - beta) * target + beta * rho
        updates.append(corrected.sum(0))
    return np.array(updates)


def cr_mogm(jacobians, alpha):
    weights = []
    for jacobian in jacobians:
        fresh = simplex_reference.min_norm_point(jacobian)
        weights.append(alpha * weights[-1] + (1 - alpha) * fresh if weights else fresh)
    return np.array(weights)


def pcd(jacobians, tau, beta, primary):
    """Tries every set of active constraints."""
    squares, updates = np.zeros(3), []
    rest = [t for t in range(3) if t != primary]
    for k, jacobian in enumerate(jacobians, 1):
        squares = beta * squares + (1 - beta) * (jacobian**2).sum(1)
        rows = jacobian / np.sqrt(squares / (1 - beta**k))[:, None]
        bound = tau * (rows[rest] ** 2).sum(1)
        found = []
        for size in range(3):
            for active in map(list, combinations(range(2), size)):
                held = rows[rest][active]
                lack = bound[active] - held @ rows[primary]
                multipliers = np.linalg.solve(held @ held.T, lack)
                candidate = rows[primary] + multipliers @ held
                if (multipliers >= 0).all() and (
                    rows[rest] @ candidate >= bound - 1e-9
                ).all():
                    found.append(candidate)
        update = min(found, key=lambda d: np.linalg.norm(d - rows[primary]))
        length = np.linalg.norm(jacobian[primary]) / np.linalg.norm(update)
        updates.append(length * update)
    return np.array(updates)


def moco(jacobians, losses, beta, beta_decay, gamma, gamma_decay, rho):
    average, point, updates = np.zeros(jacobians.shape[1:]), np.full(3, 1 / 3), []
    for k, (jacobian, current) in enumerate(zip(jacobians, losses, strict=True), 1):
        unit = jacobian / np.linalg.norm(jacobian, axis=1, keepdims=True)
        average = average - beta * k**-beta_decay * (average - current[:, None] * unit)
        gram = average @ average.T + rho * np.eye(3)
        point = softmax(point - gamma * k**-gamma_decay * gram @ point)
        updates.append(point @ average)
    return np.array(updates)


def db_mtl(jacobians, losses, beta, beta_decay):
    average, updates = np.zeros(jacobians.shape[1:]), []
    for k, (jacobian, current) in enumerate(zip(jacobians, losses, strict=True), 1):
        logs = jacobian / current[:, None]
        average = logs + beta * k**-beta_decay * (average - logs)
        norms = np.linalg.norm(average, axis=1)
        updates.append((norms.max() / norms) @ average)
    return np.array(updates)


def excess_mtl(jacobians, eta):
    squares, weights, first, updates = 0, np.ones(3), None, []
    for jacobian in jacobians:
        squares = squares + jacobian**2
        excess = (jacobian**2 / np.sqrt(squares)).sum(1)
        first = excess if first is None else first
        weights = weights * np.exp(eta * excess / first)
        weights = 3 * weights / weights.sum()
        updates.append(weights @ jacobian)
    return np.array(updates)


def trimmed_mean(jacobians):
    """Of three entries without the smallest and largest: the median."""
    return np.median(jacobians, axis=1)


def krum(jacobian, faulty, selected):
    distances = np.square(jacobian[:, None] - jacobian[None]).sum(-1)
    nearest = np.sort(distances, axis=1)[:, 1 : len(jacobian) - faulty - 1]
    best = np.argsort(nearest.sum(1))[:selected]
    return np.isin(np.arange(len(jacobian)), best) / selected


def config(jacobian):
    """From the pseudo-inverse of the unit rows, as the paper has it."""
    unit = jacobian / np.linalg.norm(jacobian, axis=1, keepdims=True)
    x = np.linalg.pinv(unit) @ np.ones(len(unit))
    x = x / np.linalg.norm(x)
    return (jacobian @ x).sum() * x
