"""The portable format without a host."""

from __future__ import annotations

import pytest
import torch

from efa_addons import EFAError
from efa_addons.portable import PortableModel, read_portable, write_portable

MODEL = PortableModel("mace", "0.3.16", {"r_max": 5.0, "shift": torch.ones(2)}, {"max_length": 3.0}, {"w": torch.randn(2, 2)})


def test_round_trip(tmp_path):
    write_portable(MODEL, tmp_path / "m.efa")
    found = read_portable(tmp_path / "m.efa", "mace")
    assert found is not None and torch.equal(found.state_dict["w"], MODEL.state_dict["w"])
    assert found.host_config["r_max"] == 5.0 and found.efa_config == MODEL.efa_config
    assert found.efa_addons_version == MODEL.efa_addons_version


def test_other_files_are_none(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "pickle.model")
    torch.save({"weights": torch.ones(1)}, tmp_path / "dictionary.pt")
    (tmp_path / "text.txt").write_text("no model")
    for path in tmp_path.iterdir():
        assert read_portable(path, "mace") is None


def test_another_host_or_a_later_format_is_an_error(tmp_path):
    write_portable(MODEL, tmp_path / "m.efa")
    with pytest.raises(EFAError, match="give --host mace"):
        read_portable(tmp_path / "m.efa", "nequip")
    content = torch.load(tmp_path / "m.efa", weights_only=True)
    content["efa_addons"] |= {"format": 99, "efa_addons_version": "9.0"}
    torch.save(content, tmp_path / "later.efa")
    with pytest.raises(EFAError, match="written by efa_addons 9.0 in format 99"):
        read_portable(tmp_path / "later.efa", "mace")
