"""Fixtures of all tests: seeds, precision, random structures and the kinds of attention that most tests run over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import efa_addons._e3nn  # noqa: F401  e3nn 0.4.4 can be imported after this


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def double() -> Iterator[None]:
    """Float64 by default."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


class Atoms(NamedTuple):
    positions: Tensor
    batch: Tensor
    num_graphs: int


@pytest.fixture
def atoms() -> Callable[..., Atoms]:
    """atoms(3, 0, 1): positions and batch of graphs of these sizes, atoms in random order, each graph within `diameter` Å."""

    def make(*sizes: int, diameter: float = 4.0) -> Atoms:
        batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        direction = nn.functional.normalize(torch.randn(len(batch), 3), dim=1)
        positions = 0.5 * diameter * torch.rand(len(batch), 1) ** (1 / 3) * direction
        return Atoms(positions, batch[torch.randperm(len(batch))], len(sizes))

    return make


@pytest.fixture
def randomized() -> Callable[[nn.Module], nn.Module]:
    """Fills all parameters of a module with random numbers, those that start from zero too."""

    def fill(module: nn.Module) -> nn.Module:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if not name.endswith("frequencies"):
                    parameter.normal_(std=parameter.shape[-2] ** -0.5 if parameter.dim() > 1 else 0.5)
        return module

    return fill


KINDS: dict[str, dict[str, Any]] = {
    "scalars": {"num_features": 4},
    "degree 2": {"num_features": 4, "max_degree": 2, "num_features_qk": 6, "num_features_v": 3, "activation": "gelu"},
    "pseudotensors": {"num_features": 2, "max_degree": 1, "include_pseudotensors": True, "include_pseudotensors_qk": False},
    "unparametrized": {"num_features": 4, "max_degree": 1, "parametrized": False, "max_degree_qk": 0, "include_self": False},
    "tensor integration": {"num_features": 4, "max_degree": 1, "tensor_integration": True, "ti_max_degree": 2},
    "coupling paths": {
        "num_features": 2, "max_degree": 2, "max_degree_qk": 1, "activation": "shifted_softplus", "tensor_integration": True,
        "ti_max_degree_sph": 1, "ti_max_degree": 3, "ti_parametrize_coupling_paths": True, "ti_include_pseudotensors": True,
        "ti_degree_scaling_constants": (0.5, 2.0), "include_self": False,
    },
}  # fmt: skip


@pytest.fixture(params=list(KINDS))
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Arguments of EuclideanFastAttention, one kind after another, without max_length and the grid."""
    return KINDS[request.param]
