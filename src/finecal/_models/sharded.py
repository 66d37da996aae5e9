"""Models whose parameters FSDP or DTensors share out among processes."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def shards_parameters(module: nn.Module) -> bool:
    """Whether FSDP shares out the parameters of a module among processes, and has not gathered them for the time."""
    kinds = {base.__name__ for base in type(module).__mro__}
    if "FSDPModule" in kinds:  # of `fully_shard`
        return True
    state = getattr(module, "training_state", None)
    return "FullyShardedDataParallel" in kinds and getattr(state, "name", "") != "SUMMON_FULL_PARAMS"


def check_whole(model: nn.Module, layer: nn.Module, bias: Tensor, head: str) -> None:
    """Refuse to fold into the bias of a layer of which each process has a part."""
    size = None if is_lazy(bias) else bias.numel()
    outputs = getattr(layer, "out_features", getattr(layer, "out_channels", size))
    is_part = hasattr(bias, "placements") or size not in (None, outputs)  # a DTensor, or a view of FSDP
    if is_part or any(shards_parameters(module) and layer in set(module.modules()) for module in model.modules()):
        raise ValueError(
            f"the bias of {head} is shared out among processes (FSDP, or a DTensor); fold before the model is sharded, "
            "or into a whole model that loads the full state dict: torch.distributed.checkpoint.state_dict."
            "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)); or calibrate what comes out "
            "instead: CalibratedModel(model, calibrator)"
        )
