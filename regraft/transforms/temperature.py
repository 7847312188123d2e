"""Calibration after training: temperature, Platt scaling and residual widths, fitted on logits of the validation split.

Guo et al. 2017, arXiv:1706.04599 (temperature); Platt 1999 with Lin, Lin and Weng 2007 (sigmoid); Lei et al. 2018,
arXiv:1604.04173 (split conformal widths). Pure functions of float64 arrays; no model is touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np

from regraft.errors import RunError

Kind = Literal["identity", "temperature", "platt", "label_temperature", "residual"]
CALIBRATION_FORMAT = "regraft.calibration/1"
COLDEST, HOTTEST = 0.02, 50.0  # bounds of a temperature: rows that are all right would ask for zero


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, C) probabilities in float64."""
    shifted = np.asarray(logits, dtype=np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    return powers / powers.sum(axis=1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-logits)) in float64, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(logits, dtype=np.float64)))


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature T > 0 with the least mean NLL of softmax(logits / T), logits (N, C), class ids (N,).

    The NLL is convex in b = 1 / T, so its slope, mean(E_p[z] - z_label), rises with b and has one root at most, found by
    bisection (Brent) to 1e-12. T stays within 0.02 and 50: where every row is right the best T would be 0.
    """
    logits = np.asarray(logits, dtype=np.float64)
    right = logits[np.arange(len(targets)), targets]
    return _inverse_temperature(lambda b: float(((softmax(b * logits) * logits).sum(1) - right).mean()))


def fit_label_temperatures(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(C,) temperatures with the least binary cross-entropy of sigmoid(logits / T), logits and 0/1 targets (N, C).

    A label that is always or never set in these rows keeps 1: its best temperature is a bound, not a measurement.
    """
    logits, targets = np.asarray(logits, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    out = np.ones(logits.shape[1])
    for c in range(logits.shape[1]):
        if 0 < targets[:, c].mean() < 1:
            z, y = logits[:, c], targets[:, c]
            out[c] = _inverse_temperature(lambda b, z=z, y=y: float(((sigmoid(b * z) - y) * z).mean()))
    return out


def _inverse_temperature(slope: Callable[[float], float]) -> float:
    """1 / b for the root of an increasing slope(b), or the bound towards which the loss falls."""
    from scipy.optimize import brentq

    low, high = math.log(1 / HOTTEST), math.log(1 / COLDEST)
    if slope(math.exp(low)) >= 0:
        return HOTTEST
    if slope(math.exp(high)) <= 0:
        return COLDEST
    root = brentq(lambda log_b: slope(math.exp(log_b)), low, high, xtol=1e-12)
    return math.exp(-float(root))  # pyright: ignore[reportArgumentType]  # a float: full_output is off


def fit_platt(margins: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """(a, b) of p(second class) = 1 / (1 + exp(a margin + b)), margins (N,) = logit 1 - logit 0, targets 0 or 1 (N,).

    Maximum likelihood against Platt's smoothed targets (n_pos + 1) / (n_pos + 2) and 1 / (n_neg + 2), by Newton steps
    with halving: the NLL is convex in (a, b). A useful model has a < 0, and the raw logits are a = -1, b = 0.
    """
    f = np.asarray(margins, dtype=np.float64)
    positive = np.asarray(targets) == 1
    smooth = np.where(positive, (positive.sum() + 1) / (positive.sum() + 2), 1 / ((~positive).sum() + 2))
    scale = max(float(np.abs(f).max()), 1e-300)  # conditions the Hessian
    design = np.stack([f / scale, np.ones_like(f)], axis=1)

    def loss(theta: np.ndarray) -> float:
        z = design @ theta  # -log p = log(1 + e^z) for the second class, log(1 + e^-z) for the first
        return float((np.logaddexp(0, z) - (1 - smooth) * z).sum())

    theta = np.array([0.0, math.log(((~positive).sum() + 1) / (positive.sum() + 1))])
    for _ in range(100):
        p = sigmoid(-(design @ theta))
        gradient = design.T @ (smooth - p)
        if np.abs(gradient).max() < 1e-10 * len(f):
            break
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + 1e-12 * np.eye(2)
        direction = np.linalg.solve(hessian, gradient)
        size, start = 1.0, loss(theta)
        while size > 1e-10 and loss(theta - size * direction) > start:
            size /= 2
        theta = theta - size * direction
    return float(theta[0] / scale), float(theta[1])


def fit_residuals(predictions: np.ndarray, targets: np.ndarray, coverage: float = 0.9) -> dict[str, float]:
    """`{scale, half_width, coverage}`: RMS residual, and the width that holds a new |residual| with that probability.

    The ceil((n + 1) coverage)-th smallest |residual| (Lei et al. 2018, split conformal), infinite below 1 / (1 - coverage) rows.
    """
    residuals = np.abs(np.asarray(targets, dtype=np.float64) - np.asarray(predictions, dtype=np.float64))
    rank = math.ceil((len(residuals) + 1) * coverage)
    width = float(np.sort(residuals)[rank - 1]) if rank <= len(residuals) else math.inf
    return {"scale": float(np.sqrt((residuals**2).mean())), "half_width": width, "coverage": coverage}


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How logits become the probabilities that are stated; saved beside the model as `calibration.json`."""

    kind: Kind
    task: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """(N, C) probabilities of logits (N, C), independent ones for multi-label; regression gives back its predictions.

        These are (N,), or (N, T) of several targets.
        """
        logits = np.asarray(logits, dtype=np.float64)
        if self.task == "regression":
            return logits if logits.ndim == 2 and logits.shape[1] > 1 else logits.reshape(len(logits))
        if self.kind == "platt":
            second = sigmoid(-(self.parameters["a"] * (logits[:, 1] - logits[:, 0]) + self.parameters["b"]))
            return np.stack([1 - second, second], axis=1)
        if self.task == "multilabel":
            return sigmoid(logits / np.asarray(self.parameters.get("temperatures", 1.0), dtype=np.float64))
        return softmax(logits / self.parameters.get("temperature", 1.0))

    def interval(self, predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(low, high), each (N,): where the target lies with the stated coverage. Regression only."""
        if self.kind != "residual":
            raise RunError(f"calibration: an interval needs the kind 'residual' of a regression, got {self.kind!r}")
        predictions = np.asarray(predictions, dtype=np.float64).reshape(len(predictions))
        width = self.parameters["half_width"]
        width = math.inf if width is None else width
        return predictions - width, predictions + width

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; an infinite width is None."""
        plain = {name: _plain(value) for name, value in self.parameters.items()}
        return {"format": CALIBRATION_FORMAT, "kind": self.kind, "task": self.task, "parameters": plain}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The calibration that `to_json` wrote."""
        if content.get("format") != CALIBRATION_FORMAT:
            raise RunError(
                f"calibration.json: format must be {CALIBRATION_FORMAT!r}, got {content.get('format')!r}; write it again"
            )
        return cls(kind=content["kind"], task=content["task"], parameters=content["parameters"])


def _plain(value: Any) -> Any:
    """Lists for arrays, None for what JSON cannot say."""
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
