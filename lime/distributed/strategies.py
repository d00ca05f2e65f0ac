"""Lightning's strategies for adapters on a frozen base: one process, DDP, a base sharded over processes, DeepSpeed."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lime.config.training import TrainerConfig

log = logging.getLogger(__name__)


class ShardedBaseStrategy(DDPStrategy):
    """Lightning's DDP with the frozen base sharded over the processes by torch's ``fully_shard`` (FSDP2).

    The base, nearly all of the memory, is cut into one part per process and gathered block by block while a block
    computes, forward and backward. The adapters, a thousandth of it and the only parameters with a gradient, stay whole
    in every process, and DDP averages their gradients. So checkpoints and adapters are those of DDP, and can be resumed
    by either. Every process must run the same blocks in the same order: batches alike in modality (the sampler's
    `alike`).
    """

    def model_to_device(self) -> None:
        assert self.model is not None
        adapters = {p for p in self.model.parameters() if p.requires_grad}
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        blocks = repeated_blocks(self.model)
        ignored = adapters | _frozen_in_adapters(self.model)
        for block in blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=ignored & set(block.parameters()))
        sharded = sum(1 for p in self.model.parameters() if hasattr(p, "placements"))
        log.info("sharded %d tensors of %d blocks over %d processes", sharded, len(blocks), self.world_size)
        for module in self.model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None and not hasattr(tensor, "placements"):
                        if isinstance(tensor, nn.Parameter):
                            tensor.data = tensor.data.to(self.root_device)
                        else:
                            module._buffers[name] = tensor.to(self.root_device)

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        ignored = frozen + [name for name, _ in model.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
        return super()._setup_model(model)

    @property
    def world_size(self) -> int:
        return self.num_nodes * self.num_processes


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of every tower: the members of module lists whose members are all of one class."""
    blocks = []
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(m) for m in module}) == 1:
            blocks += [m for m in module if sum(p.numel() for p in m.parameters()) > 0]
    inner = {id(part) for block in blocks for part in block.modules() if part is not block}
    return [block for block in blocks if id(block) not in inner]


def _frozen_in_adapters(model: nn.Module) -> set[nn.Parameter]:
    """Frozen parameters of the adapters themselves (LoRA-FA's A, a prompt's first embeddings)."""
    from lime.tuner.layers.base import LimeLayer

    frozen: set[nn.Parameter] = set()
    for module in model.modules():
        if isinstance(module, LimeLayer):
            for part in module.adapter_layer_names:
                frozen |= set(getattr(module, part).parameters())
    return frozen


def check_strategy(config: TrainerConfig) -> None:
    """Raise ValueError where the strategy cannot run here, saying what is lacking."""
    if config.strategy == "deepspeed":
        if importlib.util.find_spec("deepspeed") is None:
            raise ValueError(
                "trainer.strategy: deepspeed is not installed; `pip install 'lime-moe[deepspeed]'`, "
                "or take trainer=fsdp, which shards the frozen base with torch alone"
            )
        if not torch.cuda.is_available():
            raise ValueError("trainer.strategy: deepspeed needs a GPU; take trainer=ddp or trainer=fsdp on the CPU")


def strategy_of(config: TrainerConfig, scope: str) -> str | Strategy:
    """Lightning's strategy for this run.

    A batch of text alone leaves a vision tower's adapters without a gradient, which DistributedDataParallel must be
    told to expect.
    """
    name = config.strategy
    if name == "auto":
        name = "ddp" if config.processes * config.num_nodes != 1 else "auto"
    if name == "auto":
        return "auto"
    options: dict[str, Any] = {"find_unused_parameters": scope != "language_model"}
    if name == "ddp":
        return DDPStrategy(**options)
    if name == "fsdp":
        return ShardedBaseStrategy(**options)
    from lightning.pytorch.strategies import DeepSpeedStrategy

    return DeepSpeedStrategy(stage=2, exclude_frozen_parameters=True)
