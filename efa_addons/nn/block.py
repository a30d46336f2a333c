"""EFABlock: attention as a residual beside a host's local layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Dict, Optional

import torch
from torch import Tensor, nn

from efa_addons._e3nn import Irreps
from efa_addons.config import AUTO, EFAConfig
from efa_addons.dtype import default_dtype
from efa_addons.errors import EFAError
from efa_addons.nn.attention import EuclideanFastAttention
from efa_addons.nn.checks import check_tensors
from efa_addons.nn.features import Dense, FeatureType, Irrep, Select, WithConstants, components_of
from efa_addons.nn.layouts import Pack, Unpack, feature_type
from efa_addons.nn.replay import replayed
from efa_addons.ops.activations import gate
from efa_addons.version import __version__


class EFABlock(WithConstants):
    """nonlocal(x) of x' = x + local(x) + nonlocal(x): zero at initialisation, so that a trained host stays what it is.

        y = EFA(x);   s = [y_0, y_l · (W x)_l for every degree and parity];   out = MLP(s) on scalars + linear(y)

    The last linear maps of both terms start from zero. The contraction of the attended values y_l with the atom's own features
    is what lets a scalar see relative orientation: cos of the angle between a direction here and one far away.

    Args:
        irreps_in: e3nn Irreps of the host's features, for example "16x0e+16x1o".
        irreps_out: Irreps of the layer's output; must contain 0e.
        config: settings; max_length and normalization must be numbers (`EFAConfig.resolve`).
        layout: "mul_ir" (MACE, NequIP) or "ir_mul" (cuEquivariance) for both in- and output.

    Input x (N, irreps_in.dim), positions (N, 3) in Å, batch (N,); output (N, irreps_out.dim).
    """

    if TYPE_CHECKING:  # TorchScript would stumble over these
        to_invariants: Tensor

    def __init__(self, irreps_in: Irreps | str, irreps_out: Irreps | str, config: EFAConfig, layout: str = "mul_ir") -> None:
        super().__init__()
        if not isinstance(config, EFAConfig):
            raise EFAError(
                f"config must be an EFAConfig, got {type(config).__name__}; of a dictionary: EFAConfig.from_dict(...)."
            )
        if config.needs_data or isinstance(config.max_length, str) or isinstance(config.normalization, str):
            names = [f"{name}={AUTO}" for name in ("max_length", "normalization") if getattr(config, name) == AUTO]
            raise EFAError(
                f"{' and '.join(names)} must be {'numbers' if names[1:] else 'a number'} here: call EFAConfig.resolve with the "
                f"training set's largest distance and mean number of atoms, or give {'them' if names[1:] else 'it'}."
            )
        self.irreps_in, self.irreps_out, self.layout = str(irreps_in), str(irreps_out), layout
        self.config, self.version = config.to_dict(), __version__  # see __setstate__
        if (0, 1) not in _irreps(irreps_out):
            raise EFAError(f"irreps_out must contain scalars (0e) for EFA to act on, got {irreps_out}.")
        _refuse_what_attends_to_nothing(irreps_in, config)
        self.pack = Pack(irreps_in, layout)
        source = self.pack.kind
        attention = _attention(source, config)
        self.attention = EmulatedAttention(attention) if config.emulate else attention
        self.input_shape = attention.input_shape
        attended = attention.output_type

        width = attended.num_features
        self.contraction = config.contraction
        shared = [irrep for irrep in attended.irreps if irrep in source.irreps] if config.contraction else []
        self.take_shared = Select(attended.components, components_of(shared))
        self.add_constant("to_invariants", _invariants_matrix(shared))
        own = Dense(source.irreps, source.num_features, width, shared, bias=False)
        self.own = own if config.contraction else nn.Identity()
        target = feature_type(irreps_out)
        self.mlp = nn.Sequential(
            nn.Linear((1 + len(shared)) * width, config.mlp_features, bias=config.use_bias),
            nn.SiLU(),
            nn.Linear(config.mlp_features, target.num_features, bias=config.use_bias),
        )
        carried = [irrep for irrep in attended.irreps if irrep in target.irreps]
        self.out = Dense(attended.irreps, width, target.num_features, carried, bias=False, zero=True)
        self.fill_out = Select(components_of(carried), target.components)
        self.unpack = Unpack(irreps_out, layout)
        with torch.no_grad():
            for parameter in self.mlp[2].parameters():
                parameter.zero_()

    def __setstate__(self, state: Dict[str, Any]) -> None:
        """A pickle holds the modules of the version that wrote it; another builds its own and takes over the weights."""
        super().__setstate__(state)
        if self.version != __version__:
            like = next(self.parameters())
            with default_dtype(like.dtype), torch.random.fork_rng(devices=[]):
                fresh = EFABlock(self.irreps_in, self.irreps_out, EFAConfig.from_dict(self.config), self.layout)
            fresh = fresh.to(like.device)
            fresh.load_state_dict(dict(self.state_dict()))
            fresh.train(self.training)
            for name, parameter in fresh.named_parameters():
                parameter.requires_grad_(self.get_parameter(name).requires_grad)
            self.__dict__ = fresh.__dict__

    def forward(self, x: Tensor, positions: Tensor, batch: Optional[Tensor] = None, num_graphs: Optional[int] = None) -> Tensor:
        """The residual to add to the local layer's output."""
        if torch.jit.is_scripting():
            return self.residual(x, positions, batch, num_graphs)
        else:
            check_tensors(x=x, positions=positions)
            attention = self.attention if isinstance(self.attention, EuclideanFastAttention) else None
            if attention is not None and attention.goes_by_sizes(batch, num_graphs):
                return self.residual(x, positions, batch, num_graphs)  # a recording would be for the sizes that it saw
            out = replayed(self, self.residual, x, positions, batch, num_graphs)
            if out is None:
                return self.residual(x, positions, batch, num_graphs)
            if attention is not None:
                attention.watch(positions, batch, num_graphs)
            return out

    def residual(
        self, x: Tensor, positions: Tensor, batch: Optional[Tensor] = None, num_graphs: Optional[int] = None
    ) -> Tensor:
        """As `forward`, without looking for a recording (`nn.replay`)."""
        features = self.pack(x)
        attended = self.attention(features.view([-1] + self.input_shape), positions, batch, num_graphs).flatten(1, 2)
        scalars = attended[:, 0]
        if self.contraction:
            products = self.take_shared(attended) * self.own(features)
            invariants = torch.matmul(self.to_invariants, products)
            scalars = torch.cat([scalars, invariants.flatten(1)], dim=1)
        out = self.fill_out(self.out(attended))
        return self.unpack(torch.cat([out[:, :1] + self.mlp(scalars).unsqueeze(1), out[:, 1:]], dim=1))


