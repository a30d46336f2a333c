"""EuclideanFastAttention: global equivariant attention over the atoms of each graph, at linear cost."""

from __future__ import annotations

import math
import sys
import warnings
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from efa_addons.config import METHODS
from efa_addons.distributed import spread
from efa_addons.errors import EFAError, EFAWarning, unknown_names
from efa_addons.late import late
from efa_addons.nn.checks import (
    check_dtype,
    check_graphs,
    check_inputs,
    check_whole,
    is_number,
    largest_distance,
    warn_if_wider,
    width,
)
from efa_addons.nn.features import Dense, FeatureType, Select, WithConstants, components_of
from efa_addons.nn.guard import GuardedWeights
from efa_addons.nn.tensor_integration import TensorIntegration
from efa_addons.ops.activations import ACTIVATIONS, gate
from efa_addons.ops.cost import pairwise_up_to
from efa_addons.ops.erope import default_frequencies
from efa_addons.ops.graphs import PairBlocks, center_positions, device_pairs, graph_blocks, graph_sizes, not_alone, pair_blocks
from efa_addons.ops.grid import Grid, frequency_groups, make_grid
from efa_addons.ops.harmonics import MAX_DEGREE
from efa_addons.ops.lebedev import lebedev_grid, lebedev_num_for, max_phase_for, quadrature_error
from efa_addons.ops.pairwise import attend_pairs_harmonics
from efa_addons.ops.quadrature import attend
from efa_addons.ops.tracing import tracing, transformed

_EVERY = 16  # calls on a GPU measure what is only for a warning
_COARSE = 0.01  # error of a grid of a given number of points, of the kernel, from which it is warned of


def _change_type(kind: FeatureType, max_degree: int | None, pseudotensors: bool | None, name: str) -> FeatureType:
    if max_degree is not None and not 0 <= max_degree <= kind.max_degree:
        raise EFAError(
            f"max_degree_{name}={max_degree} is impossible: the features reach degree {kind.max_degree}; "
            f"give 0 to {kind.max_degree}, or None for all."
        )
    return FeatureType(
        kind.max_degree if max_degree is None else max_degree,
        kind.pseudotensors if pseudotensors is None else pseudotensors,
        kind.num_features,
    )


def _reach(positions: Tensor) -> Tensor:
    """Of the atom farthest from the centre, Å."""
    return positions.norm(dim=1).max()


def _at_least_single(x: Tensor) -> torch.dtype:
    """The dtype of x, but no half precision, which holds a position of 10 Å to 0.01 to 0.06 Å."""
    return x.dtype if x.dtype == torch.float64 else torch.float32


