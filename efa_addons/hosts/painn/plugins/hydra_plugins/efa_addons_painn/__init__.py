"""Where Hydra finds the configurations of `model/representation=painn_efa` and `model=efa_finetune`.

Hydra loads this in every application of the environment: it imports neither a host nor efa_addons.
"""

from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class EFAAddonsSearchPath(SearchPathPlugin):
    """Adds the folder of configurations that comes with efa_addons."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """"""
        (package,) = find_spec("efa_addons").submodule_search_locations
        search_path.append("efa_addons", f"file://{Path(package) / 'hosts' / 'painn' / 'configs'}")
