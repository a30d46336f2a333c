"""Fine-tuning with spktrain: the target of `model=efa_finetune`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from schnetpack.transform import (
    AddOffsets,
    CachedNeighborList,
    NeighborListTransform,
    RemoveOffsets,
    ScaleProperty,
    SkinNeighborList,
)
from torch import Tensor, nn

from efa_addons.config import EFAConfig
from efa_addons.errors import EFAError, unknown_names
from efa_addons.hosts import base
from efa_addons.hosts.painn.files import load
from efa_addons.hosts.painn.insert import efa_config, efa_layers, has_efa, insert_efa, representation_of

log = logging.getLogger(__name__)
OF_THE_BASE = ("representation", "input_modules", "output_modules", "postprocessors", "input_dtype_str", "do_postprocessing")


def InsertEFA(
    path: str, efa: Mapping[str, Any] | None = None, freeze_base: bool = False, seed: int = 0, **experiment: Any
) -> nn.Module:
    """A trained model with EFA, to be trained further: energies are those of the base until training changes them.

    spktrain … model=efa_finetune model.path=/path/to/best_model +data.split_file=/path/to/split.npz

    Modules and offsets are the base's. A base that has EFA keeps it, weights and settings.

    Args:
        path: a best_model.
        efa: options of EFAConfig; null for a base that has EFA.
        freeze_base: train EFA alone.
        seed: of EFA's inner weights.
        experiment: what experiment files say about a model, all of it the base's already.

    Raises:
        EFAError: no such file or another kind of it, an unknown option, no EFA at all, or other EFA settings than the base's.
    """
    unknown = [name for name in experiment if name not in OF_THE_BASE]
    if unknown:
        raise unknown_names("option of efa_finetune", unknown, ["path", "efa", "freeze_base", "seed", *OF_THE_BASE])
    if not Path(path).is_file():
        raise EFAError(f"model.path={path} is no file: give the best_model of a run of spktrain, with its full path.")
    model = load(path)
    if has_efa(model):
        base.refuse_other_settings(efa, efa_config(model))
    else:
        base.require_settings(efa)
        model = insert_efa(model, EFAConfig.from_dict(efa), seed)
    if experiment:
        log.info(f"as in {path}, whatever the configuration says: {', '.join(sorted(experiment))}")
    base.freeze_base(model, efa_layers(model), freeze_base)
    representation_of(model).finetuning = Base.of(model, Path(path))
    return model


@dataclass
class Base:
    """What of a base model must stay when it is trained on: its offsets and cutoff, and which structures it has seen.

    Args:
        path: the best_model.
        cutoff: in the unit of the data.
        offsets: for each property the AddOffsets of the base that add anything.
    """

    path: Path
    cutoff: float
    offsets: dict[str, list[AddOffsets]]

    @classmethod
    def of(cls, model: nn.Module, path: Path) -> Base:
        """SchNetPack would compute offsets and scales of the new training set; those of the base are kept instead."""
        offsets: dict[str, list[AddOffsets]] = {}
        for module in model.modules():
            if isinstance(module, AddOffsets):
                module._mean_initialized = module._atomrefs_initialized = True
                if module.add_mean or module.add_atomrefs:
                    offsets.setdefault(module._property, []).append(module)
            elif isinstance(module, ScaleProperty):
                module._initialized = True
        return cls(path, float(representation_of(model).cutoff), offsets)

    def prepare(self, datamodule: Any) -> None:
        """Makes the data lose what the base adds, and looks for structures that the base was trained on.

        Raises:
            EFAError: offsets that do not match, or neighbors that the base sees and the data do not have.
        """
        for part in ("train", "val", "test"):
            transforms = getattr(datamodule, f"{part}_transforms")
            for transform in transforms:
                refuse_smaller_cutoff(transform, self.cutoff)
            removers = [
                each for each in transforms if isinstance(each, RemoveOffsets) and (each.remove_mean or each.remove_atomrefs)
            ]
            for name in dict.fromkeys([*(remover._property for remover in removers), *self.offsets]):
                _align(part, self.offsets.get(name, []), [remover for remover in removers if remover._property == name])
        self._look_for_known_structures(datamodule)

    def _look_for_known_structures(self, datamodule: Any) -> None:
        """Another model draws another split from the same seed: what was trained on ends up in the test set."""
        split = self.path.parent / "split.npz"
        if not split.exists() or not self._same_database(datamodule):
            return
        with np.load(split) as parts:
            trained_on = set(parts["train_idx"].tolist())
        for part in ("test", "val"):
            indices = [int(i) for i in getattr(datamodule, f"{part}_idx")]
            known = sum(i in trained_on for i in indices)
            if known:
                log.warning(
                    f"{known} of {len(indices)} structures of the {part} set were in the base's training set ({split}): its "
                    f"errors will look too small. Keep the base's split with data.split_file={split}."
                )

    def _same_database(self, datamodule: Any) -> bool:
        """Unless the base's own configuration says otherwise."""
        try:
            theirs = OmegaConf.load(self.path.parent / "config.yaml").data.datapath
        except Exception:  # no such file, or interpolations that have a value in a run of Hydra only
            return True
        return Path(theirs).resolve() == Path(datamodule.datapath).resolve()


