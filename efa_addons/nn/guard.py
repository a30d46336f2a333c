"""What weights were trained for, beside them in a state dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from efa_addons.errors import EFAError

_KEY = "efa_settings"


class GuardedWeights(nn.Module):
    """A module whose state dicts tell the settings that no shape tells: in torch's metadata, without an entry of their own.

    `load_state_dict` refuses weights of other settings, with which they would be another function. Where the metadata are lost
    (a plain dictionary, a format without them) nothing is compared.
    """

    def function_settings(self) -> dict[str, Any]:
        """By the names of options; plain values."""
        raise NotImplementedError

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if metadata is not None:
            metadata[_KEY] = self.function_settings()

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Mapping[str, Any], *rest: Any
    ) -> None:
        saved, now = local_metadata.get(_KEY, {}), self.function_settings()
        changed = [f"{k}: {now[k]} (the weights: {saved[k]})" for k in now if k in saved and now[k] != saved[k]]
        if changed:
            raise EFAError(
                f"the weights of {prefix[:-1] or 'this attention'} were trained with other settings: {'; '.join(changed)}. "
                "Build the module with those; to take the weights all the same: load_state_dict(dict(state_dict))."
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
