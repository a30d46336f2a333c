"""Evaluates golden cases of EFA: `python tests/run_golden.py DIR` prints a line for each and fails beyond 1e-9.

The format is described in tests/golden/README.md. Errors are max |difference| / max |reference|.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.special import sph_harm_y

from efa_addons import EFAWarning, EuclideanFastAttention
from efa_addons.ops.harmonics import spherical_harmonics

TOLERANCE = 1e-9


def reference_harmonics(degree: int, points: np.ndarray) -> np.ndarray:
    """Y_l of the reference (e3x's Cartesian order l, -l, l-1, …, 1, -1, 0 about z; |Y_l| = 1). (n, 3) -> (n, 2l+1)."""
    theta, phi = np.arccos(np.clip(points[:, 2], -1, 1)), np.arctan2(points[:, 1], points[:, 0])
    columns = []
    for m in range(degree, 0, -1):
        y = np.sqrt(2.0) * (-1) ** m * sph_harm_y(degree, m, theta, phi)
        columns += [y.real, y.imag]
    columns.append(sph_harm_y(degree, 0, theta, phi).real)
    return np.stack(columns, axis=1) * np.sqrt(4 * np.pi / (2 * degree + 1))


def basis_change(max_degree: int) -> torch.Tensor:
    """((L+1)^2, (L+1)^2): components of the reference = basis_change @ components of the core."""
    generator = np.random.default_rng(0)
    points = generator.normal(size=(400, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    core = spherical_harmonics(max_degree, torch.as_tensor(points)).numpy()
    change = np.zeros((core.shape[1], core.shape[1]))
    for degree in range(max_degree + 1):
        block = slice(degree**2, (degree + 1) ** 2)
        change[block, block] = np.linalg.lstsq(core[:, block], reference_harmonics(degree, points), rcond=None)[0].T
    return torch.as_tensor(np.where(np.abs(change) < 1e-14, 0, change))


def build_module(case: dict[str, np.ndarray]) -> EuclideanFastAttention:
    """The module of a case with its weights."""
    config = json.loads(str(case["config"]))
    kind, options = config["input"], config["module"]
    keep = (
        "parametrized", "num_features_qk", "max_degree_qk", "include_pseudotensors_qk", "num_features_v", "max_degree_v",
        "include_pseudotensors_v", "activation", "tensor_integration", "ti_max_degree_sph", "ti_include_pseudotensors",
        "ti_max_degree", "ti_parametrize_coupling_paths", "ti_degree_scaling_constants",
    )  # fmt: skip
    module = EuclideanFastAttention(
        kind["F"],
        kind["L"],
        kind["P"] == 2,
        lebedev_num=len(case["grid_w"]),
        max_frequency=options["epe_max_frequency"],
        max_length=options["epe_max_length"],
        frequencies_trainable=options["epe_frequencies_trainable"],
        **{name: options[name] for name in keep},
    )

    def name_of(irrep: tuple[int, int]) -> str:
        return f"{irrep[0]}{'+' if irrep[1] == 1 else '-'}"

    with torch.no_grad():
        if options["parametrized"]:
            for dense, flax in ((module.q, "Dense_0"), (module.k, "Dense_1"), (module.v, "Dense_2")):
                for i, irrep in enumerate(dense.irreps):
                    dense.weight[i] = torch.as_tensor(case[f"params/{flax}/{name_of(irrep)}/kernel"])
                dense.bias.copy_(torch.as_tensor(case[f"params/{flax}/0+/bias"]))
        if options["tensor_integration"] and options["ti_parametrize_coupling_paths"]:
            kernel = torch.as_tensor(case["params/TensorIntegration_0/kernel"])

            def slot(irrep: tuple[int, int], size: int) -> int:
                return 0 if size == 1 or irrep[1] == 1 else 1

            for i, (degree, irrep, out) in enumerate(module.couple.paths):
                index = (0, degree, slot(irrep, kernel.shape[2]), irrep[0], slot(out, kernel.shape[4]), out[0])
                module.couple.weight[i] = kernel[index]
        if options["epe_frequencies_trainable"]:
            module.frequencies.copy_(torch.as_tensor(case["params/frequencies"]))
    return module


def relative(value: torch.Tensor, reference: np.ndarray, floor: float = 1e-300) -> float:
    """Largest difference over the largest entry of the reference, or over `floor` where all entries are smaller."""
    reference = torch.as_tensor(reference)
    if value.shape != reference.shape:
        raise ValueError(f"shape {tuple(value.shape)} instead of {tuple(reference.shape)}")
    return ((value - reference).abs().max() / reference.abs().max().clamp(min=floor)).item()


def evaluate(path: Path) -> tuple[float, float, float]:
    """Relative errors of output, gradient by positions and gradient by inputs."""
    with np.load(path) as file:
        case = dict(file)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EFAWarning)  # some cases are under-resolved on purpose
            module = build_module(case)
    finally:
        torch.set_default_dtype(default)
    change_in = basis_change(module.input_type.max_degree)
    change_out = basis_change(module.output_type.max_degree)
    inputs = torch.as_tensor(case["inputs"]).requires_grad_()
    positions = torch.as_tensor(case["positions"]).requires_grad_()
    batch = torch.as_tensor(case["batch_segments"]).long()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EFAWarning)
        core_inputs = torch.einsum("ba,npbf->npaf", change_in, inputs)
        output = module(core_inputs, positions, batch, len(case["graph_mask"]))
    output = torch.einsum("ba,npaf->npbf", change_out, output)
    terms = output * torch.as_tensor(case["cotangent"])
    grad_positions, grad_inputs = torch.autograd.grad(terms.sum(), [positions, inputs])
    # A gradient that is zero but for rounding (single atoms do not feel their position) is measured by what it is summed from.
    floor = 1e-6 * terms.abs().sum().item()
    return (
        relative(output, case["output"]),
        relative(grad_positions, case["grad_positions"], floor),
        relative(grad_inputs, case["grad_inputs"], floor),
    )


def main(folder: str) -> int:
    paths = sorted(Path(folder).glob("*.npz"))
    if not paths:
        print(f"no *.npz in {folder}: give a folder of golden cases, for example tests/golden", file=sys.stderr)
        return 2
    failed = 0
    print(f"{'case':<54}{'output':>10}{'d/dpos':>10}{'d/dinput':>10}")
    for path in paths:
        try:
            errors = evaluate(path)
        except Exception as error:  # a case that cannot run is a failure, and the others are still wanted
            failed += 1
            print(f"{path.stem:<54}FAILED {type(error).__name__}: {error}")
            continue
        good = all(error <= TOLERANCE for error in errors)  # false for nan, too
        failed += not good
        print(f"{path.stem:<54}" + "".join(f"{error:>10.1e}" for error in errors) + ("" if good else "  FAILED"))
    print(f"{len(paths) - failed} of {len(paths)} cases agree to {TOLERANCE:.0e}")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/run_golden.py DIR")
    sys.exit(main(sys.argv[1]))
