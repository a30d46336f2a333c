"""EFAConfig: the one configuration of EFA, for Python, command-line flags, YAML / Hydra and checkpoints."""

# No `from __future__ import annotations` here: dataclasses then look for their module in sys.modules, where the modules of a
# packaged NequIP model are not.

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from efa_addons.errors import EFAError, unknown_names
from efa_addons.ops.activations import ACTIVATIONS
from efa_addons.ops.lebedev import lebedev_grid

AUTO = "auto"
METHODS = (AUTO, "pairwise", "quadrature")


def _option(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class EFAConfig:
    """Settings of the EFA blocks of a model. Names follow the paper (arXiv:2412.08541); units eV and Å.

    Every field is also the command-line flag `--efa_<name>`, a key of the `efa:` section of a YAML file and an entry of the
    dictionary kept inside a model. `EFAConfig.help()` lists them with their meaning.

    Raises:
        EFAError: a value out of range, a wrong type, an unknown option (in `from_dict`) or an impossible combination.
    """

    layers: tuple[int, ...] | None = _option(None, "interaction layers that get an EFA block, from 0; none given: all")
    max_length: float | str = _option(
        AUTO,
        "largest interatomic distance (Å) for which rotational invariance is promised; 'auto' takes it from the training set",
    )
    max_length_margin: float = _option(1.2, "factor on the training set's largest distance when max_length is 'auto'")
    max_frequency: float = _option(math.pi, "b_max, the largest phase (radians), reached at max_length")
    method: str = _option(
        AUTO,
        "pairwise (exact, quadratic in atoms), quadrature (Lebedev grid, linear) or auto: the cheaper one for each structure",
    )
    tolerance: float = _option(1e-5, "error of the quadrature at max_length, from which the Lebedev grid follows")
    lebedev_num: int | None = _option(None, "number of Lebedev points; given, it overrides tolerance")
    frequencies_trainable: bool = _option(False, "train the frequencies (they may outgrow the grid; a warning says so)")
    parametrized: bool = _option(True, "learned projections to q, k and v; false: the features themselves")
    num_features_qk: int | None = _option(
        16, "features of q and k, an even number; null or not parametrized: those of the layer"
    )
    num_features_v: int | None = _option(16, "features of v; null or not parametrized: those of the layer")
    max_degree_qk: int | None = _option(0, "highest degree in q and k (capped at the layer's); null: the layer's")
    max_degree_v: int | None = _option(None, "highest degree in v (capped at the layer's); null: the layer's")
    include_pseudotensors_qk: bool | None = _option(None, "pseudotensors in q and k; null: as in the layer")
    include_pseudotensors_v: bool | None = _option(None, "pseudotensors in v; null: as in the layer")
    activation: str = _option("identity", f"equivariant activation on q and k: {', '.join(ACTIVATIONS)}")
    tensor_integration: bool = _option(False, "couple the attended values with Y(u) under the integral (Eq. 23)")
    ti_max_degree_sph: int | None = _option(None, "highest degree of Y(u); null: the layer's")
    ti_max_degree: int | None = _option(None, "highest degree after the coupling (capped at the reachable); null: the layer's")
    ti_include_pseudotensors: bool | None = _option(None, "keep coupling paths to pseudotensors; null: if the layer has")
    ti_parametrize_coupling_paths: bool = _option(False, "one trained weight per coupling path and feature")
    ti_degree_scaling_constants: tuple[float, ...] | None = _option(None, "a constant for each degree of Y(u)")
    include_self: bool = _option(True, "keep the term n' = n of the sum over atoms")
    normalization: float | str = _option(
        1.0, "constant that divides the attended values; 'auto' takes the training set's mean number of atoms"
    )
    use_bias: bool = _option(True, "biases in the linear maps of scalars; without them nothing attended gives exactly zero")
    contraction: bool = _option(True, "contract attended with own features into scalars, degree by degree, before the MLP")
    mlp_features: int = _option(64, "width of the two-layer network on the scalars")
    emulate: bool = _option(False, "control: a per-atom linear map of equal size in place of the attention")

    def __post_init__(self) -> None:
        check_types(self)
        _check(self)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> "EFAConfig":
        """Config from a mapping, for example a YAML section. Unknown keys are errors that name the nearest known one."""
        if not isinstance(options, Mapping):
            raise EFAError(f"efa must be a mapping of EFA options, got {options!r}.")
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [str(key) for key in options if key not in known]
        if unknown:
            raise unknown_names("EFA option", unknown, known)
        return cls(**dict(options))

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for YAML or JSON; `from_dict` is the inverse."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def replace(self, **changes: Any) -> "EFAConfig":
        """A copy with some options changed."""
        return EFAConfig.from_dict({**self.to_dict(), **changes})

    @property
    def needs_data(self) -> bool:
        """True while an option is 'auto', that is, waits for a training set (`resolve`)."""
        return AUTO in (self.max_length, self.normalization)

    def resolve(self, largest_distance: float, mean_num_atoms: float) -> "EFAConfig":
        """Replaces 'auto' by numbers.

        Args:
            largest_distance: largest interatomic distance in the training set, Å.
            mean_num_atoms: mean number of atoms of its structures.
        """
        changes: dict[str, Any] = {}
        if self.max_length == AUTO:
            if not largest_distance > 0:
                raise EFAError(
                    f"max_length: auto needs structures of two or more atoms; the largest distance found is "
                    f"{largest_distance}. Give max_length in Å."
                )
            changes["max_length"] = round(self.max_length_margin * largest_distance, 3)
        if self.normalization == AUTO:
            changes["normalization"] = float(mean_num_atoms)
        return self.replace(**changes)

    @classmethod
    def help(cls) -> str:
        """One line per option: name, default, meaning."""
        return "\n".join(f"{f.name} ({f.default}): {f.metadata['help']}" for f in dataclasses.fields(cls))


def check_types(options: Any) -> None:
    """Brings the fields of a frozen dataclass to their declared types, or raises an EFAError naming field and type."""
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        value = _coerce(field.name, hints[field.name], getattr(options, field.name))
        object.__setattr__(options, field.name, value)


def _coerce(name: str, hint: Any, value: Any) -> Any:
    """`value` as the type that `hint` allows; YAML gives lists for tuples and integers for floats."""
    kinds = (hint,) if typing.get_origin(hint) is tuple else typing.get_args(hint) or (hint,)
    if value is None and type(None) in kinds:
        return None
    if isinstance(value, bool):
        if bool in kinds:
            return value
    elif isinstance(value, int) and int in kinds:
        return value
    elif isinstance(value, int | float) and float in kinds:
        return float(value)
    elif isinstance(value, str) and float in kinds and _is_number(value):
        return float(value)  # YAML reads 1e-5 as text
    elif isinstance(value, str) and str in kinds:
        return value
    for kind in kinds:
        if typing.get_origin(kind) is tuple and not isinstance(value, str | bytes | Mapping):
            item = typing.get_args(kind)[0]
            try:
                return tuple(_coerce(name, item, entry) for entry in value)
            except TypeError:
                break
    expected = " or ".join(_kind_name(kind) for kind in kinds)
    raise EFAError(f"option {name} must be {expected}, got {value!r} ({type(value).__name__}).")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _kind_name(kind: Any) -> str:
    if kind is type(None):
        return "null"
    if typing.get_origin(kind) is tuple:
        return f"a list of {typing.get_args(kind)[0].__name__} ([0, 1], say)"
    return {bool: "true or false", str: "text"}.get(kind, kind.__name__)


def _check(config: EFAConfig) -> None:
    """Range checks that need no knowledge of the layer; one place for all of them."""
    for name in ("max_length", "normalization"):
        value = getattr(config, name)
        if isinstance(value, str) and value != AUTO:
            raise EFAError(f"{name} must be a number or '{AUTO}', got '{value}'.")
        if not isinstance(value, str) and not (value > 0 and math.isfinite(value)):
            raise EFAError(f"{name} must be positive, got {value}.")
    if not (config.max_frequency > 0 and math.isfinite(config.max_frequency)):
        raise EFAError(f"max_frequency must be positive, got {config.max_frequency}.")
    if not 0 < config.tolerance < 1:
        raise EFAError(f"tolerance must be positive and below 1, the largest value of the kernel, got {config.tolerance}.")
    if config.max_length_margin < 1:
        raise EFAError(f"max_length_margin must be 1 or more, got {config.max_length_margin}.")
    for name in ("num_features_v", "mlp_features", "num_features_qk"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise EFAError(f"{name} must be 1 or more, got {value}.")
    if config.num_features_qk is not None and config.num_features_qk % 2:
        raise EFAError(f"num_features_qk must be even (features rotate in pairs), got {config.num_features_qk}.")
    for name in ("max_degree_qk", "max_degree_v", "ti_max_degree_sph", "ti_max_degree"):
        value = getattr(config, name)
        if value is not None and value < 0:
            raise EFAError(f"{name} must be 0 or more, got {value}.")
    layers = config.layers
    if layers is not None and (not layers or min(layers) < 0 or len(set(layers)) < len(layers)):
        raise EFAError(f"layers must be a list of layer numbers from 0, each once, got {list(layers)}.")
    if config.lebedev_num is not None:
        lebedev_grid(config.lebedev_num)  # raises for numbers that are none, naming the nearest
    if config.method not in METHODS:
        raise unknown_names("method", [config.method], METHODS)
    if config.method == "pairwise" and config.lebedev_num is not None:
        raise EFAError(
            f"lebedev_num={config.lebedev_num} asks for a grid and method: pairwise uses none: leave one of the two out."
        )
    if config.activation not in ACTIVATIONS:
        raise unknown_names("activation", [config.activation], ACTIVATIONS)
