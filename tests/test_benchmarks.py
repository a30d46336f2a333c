"""Benchmarks of the core in their quick size: that they run behind their gate, not how fast."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import benchmarks.gpu
from benchmarks import gpu_attention, gpu_counts, gpu_kernels, gpu_report, gpu_timing
from benchmarks.contenders import AUTO, QUADRATURE, REFERENCE, TRANSLATION, _ours, build, missing
from benchmarks.contest import gate
from benchmarks.problems import TASKS, Problem, arrays
from benchmarks.report import BEGIN, END, insert, markdown, targets
from benchmarks.rows import Row, read_rows, write_rows
from benchmarks.worker import Failed, Worker, _operations


def test_attention_methods(tmp_path, request):
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.attention_methods", "--quick", "--out", str(tmp_path)]
    subprocess.run(command, cwd=request.config.rootpath, check=True, capture_output=True)
    rows = list(csv.DictReader(next(tmp_path.glob("attention_methods_*_cpu_quick.csv")).open()))
    assert [row["degree of Y"] for row in rows] == ["0", "0", "1", "1"]
    assert all(float(row["ratio"]) > 0 for row in rows)


def test_efa(tmp_path, request):
    """One batch by every contender; the reference says so where it is not installed."""
    (tmp_path / "images").mkdir()
    (tmp_path / "performance.md").write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.efa", "--threads", "1", "--out", str(tmp_path)]
    part, page = ["--quick", "--cases", "profile", "batches"], ["--docs", str(tmp_path)]
    refused = subprocess.run([*command, *part, *page], cwd=request.config.rootpath, capture_output=True, text=True)
    assert refused.returncode == 2 and "--docs with --cases batches profile" in refused.stderr
    subprocess.run([*command, *part], cwd=request.config.rootpath, check=True, capture_output=True)
    (path,) = tmp_path.glob("*.csv")
    assert path.name.endswith("_cpu_batches_profile_quick.csv")
    rows = read_rows(path)
    subprocess.run([*command, "--from-csv", str(path), *page], cwd=request.config.rootpath, check=True, capture_output=True)
    batches = {(row.contender, row.task): row for row in rows if row.case == "batches"}
    for contender in (REFERENCE, TRANSLATION, AUTO, QUADRATURE):
        for task in TASKS:
            row = batches[contender, task]
            assert row.status == missing(contender)
            assert row.status or (row.ms > 0 and row.mib >= 0 and row.difference <= 1e-4)
    assert all(row.rate > 0 for row in rows if row.case == "machine")
    assert sum(row.rate for row in rows if row.case == "profile") == pytest.approx(100, abs=1)
    page = (tmp_path / "performance.md").read_text()
    assert page.startswith("above") and page.endswith("below\n") and "old" not in page
    assert "| 2 x 5 | 32/64 | 0 | 50 | forces |" in page


def test_gpu(tmp_path, request):
    """All that has no GPU in it, through Triton's interpreter; MACE has its environment (tests/hosts/mace)."""
    pytest.importorskip("triton", "3.4", reason="needs triton")
    sections = ["gate", "limits", "kernels", "attention", "molecules"]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--quick", "--device", "cpu", "--repeats", "1"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command += ["--out", str(tmp_path), "--only", *sections]
    subprocess.run(command, cwd=request.config.rootpath, env=environment, check=True, capture_output=True)
    (path,) = tmp_path.glob("*.csv")
    assert path.name == f"gpu_interpreter_{'_'.join(sections)}_quick.csv"
    rows = read_rows(path)
    assert list(dict.fromkeys(row.case for row in rows)) == ["conditions", *sections]
    assert rows[0].task.startswith("interpreter, float32, medians of 1; torch ")
    for row in rows[1:]:
        installed = row.contender != REFERENCE or not missing(REFERENCE)
        assert (row.status == "" or not installed) and (row.ms or row.case == "gate" or not installed)
        assert row.difference is None or row.difference < (5e-3 if "tf32" in row.contender.split() else 1e-5)
    timed = {row.contender for row in rows if row.case == "attention"}
    assert timed >= {name + tf32 for name in ("triton", "chunked", "plain") for tf32 in ("", ", tf32")}
    page = path.with_suffix(".md").read_text()
    assert page.startswith("(interpreter, float32") and "### Targets" in page and "### Molecules" in page


