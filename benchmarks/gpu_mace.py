"""Of `benchmarks.gpu`: steps of MACE with and without EFA, by e3nn and by cuEquivariance, for 1000 atoms at a time."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from benchmarks.gpu_timing import NOT_INSTALLED, Run, measured, medians, on_device, variable
from benchmarks.rows import Row, in_a_line
from efa_addons import EFAConfig
from efa_addons.nn import replay

E3NN, CUEQ = "MACE", "MACE, cuEquivariance"
WITH, LAUNCHED = " with EFA", " with EFA, no CUDA graphs"
ELEMENTS = ("H", "C")
ALTERNATIONS, WARM_UP = 3, 4  # for each of the repetitions, and calls before
ON_DEVICE = ", device alone"  # milliseconds that it works, whatever launching takes
TASKS = {"inference": False, "training step": True}


def mace(device: torch.device, quick: bool, repeats: int) -> Iterator[Row]:
    """Behind the gate that a freshly inserted EFA changes no energy; what the device does for it last, see `on_device`."""
    alone: list[Callable[[], Row]] = []
    yield from _timed(device, quick, repeats, alone)
    for profiled in alone:
        yield profiled()


def _timed(device: torch.device, quick: bool, repeats: int, alone: list[Callable[[], Row]]) -> Iterator[Row]:
    """Adds to `alone` what is to be profiled."""
    if importlib.util.find_spec("mace") is None:
        yield Row("MACE", E3NN, "inference", status=NOT_INSTALLED)
        return
    from benchmarks.common import largest_distance
    from benchmarks.mace import stock_model
    from efa_addons.hosts.mace import insert_efa
    from efa_addons.hosts.mace.probe import batch_of
    from efa_addons.studies.cost import droplet

    batches = (
        [[droplet(5, ELEMENTS, 0)]] if quick else [[droplet(1000, ELEMENTS, 0)], [droplet(20, ELEMENTS, s) for s in range(50)]]
    )
    stock = stock_model(4, correlation=2) if quick else stock_model(64)  # cuEquivariance takes a minute to convert one of 3
    longest = max(largest_distance(structures) for structures in batches)
    efa = insert_efa(stock, EFAConfig(max_length=1.2 * longest, method="quadrature"))
    models = {E3NN: stock.to(device), E3NN + WITH: efa.to(device)}
    for structures in batches:
        batch = batch_of(stock, structures)
        copies = [{name: value.clone() for name, value in batch.items()} for _ in models]
        found = [model(data, compute_force=False) for model, data in zip(models.values(), copies, strict=True)]
        energies = [out["energy"] for out in found]
        of_atoms = found[0]["node_energy"].abs()
        summed = of_atoms.new_zeros(len(structures)).index_add(0, batch["batch"], of_atoms)
        if ((energies[0] - energies[1]).abs() > 1e-6 * summed).any():  # a GPU adds up in any order
            changed = f"{energies[0].tolist()} to {energies[1].tolist()}"
            raise RuntimeError(f"gate: inserting EFA changed MACE's energy, {changed}")
        yield from _steps(E3NN, models, batch, device, repeats, alone)
    if importlib.util.find_spec("cuequivariance_torch") is None:
        yield Row("MACE", CUEQ, "inference", status=NOT_INSTALLED)
        return
    # without these it computes by torch's, and only warns
    if device.type == "cuda" and importlib.util.find_spec("cuequivariance_ops_torch") is None:
        yield Row("MACE", CUEQ, "inference", status="its operations for GPUs are not installed: cuequivariance-ops-torch-cu12")
        return
    try:
        models = {name.replace(E3NN, CUEQ): _accelerated(model, device) for name, model in models.items()}
    except (ImportError, RuntimeError, AttributeError) as error:
        yield Row("MACE", CUEQ, "inference", status=in_a_line(error))
        return
    for structures in batches:
        yield from _steps(CUEQ, models, batch_of(stock, structures), device, repeats, alone)


def _steps(
    name: str,
    models: dict[str, torch.nn.Module],
    batch: dict[str, torch.Tensor],
    device: torch.device,
    repeats: int,
    alone: list[Callable[[], Row]],
) -> Iterator[Row]:
    """In alternation, for what a GPU and the CPU beside it do drifts by more than EFA adds."""
    from benchmarks.common import task

    num_graphs = len(batch["ptr"]) - 1
    for what, training in TASKS.items():
        rows: list[Row] = []
        runs: list[Run] = []
        replayed = device.type == "cuda" and not training
        for contender in (name, name + WITH, name + LAUNCHED)[: 3 if replayed else 2]:
            model = models[contender.replace(LAUNCHED, WITH)]
            model.train(training).requires_grad_(training)  # an inference as MACE's calculators make it
            row = Row("MACE", contender, what, num_graphs, len(batch["positions"]) // num_graphs)
            step = task(model, batch, training, "energy", training=training)
            run = functools.partial(_step, step, replays=not contender.endswith(LAUNCHED))
            row, _ = measured(row, lambda run=run: run, device, WARM_UP if device.type == "cuda" else 1)
            if not (training or row.status or LAUNCHED in contender):
                profiled = replace(row, task=f"{what}{ON_DEVICE}", ms=None, mib=None)
                alone.append(functools.partial(_on_device, profiled, model, batch, device, repeats))
            rows, runs = rows + [row], runs + [run] * (not row.status)
        times = iter(medians(runs, device, ALTERNATIONS * repeats if device.type == "cuda" else 1))
        for row in rows:
            row.ms = None if row.status else next(times)
            yield row


def _on_device(row: Row, model: torch.nn.Module, batch: dict[str, torch.Tensor], device: torch.device, repeats: int) -> Row:
    """Of an inference, launched: profilers are not at home in CUDA graphs."""
    from benchmarks.common import task

    model.train(False).requires_grad_(False)
    step = task(model, batch, False, "energy", training=False)
    return on_device(row, functools.partial(_step, step, replays=False), device, repeats)


def _step(step: Run, replays: bool) -> None:
    with variable(replay.VARIABLE, None if replays else "0"):
        step()


def _accelerated(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    from mace.cli import convert_e3nn_cueq

    return convert_e3nn_cueq.run(model, device=str(device))
