"""Small data, and small models trained in this process, for the MACE adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("mace")

import ase.io
from host_support import labelled_ethanols
from mace import tools
from mace.cli import run_train
from mace_support import FLAGS

from efa_addons.hosts.mace import load, train


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Path:
    """A folder with train.xyz: rattled ethanols, labelled by a Lennard-Jones potential."""
    folder = tmp_path_factory.mktemp("mace")
    structures = labelled_ethanols(12)
    for atoms in structures:
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = None
    ase.io.write(folder / "train.xyz", structures)
    return folder


@pytest.fixture(scope="session")
def trained(workspace):
    """trained(name, *flags, dtype=..., stock=False): trains once per name in this process; returns the folder of the run."""
    done: dict[str, Path] = {}

    def run(name: str, *flags: str, dtype: str = "float64", stock: bool = False) -> Path:
        if name in done:
            return done[name]
        folder = workspace / name
        argv = ["--name", name, "--work_dir", str(folder), "--train_file", str(workspace / "train.xyz"), *FLAGS]
        argv += ["--default_dtype", dtype, *flags]
        before = torch.get_default_dtype()
        try:
            if stock:
                run_train.run(tools.build_default_arg_parser().parse_args(argv))
            else:
                train.main(argv)
        finally:
            torch.set_default_dtype(before)
        done[name] = folder
        return folder

    return run


@pytest.fixture(scope="session")
def stock_model(trained) -> torch.nn.Module:
    """A stock MACE of one epoch, float64."""
    return load(trained("stock", stock=True) / "stock.model")


@pytest.fixture
def ethanol(workspace):
    return ase.io.read(workspace / "train.xyz", index=0)
