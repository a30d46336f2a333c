"""Gates of the activations: gate(x) x is the activation of the same name, and its derivatives exist at zero."""

import math

import pytest
import torch
import torch.nn.functional as F

from efa_addons.ops.activations import ACTIVATIONS, gate

pytestmark = pytest.mark.usefixtures("double")

SCALARS = {
    "identity": lambda x: x,
    "silu": F.silu,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "shifted_softplus": lambda x: F.softplus(x) - math.log(2.0),
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "relu6": F.relu6,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "mish": F.mish,
    "serf": lambda x: x * torch.erf(F.softplus(x)),
    "hard_tanh": F.hardtanh,
    "hard_silu": F.hardswish,
    "soft_sign": F.softsign,
    "bent_identity": lambda x: (torch.sqrt(x * x + 1) - 1) / 2 + x,
}


def test_every_activation_is_tested():
    assert set(SCALARS) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gate_times_scalar_is_the_activation(name):
    x = torch.cat([torch.linspace(-8, 8, 101), torch.linspace(-0.1, 0.1, 100)])
    assert (gate(name, x) * x - SCALARS[name](x)).abs().max() < 1e-13


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivatives_are_finite_everywhere(name):
    x = torch.tensor([-300.0, -1.0, -1e-9, 0.0, 1e-9, 1.0, 300.0], requires_grad=True)
    value = gate(name, x)
    for _ in range(3):
        assert value.isfinite().all()
        if not value.requires_grad:
            break
        (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)


@pytest.mark.parametrize(("name", "slopes"), [("elu", (1 / 2, 1 / 3)), ("shifted_softplus", (1 / 8, 0.0))])
def test_series_near_zero(name, slopes):
    """First and second derivative at 0-, where the quotient itself has none."""
    x = torch.tensor(-1e-12, requires_grad=True)
    (first,) = torch.autograd.grad(gate(name, x), x, create_graph=True)
    (second,) = torch.autograd.grad(first, x)
    assert torch.stack([first, second]).tolist() == pytest.approx(slopes, abs=1e-9)
