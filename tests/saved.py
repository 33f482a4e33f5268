"""What an engine wrote into a checkpoint, read by torch's own converter."""

from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save


def saved_weights(directory: Path, scratch: Path) -> dict[str, Tensor]:
    """The weights by name in an engine's directory of a checkpoint."""
    dcp_to_torch_save(directory, scratch / "whole.pt")
    return torch.load(scratch / "whole.pt", weights_only=True)["weights"]