@pytest.fixture
def run_gpu(monkeypatch, tmp_path):
    """The command with other sections; returns why it ended, and its files with what they say."""

    def run(*arguments, **sections):
        command = ["gpu", "--quick", "--device", "cpu", "--out", str(tmp_path), *arguments]
        monkeypatch.setattr(benchmarks.gpu, "SECTIONS", sections)
        monkeypatch.setattr(sys, "argv", command)
        why = ""
        try:
            benchmarks.gpu.main()
        except (SystemExit, KeyboardInterrupt) as ended:
            why = str(ended) or type(ended).__name__
        return why, {path.name: path.read_text() for path in tmp_path.iterdir()}

    return run


ONE = Row("limits", "machine", "copy", rate=1.0)


def ends_with(error):
    def section(device, quick, repeats):
        yield ONE
        raise error

    return section


def test_gpu_goes_on_after_a_section_that_fails(run_gpu, tmp_path):
    step = Row("MACE", "MACE", "inference", ms=1.0)
    why, files = run_gpu(limits=ends_with(RuntimeError("of a driver\nwith details")), mace=lambda *given: [step])
    assert why == "these sections were not run to their end: limits"
    assert set(files) == {"gpu_interpreter_quick.part.csv", "gpu_interpreter_quick.part.md"}
    rows = read_rows(tmp_path / "gpu_interpreter_quick.part.csv")
    assert [(row.case, row.status) for row in rows[1:]] == [
        ("limits", ""),
        ("limits", "RuntimeError: of a driver"),
        ("MACE", ""),
    ]
    assert "RuntimeError: of a driver" in files["gpu_interpreter_quick.part.md"]


@pytest.mark.parametrize("error", [SystemExit("gate: wrong"), KeyboardInterrupt()])
def test_gpu_that_is_broken_off_keeps_what_it_has_and_an_earlier_run(run_gpu, error):
    why, files = run_gpu(limits=lambda *given: [ONE])
    assert why == "" and set(files) == {"gpu_interpreter_quick.csv", "gpu_interpreter_quick.md"}
    earlier = dict(files)
    why, files = run_gpu(limits=ends_with(error))
    assert why in ("gate: wrong", "KeyboardInterrupt")
    assert all(files[name] == text for name, text in earlier.items())
    assert "copy" in files["gpu_interpreter_quick.part.csv"] and "| machine | copy |" in files["gpu_interpreter_quick.part.md"]


def test_gpu_of_some_sections_has_files_of_its_own_which_make_one_page(run_gpu, tmp_path):
    sections = {"limits": lambda *given: [ONE], "mace": lambda *given: [Row("MACE", "MACE", "inference", ms=1.0)]}
    for section in sections:
        run_gpu("--only", section, **sections)
    parts = [str(tmp_path / f"gpu_interpreter_{section}_quick.csv") for section in sections]
    _, files = run_gpu("--from-csv", *parts, **sections)
    page = files["gpu_interpreter_limits_quick.md"]
    assert "### Limits" in page and "### MACE" in page and page.count("interpreter, float32") == 2


def test_gpu_gate_refuses_kernels_that_fail(monkeypatch):
    def fails(*given):
        raise RuntimeError("of a compiler")

    monkeypatch.setattr(gpu_kernels, "_largest_errors", fails)
    rows = gpu_kernels.gate(torch.device("cpu"), True, 1)
    with pytest.raises(SystemExit, match="nothing is timed"):
        assert {row.status for row in rows} == {"RuntimeError: of a compiler"}


def test_gpu_gate_refuses_wrong_kernels(monkeypatch):
    monkeypatch.setattr(
        gpu_kernels, "_largest_errors", lambda device, precisions, case, errors: errors.update(dict.fromkeys(precisions, 1e-4))
    )
    with pytest.raises(SystemExit, match="gate: the kernels are wrong, nothing is timed. tf32x3, 1 x 20 atoms"):
        list(gpu_kernels.gate(torch.device("cpu"), True, 1))


