"""A policy's weights as a server is given them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf.config import LoraConfig
from rlhf.generation.weights import weights_of
from rlhf.models import add_lora, save_model
from tests.test_models import tiny_policy, tiny_tokenization

TOKENIZATION = tiny_tokenization()
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]


@pytest.mark.parametrize("turned", [False, True])
def test_weights_are_those_of_the_merged_model_under_its_checkpoint_s_names(turned: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = tiny_policy()
    if turned:  # layers that keep their weights [in, out]
        vocabulary = len(TOKENIZATION.tokenizer)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2, n_positions=64))
    model = add_lora(model, LoraConfig(rank=2, alpha=4.0), "policy")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    found = {weight.name: weight.make() for weight in weights_of(model)}
    shapes = {weight.name: weight.shape for weight in weights_of(model)}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in found.items()}
    save_model(copy.deepcopy(model), TOKENIZATION, tmp_path / "model")
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert found.keys() == saved.keys()
    for name, tensor in found.items():
        assert torch.allclose(tensor, saved[name], atol=1e-6), name