class EuclideanFastAttention(WithConstants, GuardedWeights):
    """EFA(n) = Σ_m λ_m D_qk^(-1/2) rot_u(q_n) · Σ_n' rot_u(k_n') ⊗ v_n' (arXiv:2412.08541, Eqs. 13-20; Eq. 23 below).

    Args:
        num_features: F of the input.
        max_degree: highest degree L of the input.
        include_pseudotensors: the input has both parities (P = 2).
        max_length: largest interatomic distance (Å) for which rotational invariance is promised.
        max_frequency: b_max in radians; frequencies are linspace(0, b_max, F_qk/2)/max_length.
        method: "quadrature": over a Lebedev grid, linear in the number of atoms; "pairwise": the same integral done exactly,
            quadratic in the number of atoms; "auto": for each graph the cheaper one, and the quadrature where a grid is asked
            for by lebedev_num or where sizes must not be looked at (GPU, torch.compile, torch.export). Pairwise waits for
            them on a GPU; in traces it takes all N² pairs of the batch, those of different graphs too.
        lebedev_num: number of points of the Lebedev grid; none given: the smallest grid that meets `tolerance`. A warning says
            where its error is more than 1 % of the kernel at max_length.
        tolerance: error of the quadrature at the distance max_length.
        frequencies_trainable: frequencies become a parameter. They can outgrow the grid: then a warning is given.
        parametrized: learned projections to q, k, v; otherwise all three are the input.
        num_features_qk, num_features_v: features of q and k (even), and of v; none given: F.
        max_degree_qk, max_degree_v: highest degree kept in q and k, and in v; none given: L.
        include_pseudotensors_qk, include_pseudotensors_v: True: both parities (zeros where the input has none), False: true
            tensors only, none given: as the input.
        activation: equivariant activation of q and k, by name (`efa_addons.ops.activations`).
        tensor_integration: couple with Y(u) under the integral, with the ti_ options below:
        ti_max_degree_sph, ti_max_degree: highest degree of Y and of the output; none given: L.
        ti_include_pseudotensors: keep paths to pseudotensors; none given: if the input has them.
        ti_parametrize_coupling_paths: a trained weight for each coupling path and feature.
        ti_degree_scaling_constants: one constant for each degree 0 to ti_max_degree_sph of Y.
        include_self: keep the term n' = n.
        normalization: constant that divides the output.
        use_bias: biases for the true scalars of q, k and v.

    Shapes: inputs (N, P, (L+1)^2, F), positions (N, 3) in Å, batch (N,) in any order -> (N, P', (L'+1)^2, F_v), the type
    `self.output_type`. Components are in e3nn's order (degree 1: x, y, z). Positions may be of higher precision than the
    inputs; they are centred per graph before they are rounded.

    Raises:
        EFAError: impossible options, or tensors of the wrong shape or dtype.
    """

    _single = ("directions", "even", "odd", "frequencies")  # what phases are made of; frequencies unless they are trained

    if TYPE_CHECKING:  # TorchScript would stumble over these
        directions: Tensor
        even: Tensor
        odd: Tensor
        order: Tensor
        own_weights: Tensor

    def __init__(
        self,
        num_features: int,
        max_degree: int = 0,
        include_pseudotensors: bool = False,
        *,
        max_length: float,
        max_frequency: float = math.pi,
        method: str = "auto",
        lebedev_num: int | None = None,
        tolerance: float = 1e-5,
        frequencies_trainable: bool = False,
        parametrized: bool = True,
        num_features_qk: int | None = None,
        num_features_v: int | None = None,
        max_degree_qk: int | None = None,
        max_degree_v: int | None = None,
        include_pseudotensors_qk: bool | None = None,
        include_pseudotensors_v: bool | None = None,
        activation: str = "identity",
        tensor_integration: bool = False,
        ti_max_degree_sph: int | None = None,
        ti_max_degree: int | None = None,
        ti_include_pseudotensors: bool | None = None,
        ti_parametrize_coupling_paths: bool = False,
        ti_degree_scaling_constants: tuple[float, ...] | None = None,
        include_self: bool = True,
        normalization: float = 1.0,
        use_bias: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("max_length", max_length), ("max_frequency", max_frequency), ("normalization", normalization)):
            if not is_number(value) or not (value > 0 and math.isfinite(value)):
                raise EFAError(f"{name} must be a positive number, got {value!r}.")
        if not is_number(tolerance) or not 0 < tolerance < 1:
            raise EFAError(f"tolerance must be positive and below 1, the largest value of the kernel, got {tolerance!r}.")
        numbers = {
            "num_features": num_features, "num_features_qk": num_features_qk, "num_features_v": num_features_v,
            "max_degree": max_degree, "max_degree_qk": max_degree_qk, "max_degree_v": max_degree_v,
            "ti_max_degree_sph": ti_max_degree_sph, "ti_max_degree": ti_max_degree,
        }  # fmt: skip
        for name, number in numbers.items():
            if number is not None:
                check_whole(**{name: number})
                least = 1 if name in ("num_features", "num_features_v") else 0
                if number < least and name not in ("max_degree_qk", "max_degree_v"):  # of these, more can be said below
                    raise EFAError(f"{name} must be {least} or more, got {number}.")
        if ti_max_degree_sph is not None and ti_max_degree_sph > MAX_DEGREE:
            raise EFAError(f"ti_max_degree_sph must be {MAX_DEGREE} or less, got {ti_max_degree_sph}.")
        if torch.empty(0).device.type == "meta":
            raise EFAError(
                "EFA cannot be built on the device 'meta': its grid and indices are made, not loaded, and would have no values "
                "there. Build it on the CPU, and move it."
            )
        if lebedev_num is not None:
            lebedev_grid(lebedev_num)  # raises for numbers that are none, naming the nearest
        source = FeatureType(max_degree, include_pseudotensors, num_features)
        if not parametrized and (num_features_qk, num_features_v) != (None, None):
            raise EFAError(
                f"num_features_qk={num_features_qk} and num_features_v={num_features_v} need parametrized=True: without "
                "projections q, k and v have the features of the input."
            )
        features_qk = num_features if num_features_qk is None else num_features_qk
        features_v = num_features if num_features_v is None else num_features_v
        if features_qk % 2 or features_qk < 2:
            way_out = (
                "set num_features_qk to an even number" if parametrized else "give an even num_features, or parametrized=True"
            )
            raise EFAError(f"q and k need an even number of features (they rotate in pairs), got {features_qk}; {way_out}.")
        if method not in METHODS:
            raise unknown_names("method", [method], METHODS)
        if method == "pairwise" and lebedev_num is not None:
            raise EFAError(
                f"lebedev_num={lebedev_num} asks for a grid and method='pairwise' uses none: leave one of the two out."
            )
        if activation not in ACTIVATIONS:
            raise unknown_names("activation", [activation], ACTIVATIONS)
        type_qk = _change_type(source, max_degree_qk, include_pseudotensors_qk, "qk")._replace(num_features=features_qk)
        type_v = _change_type(source, max_degree_v, include_pseudotensors_v, "v")._replace(num_features=features_v)

        self.input_type = source
        self.input_shape = [source.num_parities, (source.max_degree + 1) ** 2, source.num_features]
        self._add_projections(type_qk, type_v, parametrized, use_bias)
        self.method, self.activation = method, activation
        self.scale_qk = float(type_qk.dim**-0.5 / normalization)
        self.include_self = include_self
        self.tensor_integration = tensor_integration
        self.max_length, self.max_frequency, self.tolerance = float(max_length), float(max_frequency), float(tolerance)
        ti_options = {
            "ti_max_degree_sph": ti_max_degree_sph,
            "ti_max_degree": ti_max_degree,
            "ti_include_pseudotensors": ti_include_pseudotensors,
            "ti_parametrize_coupling_paths": ti_parametrize_coupling_paths or None,
            "ti_degree_scaling_constants": ti_degree_scaling_constants,
        }
        unused = [f"{name}={value}" for name, value in ti_options.items() if value is not None]
        if unused and not tensor_integration:
            raise EFAError(f"{', '.join(unused)} need tensor_integration=True.")
        degree_sph = max_degree if ti_max_degree_sph is None else ti_max_degree_sph
        self._add_degree_constants(degree_sph if tensor_integration else 0, ti_degree_scaling_constants)
        self.frequencies_trainable = frequencies_trainable
        self._add_grid(lebedev_num, features_qk // 2)
        if lebedev_num is not None:
            self._warn_if_coarse(lebedev_num)
        num_waves = sum(m * c for m, c in zip(self.num_directions, self.num_channels, strict=True))
        num_rows = num_waves * 2 * 2 * type_qk.num_components
        self.pairwise_up_to = 0 if method == "quadrature" or lebedev_num is not None else sys.maxsize
        if method == "auto" and lebedev_num is None:
            self.pairwise_up_to = pairwise_up_to(num_waves, num_rows, type_v.dim, features_qk // 2, self.max_degree_sph)
        self.couple: nn.Module = nn.Identity()
        self.output_type = type_v
        if tensor_integration:
            self.couple = TensorIntegration(
                degree_sph,
                type_v,
                max_degree if ti_max_degree is None else ti_max_degree,
                include_pseudotensors if ti_include_pseudotensors is None else ti_include_pseudotensors,
                ti_parametrize_coupling_paths,
            )
            self.output_type = self.couple.target
        self.output_shape = [self.output_type.num_parities, (self.output_type.max_degree + 1) ** 2]

        frequencies = default_frequencies(features_qk, max_frequency, max_length)
        if frequencies_trainable:
            self.frequencies = nn.Parameter(frequencies.to(torch.get_default_dtype()))
        else:
            self.add_constant("frequencies", frequencies)
        self.settings = self._settings(float(normalization), type_qk)  # see GuardedWeights
        self._warned_length = False
        self._warned_frequency = False

    def _settings(self, normalization: float, type_qk: FeatureType) -> Dict[str, Any]:
        settings: Dict[str, Any] = {
            "activation": str(self.activation),
            "include_self": bool(self.include_self),
            "normalization": normalization,
            "tensor_integration": bool(self.tensor_integration),
            "ti_max_degree_sph": int(self.max_degree_sph),
            "ti_degree_scaling_constants": list(self.degree_constants),
        }
        if not self.frequencies_trainable:  # which are among the weights
            settings["max_frequency / max_length"] = self.max_frequency / self.max_length
        for name, kind in (("_qk", type_qk), ("", self.output_type)):
            settings[f"max_degree{name}"] = int(kind.max_degree)
            settings[f"include_pseudotensors{name}"] = bool(kind.pseudotensors)
        return settings

    def _add_projections(self, type_qk: FeatureType, type_v: FeatureType, parametrized: bool, use_bias: bool) -> None:
        """q, k, v: learned maps or the input itself, of the irreps that the input has."""
        source = self.input_type

        def project(kind: FeatureType) -> nn.Module:
            irreps = [irrep for irrep in kind.irreps if irrep in source.irreps]
            if parametrized:
                return Dense(source.irreps, source.num_features, kind.num_features, irreps, use_bias)
            return Select(source.components, components_of(irreps))

        self.q, self.k, self.v = project(type_qk), project(type_qk), project(type_v)
        # A parity asked for that the input lacks: zeros in the values. In q and k zeros add nothing but their share of D_qk.
        present = [irrep for irrep in type_v.irreps if irrep in source.irreps]
        self.fill_v = Select(components_of(present), type_v.components)

    def _add_degree_constants(self, degree_sph: int, constants: tuple[float, ...] | None) -> None:
        """c_l of every degree of Y."""
        constants = (1.0,) * (degree_sph + 1) if constants is None else tuple(constants)
        if len(constants) != degree_sph + 1:
            raise EFAError(
                f"ti_degree_scaling_constants must have one constant for each degree 0 to {degree_sph} "
                f"(ti_max_degree_sph), got {len(constants)}: {constants}."
            )
        if not all(math.isfinite(constant) for constant in constants):
            raise EFAError(f"ti_degree_scaling_constants must be finite, got {constants}.")
        self.max_degree_sph = degree_sph
        self.degree_constants = [float(constant) for constant in constants]

    def _add_grid(self, lebedev_num: int | None, num_channels: int) -> None:
        """The directions: one grid where its points are given or frequencies move, else one for each group of frequencies."""
        groups = [(lebedev_num or 1, num_channels)]  # sums over pairs use no direction; one is there for TorchScript
        if lebedev_num is None and self.method != "pairwise":
            phases = [self.max_frequency] * num_channels
            if num_channels > 1 and not self.frequencies_trainable:
                phases = [self.max_frequency * channel / (num_channels - 1) for channel in range(num_channels)]
            # first, so that the error of a phase that no grid serves names max_frequency
            lebedev_num_for(phases[-1], self.tolerance, self.max_degree_sph)
            groups = frequency_groups(phases, self.tolerance, self.max_degree_sph)
        self.lebedev_num = None if self.method == "pairwise" else max(points for points, _ in groups)
        self.grid_groups = groups
        grid = make_grid(groups, self.degree_constants, torch.float64)
        self.num_directions, self.num_channels = grid.num_directions, grid.num_channels
        # What an atom sees of itself, (C, A): odd degrees cancel, even ones but Y_00 as well where the grid is exact for Y.
        each = torch.cat([grid.even, torch.zeros_like(grid.odd)], dim=1).index_select(1, grid.order).split(grid.num_directions)
        channels = [part.sum(0).expand(n, -1) for part, n in zip(each, grid.num_channels, strict=True)]
        self.add_constant("own_weights", torch.cat(channels))
        for name in ("directions", "even", "odd", "order"):
            self.add_constant(name, getattr(grid, name))

    def _warn_if_coarse(self, lebedev_num: int) -> None:
        """A number of points that is given overrides the tolerance; beyond 1 % no word of invariance would be true."""
        error = quadrature_error(lebedev_num, self.max_frequency, self.max_degree_sph)
        if error > _COARSE:
            warnings.warn(
                f"lebedev_num={lebedev_num} points are wrong by {error:.1%} of the kernel at max_length, where the phase is "
                f"max_frequency={self.max_frequency:.2f}: rotational invariance is not promised. Use more points, or tolerance "
                "in place of lebedev_num.",
                EFAWarning,
                stacklevel=3,
            )

    def _grid(self) -> Grid:
        return Grid(self.directions, self.even, self.odd, self.order, self.num_directions, self.num_channels)

    def extra_repr(self) -> str:
        kind = self.output_type
        return f"input={self.input_type}, output={kind}, {self.describe_method()}, max_length={self.max_length} Å"

    @torch.jit.unused
    def describe_grid(self) -> str:
        """The points of the Lebedev grid, or of the smallest and the largest one."""
        points = sorted({points for points, _ in self.grid_groups})
        return f"{' to '.join(map(str, {points[0]: 0, points[-1]: 0}))} Lebedev points"

    @torch.jit.unused
    def describe_method(self) -> str:
        """The method and, for auto, which graphs it is for."""
        if self.pairwise_up_to == 0:
            return self.describe_grid()
        if self.method == "pairwise":
            return "pairwise"
        return f"pairwise up to {self.pairwise_up_to} atoms, else {self.describe_grid()}"

    def forward(
        self, inputs: Tensor, positions: Tensor, batch: Optional[Tensor] = None, num_graphs: Optional[int] = None
    ) -> Tensor:
        """Attends every atom to every atom of its graph.

        Args:
            inputs: (N, P, (L+1)^2, F).
            positions: (N, 3), Å.
            batch: (N,) graph of each atom, int64; none given: one graph.
            num_graphs: G; none given: the largest entry of `batch` plus one (which a GPU has to be waited for).
        """
        check_inputs(inputs, positions, batch, self.input_shape)
        self._check_dtype(inputs)
        if batch is None:
            batch = torch.zeros([inputs.shape[0]], dtype=torch.long, device=inputs.device)
            num_graphs = 1
        if num_graphs is None:
            if spread():
                raise EFAError("num_graphs must be given where atoms are spread over ranks: the same number on all of them.")
            num_graphs = int(batch.max().item()) + 1 if batch.shape[0] > 0 else 1
        check_graphs(batch, num_graphs)
        positions = center_positions(positions.to(_at_least_single(positions)), batch, num_graphs).to(_at_least_single(inputs))

        q, k, v = self.project(inputs)
        z = self._sum(q, k, v, positions, batch, num_graphs)
        out = self.couple(z) if self.tensor_integration else z.squeeze(1)
        return out.unflatten(1, self.output_shape)

    def _check_dtype(self, inputs: Tensor) -> None:
        if torch.jit.is_scripting():
            pass  # TorchScript leaves out what is in `else` alone
        else:
            if isinstance(self.q, Dense):
                check_dtype(inputs, self.q.weight)

    def project(self, inputs: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """q (scaled by D_qk^(-1/2)/normalization), k (N, K_qk, F_qk) and v (N, K_v, F_v) as they enter the sum, from inputs."""
        x = inputs.flatten(1, 2)
        q, k, v = self.q(x), self.k(x), self.fill_v(self.v(x))
        if self.activation != "identity":
            q = q * gate(self.activation, q[:, :1])
            k = k * gate(self.activation, k[:, :1])
        return q * self.scale_qk, k, v

    def _sum(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
        """Z (N, A, K_v, F_v), every graph by the method that is its own: what else is in the batch does not change it."""
        if spread():
            if self.method == "pairwise":
                raise EFAError("method='pairwise' needs all atoms of a structure on one rank: use 'auto' or 'quadrature'.")
            return self._by_quadrature(q, k, v, positions, batch, num_graphs)
        if self.pairwise_up_to == 0:
            return self._by_quadrature(q, k, v, positions, batch, num_graphs)
        sizes = graph_sizes(batch, num_graphs)
        if sizes is None:
            if self.method == "pairwise":
                return self._by_pairs(q, k, v, positions, device_pairs(batch, num_graphs))
            return self._by_quadrature(q, k, v, positions, batch, num_graphs)
        small: List[int] = []
        large: List[int] = []
        for graph in range(num_graphs):
            if sizes[graph] > self.pairwise_up_to:
                large.append(graph)
            elif sizes[graph] > 0:
                small.append(graph)
        if len(large) == 0:
            return self._by_pairs(q, k, v, positions, pair_blocks(batch, sizes, self.pairwise_up_to))
        if len(small) == 0:
            return self._by_quadrature(q, k, v, positions, batch, num_graphs)
        z = self._by_pairs(q, k, v, positions, pair_blocks(batch, sizes, self.pairwise_up_to))
        new_number = torch.full([num_graphs], -1, dtype=torch.long, device=batch.device)
        new_number[torch.tensor(large, dtype=torch.long, device=batch.device)] = torch.arange(len(large), device=batch.device)
        new_batch = new_number[batch]
        atoms = torch.nonzero(new_batch >= 0)[:, 0]
        z_large = self._by_quadrature(q[atoms], k[atoms], v[atoms], positions[atoms], new_batch[atoms], len(large))
        return z.index_copy(0, atoms, z_large)

    def _by_pairs(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, layout: List[PairBlocks]) -> Tensor:
        return attend_pairs_harmonics(q, k, v, positions, self.frequencies, self.degree_constants, layout, self.include_self)

    def _by_quadrature(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
        if torch.jit.is_scripting():
            self._warn_in_script(positions, batch, num_graphs)
        else:
            self._warn(positions, batch, num_graphs)
        blocks = graph_blocks(batch, num_graphs)
        z = attend(q, k, v, positions, self.frequencies, self._grid(), blocks)
        if not self.include_self:
            # (q_n·k_n) v_n: rotations of the same atom cancel in every direction
            own = (q * k).sum(1).unflatten(1, [-1, 2]).sum(2)
            own = (own.unsqueeze(2) * self.own_weights).sum(1)
            z = z - (own.view(-1, z.shape[1], 1, 1) * v.unsqueeze(1)).to(z.dtype)
            # Alone in its graph an atom attends to nothing: exactly zero, not what rounding leaves of the difference.
            z = z * not_alone(batch, num_graphs).to(z.dtype).view(-1, 1, 1, 1)
        return z

    @torch.jit.unused
    def goes_by_sizes(self, batch: Optional[Tensor], num_graphs: Optional[int]) -> bool:
        """Whether a call on a GPU waits for the sizes of graphs."""
        return self.method == "pairwise" and batch is not None and num_graphs != 1

    @torch.jit.unused
    def watch(self, positions: Tensor, batch: Optional[Tensor], num_graphs: Optional[int]) -> None:
        """The warnings of the quadrature, for those who compute it without calling `forward`."""
        if self.method != "pairwise":
            batch = positions.new_zeros([positions.shape[0]], dtype=torch.long) if batch is None else batch
            self._warn(positions, batch, num_graphs or 1)

    @torch.jit.unused
    def _warn(self, positions: Tensor, batch: Tensor, num_graphs: int) -> None:
        """One warning each for structures beyond max_length and frequencies beyond the grid; on a GPU some calls later."""
        if tracing() or transformed() or positions.shape[0] == 0:
            return
        with torch.no_grad():
            if not self._warned_length:
                size = self._width(positions, batch, num_graphs)
                self._warned_length = warn_if_wider(size, self.max_length, stacklevel=4)
            if self.frequencies_trainable and not self._warned_frequency:
                largest = late(self, "frequency", _EVERY)(positions.device, lambda: self.frequencies.abs().max())
                phase = (largest or 0.0) * self.max_length
                limit = max_phase_for(self.lebedev_num, self.tolerance, self.max_degree_sph)
                if phase > max(limit, self.max_frequency) * (1 + 1e-6):
                    self._warned_frequency = True
                    warnings.warn(
                        f"trained frequencies reach a phase of {phase:.2f} at max_length, the Lebedev grid of "
                        f"{self.lebedev_num} points serves {limit:.2f} at tolerance {self.tolerance}: rotational invariance "
                        "is no longer promised. Use more points or fixed frequencies.",
                        EFAWarning,
                        stacklevel=3,
                    )

    def _warn_in_script(self, positions: Tensor, batch: Tensor, num_graphs: int) -> None:
        """Where looking is free, along the directions of the grid: these miss structures a little wider than max_length."""
        if self._warned_length or positions.is_cuda or positions.shape[0] == 0:
            return
        along = torch.matmul(positions.detach(), self.directions.to(positions.dtype).t())
        lowest = along.new_full([num_graphs, along.shape[1]], math.inf)
        graph = batch.unsqueeze(1).expand_as(along)
        widths = lowest.neg().scatter_reduce(0, graph, along, "amax") - lowest.scatter_reduce(0, graph, along, "amin")
        size = widths.max().item()
        if size > self.max_length * (1 + 1e-6):
            self._warned_length = True
            warnings.warn(
                f"a structure is {size} A wide or more, EFA was set up for max_length={self.max_length} A: it is computed, but "
                "rotational invariance is no longer promised. Set a larger max_length and train again.",
                stacklevel=2,
            )

    @torch.jit.unused
    def _width(self, positions: Tensor, batch: Tensor, num_graphs: int) -> float:
        """Of the widest structure, Å, where it may be beyond max_length; on a GPU of an earlier call, or 0."""
        apart = spread()  # of the centre, where others hold the rest
        if positions.device.type != "cpu":
            measured = late(self, "width", _EVERY)
            return (
                measured(positions.device, lambda: _reach(positions) if apart else width(positions, batch, num_graphs)) or 0.0
            )
        if apart:
            return _reach(positions).item()
        if 2 * _reach(positions) > self.max_length:
            return largest_distance(positions, batch, exact_up_to=256)
        return 0.0
