"""Which of MACE's tests say something about EFA: one row for a test, or for the rest of a file.

The runner holds the rows against what pytest collects and against what happens, so that they cannot rot: a test without a row,
a row without a test, a wrong number of tests, and an outcome or a use of EFA that a row does not say are errors.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import NamedTuple

MACE_VERSION = "0.3.16"

ALIKE = "with EFA as without"
LITERAL = "random blocks change it"
ROUGH = "random blocks may change it"
REFUSED = "EFA refuses it"
WITHOUT = "no EFA in it"
SKIPPED = "skips itself"
LEFT_OUT = "not run"


class Row(NamedTuple):
    """
    Args:
        tests: shell pattern of `file::test[parameters]`; the first row that fits a test is its row.
        number: of tests for which the row stands.
        kind: ALIKE: has EFA, and passes with zero and with random blocks. LITERAL: has EFA, passes with zero blocks and fails
            with random ones, for `reason`. ROUGH: the same, but may pass with random ones. REFUSED: fails by an EFAError with
            any blocks. WITHOUT: meets no ScaleShiftMACE, passes in all forms. SKIPPED: skips itself in all forms. LEFT_OUT: not
            run in any form.
        reason: what the kind does not say.
        quick: part of the quick subset.
    """

    tests: str
    number: int
    kind: str
    reason: str = ""
    quick: bool = False


NETWORK = "downloads a foundation model"
POLAR = "PolarMACE: needs graph_longrange"
LES = "MACELES: needs les"
CUDA = "needs a GPU"
ENERGIES = "compares with energies written down after a training of stock MACE"
FINITE_DIFFERENCES = "finite differences with a step that can be too large for stiff blocks (smaller ones agree to 1e-9)"
BY_POSITION = "pairs parameters by position, with EFA those of q and k; energies, forces, and gradients by name agree"
NO_MODEL = "no model in it"
DIPOLES = "a model of dipoles, not a ScaleShiftMACE"

ROWS = (
    Row("test_benchmark.py::*", 16, SKIPPED, CUDA),
    Row("test_calculator.py::test_mace_polar_constructor", 1, SKIPPED, POLAR),
    Row("test_calculator.py::test_mace_off_download_uses_raw_githubusercontent_urls*", 4, WITHOUT, NO_MODEL),
    Row("test_calculator.py::test_normalize_github_download_url*", 3, WITHOUT, NO_MODEL),
    Row("test_calculator.py::test_mace_*", 7, LEFT_OUT, NETWORK),
    Row("test_calculator.py::test_calculator_forces", 1, ROUGH, FINITE_DIFFERENCES),
    Row("test_calculator.py::test_calculator_dipole", 1, WITHOUT, DIPOLES),
    Row("test_calculator.py::test_calculator_energy_dipole", 1, WITHOUT, DIPOLES),
    Row("test_calculator.py::test_calculator_stress", 1, ROUGH, FINITE_DIFFERENCES),
    Row("test_calculator.py::test_calculator_*", 7, ALIKE),
    Row("test_cg.py::*", 1, WITHOUT, NO_MODEL),
    Row("test_compile.py::test_graph_breaks*cpu*", 1, ALIKE),
    Row("test_compile.py::*_benchmark*", 16, SKIPPED, CUDA),
    Row("test_compile.py::*cuda*", 5, SKIPPED, CUDA),
    Row("test_compile.py::test_mace*", 4, LEFT_OUT, "inductor compiles for many minutes on a CPU"),
    Row("test_cueq_oeq.py::TestCueq::*hidden_irreps2*", 8, LITERAL, BY_POSITION),
    Row("test_cueq_oeq.py::TestCueq::*", 16, LEFT_OUT, "as those of scalars, minutes for each"),
    Row("test_cueq_oeq.py::TestOeq::*", 24, SKIPPED, "needs OpenEquivariance and a GPU"),
    Row("test_data.py::*", 9, WITHOUT, NO_MODEL),
    Row("test_embedding_train.py::*", 2, ALIKE),
    Row("test_finetuning_pseudolabels.py::*", 3, LEFT_OUT, NETWORK),
    Row("test_finetuning_select.py::*", 9, WITHOUT, NO_MODEL),
    Row("test_foundations.py::test_remove_pt_head", 1, ALIKE, quick=True),
    Row("test_foundations.py::test_remove_pt_head_multihead", 1, ALIKE),
    Row("test_foundations.py::test_polar_*", 5, SKIPPED, POLAR),
    Row("test_foundations.py::*", 23, LEFT_OUT, NETWORK),
    Row("test_freeze.py::*", 2, LEFT_OUT, NETWORK),
    Row("test_gate.py::*", 94, WITHOUT, NO_MODEL),
    Row("test_hessian.py::*", 2, LEFT_OUT, NETWORK),
    Row("test_lmdb_database.py::*", 1, WITHOUT, NO_MODEL),
    Row("test_lora.py::*_equivariance", 2, ALIKE, quick=True),
    Row("test_lora.py::*", 5, ALIKE),
    Row("test_maceles.py::test_run_eval_fail_with_wrong_model", 1, ALIKE),
    Row("test_maceles.py::*", 5, SKIPPED, LES),
    Row("test_mliap_exchange.py::*", 2, WITHOUT, "interaction blocks alone"),
    Row("test_models.py::test_mace", 1, ALIKE),
    Row("test_models.py::test_mace_multi_reference", 1, ALIKE, quick=True),
    Row("test_models.py::test_atomic_virials_stresses", 1, REFUSED, "atomic stresses are sums over edges", quick=True),
    Row("test_models.py::*", 3, WITHOUT, DIPOLES),
    Row("test_modules.py::*", 8, WITHOUT, NO_MODEL, quick=True),
    Row("test_multifiles.py::test_multihead_finetuning_different_formats", 1, LEFT_OUT, NETWORK),
    Row("test_multifiles.py::*", 3, ALIKE),
    Row("test_padding.py::*", 8, WITHOUT, NO_MODEL),
    Row("test_polar_cueq.py::*", 8, SKIPPED, POLAR),
    Row("test_polar_models.py::*", 26, SKIPPED, POLAR),
    Row("test_preprocess.py::*", 2, WITHOUT, NO_MODEL),
    Row("test_run_train.py::test_run_train", 1, LITERAL, ENERGIES),
    Row("test_run_train.py::test_run_train_missing_data", 1, LITERAL, ENERGIES),
    Row("test_run_train.py::test_run_train_no_stress", 1, LITERAL, ENERGIES),
    Row("test_run_train.py::test_run_train_multihead", 1, LITERAL, ENERGIES),
    Row("test_run_train.py::test_run_train_lbfgs", 1, LITERAL, ENERGIES),
    Row("test_run_train.py::test_run_train_cueq", 1, LITERAL, ENERGIES),
    Row("test_run_train.py::test_run_train_multihead_replay_custom_finetuning", 1, ALIKE),
    Row("test_run_train.py::test_run_train_multihead_replay_filtered_pt_data", 1, ALIKE),
    Row("test_run_train.py::test_run_train_real_pt_data_ratio", 1, ALIKE),
    Row("test_run_train.py::*", 9, LEFT_OUT, NETWORK),
    Row("test_run_train_allkeys.py::test_key_specification_methods*", 10, LITERAL, ENERGIES),
    Row("test_run_train_allkeys.py::*", 1, LEFT_OUT, NETWORK),
    Row("test_run_train_dipole_polar.py::*", 2, WITHOUT, DIPOLES),
    Row("test_schedulefree.py::*cpu*", 1, ALIKE),
    Row("test_schedulefree.py::*cuda*", 1, LEFT_OUT, CUDA),
    Row("test_tools.py::*", 2, WITHOUT, NO_MODEL),
    Row("test_torchsim.py::*", 11, SKIPPED, "needs torch-sim, which MACE asks for from Python 3.12 on"),
)


def assign(collected: Iterable[str]) -> tuple[dict[str, Row], list[str]]:
    """The row of each test, by its node id, and what is wrong with the rows."""
    rows: dict[str, Row] = {}
    problems = []
    for test in collected:
        name = test.removeprefix("tests/")
        row = next((row for row in ROWS if fnmatch.fnmatchcase(name, row.tests)), None)
        if row is None:
            problems.append(f"{test} has no row in the table")
        else:
            rows[test] = row
    for row in ROWS:
        number = sum(other is row for other in rows.values())
        if number != row.number:
            problems.append(f"the row {row.tests} stands for {row.number} tests, and there are {number}")
    return rows, problems


def selected(rows: Mapping[str, Row], quick: bool) -> dict[str, Row]:
    """The tests that are to run."""
    return {test: row for test, row in rows.items() if row.kind != LEFT_OUT and (row.quick or not quick)}