def test_gpu_gate_says_what_it_had_no_room_for(monkeypatch, run_gpu):
    """What was found before counts; the run does not end as if all had been checked."""

    def full(device, precisions, case, errors):
        errors[precisions[0]] = found
        raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu_kernels, "_largest_errors", full)
    found = 1e-8
    why, files = run_gpu(gate=gpu_kernels.gate)
    assert (
        why == "these sections were not run to their end: gate"
        and "1e-08,out of memory" in files["gpu_interpreter_quick.part.csv"]
    )
    found = 1.0
    assert "the kernels are wrong" in run_gpu(gate=gpu_kernels.gate)[0]


def test_gpu_gate_without_triton(monkeypatch, run_gpu):
    monkeypatch.setattr(gpu_kernels.importlib.util, "find_spec", lambda name: None)
    why, files = run_gpu(gate=gpu_kernels.gate)
    assert why == "" and "not installed" in files["gpu_interpreter_quick.csv"]


def test_differences():
    one = np.ones(3)
    assert gpu_attention._difference([one, 1.5 * one], [one, one]) == 0.5
    assert np.isnan(gpu_attention._difference([one, np.nan * one], [one, one]))
    assert gpu_attention._difference([one], None) is None


def test_gpu_says_where_the_profiler_saw_nothing(monkeypatch):
    """None is no time, and what fails there ends nothing else."""
    x, cpu = torch.randn(200, 200), torch.device("cpu")
    assert 0 < gpu_timing.on_device(Row("MACE", "MACE", "inference"), lambda: x @ x, cpu, 2).ms < 1e3
    row = gpu_timing.on_device(Row("MACE", "MACE", "inference"), lambda: 1 / 0, cpu, 2)
    assert row.ms is None and row.status == "ZeroDivisionError: division by zero"
    monkeypatch.setattr(torch.autograd.profiler_util.EventList, "key_averages", lambda *_, **__: [])
    row = gpu_timing.on_device(Row("MACE", "MACE", "inference"), lambda: x @ x, cpu, 2)
    assert row.ms is None and row.status == "the profiler saw nothing of the device"


def test_gpu_targets():
    """Each is met by these figures, and missed by others of twice the time."""

    def rows(ms):
        large = {"case": "attention", "task": "forces", **vars(Problem(1, 1_000_000, 64, 64))}
        kernel = {"case": "kernels", "contender": "tf32", "num_graphs": 1, "num_atoms": 65_536, "width_qk": 64, "width_v": 64}
        return [
            Row("limits", "machine", "TF32 product", ms=1.0, rate=400.0),
            *(Row(task=task, ms=ms, rate=210.0 / ms, **kernel) for task in ("state", "read-out")),
            Row(contender="triton", ms=10.0 * ms, **large),
            Row(contender="triton, tf32", ms=5.0 * ms, **large),
            Row(contender="chunked", ms=51.0, **large),
            Row(contender="chunked, tf32", ms=26.0, **large),
            Row(contender="plain", status="out of memory", **large),
            Row("MACE", "MACE", "inference", 50, 20, ms=1.0),
            Row("MACE", "MACE", "inference", 1, 1000, ms=100.0),
            Row("MACE", "MACE with EFA", "inference", 1, 1000, ms=100 + 9.0 * ms),
        ]

    assert [line[2:] for line in gpu_report.targets(rows(1.0))[2]] == [
        ["0.525", "yes"], ["0.525", "yes"], ["5.1", "yes"], ["0.01", "yes"], ["5.2", "yes"], ["0.09", "yes"], ["-", "-"],
    ]  # fmt: skip
    assert [line[3] for line in gpu_report.targets(rows(2.0))[2]] == ["no", "no", "no", "yes", "no", "no", "-"]


def test_gpu_counts():
    """Of pairs four times as many bytes for twice the atoms, of the quadrature twice as many; one operation for each kernel."""
    sizes = [Problem(1, n, 32, 64, points=0) for n in (500, 1000)]
    bytes_of = {form: [gpu_counts.counted(form, size, False).bytes for size in sizes] for form in gpu_counts.FORMS[:2]}
    assert 3.5 < bytes_of["pairwise, torch"][1] / bytes_of["pairwise, torch"][0] < 4.1
    assert 1.5 < bytes_of["quadrature, torch"][1] / bytes_of["quadrature, torch"][0] < 2.1
    pytest.importorskip("triton", "3.4", reason="needs triton")
    by_torch, by_kernels = (gpu_counts.counted(form, Problem(4, 20, 32, 64, points=0), True) for form in gpu_counts.FORMS[1:])
    assert by_kernels.launches < 0.3 * by_torch.launches and by_kernels.bytes < by_torch.bytes