def _irreps(irreps: Irreps | str) -> list[Irrep]:
    return [(ir.l, ir.p) for mul, ir in Irreps(irreps) if mul > 0]


def _refuse_what_attends_to_nothing(irreps_in: Irreps | str, config: EFAConfig) -> None:
    """Raises where q and k, or v, would be zero, and remain so: trained weights before them would have no gradient."""
    given = _irreps(irreps_in)
    lowest = min((degree for degree, _ in given), default=0)
    for name, kind in (("q and k", "qk"), ("v", "v")):
        highest, pseudotensors = getattr(config, f"max_degree_{kind}"), getattr(config, f"include_pseudotensors_{kind}")
        left = [(degree, parity) for degree, parity in given if highest is None or degree <= highest]
        if pseudotensors is False:
            left = [(degree, parity) for degree, parity in left if parity == (-1) ** degree]
        if left or not given or (kind == "v" and config.use_bias and config.parametrized):
            continue
        if highest is not None and highest < lowest:
            what, way_out = (
                f"max_degree_{kind}={highest} leaves",
                f"start at degree {lowest}; give {lowest} or more, or None for all",
            )
        else:
            what = f"max_degree_{kind}={highest} with include_pseudotensors_{kind}={pseudotensors} leaves"
            way_out = f"have pseudotensors only in these degrees; give include_pseudotensors_{kind}=True, or other degrees"
        raise EFAError(f"{what} nothing for {name}, which would be zero for good: irreps_in={irreps_in} {way_out}.")
    if (0, 1) not in given and given and not gate(config.activation, torch.zeros([], device="cpu")).any():
        raise EFAError(
            f"activation={config.activation} closes all gates of q and k, which would be zero for good: irreps_in={irreps_in} "
            "have no scalars (0e) to open them; give identity, or silu."
        )


