"""Models: where the first weights come from, how all of them compute, adapters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlhf.config.sections import Address, AffectsNothing, PositiveFloat, PositiveInt, Section


class InitConfig(Section):
    """A Llama made here, randomly initialised, with a byte-level BPE tokenizer trained on the demonstrations."""

    hidden_size: PositiveInt = 192
    intermediate_size: PositiveInt | None = None  # null: 8/3 of hidden_size, rounded up to a multiple of 8
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    vocab_size: Annotated[int, Field(ge=260)] = 512  # 256 bytes and the special tokens at least
    context: PositiveInt = 160  # tokens

    @property
    def mlp_size(self) -> int:
        """Width of the MLP's inner layer."""
        return self.intermediate_size or -(-self.hidden_size // 3) * 8

    @model_validator(mode="after")
    def _heads_divide(self) -> InitConfig:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"hidden_size={self.hidden_size} does not split into heads={self.heads} of even width; "
                f"use hidden_size={max(1, self.hidden_size // (2 * self.heads)) * 2 * self.heads}"
            )
        return self


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021) on all linear layers but the heads; merged when a stage saves its model."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0  # the update is scaled by alpha / rank
    quantization: Literal["nf4", "int8"] | None = None  # of the frozen weights below, QLoRA (Dettmers et al. 2023)


class ModelConfig(Section):
    """Where the first stage's weights come from, and how all models compute."""

    # Directory or hub id of a causal language model; null: `init`. The weights' content is fingerprinted.
    path: Annotated[str | None, AffectsNothing, Address()] = None
    revision: str | None = None  # commit of a hub id
    init: InitConfig = InitConfig()
    chat_template: Literal["auto", "none"] = "auto"  # none: prompts are plain text that the response continues
    trust_remote_code: bool = False
    added_tokens: list[str] = []  # special tokens that the first model's tokenizer gets; its embeddings grow
    # Of computation; weights that learn stay in float32. auto: bfloat16 on a GPU that has it, else float32.
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    # auto: flash_attention_2 on a GPU in bfloat16 where it is installed, else sdpa.
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    # auto: on a GPU whose memory the activations may not fit into; off on a CPU.
    activation_checkpointing: Annotated[bool | Literal["auto"], AffectsNothing] = "auto"
    lora: LoraConfig | None = None
