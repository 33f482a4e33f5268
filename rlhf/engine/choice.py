"""The engine that a recipe asks for, and how weights are shared out under it."""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from rlhf.config import ParallelismConfig
from rlhf.distributed import device, join_process_group, world_size
from rlhf.engine import Engine
from rlhf.engine.ddp import DdpEngine
from rlhf.engine.fsdp import FsdpEngine
from rlhf.engine.optimizer import OptimizerOptions
from rlhf.engine.zero_options import to_deepspeed
from rlhf.sharding import Sharding


def sharding_of(parallelism: ParallelismConfig) -> Sharding | None:
    """How frozen models are shared out, and under fsdp those that learn; None where each process has them whole.

    Beside ZeRO-3 frozen models are FSDP2's: there is nothing of theirs that DeepSpeed would do otherwise.
    """
    if parallelism.strategy not in ("fsdp", "zero3"):
        return None
    join_process_group(alone=True)
    processes = world_size()
    over = parallelism.shard_over or processes
    shape = (processes,) if over == processes else (processes // over, over)
    names = ("shards",) if len(shape) == 1 else ("copies", "shards")
    return Sharding(init_device_mesh(device().type, shape, mesh_dim_names=names), parallelism.cpu_offload)


def build(
    module: nn.Module, options: OptimizerOptions, parallelism: ParallelismConfig, sharding: Sharding | None
) -> Engine:
    """A model's engine. sharding: what `sharding_of` gave. Raises ConfigError where it cannot run here."""
    if parallelism.stage:
        from rlhf.engine.zero import ZeroEngine  # loads DeepSpeed

        join_process_group(alone=True)
        gpu = device().type == "cuda"
        settings = to_deepspeed(parallelism, options.max_grad_norm, gpu, bfloat16=options.bfloat16)
        return ZeroEngine(module, options, settings)
    return DdpEngine(module, options) if sharding is None else FsdpEngine(module, options, sharding)
