"""Equivariant features in the core: shapes, and the linear map per irrep.

A feature tensor has the shape (N, P, (L+1)^2, F): atoms, parities, components of degree 0 to L, features. P = 1: true
tensors only, degree l has parity (-1)^l. P = 2: index 0 holds even, index 1 odd parity. Components are in e3nn's order
(degree 1: x, y, z). Inside the core parities and components are one axis of K = P (L+1)^2 components.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from efa_addons.errors import EFAError
from efa_addons.ops.scatter import take

Irrep = tuple[int, int]  # degree, parity ±1
Component = tuple[int, int, int]  # degree, parity ±1, order index 0..2l


class FeatureType(NamedTuple):
    """Highest degree L, pseudotensors or not (P = 2 or 1), and number of features F of a feature tensor."""

    max_degree: int
    pseudotensors: bool
    num_features: int

    @property
    def num_parities(self) -> int:
        return 2 if self.pseudotensors else 1

    @property
    def num_components(self) -> int:
        """K = P (L+1)^2."""
        return self.num_parities * (self.max_degree + 1) ** 2

    @property
    def dim(self) -> int:
        """K F, the flattened width (D_qk of the paper for q and k)."""
        return self.num_components * self.num_features

    @property
    def irreps(self) -> list[Irrep]:
        """(degree, parity ±1) in storage order."""
        degrees = range(self.max_degree + 1)
        if not self.pseudotensors:
            return [(degree, (-1) ** degree) for degree in degrees]
        return [(degree, parity) for parity in (1, -1) for degree in degrees]

    @property
    def components(self) -> list[Component]:
        """(degree, parity, order index 0..2l) of each of the K components."""
        return components_of(self.irreps)

    def __str__(self) -> str:
        return "+".join(f"{self.num_features}x{degree}{'e' if parity == 1 else 'o'}" for degree, parity in self.irreps)


def components_of(irreps: list[Irrep]) -> list[Component]:
    """The components of irreps in their order."""
    return [(degree, parity, m) for degree, parity in irreps for m in range(2 * degree + 1)]


class WithConstants(nn.Module):
    """A module with buffers that are made, and not loaded: after `.to`, `.double()` and `.to_empty` they have their values."""

    __jit_ignored_attributes__ = ["exact"]
    _single: tuple[str, ...] = ()  # names of those that remain in single precision or better

    def add_constant(self, name: str, value: Tensor) -> None:
        """A buffer of the default dtype (where that is a half, of single precision for some) from its exact value."""
        if "exact" not in vars(self):
            self.exact: dict[str, Tensor] = {}
        self.exact[name] = value
        dtype = torch.get_default_dtype() if value.is_floating_point() else value.dtype
        self.register_buffer(name, value.to(self._held_in(name, dtype)), persistent=False)

    def _held_in(self, name: str, dtype: torch.dtype) -> torch.dtype:
        return torch.promote_types(dtype, torch.float32) if name in self._single and dtype.is_floating_point else dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WithConstants:
        exact = vars(self).get("exact", {})  # models of earlier versions have none
        before = {name: self._buffers[name] for name in exact}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if new is old or type(new) is not Tensor or new.is_meta:
                continue
            dtype = self._held_in(name, new.dtype)
            if dtype != new.dtype:
                self._buffers[name] = exact[name].to(new.device, dtype)
            else:
                with torch.no_grad():
                    new.copy_(exact[name])
        return self


class Select(WithConstants):
    """Picks, reorders, drops and zero-fills components: (N, K_source, F) -> (N, K_target, F)."""

    if TYPE_CHECKING:  # TorchScript would stumble over these
        index: Tensor

    def __init__(self, source: list[Component], target: list[Component]) -> None:
        super().__init__()
        place = {component: i for i, component in enumerate(source)}
        index = [place.get(component, len(source)) for component in target]
        self.identity = index == list(range(len(source)))
        self.fills = len(source) in index
        self.add_constant("index", torch.tensor(index, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.identity:
            return x
        if self.fills:
            x = torch.cat([x, x.new_zeros([x.shape[0], 1, x.shape[2]])], dim=1)
        return take(x, 1, self.index)


class Dense(WithConstants):
    """Equivariant linear map: one matrix per irrep, shared by its 2l+1 components; a bias on true scalars only.

    Args:
        source: irreps of the input, in their order.
        features_in, features_out: features of the input and of the output.
        irreps: the irreps mapped, a subset of `source`; none given: all of them.
        bias: add a bias to degree 0, even parity.
        zero: start from zeros instead of N(0, 1/F_in).

    Input (N, K_source, F_in), output (N, K, F_out) with the components of `irreps` in their order.
    """

    if TYPE_CHECKING:  # TorchScript would stumble over these
        expand: Tensor
        is_scalar: Tensor

    def __init__(
        self,
        source: list[Irrep],
        features_in: int,
        features_out: int,
        irreps: list[Irrep] | None = None,
        bias: bool = True,
        zero: bool = False,
    ) -> None:
        super().__init__()
        chosen = source if irreps is None else irreps
        missing = [irrep for irrep in chosen if irrep not in source]
        if missing:
            raise EFAError(f"irreps {missing} (degree, parity) are not in the input {source}.")
        self.irreps = chosen
        self.select = Select(components_of(source), components_of(chosen))
        expand = torch.tensor([i for i, (degree, _) in enumerate(chosen) for _ in range(2 * degree + 1)], dtype=torch.long)
        self.add_constant("expand", expand)
        weight = torch.randn(len(chosen), features_in, features_out) * features_in**-0.5
        self.weight = nn.Parameter(torch.zeros_like(weight) if zero else weight)
        self.bias = nn.Parameter(torch.zeros(features_out)) if bias and (0, 1) in chosen else None
        is_scalar = torch.tensor([1.0 if irrep == (0, 1) else 0.0 for irrep in chosen], dtype=torch.float64)[expand]
        self.add_constant("is_scalar", is_scalar[:, None])

    def forward(self, x: Tensor) -> Tensor:
        y = torch.bmm(self.select(x).transpose(0, 1), take(self.weight, 0, self.expand)).transpose(0, 1)
        if self.bias is not None:
            y = y + self.is_scalar * self.bias
        return y
