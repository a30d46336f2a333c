"""The demonstration in its quick size: every step on real data, none of its figures."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("tblite")
pytest.importorskip("mace")

from efa_addons.cli import main
from efa_addons.errors import EFAError
from efa_addons.studies import demo


def test_quick_demo_from_data_to_plot(tmp_path, capsys, monkeypatch):
    assert main(["demo", "--quick", "--out", str(tmp_path)]) == 0
    assert "cumulene torsion" in capsys.readouterr().out
    folder = tmp_path / "quick"
    results = json.loads((folder / "results.json").read_text())
    assert [result["name"] for result in results["results"]] == ["mace", "mace_efa", "mace_efa_scalar"]
    plain, efa, scalar = (result["num_parameters"] for result in results["results"])
    assert plain < scalar < efa
    assert len((folder / "table.md").read_text().splitlines()) == 5
    assert (folder / "profile.png").stat().st_size > 10_000
    log = (folder / "runs" / "mace_efa" / "log.txt").read_text()
    assert "EFA in 2 of 2 layers: pairwise up to" in log

    # Finished runs are not repeated; a failing one shows its command and the end of its log, and leaves the others alone.
    monkeypatch.setattr(demo, "COMMAND", ("false",))
    assert demo.run(tmp_path, quick=True) == folder
    broken = (*demo.VARIANTS, demo.Variant("broken", "broken", ("--efa_no_such_option=1",)))
    monkeypatch.setattr(demo, "COMMAND", (demo.sys.executable, "-m", "efa_addons.hosts.mace.train"))
    with pytest.raises(EFAError, match=r"(?s)training broken failed.*--efa_no_such_option"):
        demo.run(tmp_path, quick=True, variants=broken)
    assert (folder / "runs" / "mace_efa" / "mace_efa.model").exists()
