"""Compiles kernels for an NVIDIA card that need not be there: python compile_kernels.py CAPABILITY SECOND MIXED [PRECISION].

SECOND and MIXED: 0 or 1, derivatives of derivatives, and harmonics under the integral. Prints the name of each kernel; with
REPORT=1 in the environment also registers, spilled bytes, shared memory and instructions.
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

NUMBERS = (
    *("num_atoms", "num_items", "num_out", "num_phases", "num_rows", "num_channels", "num_graphs", "num_blocks"),
    *("size", "size_y", "size_t"),
)
INDICES = {"channels": "*i32", "rows": "*i32", "runs": "*i32", "blocks": "*i64", "graphs": "*i64"}
DIVIDED = ("num_atoms", "num_items", "num_out", "num_phases", "size", "size_y", "size_t")  # by 16
INSTRUCTIONS = ("HGMMA", "HMMA", "FFMA", "FMUL", "FADD", "LDG", "LDGSTS", "LDS", "STS", "BAR", "LDL", "STL")


def compiled(kernel, capability, given, rounded, constants, options):
    """The kernel for pointers of these names; other arguments are None or as in constants.

    Args:
        rounded: names of those that are in bfloat16.
    """
    signature, fixed, aligned = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in NUMBERS:
            signature[name] = "i32"
        elif name in given:
            signature[name] = INDICES.get(name, "*bf16" if name in rounded else "*fp32")
        else:
            signature[name] = "constexpr"
            fixed[(place,)] = constants.get(name)
        if name in given or name in DIVIDED:
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


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


def main(capability, second, mixed, precision="tf32x3"):
    constants = {
        "NUM_D": 2, "NUM_COMPONENTS": 3 if mixed else 1, "NUM_VALUES": 64, "PADDED_VALUES": 64, "TURNED": mixed,
        "PRECISION": precision, "SECOND": second, "VALUES": 64, "TILE": 32, "HALVES": 2, "ITEMS": 32, "TRANSPOSED": True,
        "NATIVE": capability >= 90,
    }  # fmt: skip
    given = {"x", "y", "t", "r", "k", "channels", "rows", "runs", "blocks", "graphs", "source", "out", "by_x", "by_r"}
    if second:
        given |= {"dx", "dy", "dt", "dr", "dk", "u", "by_frequencies"}
    if mixed:
        given.add("weights")
    arranged = {"y", "t", "dy", "dt"} if precision == "bf16" else set()
    for name in ("arrange", "state", "read_out", "pull"):
        rounded = {"out"} if name == "arrange" and arranged else arranged
        tiles = triton_waves._TILES.get(name, {})
        best = tiles.get(precision, tiles.get(""))
        sizes = {"ATOMS": best.atoms, "PHASES": 64 if name == "state" else 32} if best else {}
        options = {"num_warps": best.warps, "num_stages": best.stages} if best else {}
        kernel = compiled(getattr(triton_kernels, name), capability, given, rounded, {**constants, **sizes}, options)
        print(name, report(kernel) if os.environ.get("REPORT") else "", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), bool(int(sys.argv[2])), bool(int(sys.argv[3])), *sys.argv[4:])
