"""What weights were trained for, beside them in a state dict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from efa_addons.errors import EFAError

_KEY = "efa_settings"


class GuardedWeights(nn.Module):
    """A module whose state dicts tell the settings that no shape tells: in torch's metadata, without an entry of their own.

    `load_state_dict` refuses weights of other settings, with which they would be another function. Where one of the two does
    not tell (a plain dictionary, a format without metadata, a module of an earlier version) nothing is compared.

    Subclasses set `settings`, by the names of options: what the function of given weights follows from, in plain values.
    """

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if metadata is not None and "settings" in vars(self):
            metadata[_KEY] = dict(vars(self)["settings"])

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Mapping[str, Any], *rest: Any
    ) -> None:
        saved, now = local_metadata.get(_KEY, {}), vars(self).get("settings", {})
        changed = [f"{k}: {now[k]} (the weights: {saved[k]})" for k in now if k in saved and not _same(now[k], saved[k])]
        if changed:
            raise EFAError(
                f"the weights of {prefix[:-1] or 'this module'} were trained with other settings: {'; '.join(changed)}. "
                "Build the module with those; to take the weights all the same: load_state_dict(dict(state_dict))."
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def _same(a: Any, b: Any) -> bool:
    """Equal, or but for the last digits."""
    return math.isclose(a, b, rel_tol=1e-9) if isinstance(a, float) and isinstance(b, float) else a == b
