"""What TRL has trained, whole again: to be scored, and handed on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from transformers import TrainerState

from rlhf.distributed import is_main
from rlhf.sharding import gathered, is_sharded, make_whole

TRAINER_STATE = "trainer_state.json"


class Trained(NamedTuple):
    """A trainer whose training is complete."""

    trainer: Any
    engine: str  # the wrapper that really ran

    @property
    def model(self) -> Any:
        """The model, shared out if it was; see `to_score` and `to_hand_on`."""
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    @contextmanager
    def to_score(self) -> Iterator[Any]:
        """The model for a while with all weights on every rank's device."""
        with gathered(self.model):
            yield self.model

    def to_hand_on(self) -> Any:
        """The model with all weights on the main rank, for good; every rank calls."""
        model = self.model
        if is_sharded(model):
            make_whole(model, here=is_main())
        return model


def load_trained(trainer: Any, directory: Path) -> None:
    """Take up what a checkpoint of the last step holds, in a model that is whole and that nothing will train."""
    if trainer.is_fsdp_enabled and not hasattr(trainer.model, "peft_config"):
        for file in sorted(directory.glob("model*.safetensors")):
            trainer.model.load_state_dict(load_file(file), strict=False)
    elif trainer.is_fsdp_enabled:
        trainer.model.load_adapter(str(directory), trainer.model.active_adapter, is_trainable=True)
    else:
        trainer._load_from_checkpoint(str(directory))
    trainer.is_deepspeed_enabled = trainer.is_fsdp_enabled = False
    trainer.state = TrainerState.load_from_json(str(directory / TRAINER_STATE))
