"""Equivariant activations of q and k: every component is multiplied by a gate of the feature's true scalar.

f is written as f(x) = gate(x) x with x the scalar (degree 0, even parity); the same gate multiplies all degrees and parities of
that feature. The set and the conventions (gelu in its tanh form) are those of the reference, which takes them from e3x.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ACTIVATIONS = (
    "identity", "silu", "gelu", "shifted_softplus", "relu", "leaky_relu", "relu6", "elu", "selu", "celu", "mish", "serf",
    "hard_tanh", "hard_silu", "soft_sign", "bent_identity",
)  # fmt: skip


def _elu_gate(x: Tensor) -> Tensor:
    """expm1(x)/x for x < 0, else 1; by its series near 0, where the quotient loses its derivatives."""
    near = x.abs() < 1e-2
    series = 1 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x / 720))))
    far = torch.where(near | (x > 0), torch.full_like(x, -1.0), x)
    return torch.where(x > 0, torch.ones_like(x), torch.where(near, series, torch.expm1(far) / far))


def _shifted_softplus_gate(x: Tensor) -> Tensor:
    """(softplus(x) - log 2)/x; by its series near 0."""
    near = x.abs() < 5e-2
    square = x * x
    series = 0.5 + x * (1 / 8 - square * (1 / 192 - square * (1 / 2880 - square * (17 / 645120))))
    far = torch.where(near, torch.ones_like(x), x)
    return torch.where(near, series, (torch.nn.functional.softplus(far) - math.log(2.0)) / far)


def gate(activation: str, x: Tensor) -> Tensor:
    """gate(x) = f(x)/x of the named activation, elementwise; twice differentiable also at x = 0 where f is smooth."""
    if activation == "silu":
        return torch.sigmoid(x)
    if activation == "gelu":
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    if activation == "shifted_softplus":
        return _shifted_softplus_gate(x)
    if activation == "relu":
        return (x > 0).to(x.dtype)
    if activation == "leaky_relu":
        return torch.where(x >= 0, torch.ones_like(x), torch.full_like(x, 0.01))
    if activation == "relu6":
        return (x > 0).to(x.dtype) * torch.clamp(6.0 / torch.clamp(x, min=1.0), max=1.0)
    if activation == "elu" or activation == "celu":
        return _elu_gate(x)
    if activation == "selu":
        slope = 1.67326324235437728481
        return 1.05070098735548049342 * torch.where(x > 0, torch.ones_like(x), slope * _elu_gate(x))
    if activation == "mish":
        return torch.tanh(torch.nn.functional.softplus(x))
    if activation == "serf":
        return torch.erf(torch.nn.functional.softplus(x))
    if activation == "hard_tanh":
        return 1 / torch.clamp(x.abs(), min=1.0)
    if activation == "hard_silu":
        return torch.clamp(x + 3, min=0.0, max=6.0) / 6
    if activation == "soft_sign":
        return 1 / (x.abs() + 1)
    if activation == "bent_identity":
        return 1 + 0.5 * x / (torch.sqrt(x * x + 1) + 1)
    return torch.ones_like(x)
