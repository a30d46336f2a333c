"""Python imports this when it starts with this folder on PYTHONPATH: so the processes that MACE's tests start have EFA, too."""

import efa_everywhere

efa_everywhere.activate()
