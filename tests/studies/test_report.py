"""The report from synthetic numbers; nothing is trained."""

import csv
import dataclasses

import numpy as np
import pytest

pytest.importorskip("ase")

from efa_addons.studies import cumulene, report, results

TWISTS = tuple(np.linspace(0, 90, 7))
REFERENCE = results.Profile(TWISTS, tuple(-500 + 0.8 * np.cos(np.radians(TWISTS)) ** 2))


def _result(name, label, height, kind):
    profile = results.Profile(TWISTS, tuple(-499 + height * np.cos(np.radians(TWISTS)) ** 2))
    return results.Result(
        name=name,
        label=label,
        kind=kind,
        energy_mae=1.0,
        energy_rmse=1.25,
        force_mae=10.0,
        force_rmse=20.0,
        scan_deviation=1e3 * profile.largest_deviation(REFERENCE),
        barrier_error=1e3 * (profile.barrier - REFERENCE.barrier),
        num_parameters=12345,
        seconds_per_epoch=1.5,
        profile=profile,
    )


MACE = results.HostResults(
    "MACE",
    (
        _result("mace", "MACE", 0.0, "plain"),
        _result("mace_efa", "MACE + EFA", 0.78, "efa"),
        _result("mace_efa_scalar", "MACE + scalar EFA", 0.02, "scalar"),
    ),
)
PAINN = results.HostResults("PaiNN", (_result("painn", "PaiNN", 0.0, "plain"), _result("painn_efa", "PaiNN + EFA", 0.7, "efa")))


def test_profiles_are_compared_with_means_aligned():
    flat, shifted = MACE.results[0].profile, dataclasses.replace(REFERENCE, energies=tuple(np.array(REFERENCE.energies) + 7))
    assert shifted.largest_deviation(REFERENCE) == pytest.approx(0, abs=1e-9)
    assert flat.barrier - REFERENCE.barrier == pytest.approx(-0.8)
    assert flat.largest_deviation(REFERENCE) == pytest.approx(0.4)
    np.testing.assert_allclose(flat.aligned(REFERENCE), 0.4)
    assert REFERENCE.aligned(REFERENCE).min() == pytest.approx(0, abs=1e-9)


@pytest.fixture
def data(tmp_path):
    """Files as `cumulene.make` leaves them, with REFERENCE as the scan."""
    import ase.io

    folder = tmp_path / "data"
    folder.mkdir()
    scan = []
    for twist, energy in zip(REFERENCE.twists, REFERENCE.energies, strict=True):
        atoms = cumulene.cumulene(np.radians(twist))
        atoms.info[cumulene.ENERGY] = energy
        scan.append(atoms)
    for name in cumulene.FILES:
        ase.io.write(folder / name, scan, format="extxyz")
    return folder


def test_the_report_takes_every_host_of_the_folder(tmp_path, data, capsys):
    pytest.importorskip("matplotlib")
    results.save(tmp_path / "painn", PAINN, data)
    report.write(tmp_path, data)
    assert len((tmp_path / "table.md").read_text(encoding="utf-8").splitlines()) == 4
    results.save(tmp_path / "mace", MACE, data, {"seed": 3})
    report.write(tmp_path, data)
    assert "PaiNN + EFA" in capsys.readouterr().out
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| MACE | 1.0 / 1.2 | 10 / 20 | 400 | -800 | 12,345 | 1.5 |" in table
    assert "energy MAE / RMSE meV/atom" in table and "parameters" in table
    with (tmp_path / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    labels = [row["label"] for row in rows]
    assert labels == ["MACE", "MACE + EFA", "MACE + scalar EFA", "PaiNN", "PaiNN + EFA"]
    assert float(rows[1]["barrier_error"]) == pytest.approx(-20)


def test_results_survive_the_file(tmp_path, data):
    results.save(tmp_path / "mace", MACE, data)
    found, outdated = results.collect(tmp_path, data)
    assert found == [MACE] and outdated == []


def test_results_on_other_data_are_left_out(tmp_path, data, capsys):
    pytest.importorskip("matplotlib")
    results.save(tmp_path / "mace", MACE, data)
    test = data / "test.xyz"
    test.write_text(test.read_text() + test.read_text())
    results.save(tmp_path / "painn", PAINN, data)
    report.write(tmp_path, data)
    assert "other data and is left out: run the demonstration again with --host mace" in capsys.readouterr().out
    assert "MACE" not in (tmp_path / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("found", [[MACE], [PAINN], [MACE, PAINN]])
def test_the_plot_has_a_panel_per_host_and_one_legend(found, tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *args, **options: drawn.append(self))
    report.plot(tmp_path / "profile.png", found, REFERENCE)
    (picture,) = drawn
    assert [axes.get_title() for axes in picture.axes] == [host.label for host in found]
    for axes, host in zip(picture.axes, found, strict=True):
        reference, *models = axes.lines
        np.testing.assert_allclose(reference.get_ydata(), REFERENCE.aligned(REFERENCE))
        assert len(models) == len(host.results) and axes.get_legend() is None
    (legend,) = picture.legends
    kinds = {result.kind for host in found for result in host.results}
    assert [text.get_text() for text in legend.get_texts()] == [
        "GFN2-xTB",
        *(report.STYLES[kind][0] for kind in report.STYLES if kind in kinds),
    ]


def test_plot_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    report.plot(tmp_path / "profile.png", [MACE, PAINN], REFERENCE)
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")
