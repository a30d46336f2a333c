"""Compiles the kernels for an NVIDIA card that need not be there: python compile_kernels.py CAPABILITY SECOND [PRECISION].

Prints the name of each; with REPORT=1 in the environment also registers, spilled bytes, shared memory and instructions.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from efa_addons.ops import triton_kernels, triton_waves

NUMBERS = ("num_atoms", "num_phases", "num_rows", "num_channels", "num_graphs", "num_blocks")
INDICES = {"table": "*i32", "runs": "*i32", "blocks": "*i64", "graphs": "*i64"}
INSTRUCTIONS = ("HGMMA", "HMMA", "FFMA", "FMUL", "FADD", "LDG", "LDGSTS", "LDS", "STS", "LDL", "STL")


def compiled(kernel, capability, given, constants, warps):
    """The kernel for pointers of these names; other arguments are None or as in constants."""
    signature, fixed, aligned = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in NUMBERS:
            signature[name] = "i32"
        elif name in given:
            signature[name] = INDICES.get(name, "*fp32")
        else:
            signature[name] = "constexpr"
            fixed[(place,)] = constants.get(name)
        if name in given or name == "num_atoms":
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})


def report(kernel):
    tools = Path(triton.backends.nvidia.__file__).parent / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        usage, code = (
            subprocess.run([tools / "cuobjdump", option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    counts = " ".join(f"{name} {len(re.findall(rf'[^A-Z]{name}[^A-Z]', code))}" for name in INSTRUCTIONS)
    return f"registers {registers}, stack {stack}, shared {kernel.metadata.shared}: {counts}"


def main(capability, second, precision="tf32x3"):
    constants = {
        "NUM_D": 2, "NUM_COMPONENTS": 1, "NUM_VALUES": 64, "TURNED": False, "PRECISION": precision, "SECOND": second,
        "VALUES": triton_waves._VALUES,
    }  # fmt: skip
    given = {"x", "y", "t", "r", "directions", "frequencies", "table", "runs", "blocks", "graphs", "out", "by_x", "by_r"}
    if second:
        given |= {"dx", "dy", "dt", "dr", "df", "by_frequencies"}
    sizes = {
        "state": (triton_waves._STATE_ATOMS, triton_waves._STATE_PHASES),
        "read_out": (triton_waves._READ_ATOMS, triton_waves._READ_PHASES),
        "pull": (triton_waves._READ_ATOMS, triton_waves._PULL_PHASES),
    }
    for name, (atoms, phases) in sizes.items():
        tiles, warps = {"ATOMS": atoms, "PHASES": phases}, triton_waves._warps(atoms)
        kernel = compiled(getattr(triton_kernels, name), capability, given, {**constants, **tiles}, warps)
        print(name, report(kernel) if os.environ.get("REPORT") else "", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), bool(int(sys.argv[2])), *sys.argv[3:])
