"""Reduced precision (TF32, autocast) may round the contractions; phases never."""

import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from efa_addons import EFABlock, EFAConfig, EuclideanFastAttention

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "einsum")
FORMS = [{"method": "quadrature"}, {"method": "pairwise"}]
TENSORS = {"tensor_integration": True, "ti_max_degree_sph": 2, "ti_max_degree": 1}
OPTIONS = [{"max_degree": 0}, {"max_degree": 1, **TENSORS}]


def place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


class WhereFrom(TorchDispatchMode):
    """Follows what positions alone go into, and keeps the matrix products and the half precision among it.

    What has been multiplied with features is no longer a phase, and followed no further.
    """

    def __init__(self, positions: torch.Tensor, features: list[torch.Tensor]) -> None:
        super().__init__()
        self.positions, self.features = {place(positions)}, {place(f) for f in features}
        self.found: list[str] = []
        self.kept: list[torch.Tensor] = []  # so that no place is used twice

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.kept += tensors + made
        if any(place(t) in self.features for t in tensors):
            self.features |= {place(t) for t in made}
        elif any(place(t) in self.positions for t in tensors):
            self.positions |= {place(t) for t in made}
            if str(func).split(".")[1] in PRODUCTS and made[0].dtype != torch.float64:
                self.found.append(str(func))
            self.found += [f"{func} in {t.dtype}" for t in made if t.dtype in (torch.bfloat16, torch.float16)]
        return out


@pytest.fixture
def inputs(atoms):
    _, batch, num_graphs = atoms(7, 5)
    return 0.5 * torch.randn(len(batch), 3).double(), batch, num_graphs


@pytest.mark.parametrize("low", ["nothing", "autocast", "features"])
@pytest.mark.parametrize("options", OPTIONS, ids=["scalars", "tensors"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_no_phase_is_rounded(inputs, form, options, low):
    """Neither to half precision nor by a matrix product, which TF32 rounds on a GPU. Forward, forces, and a training step."""
    positions, batch, num_graphs = inputs
    module = EuclideanFastAttention(8, **options, **form, max_length=5.0)
    x = torch.randn(len(batch), *module.input_shape, dtype=torch.bfloat16 if low == "features" else None).requires_grad_()
    positions.requires_grad_()
    with (
        WhereFrom(positions, [x, *module.parameters()]) as trace,
        torch.autocast("cpu", torch.bfloat16, enabled=low != "nothing"),
    ):
        energy = module(x, positions, batch, num_graphs).square().sum()
        (forces,) = torch.autograd.grad(energy, positions, create_graph=True)
        forces.square().sum().backward()
    allowed = "aten.mm.default" if form["method"] == "pairwise" else None  # g_l by its series, see `kernel_values`: CPU only
    assert [name for name in trace.found if name != allowed] == []
    assert len(trace.positions) > 20


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_training_step_under_autocast(form, inputs):
    positions, batch, num_graphs = inputs
    module = EuclideanFastAttention(8, 1, **TENSORS, **form, max_length=5.0)
    x = torch.randn(len(batch), *module.input_shape)

    def gradients(enabled: bool) -> torch.Tensor:
        module.zero_grad()
        points = positions.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            energy = module(x, points, batch, num_graphs).float().square().sum()
            (forces,) = torch.autograd.grad(energy, points, create_graph=True)
        (energy + forces.square().sum()).backward()
        return torch.cat([p.grad.flatten() for p in module.parameters()])

    exact, rounded = gradients(False), gradients(True)
    assert (exact - rounded).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [*OPTIONS, {"include_self": False, **OPTIONS[1]}, {"frequencies_trainable": True}], ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("scripted", [False, True])
def test_models_in_half_precision(form, options, dtype, scripted):
    """Features are rounded, what phases are made of is not, and positions far from the origin do not overflow."""
    module = EuclideanFastAttention(8, **options, **form, max_length=25.0)
    positions = torch.rand(400, 3) * 10 + 200  # Å; their sum is beyond float16
    x = torch.randn(400, *module.input_shape)
    positions = positions.to(dtype)
    expected = module(x, positions.float())
    half = (torch.jit.script(module) if scripted else module).to(dtype)
    found = half(x.to(dtype), positions)
    assert found.dtype == dtype
    assert (found - expected).norm() < 4 * torch.finfo(dtype).eps * expected.norm()
    assert scripted or half.directions.dtype == torch.float32


@pytest.mark.parametrize("options", [*OPTIONS, {"parametrized": False}], ids=["scalars", "tensors", "not parametrized"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_forces_in_half_precision_after_double(form, options):
    """Frequencies keep the double precision in which they were."""
    module = EuclideanFastAttention(8, **options, **form, max_length=25.0).double().bfloat16()
    x, positions = torch.randn(9, *module.input_shape).bfloat16(), torch.rand(9, 3).mul(10).requires_grad_()
    forces = torch.autograd.grad(module(x, positions).square().sum(), positions, create_graph=True)[0]
    forces.square().sum().backward()
    assert forces.isfinite().all() and positions.grad.isfinite().all()


def test_powers_of_trained_frequencies_in_half_precision():
    """They are rounded as weights are; what is made of them is not."""
    module = EuclideanFastAttention(8, max_length=3000.0, frequencies_trainable=True, method="pairwise")
    x, positions = torch.randn(9, *module.input_shape), torch.rand(9, 3) * 1700
    half = EuclideanFastAttention(8, max_length=3000.0, frequencies_trainable=True, method="pairwise").half()
    half.load_state_dict({name: value.half() for name, value in module.state_dict().items()})
    module.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
    expected = module(x.half().float(), positions)
    assert (half(x.half(), positions).float() - expected).norm() < 1e-3 * expected.norm()


def test_a_half_model_of_another_version_has_the_same_phases():
    """Frequencies are not saved: they are made again."""
    block = EFABlock("8x0e", "8x0e", EFAConfig(max_length=7.0)).bfloat16()
    block.version = "0.0.0"
    again = pickle.loads(pickle.dumps(block))
    assert torch.equal(again.attention.frequencies, block.attention.frequencies) and again.mlp[0].weight.dtype == torch.bfloat16
    assert torch.equal(again.attention.directions, block.attention.directions)
