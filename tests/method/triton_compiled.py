"""Compile every kernel of the fused layer for GPUs that need not be there; run by `test_triton.py` in a process of its
own, because Triton is either interpreted or compiled."""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lime.method.fused.parts import Plan
from lime.method.routing import RoutingPlan
from lime.method.triton import backward_kernels, forward_kernels, launches

KERNELS = (
    forward_kernels.add_update,
    backward_kernels.write_factors,
    backward_kernels.route_backward,
    backward_kernels.modulate_backward,
)
WIDE = ("z_p", "left_p", "right_p", "grad_projected_p", "grad_left_p", "grad_right_p")
TYPES = {"features_p": "*i64", "anchor_p": "*i64", "chosen_p": "*u8"}
ABSENT = ("shared_p", "gamma_p", "chosen_p", "grad_picked_p", "grad_update_p", "grad_sum_p")
CASES: list[tuple[int, str, RoutingPlan, tuple[str, ...], tuple[str, ...]]] = [
    (90, "bf16", RoutingPlan(), ("features_p", "kept_p", "anchor_p", "own_p", "probabilities_p", "weights_p"), ()),
    (80, "fp32", RoutingPlan(selection="topk", soft=True), (), ("count", "E", "stride_r")),
    (80, "fp16", RoutingPlan(learned=True, selection="dense"), ABSENT, ("R", "stride_o")),
]
"""Compute capability, dtype of the wide tensors, routing, the tensors that are absent, and the numbers that are 1,
which Triton makes constants."""


def compiled(
    kernel: Any, capability: int, wide: str, plan: Plan, absent: tuple[str, ...], ones: tuple[str, ...]
) -> Any:
    """The machine code of a kernel, as the launches of `lime.method.triton.launches` would ask for it."""
    constants = {**launches.routing_constants(plan), **launches.selection_constants(plan), **launches.blocks(4, 2)}
    constants |= dict.fromkeys(ones, 1) | dict.fromkeys(absent)
    constants |= {
        "TOKENS": launches.TOKENS,
        "OUTPUTS": launches.OUTPUTS,
        "PRECISION": launches.precision(wide == "fp32"),
    }
    signature, values = {}, {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name], values[name] = "constexpr", constants[name]
        elif name.endswith("_p"):
            signature[name] = TYPES.get(name, f"*{wide}" if name in WIDE else "*fp32")
        else:
            signature[name] = "i32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=values)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


def main() -> None:
    for capability, wide, routing, absent, ones in CASES:
        for kernel in KERNELS:
            code = compiled(kernel, capability, wide, Plan(routing), absent, ones)
            print(f"sm_{capability}", wide, kernel.__name__, len(code.asm["cubin"]), "bytes")


if __name__ == "__main__":
    main()
