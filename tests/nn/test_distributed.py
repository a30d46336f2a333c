"""Atoms spread over processes: outputs, forces and gradients of a force loss equal those of one process."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from efa_addons import EFABlock, EFAConfig, EFAError, EFAWarning, EuclideanFastAttention
from efa_addons.distributed import atoms_spread
from efa_addons.ops.backends import backend

IRREPS = "4x0e+4x1o"
SETTINGS = {"num_features_qk": 4, "num_features_v": 4, "mlp_features": 4, "max_length": 9.0, "method": "quadrature"}
CASES = {
    "scalars": {"tolerance": 1e-3},
    "tensor integration": {
        "tolerance": 1e-3, "tensor_integration": True, "ti_max_degree_sph": 2, "include_self": False,
        "frequencies_trainable": True,
    },
}  # fmt: skip


def blocks(case):
    """Two in a row, so that a rank's backward pass meets the state of the second before that of the first."""
    torch.manual_seed(0)
    made = torch.nn.ModuleList(EFABlock(IRREPS, IRREPS, EFAConfig(**SETTINGS, **CASES[case])) for _ in range(2))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)
    return made


def structure():
    """Three graphs, one of them of a single atom, in random order."""
    torch.manual_seed(1)
    batch = torch.tensor([0] * 9 + [1] + [2] * 5)[torch.randperm(15)]
    return torch.randn(15, blocks("scalars")[0].pack.dim), torch.randn(15, 3), batch


def step(made, x, positions, batch):
    """Energies of this part, its forces, and this part's gradients of a loss of both."""
    x, positions = x.requires_grad_(), positions.requires_grad_()
    first = x + made[0](x, positions, batch, 3)
    out = first + made[1](first, positions, batch, 3)
    energy = out.square().sum()
    (forces,) = torch.autograd.grad(energy, positions, create_graph=True)
    gradients = torch.autograd.grad(energy + forces.square().sum(), [x, *made.parameters()], allow_unused=True)
    parameters = [torch.zeros_like(p) if g is None else g for p, g in zip(made.parameters(), gradients[1:], strict=True)]
    return out.detach(), forces.detach(), gradients[0], parameters


def part_of(rank, world):
    """Atoms of a rank: of the three ranks the second has none."""
    owner = torch.arange(15) % 2 * (world - 1)
    return owner == rank


def work(rank, world, port, case, form, folder):
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world))
    dist.init_process_group("gloo")
    mine = part_of(rank, world)
    with atoms_spread(), backend(form):
        results = step(blocks(case), *(tensor[mine] for tensor in structure()))
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("world", "case", "form"),
    [(2, "scalars", "chunked"), (3, "tensor integration", "chunked"), (2, "tensor integration", "plain")],
)
@pytest.mark.usefixtures("double")
def test_equals_one_process(world, case, form, tmp_path):
    port = 29500 + os.getpid() % 500
    mp.start_processes(work, (world, port, case, form, tmp_path), world, start_method="spawn")
    expected = step(blocks(case), *structure())
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    for rank, (out, forces, gradient, _) in enumerate(parts):
        for found, reference in zip((out, forces, gradient), expected[:3], strict=True):
            assert (found - reference[part_of(rank, world)]).norm() <= 1e-12 * reference.norm()
    for found, reference in zip(zip(*(part[3] for part in parts), strict=True), expected[3], strict=True):
        assert (sum(found) - reference).norm() <= 1e-12 * max(1.0, float(reference.norm()))


def test_without_torch_distributed():
    with pytest.raises(EFAError, match="init_process_group"), atoms_spread():
        pass


@pytest.mark.usefixtures("double")
def test_what_cannot_be_spread(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        x, positions, batch = torch.randn(2, 1, 1, 2), torch.randn(2, 3), torch.zeros(2, dtype=torch.long)
        with atoms_spread():
            with pytest.raises(EFAError, match="method='pairwise' needs all atoms of a structure on one rank"):
                EuclideanFastAttention(2, max_length=5.0, method="pairwise")(x, positions, batch, 1)
            with pytest.raises(EFAError, match="num_graphs must be given where atoms are spread"):
                EuclideanFastAttention(2, max_length=5.0)(x, positions, batch)
            module = EuclideanFastAttention(2, max_length=5.0)
            with pytest.raises(EFAError, match="transforms of torch.func do not reach over ranks"):
                torch.func.grad(lambda where: module(x, where, batch, 1).sum())(positions)
            with pytest.warns(EFAWarning, match="20.00 Å wide"):  # all other atoms are other ranks'
                module._warn(torch.tensor([[20.0, 0, 0]]), torch.zeros(1, dtype=torch.long), 1)
    finally:
        dist.destroy_process_group()
