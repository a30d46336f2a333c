"""The core stands alone: importing it imports no host, and no optional back end."""

import subprocess
import sys

PROGRAM = """
import sys
import torch, scipy.integrate
torch.serialization.add_safe_globals([slice])  # for e3nn 0.4.4
import e3nn.o3
before = set(sys.modules)
import efa_addons
optional = {"mace", "nequip", "schnetpack", "pytorch_lightning", "ase", "jax", "triton", "matplotlib", "tblite"}
print(sorted(optional & (set(sys.modules) - before)))
print(sorted({"mace", "nequip", "schnetpack"} & set(sys.modules)))
"""


def test_core_imports_no_host():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["[]", "[]"]
