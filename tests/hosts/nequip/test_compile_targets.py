"""nequip-compile for batches, for torch-sim and for LAMMPS' pair_nequip."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import molecule
from nequip.model.inference_models import load_compiled_model
from nequip_programs import saved
from nequip_support import TYPES, batch_of, evaluate

pytestmark = pytest.mark.slow
CUTOFF = 4.0  # of the tutorial


@pytest.fixture(scope="module")
def eager(far_sighted):
    """The packaged model, which takes the quadrature as the compiled ones do: then they differ by rounding alone."""
    model = saved(far_sighted)
    for module in model.modules():
        if hasattr(module, "pairwise_up_to"):
            module.pairwise_up_to = 0
    return model


def boxed(name: str):
    """A molecule with a volume, for the stress, and no periodicity."""
    atoms = molecule(name)
    atoms.center(vacuum=5.0)
    return atoms


def test_compiled_for_batches(eager, compiled):
    """Compiled with two ethanols, run on one to five molecules of other sizes."""
    model, _ = load_compiled_model(str(compiled("batch")), "cpu")
    for names in (["H2O", "CH3OH"], ["CH4", "CH3CH2OH", "H2O", "CO2", "CH3OH"], ["CH3CH2OH"] * 3):
        data = batch_of(*[boxed(name) for name in names], r_max=CUTOFF)
        found, expected = model(data), eager(data)
        for key in ("total_energy", "forces", "stress"):
            assert torch.allclose(found[key], expected[key], rtol=2e-5, atol=2e-5), (names, key)


def test_torch_sim(eager, compiled):
    ts = pytest.importorskip("torch_sim")
    from nequip.integrations.torchsim import NequIPTorchSimCalc

    calculator = NequIPTorchSimCalc.from_compiled_model(
        str(compiled("batch")), "cpu", chemical_species_to_atom_type_map=True, neighborlist_backend="matscipy"
    )
    molecules = [boxed(name) for name in ("H2O", "CH3CH2OH", "CH4")]
    found = calculator(ts.io.atoms_to_state(molecules, device="cpu", dtype=torch.float64))
    expected = evaluate(eager, *molecules, r_max=CUTOFF)
    assert torch.allclose(found["energy"], expected["total_energy"].view(-1), rtol=2e-5, atol=2e-5)
    assert torch.allclose(found["forces"], expected["forces"], rtol=2e-5, atol=2e-5)


def as_lammps_does(atoms, shift: int = 0) -> dict[str, torch.Tensor]:
    """What pair_nequip passes on one rank: atoms in its own order, a full neighbor list, the box, shifts in lattice vectors."""
    order = np.random.default_rng(0).permutation(len(atoms))
    positions = atoms.positions[order]
    between = np.linalg.norm(positions[:, None] - positions, axis=-1)
    i, j = np.nonzero((between <= CUTOFF) & ~np.eye(len(atoms), dtype=bool))
    shifts = np.zeros((len(i), 3))
    shifts[:1, 0] = shift
    return {
        "pos": torch.tensor(positions),
        "edge_index": torch.tensor(np.stack([i, j])),
        "atom_types": torch.tensor([TYPES.index(atoms[int(k)].symbol) for k in order]),
        "cell": torch.tensor(atoms.cell.array)[None],
        "edge_cell_shift": torch.tensor(shifts),
        "order": torch.tensor(order),
    }


def test_compiled_for_pair_nequip(eager, compiled):
    model, metadata = load_compiled_model(str(compiled("pair_nequip")), "cpu")
    assert metadata["nequip_aoti_inputs"].split() == ["pos", "edge_index", "atom_types", "cell", "edge_cell_shift"]
    for name in ("CH3CH2OH", "H2O", "CH3OH"):
        atoms = boxed(name)
        data = as_lammps_does(atoms)
        found, expected = model(data), evaluate(eager, atoms, r_max=CUTOFF)
        for key in ("atomic_energy", "forces"):
            assert torch.allclose(found[key], expected[key][data["order"]], rtol=2e-5, atol=2e-5), (name, key)
        assert torch.allclose(found["virial"], expected["virial"], rtol=2e-5, atol=2e-5)
    # a box with periodic boundaries, seen by an edge through them: not silently wrong
    assert model(as_lammps_does(boxed("H2O"), shift=1))["atomic_energy"].isnan().all()