def _attention(source: FeatureType, config: EFAConfig) -> EuclideanFastAttention:
    """The attention of one layer; degrees beyond the layer's are capped (a first layer often has scalars only)."""

    def cap(degree: int | None, highest: int) -> int | None:
        return None if degree is None else min(degree, highest)

    degree_v = cap(config.max_degree_v, source.max_degree)
    degree_sph = source.max_degree if config.ti_max_degree_sph is None else config.ti_max_degree_sph
    degree_ti = source.max_degree if config.ti_max_degree is None else config.ti_max_degree
    reachable = degree_sph + (source.max_degree if degree_v is None else degree_v)
    return EuclideanFastAttention(
        source.num_features,
        source.max_degree,
        source.pseudotensors,
        max_length=float(config.max_length),
        max_frequency=config.max_frequency,
        method=config.method,
        lebedev_num=config.lebedev_num,
        tolerance=config.tolerance,
        frequencies_trainable=config.frequencies_trainable,
        parametrized=config.parametrized,
        num_features_qk=config.num_features_qk if config.parametrized else None,
        num_features_v=config.num_features_v if config.parametrized else None,
        max_degree_qk=cap(config.max_degree_qk, source.max_degree),
        max_degree_v=degree_v,
        include_pseudotensors_qk=config.include_pseudotensors_qk,
        include_pseudotensors_v=config.include_pseudotensors_v,
        activation=config.activation,
        tensor_integration=config.tensor_integration,
        ti_max_degree_sph=config.ti_max_degree_sph,
        ti_max_degree=min(degree_ti, reachable) if config.tensor_integration else config.ti_max_degree,
        ti_include_pseudotensors=config.ti_include_pseudotensors,
        ti_parametrize_coupling_paths=config.ti_parametrize_coupling_paths,
        ti_degree_scaling_constants=config.ti_degree_scaling_constants,
        include_self=config.include_self,
        normalization=float(config.normalization),
        use_bias=config.use_bias,
    )


def _invariants_matrix(irreps: list[Irrep]) -> Tensor:
    """(irreps, components): sums the 2l+1 components of each irrep, divided by sqrt(2l+1) to keep the variance."""
    matrix = torch.zeros(len(irreps), len(components_of(irreps)), dtype=torch.float64)
    column = 0
    for row, (degree, _) in enumerate(irreps):
        matrix[row, column : column + 2 * degree + 1] = 1 / math.sqrt(2 * degree + 1)
        column += 2 * degree + 1
    return matrix


class EmulatedAttention(nn.Module):
    """The control for `attention`: a per-atom linear map of (as nearly as whole numbers allow) the same number of parameters.

    Two linear maps in a row, their inner width chosen to match; degrees that only the attention could make are zero.
    """

    def __init__(self, attention: EuclideanFastAttention) -> None:
        super().__init__()
        source, target = attention.input_type, attention.output_type
        irreps = [irrep for irrep in target.irreps if irrep in source.irreps]
        size = sum(parameter.numel() for parameter in attention.parameters())
        bias = any(name.endswith("bias") for name, _ in attention.named_parameters())
        per_width = len(irreps) * (source.num_features + target.num_features) + bias
        width = max(1, round((size - bias * target.num_features) / per_width))
        self.first = Dense(source.irreps, source.num_features, width, irreps, bias)
        self.second = Dense(irreps, width, target.num_features, bias=bias)
        self.fill = Select(components_of(irreps), target.components)
        self.output_shape = attention.output_shape

    def forward(
        self, inputs: Tensor, positions: Tensor, batch: Optional[Tensor] = None, num_graphs: Optional[int] = None
    ) -> Tensor:
        """As `EuclideanFastAttention.forward`; positions and batch are not looked at."""
        return self.fill(self.second(self.first(inputs.flatten(1, 2)))).unflatten(1, self.output_shape)
