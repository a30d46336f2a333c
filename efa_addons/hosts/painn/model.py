"""PaiNN with EFA: a block beside each interaction, before the mixing that follows it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Dict, Optional, Tuple

import torch
from schnetpack import properties
from schnetpack.representation import PaiNN
from schnetpack.transform import Transform
from torch import Tensor, nn

from efa_addons.config import EFAConfig
from efa_addons.errors import EFAError
from efa_addons.hosts import base
from efa_addons.hosts.derive import Supported, derive
from efa_addons.hosts.painn.data import resolve_from, usual_num_atoms
from efa_addons.nn import EFABlock, nan_if_periodic, refuse_periodic

SUPPORTED = Supported("schnetpack", ("2.2.0",))
# EFA acts on the layer's input beside the interaction. It is added before the mixing, where the vectors of the last layer are
# still of use.
FORWARD = (
    ("q, mu = interaction(q, mu, filter_list[i], dir_ij, idx_i, idx_j, n_atoms)", "q_in, mu_in = q, mu"),
    (
        "q, mu = mixing(q, mu)",
        'if hasattr(mixing, "efa"):\n'
        "    dq_efa, dmu_efa = mixing.efa(q_in, mu_in, inputs)\n"
        "    q, mu = q + dq_efa, mu + dmu_efa",
    ),
)
SETTINGS = "_extra_state"  # torch's name for it in a state dict
log = logging.getLogger(__name__)


class PaiNNEFA(PaiNN, Transform):
    """PaiNN with EFA, which is zero at initialisation; the block of layer i is `mixing[i].efa`.

    model:
      representation:
        _target_: efa_addons.hosts.painn.PaiNNEFA
        efa: {max_length: auto, normalization: auto}
        …: all arguments of schnetpack.representation.PaiNN

    It is a Transform so that SchNetPack shows it the training set before training begins: 'auto' options become numbers then.

    Args:
        efa: options of EFAConfig, or an EFAConfig.
        seed: of EFA's inner weights; none given: torch's generator, which is left where it was.
        options: of PaiNN.

    Raises:
        EFAError: an unknown option, or a layer that does not exist.
    """

    forward = derive(PaiNN.forward, FORWARD, SUPPORTED)
    finetuning = None  # `finetune.Base` until the training set was seen, in a model made to be fine-tuned

    def __init__(self, *, efa: Mapping[str, Any] | EFAConfig, seed: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        attach(self, efa if isinstance(efa, EFAConfig) else EFAConfig.from_dict(efa), seed)

    def datamodule(self, value: Any) -> None:
        """Called by SchNetPack with its data module, before training begins."""
        config = EFAConfig.from_dict(self.efa_config)
        if not hasattr(getattr(value, "train_dataset", None), "iter_properties"):  # trained from data loaders, say
            if config.needs_data or self.finetuning is not None:
                raise EFAError(
                    "a model whose options are 'auto', or that is fine-tuned, is made ready with the training set of a "
                    f"SchNetPack data module, and there is {type(value).__name__}: train with trainer.fit(task, datamodule=…)."
                )
            log.info(describe(self))
            return
        if config.needs_data:
            resolve(self, resolve_from(config, value))
        if self.finetuning is not None:
            self.finetuning.prepare(value)
            self.finetuning = None
        batch_size = getattr(value, "batch_size", None)  # a data module of one's own may have none
        if batch_size is None:
            log.info(describe(self))
        else:
            log.info(describe(self, usual_num_atoms(value), batch_size, _device_of_training(value)))


def _device_of_training(datamodule: Any) -> torch.device | None:
    """To which Lightning moves the model once it has been shown the data."""
    strategy = getattr(getattr(datamodule, "trainer", None), "strategy", None)
    return getattr(strategy, "root_device", None)


def attach(painn: PaiNN, config: EFAConfig, seed: int | None = None) -> None:
    """Puts blocks into a PaiNN, in place. Where options wait for a training set, so do the blocks (see `resolve`)."""
    shared = len({id(mixing) for mixing in painn.mixing}) < len(painn.mixing)
    layers = base.chosen_layers(config, len(painn.mixing))
    if shared and config.layers is not None:
        raise EFAError(
            f"layers={list(config.layers)} is impossible with shared_interactions: true, which gives all layers one block; "
            "leave one of the two out."
        )
    like = next(painn.parameters())
    numbers = config.resolve(1.0, 1.0) if config.needs_data else config
    with base.building(like, seed):
        for layer in layers[:1] if shared else layers:
            block = PaiNNEFALayer(painn.n_atom_basis, shared or layer > 0, numbers, checks=layer == layers[0])
            block.waits_for_data = config.needs_data
            painn.mixing[layer].efa = block.to(like.device)
    painn.efa_config = config.to_dict()


def resolve(painn: PaiNNEFA, config: EFAConfig) -> None:
    """New blocks with numbers for what was 'auto', and the weights of those that were there."""
    weights = {name: p for name, p in painn.state_dict().items() if not name.endswith(("frequencies", SETTINGS))}
    attach(painn, config)
    missing, unexpected = painn.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.endswith("frequencies") for name in missing)


def efa_layers(painn: PaiNN) -> dict[str, base.LayerWithEFA]:
    """The layers with EFA: layer0, layer1, …; with shared_interactions one for all."""
    layers: dict[str, base.LayerWithEFA] = {}
    switches = [getattr(mixing, "efa", None) for mixing in painn.mixing]
    for i, (switch, interaction) in enumerate(zip(switches, painn.interactions, strict=True)):
        if switch is not None and all(switch is not layer.switch for layer in layers.values()):
            num_steps = sum(other is switch for other in switches)
            layers[f"layer{i}"] = base.LayerWithEFA(switch.block, switch, interaction, num_steps)
    return layers


def describe(painn: PaiNN, atoms_per_graph: int | None = None, num_graphs: int = 1, device: torch.device | None = None) -> str:
    """See `hosts.base.describe`; `device`: where it will be trained, none given: where it is."""
    layers = efa_layers(painn)
    config = EFAConfig.from_dict(painn.efa_config) if layers else None
    if config is not None and config.needs_data:
        return "EFA whose 'auto' options wait for a training set"
    device = device or next(painn.parameters()).device
    return base.describe(painn, layers, len(painn.mixing), config, atoms_per_graph, num_graphs, device)


class PaiNNEFALayer(nn.Module):
    """The EFA block of one layer, on PaiNN's scalars q (N, 1, F) and vectors mu (N, 3, F), which are Cartesian.

    Args:
        num_features: F, n_atom_basis.
        vectors: the layer's input has vectors; that of the first layer has none.
        config: resolved EFAConfig.
        checks: look for what EFA cannot serve; one layer of a model is enough.
    """

    def __init__(self, num_features: int, vectors: bool, config: EFAConfig, checks: bool) -> None:
        super().__init__()
        scalars, both = f"{num_features}x0e", f"{num_features}x0e+{num_features}x1o"
        # (N, 4, F) of q and mu side by side: components before features
        self.block = EFABlock(both if vectors else scalars, both, config, layout="ir_mul")
        self.vectors, self.checks = vectors, checks
        self.waits_for_data = False
        self.enabled = True  # see `insert.without_efa`

    def get_extra_state(self) -> Dict[str, Any]:
        """The settings, part of every checkpoint: weights alone do not tell what they were trained for."""
        return self.block.config

    def set_extra_state(self, state: Dict[str, Any]) -> None:
        if changed := base.other_settings(EFAConfig.from_dict(self.block.config).to_dict(), state):
            raise EFAError(
                f"the checkpoint was written with other EFA settings: {changed}. Give the same (numbers for what is 'auto' and "
                "differs with the training set), or begin another run."
            )

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.setdefault(prefix + SETTINGS, self.block.config)  # of an earlier version, which kept none
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, q: Tensor, mu: Tensor, inputs: Dict[str, Tensor]) -> Tuple[Tensor, Tensor]:
        """The residuals to add to q and mu."""
        if not self.enabled:
            return torch.zeros_like(q), torch.zeros_like(mu)
        if self.waits_for_data:
            raise EFAError(
                "max_length or normalization is 'auto' and waits for a training set, which this model was not shown: train it "
                "with spktrain, or give numbers."
            )
        if self.checks:
            refuse_what_efa_cannot_serve(inputs)
        x = torch.cat([q, mu], dim=1) if self.vectors else q
        # positions are strained where there is a strain, so that the stress has EFA's part
        positions, num_graphs = inputs[properties.R], inputs[properties.n_atoms].shape[0]
        out = self.block(x.flatten(1), positions, inputs[properties.idx_m], num_graphs).view(q.shape[0], 4, q.shape[2])
        if self.checks:
            out = nan_if_periodic(out, periodic(inputs))
        return out[:, :1], out[:, 1:]


def refuse_what_efa_cannot_serve(inputs: Dict[str, Tensor]) -> None:
    """Periodic structures."""
    refuse_periodic(periodic(inputs))


def periodic(inputs: Dict[str, Tensor]) -> Optional[Tensor]:
    """True where a structure is periodic: its pbc flag or, where LAMMPS gives none, edges to periodic images."""
    if properties.pbc in inputs:
        return inputs[properties.pbc]
    if properties.offsets in inputs:
        return inputs[properties.offsets] != 0
    return None
