"""Networks whose parameters, gradients and optimiser state are divided among all processes."""

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard

from fox.config import FoxConfig
from fox.model import FoxForCausalLM

# One whole checkpoint, like that of one process, instead of a folder with every process's part.
StrategyRegistry.register(
    "fsdp2",
    ModelParallelStrategy,
    description="parameters divided among all processes (FSDP2), one checkpoint",
    save_distributed_checkpoint=False,
)


def sharded(config: FoxConfig, device: torch.device) -> FoxForCausalLM:
    """A network of which every process holds its part (FSDP2), gathered block by block.

    The weights are drawn by process 0 just as they are for one process alone, on its CPU.

    Args:
        config: of the network.
        device: of this process's part.
    """
    with torch.device("meta"):
        net = FoxForCausalLM(config)
    for block in net.model.layers:
        fully_shard(block)
    fully_shard(net)  # the embedding, the last norm and the output matrix
    net.to_empty(device=device)
    weights = FoxForCausalLM(config).state_dict() if dist.get_rank() == 0 else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(net, weights, options=options)
    return net


def gathered(net: FoxForCausalLM) -> FoxForCausalLM:
    """The network with all its weights on process 0's CPU; itself where nothing is divided.

    Every process must call this; the others get a network without numbers (on the meta device).
    """
    if not isinstance(net, FSDPModule):
        return net
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(net, options=options)
    with torch.device("meta"):
        whole = FoxForCausalLM(net.config)
    if dist.get_rank() == 0:
        whole.load_state_dict(weights, assign=True)
        whole.tie_weights()
    return whole
