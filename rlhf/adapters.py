"""Low-rank adapters: on which layers, over frozen weights of few bits (QLoRA), and merged into a full model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from rlhf.config import LoraConfig

if TYPE_CHECKING:
    from peft import PeftModel

# peft, and bitsandbytes with it, are imported where adapters are: they cost every process seconds.
TASKS = {"policy": "CAUSAL_LM", "reward": "SEQ_CLS", "value": "TOKEN_CLS"}


def add_lora(model: nn.Module, config: LoraConfig, kind: str, new_tokens: Sequence[int] = ()) -> nn.Module:
    """Fresh adapters on all linear layers; a classifier's head stays fully trainable.

    new_tokens: ids whose embeddings are trained too, since nobody trained them before.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    heads = [] if kind == "policy" else ["score"]
    adapters = PeftLoraConfig(
        task_type=TASKS[kind],
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # a scale, and peft only divides it
        lora_dropout=0.0,
        target_modules="all-linear",
        modules_to_save=heads or None,
        trainable_token_indices=list(new_tokens) or None,
    )
    adapted: nn.Module = get_peft_model(model, adapters)
    return adapted


def is_adapted(model: nn.Module) -> TypeGuard[PeftModel]:
    """Whether a model is one that peft has wrapped in adapters."""
    peft = sys.modules.get("peft")  # who has not imported it has no such model
    return peft is not None and isinstance(model, peft.PeftModel)


class AdapterOff(nn.Module):
    """A model as it was before its adapters: the reference of a policy that started with fresh ones.

    Right only where nothing below the adapters learns; saves the reference's weights.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        """The model's output without what its adapters add."""
        with self.model.disable_adapter():  # type: ignore[operator]
            return self.model(**inputs)

    @property
    def config(self) -> Any:
        """The model's."""
        return self.model.config

    def get_output_embeddings(self) -> Any:
        """The model's head, below which no adapter is."""
        return self.model.get_output_embeddings()  # type: ignore[operator]


def quantization_options(config: LoraConfig | None, compute: torch.dtype) -> dict[str, Any]:
    """What loads the weights below the adapters in few bits; nothing where the recipe wants none.

    nf4: 4-bit NormalFloat with doubly quantised scales (Dettmers et al. 2023); int8: LLM.int8 (Dettmers et al. 2022).
    Heads and embeddings stay as they are.
    """
    if config is None or config.quantization is None:
        return {}
    skipped = ["lm_head", "score"]
    if config.quantization == "int8":
        bits = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)  # type: ignore[no-untyped-call]
    else:
        bits = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
            llm_int8_skip_modules=skipped,
        )
    return {"quantization_config": bits}


def keep_canonical(model: nn.Module) -> None:
    """On CPUs with AVX-512 bitsandbytes packs 4-bit weights anew, and computes in bfloat16, once in eval mode.

    Then sampling and training would differ, and the packed weights could not be merged; so this is turned off.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  # unknown to nn.Module


def is_quantized(model: nn.Module) -> bool:
    """Whether a model's linear layers hold few bits: it stays on its device and in its types."""
    return bool(getattr(model, "is_quantized", False))


def merged(model: PeftModel) -> nn.Module:
    """The full model in float32, on the CPU, that computes what adapters and frozen weights together computed.

    A device that held few bits need not have room for more: it computes one layer at a time. Nothing of `model` is to
    be used afterwards.
    """
    from peft.utils.integrations import dequantize_module_weight

    base: Any = model.get_base_model()
    for name, module in list(model.named_modules()):
        # peft would round the sum to few bits again; so these layers are merged here, and the rest by peft.
        if hasattr(module, "get_delta_weight") and is_few_bits(getattr(module, "base_layer", None)):
            weight = dequantize_module_weight(module.base_layer).float() + module.get_delta_weight("default").float()
            bias = module.base_layer.bias
            full = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")  # filled below
            full.weight = nn.Parameter(weight.detach().cpu())
            if bias is not None:
                full.bias = nn.Parameter(bias.detach().float().cpu())
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, full)
    if is_quantized(base):
        del base.config.quantization_config
        base.is_quantized, base.hf_quantizer = False, None
    model.to("cpu")
    whole: nn.Module = model.merge_and_unload()
    return whole


def is_few_bits(layer: object) -> bool:
    """Whether a linear layer holds quantised weights."""
    return type(getattr(layer, "weight", None)).__name__ in ("Params4bit", "Int8Params")
