"""The demonstration in its quick size, for the host that is installed: every step on real data, none of its figures."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest

pytest.importorskip("tblite")

from efa_addons.cli import main
from efa_addons.errors import EFAError
from efa_addons.studies import demo, hosts

# what the log of the run with EFA says of it
LOGGED = {
    "mace": "EFA in 2 of 2 layers: pairwise up to",
    "nequip": "max_length: ",
    "painn": "EFA in 2 of 2 layers: pairwise up to",
}
# the flags that choose the hosts' own class
WITHOUT = ("training_module.model._target_=nequip.model.", "model/representation=painn")


@pytest.mark.parametrize("host", LOGGED)
def test_quick_demo_from_data_to_plot(host, tmp_path, capsys, monkeypatch):
    pytest.importorskip(hosts.PACKAGES[host])
    module = hosts.load(host)
    assert main(["demo", "--quick", "--host", host, "--out", str(tmp_path)]) == 0
    assert "cumulene torsion" in capsys.readouterr().out
    folder = tmp_path / "quick"
    results = json.loads((folder / host / "results.json").read_text())["results"]
    assert [result["name"] for result in results] == [variant.name for variant in module.VARIANTS]
    parameters = {result["kind"]: result["num_parameters"] for result in results}
    assert parameters["plain"] < parameters.get("scalar", parameters["efa"] - 1) < parameters["efa"]
    assert len((folder / "table.md").read_text().splitlines()) == 2 + len(results)
    assert (folder / "profile.png").stat().st_size > 10_000
    runs = {variant.kind: folder / host / variant.name for variant in module.VARIANTS}
    assert LOGGED[host] in (runs["efa"] / "log.txt").read_text()
    epochs = module.training(quick=True, seed=0).num_epochs
    assert module.epochs_done(runs["efa"]) in (epochs - 1, epochs)  # MACE counts from 0
    assert 0 < module.seconds_per_epoch(runs["efa"]) < 60

    # Finished runs are not repeated; a failing one shows its command and the end of its log, and leaves the others alone.
    command = module.COMMAND
    monkeypatch.setattr(module, "COMMAND", ("false",))
    assert demo.run(tmp_path, host, quick=True) == folder
    plain = module.VARIANTS[0]
    broken = dataclasses.replace(plain, name="broken", label="broken", flags=(*plain.flags, "--efa_no_such_option=1"))
    monkeypatch.setattr(module, "COMMAND", command)
    with pytest.raises(EFAError, match=r"(?s)training broken failed.*--efa_no_such_option"):
        demo.run(tmp_path, host, quick=True, variants=(*module.VARIANTS, broken))
    assert module.model_file(module.VARIANTS[1].name, runs["efa"]).exists()


@pytest.mark.parametrize("host", LOGGED)
def test_variants_differ_only_in_efa(host):
    pytest.importorskip(hosts.PACKAGES[host])
    module = hosts.load(host)
    assert [variant.kind for variant in module.VARIANTS[:2]] == ["plain", "efa"]
    assert all("efa" in flag or flag.startswith(WITHOUT) for variant in module.VARIANTS for flag in variant.flags)
    assert module.training(quick=False, seed=3).flags != module.training(quick=False, seed=4).flags


def test_the_last_epoch_of_mace_is_validated():
    pytest.importorskip("mace")
    flags = dict(flag.split("=") for flag in hosts.load("mace").training(quick=False, seed=0).flags if "=" in flag)
    assert (int(flags["--max_num_epochs"]) - 1) % int(flags["--eval_interval"]) == 0


def test_a_missing_host_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "schnetpack", None)
    assert main(["demo", "--host", "painn", "--out", str(tmp_path)]) == 2
    assert 'pip install "efa-addons[painn]"' in capsys.readouterr().err
    with pytest.raises(EFAError, match="mace"):
        hosts.load("mase")
