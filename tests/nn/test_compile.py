"""torch.export and torch.compile with symbolic numbers of atoms and graphs: traced once, right for every size."""

import pytest
import torch
from torch import nn
from torch.export import Dim, export
from torch.fx.experimental.proxy_tensor import make_fx

from efa_addons import EFABlock, EFAConfig, EuclideanFastAttention
from efa_addons.ops.backends import backend

pytestmark = pytest.mark.usefixtures("double")

TRACED = (3, 1, 4, 2, 2)  # no two sizes alike: torch would take equal ones for the same symbol
TELLS = hasattr(torch.compiler, "set_stance")  # of recompilations: from torch 2.6 on
NUM_ATOMS = Dim("num_atoms", min=2, max=None if TELLS else 10_000)  # torch 2.5 exports nothing without an end
OTHERS = [(2, 5), (40, 0, 1, 1, 2), (1,) * 9]
COUPLED = {
    "tensor_integration": True, "ti_max_degree_sph": 1, "ti_parametrize_coupling_paths": True, "activation": "shifted_softplus",
    "frequencies_trainable": True,
}  # fmt: skip


def attention(**options):
    return EuclideanFastAttention(**{"num_features": 4, "max_degree": 1, "max_length": 5.0, "lebedev_num": 14, **options})


def block(**options):
    settings = {"num_features_qk": 4, "num_features_v": 4, "mlp_features": 4, "lebedev_num": 14, "max_length": 5.0}
    return EFABlock("4x0e+4x1o", "4x0e+4x1o", EFAConfig(**settings, **options))


MODULES = {
    "attention": attention,
    "tensor integration": lambda: attention(**COUPLED),
    "pairwise": lambda: attention(lebedev_num=None, method="pairwise"),
    "pairwise tensor integration": lambda: attention(**{**COUPLED, "lebedev_num": None, "method": "pairwise"}),
    "block": lambda: block(include_self=False),
    "block with tensor integration": lambda: block(tensor_integration=True),
}


class WithPointers(nn.Module):
    """Takes the number of graphs from a tensor of its size plus one, as hosts do."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, positions, batch, ptr):
        return self.module(x, positions, batch, ptr.shape[0] - 1)


def arguments(module, atoms, sizes):
    positions, batch, num_graphs = atoms(*sizes)
    shape = (module.pack.dim,) if isinstance(module, EFABlock) else module.input_shape
    x = torch.randn(len(batch), *shape, requires_grad=True)
    return x, positions.requires_grad_(), batch, torch.zeros(num_graphs + 1)


def assert_equal(traced, eager, tensors):
    """Outputs, and gradients by features and positions."""
    results = []
    for call in (traced, eager):
        out = call(*tensors)
        results.append([out, *torch.autograd.grad(out.square().sum(), tensors[:2])])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "name",
    [
        "tensor integration",
        "block",
        "pairwise tensor integration",
        slow("pairwise"),
        slow("attention"),
        slow("block with tensor integration"),
    ],
)
def test_export(name, atoms, randomized):
    module = randomized(MODULES[name]())
    eager = WithPointers(module)
    dims = ({0: NUM_ATOMS}, {0: NUM_ATOMS}, {0: NUM_ATOMS}, {0: Dim("num_graphs_plus_1", min=3)})
    tensors = tuple(tensor.detach() for tensor in arguments(module, atoms, TRACED))
    exported = export(eager, tensors, dynamic_shapes=dims).module()
    for sizes in (TRACED, *OTHERS):
        assert_equal(exported, eager, arguments(module, atoms, sizes))


@pytest.mark.parametrize("name", ["attention", "tensor integration"])
def test_operators_in_a_trace(name, atoms, randomized):
    """With EFA_ADDONS_BACKEND=chunked: nodes for the sums, with derivatives of the trace's forces too."""
    module = randomized(MODULES[name]())
    tensors = arguments(module, atoms, TRACED)

    def forces(x, positions, batch, ptr):
        energy = module(x, positions, batch, ptr.shape[0] - 1).square().sum()
        return torch.autograd.grad(energy, positions, create_graph=True)[0]

    with backend("chunked"):
        traced = make_fx(forces, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*tensors)
    called = [str(node.target) for node in traced.graph.nodes if "efa_addons" in str(node.target)]
    kinds = {"wave_state", "wave_read_out", "wave_first"}
    assert {target.split(".")[1] for target in called} == kinds
    for sizes in (TRACED, *OTHERS):
        results = []
        tensors = arguments(module, atoms, sizes)
        for call in (traced, forces):
            loss = call(*tensors).square().sum()
            results.append([loss, *torch.autograd.grad(loss, tensors[:2])])
        for found, reference in zip(*results, strict=True):
            assert (found - reference).norm() <= 1e-10 * max(1.0, reference.norm().item())


