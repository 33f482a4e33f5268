"""The arithmetic of memory beside what torch's allocator gives; of stages, tests/soak/test_memory_taken.py has it."""

from __future__ import annotations

import pytest
import torch
from allocated import Allocated
from measurements import SHAPE, VOCABULARY
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, Qwen2Config

from rlhf import memory
from rlhf.config import GenerationConfig, PpoConfig
from rlhf.engine.ddp import DdpEngine
from rlhf.engine.optimizer import OptimizerOptions
from rlhf.logprobs import response_logprobs
from rlhf.memory import Computation, RolloutLoad
from rlhf.memory.parts import total_of
from rlhf.packing import accept
from rlhf.ppo.targets import Targets
from rlhf.ppo.update import update
from rlhf.shapes import shape_of_config
from rlhf.types import Experience

OPTIONS = OptimizerOptions(
    learning_rate=1e-4, learning_rate_end=0.1, warmup_steps=0, total_steps=9, weight_decay=0.0, max_grad_norm=1.0
)
LOAD = RolloutLoad(prompt=64, response=64, generation_rows=4, micro_batch_tokens=512)


@pytest.fixture(autouse=True)
def _by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Intel's processors too: its copy of an operand for the gradient of a weight is part of what is computed."""
    monkeypatch.setattr("rlhf.products.is_intels", lambda: False)


def test_peaks_between_marks_with_what_a_kernel_needs_for_itself() -> None:
    allocated = Allocated()
    wide = torch.zeros(1000, 1000)
    allocated.mark("kernel")
    wide.logsumexp(-1)  # makes a tensor of its size inside
    del wide
    allocated.mark("after")
    kept = torch.zeros(1000)
    peaks = allocated.peaks()
    assert peaks["loading"] == 4_000_000 and 8_000_000 <= peaks["kernel"] < 8_100_000
    assert kept.nbytes <= peaks["after"] < 100_000


@pytest.mark.parametrize("at_once", [2**24, 2**19], ids=["one chunk", "four"])
def test_an_update_of_the_policy_takes_what_is_computed(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of two micro-batches, so that moments and the gradients of a micro-batch before are there."""
    for module in ("rlhf.token_head", "rlhf.memory.forwards"):
        monkeypatch.setattr(f"{module}.AT_ONCE", at_once)
    settings = {**SHAPE, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "tie_word_embeddings": True}
    allocated = Allocated()
    model = AutoModelForCausalLM.from_config(Qwen2Config(**settings), attn_implementation="sdpa")
    accept(model)
    engine = DdpEngine(model, OPTIONS)
    tokens, mask = torch.zeros(4, 128, dtype=torch.long), torch.ones(4, 128, dtype=torch.bool)
    for _ in range(2):
        for last in (False, True):
            allocated.mark("update")
            with engine.micro_batch(last):
                engine.backward(response_logprobs(engine, tokens, mask, 64, 1.0).logprobs.sum())
        allocated.mark("optimizer")
        engine.step()
    measured = allocated.peaks()["update"]
    shape = shape_of_config({**settings, "model_type": "qwen2"}, "config.json")
    how = Computation(bfloat16=False, checkpointing=False, packed=shape.packs)
    computed = memory.ppo(shape, None, how, LOAD, critic=False).during("update")
    assert total_of({"policy": computed["policy"]}) == pytest.approx(measured, rel=0.05)


def test_an_update_of_both_models_takes_activations_of_one_at_a_time() -> None:
    """Two steps of two micro-batches: 8 rows of 64 + 64 tokens, 512 a forward."""
    settings = {**SHAPE, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "tie_word_embeddings": True}
    allocated = Allocated()
    kinds = (AutoModelForCausalLM, AutoModelForTokenClassification)
    models = [kind.from_config(Qwen2Config(**settings, num_labels=1), attn_implementation="sdpa") for kind in kinds]
    for model in models:
        accept(model)
    engines = [DdpEngine(model, OPTIONS) for model in models]
    tokens, mask = torch.zeros(8, 128, dtype=torch.long), torch.ones(8, 128, dtype=torch.bool)
    zeros = torch.zeros(8, 64)
    rows, ends = torch.arange(8), mask[:, 0]
    experience = Experience(tokens, mask, rows, mask[:, :64], zeros, zeros, zeros, zeros, zeros[:, 0], ends)
    targets = Targets(zeros + 1, zeros + 1, zeros, 0.0)
    config = PpoConfig(
        prompts_per_step=8,
        epochs=1,
        minibatches=1,
        micro_batch_tokens=512,
        generation=GenerationConfig(max_new_tokens=64),
    )
    allocated.mark("updates")
    for number in range(2):
        update(engines[0], engines[1], experience, targets, config, (0, number))
    measured = allocated.peaks()["updates"]
    shape = shape_of_config({**settings, "model_type": "qwen2"}, "config.json")
    computed = memory.ppo(shape, None, Computation(bfloat16=False, checkpointing=False, packed=shape.packs), LOAD)
    assert computed.peak == "update"
    roles = computed.during("update")
    assert total_of({role: roles[role] for role in ("policy", "value model")}) == pytest.approx(measured, rel=0.05)