def test_operations_are_counted():
    """Of the translation: projections, phases (N M 3), state and read-out, two for each product of numbers."""
    n, m, width = 64, 50, 16
    expected = 2 * (3 * n * width**2 + 3 * n * m + 2 * n * m * width**2)
    assert _operations(build(TRANSLATION, Problem(1, n, width, width), "forward")) == expected


def test_operations_of_ours_are_counted():
    """Projections, and 4 N R D_v for state and read-out of R rows."""
    n, width = 64, 16
    problem = Problem(1, n, width, width)
    module = _ours(problem, arrays(problem), "quadrature")
    rows = 4 * sum(m * c for m, c in zip(module.num_directions, module.num_channels, strict=True))
    expected = 2 * 3 * n * width**2 + 4 * n * rows * width
    assert _operations(build(QUADRATURE, problem, "forward")) == expected


def test_translation_is_the_sum_over_directions():
    """Against the core, which is tested against that sum, for a batch and for one structure of degree 1."""
    for problem in (Problem(2, 4, 4, 6, 1), Problem(1, 5, 4, 6, 1)):
        ours, translation = (build(name, problem, "forces")() for name in (QUADRATURE, TRANSLATION))
        for a, b in zip(ours, translation, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("change", [1.001, np.nan])
def test_gate_refuses_other_values(change):
    rows = [Row("batches", name, "forces", 2, 5) for name in (TRANSLATION, AUTO)]
    first = [np.ones((3, 4)), np.arange(6.0)]
    values = {(TRANSLATION, "forces"): first, (AUTO, "forces"): [a * (1 + 1e-6) for a in first]}
    gate(rows, values)
    assert rows[1].difference == pytest.approx(1e-6, rel=1e-3)
    values[AUTO, "forces"][1] = change * first[1]
    with pytest.raises(SystemExit, match="efa_addons differs by .* in forces"):
        gate(rows, values)


def test_worker_survives_what_is_too_much():
    """A task of 200 MiB with 20 MiB allowed, and one that is not there: the process is stopped, and a new one answers."""
    worker = Worker(TRANSLATION, Problem(2, 64), threads=1, memory=20 * 2**20, seconds=60.0)
    try:
        with pytest.raises(Failed, match="GiB"):
            worker.ask("measure", "training")
        worker.memory = 2**33
        peak, values = worker.ask("measure", "forward")
        assert peak > 2**24 and values[0].shape == (128, 1, 1, 64)  # twice 128 x 50 x 32 x 64 numbers
        with pytest.raises(Failed, match="KeyError"):
            worker.ask("nonsense", "forward")
    finally:
        worker.stop()


def test_rows_survive_their_file(tmp_path):
    rows = [
        Row("machine", "machine", "copy", ms=1.5, rate=20.0, status="GB/s"),
        Row("batches", AUTO, "forces", 16, 64, 32, 64, 0, 50),
    ]
    write_rows(tmp_path / "rows.csv", rows)
    assert read_rows(tmp_path / "rows.csv") == rows


def test_targets():
    """30 times in 16 x 64 is met by 31 and not by 29; what was not measured is neither."""

    def rows(reference):
        common = {"case": "batches", "task": "forces", **vars(Problem(16, 64))}
        return [Row(contender=REFERENCE, ms=reference, mib=100.0, **common), Row(contender=AUTO, ms=1.0, mib=10.0, **common)]

    assert [line[3] for line in targets(rows(31.0))[2]][:3] == ["yes", "no", "-"]
    assert targets(rows(29.0))[2][0][2:] == ["29", "no"]
    assert "29 | no |" in markdown(rows(29.0), "")


def test_insert_wants_its_marks(tmp_path):
    (tmp_path / "performance.md").write_text("no marks")
    with pytest.raises(SystemExit, match="needs the lines"):
        insert(tmp_path / "performance.md", "text")


def test_larger_problems_contain_smaller_ones():
    small = Problem(16, 64)
    assert Problem(256, 20).contains(small) and Problem(16, 64, degree=1).contains(small)
    assert not Problem(1, 65536).contains(small) and not Problem(256, 20, 16).contains(small)
    assert np.array_equal(arrays(small).positions, arrays(small).positions)