def refuse_smaller_cutoff(transform: Any, cutoff: float) -> None:
    """Neighbors that a list leaves out change what the base computes; those beyond its cutoff count nothing."""
    if isinstance(transform, CachedNeighborList):
        transform = transform.neighbor_list
    if not isinstance(transform, NeighborListTransform | SkinNeighborList):
        return
    of_data = transform.cutoff if isinstance(transform, SkinNeighborList) else transform._cutoff
    if of_data < cutoff * (1 - 1e-6):  # the base's is in single precision
        raise EFAError(
            f"data.transforms list neighbors up to {of_data:g} ({type(transform).__name__}), and the base sees them up to "
            f"{cutoff:g}: give the base's cutoff, globals.cutoff={cutoff:g} in most experiments."
        )


def _copy(value: Tensor) -> Tensor:
    return value.detach().clone().cpu()


def _align(part: str, adders: list[AddOffsets], removers: list[RemoveOffsets]) -> None:
    """The offsets of a property that the base adds, for the transforms that remove them from a set of the data.

    Raises:
        EFAError: not the same ones are removed.
    """
    added = [_flags(module._property, module.add_mean, module.add_atomrefs, module.is_extensive) for module in adders]
    removed = [_flags(module._property, module.remove_mean, module.remove_atomrefs, module.is_extensive) for module in removers]
    ours, theirs, where = " and ".join(added), " and ".join(removed), f"data.transforms of the {part} set"
    if adders and not removers:
        raise EFAError(
            f"the base adds offsets to '{adders[0]._property}' and {where} remove none: add "
            f"schnetpack.transform.RemoveOffsets with {ours}."
        )
    if not adders:
        if removers:
            raise EFAError(f"{where} remove offsets ({theirs}) and the base adds none: leave RemoveOffsets out.")
        return
    for kind, value in (("mean", "mean"), ("atomrefs", "atomref")):
        sources = [module for module in adders if getattr(module, f"add_{kind}")]
        takers = [module for module in removers if getattr(module, f"remove_{kind}")]
        if [module.is_extensive for module in sources] != [module.is_extensive for module in takers]:
            raise EFAError(f"{where} remove offsets with {theirs}, and the base adds them with {ours}: make them equal.")
        for source, taker in zip(sources, takers, strict=True):
            setattr(taker, value, _copy(getattr(source, value)))


def _flags(name: str, mean: bool, atomrefs: bool, is_extensive: bool) -> str:
    return f"property: {name}, remove_mean: {mean}, remove_atomrefs: {atomrefs}, is_extensive: {is_extensive}"