@pytest.mark.parametrize("name", ["attention", slow("tensor integration")])
def test_export_of_operators(name, atoms, randomized):
    module = randomized(MODULES[name]())
    eager = WithPointers(module)
    dims = ({0: NUM_ATOMS}, {0: NUM_ATOMS}, {0: NUM_ATOMS}, {0: Dim("num_graphs_plus_1", min=3)})
    tensors = tuple(tensor.detach() for tensor in arguments(module, atoms, TRACED))
    with backend("chunked"):
        exported = export(eager, tensors, dynamic_shapes=dims).module()
    assert "efa_addons.wave_state" in str(exported.graph)
    for sizes in (TRACED, *OTHERS):
        assert_equal(exported, eager, arguments(module, atoms, sizes))


@pytest.mark.parametrize("compiler", ["eager", slow("aot_eager")])
def test_compile_with_operators(compiler, atoms, randomized):
    torch.compiler.reset()
    module = randomized(MODULES["tensor integration"]())
    eager = WithPointers(module)
    compiled = torch.compile(eager, fullgraph=True, dynamic=True, backend=compiler)
    with backend("chunked"):
        for sizes in (TRACED, *OTHERS):
            assert_equal(compiled, eager, arguments(module, atoms, sizes))


@pytest.mark.slow
def test_inductor_ahead_of_time_with_operators(atoms, randomized, tmp_path):
    module = randomized(MODULES["attention"]())
    eager = WithPointers(module)
    dims = ({0: NUM_ATOMS}, {0: NUM_ATOMS}, {0: NUM_ATOMS}, {0: Dim("num_graphs_plus_1", min=3)})
    tensors = tuple(tensor.detach() for tensor in arguments(module, atoms, TRACED))
    with torch.no_grad(), backend("chunked"):
        program = export(eager, tensors, dynamic_shapes=dims)
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    loaded = torch._inductor.aoti_load_package(package)
    for sizes in (TRACED, *OTHERS):
        tensors = tuple(tensor.detach() for tensor in arguments(module, atoms, sizes))
        with torch.no_grad():
            assert torch.allclose(loaded(*tensors), eager(*tensors), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "compiler"),
    [
        ("block", "eager"),
        ("tensor integration", "eager"),
        ("pairwise", "eager"),
        *(slow(name, "aot_eager") for name in MODULES),
    ],
)
@pytest.mark.skipif(not TELLS, reason="needs torch 2.6, which tells of recompilations")
def test_compile(name, compiler, atoms, randomized):
    torch.compiler.reset()
    module = randomized(MODULES[name]())
    eager = WithPointers(module)
    compiled = torch.compile(eager, fullgraph=True, dynamic=True, backend=compiler)
    for sizes in (TRACED, *OTHERS):
        with torch.compiler.set_stance("default" if sizes == TRACED else "fail_on_recompile"):
            assert_equal(compiled, eager, arguments(module, atoms, sizes))


@pytest.mark.parametrize(
    "name", ["block", slow("attention"), slow("tensor integration"), slow("block with tensor integration")]
)
def test_traces_of_training_have_no_index_add(name, atoms, randomized):
    """See efa_addons.ops.scatter for why."""
    module = randomized(MODULES[name]())
    names, weights = zip(*module.named_parameters(), strict=True)

    def step(weights, x, positions, batch, ptr):
        named = dict(zip(names, weights, strict=True))
        energy = torch.func.functional_call(module, named, (x, positions, batch, ptr.shape[0] - 1)).square().sum()
        (forces,) = torch.autograd.grad(energy, positions, create_graph=True)
        return torch.autograd.grad(forces.square().sum(), [*weights, x, positions], allow_unused=True)

    tensors = arguments(module, atoms, TRACED)
    traced = make_fx(step, tracing_mode="symbolic", _allow_non_fake_inputs=True)(weights, *tensors)
    for found, expected in zip(traced(weights, *tensors), step(weights, *tensors), strict=True):
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9) if expected is not None else found is None
    nodes = [node for node in traced.graph.nodes if str(node.target).startswith("aten.")]
    of_numbers = [node for node in nodes if isinstance(v := node.meta.get("val"), torch.Tensor) and v.is_floating_point()]
    called = {str(node.target).split(".")[1].strip("_") for node in of_numbers}
    assert "scatter_add" in called and not called & {"index_add", "index_put", "index_select", "embedding"}
