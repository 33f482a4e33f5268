"""Decoding in recorded steps gives what decoding gives, and a recorded step holds nothing that a CUDA graph could not.

On a CPU a tape stands in for CUDA graphs (`tests/tape.py`); tests/gpu/test_graphs.py has the graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.config import GenerationConfig
from rlhf.errors import ConfigError
from rlhf.generation import native
from rlhf.generation.decoder import decoder_of
from rlhf.generation.graphs import COLUMNS, ROWS, GraphedDecoder, bucket, obstacle, step
from rlhf.generation.native import NativeGenerator
from rlhf.generation.slots import Slots, Turn, zeros
from rlhf.packing import pack
from rlhf.recipe import load_recipe
from rlhf.types import Sampled
from tests.tape import NotInAGraph, Tape, Watched
from tests.test_decoder import CASES, CPU, adapted, policy
from tests.test_packing import PAD, STOP, VOCABULARY

# Long and short, two of them several times: of nine rows in six slots some wait, share a prompt, and move.
PROMPTS = [[3, 4, 5, 6], [7], [3, 4, 5, 6], [8, 9, 10], [13] * 100, [13] * 100, [11, 12], [9], [3, 4, 5, 6]]
LIMITS = dict(enumerate([150, 20, 90, 60, 64, 40, 33, 150, 8]))


def sampled(model: Any, config: GenerationConfig, bfloat16: bool = False) -> Sampled:
    generator = NativeGenerator(model, -1, PAD, config, bfloat16)  # no token ends a response: its limit does
    generator.limits = LIMITS
    return generator.sample(PROMPTS, range(len(PROMPTS)), seed=1, step=2)


def graphed(monkeypatch: pytest.MonkeyPatch, tape: Tape) -> None:
    monkeypatch.setattr(native, "decoder_of", lambda *given: GraphedDecoder(decoder_of(*given), tape))  # type: ignore[arg-type]


@pytest.mark.parametrize(("architecture", "options"), CASES, ids=str)
def test_samples_are_those_of_plain_decoding(
    architecture: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = GenerationConfig(max_new_tokens=150, batch_size=6)
    model = policy(architecture, **options)
    plain = sampled(model, config)
    tape = Tape()
    graphed(monkeypatch, tape)
    found = sampled(model, config)
    assert torch.equal(found.responses, plain.responses)
    torch.testing.assert_close(found.logprobs, plain.logprobs, atol=2e-5, rtol=0)
    made = [(recorded.args[2].shape[1], recorded.args[3]) for recorded in tape.recorded]
    assert len(set(made)) == len(made)
    # Four rows or all six, up to 128 tokens or the 250 that a slot has room for.
    assert set(made) == {(4, 128), (6, 128), (6, 250), (4, 250)}
    assert tape.once_computed == 4 and tape.replayed > 120


def test_samples_in_bfloat16_are_those_of_plain_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    config = GenerationConfig(max_new_tokens=150, batch_size=6)
    model = policy("qwen2")
    plain = sampled(model, config, bfloat16=True)
    tape = Tape()
    graphed(monkeypatch, tape)
    found = sampled(model, config, bfloat16=True)
    assert tape.replayed > 120
    # Rounding may choose another token once, and then all that follow; each row's first tokens are the same.
    same = (found.responses == plain.responses)[:, :8]
    assert same.float().mean() > 0.9
    torch.testing.assert_close(found.logprobs[:, 0], plain.logprobs[:, 0], atol=1e-6, rtol=0)


def test_there_are_few_buckets() -> None:
    assert [bucket(number, 4, 100) for number in (1, 4, 5, 8, 9, 16, 17, 33, 49, 65, 97)] == [
        *(4, 4, 8, 8, 12, 16, 24, 48, 64, 96, 100)
    ]
    for grain, most in ((ROWS, 256), (ROWS, 3), (COLUMNS, 4096), (COLUMNS, 70)):
        found = [bucket(number, grain, most) for number in range(1, most + 1)]
        assert all(number <= each <= most for number, each in enumerate(found, 1)) and found == sorted(found)
        assert len(set(found)) <= 12
        # At most half as much again is computed for nothing, or up to the grain's next multiple.
        assert all(each < number + max(grain, number / 2 + 1) for number, each in enumerate(found, 1))


def prepared(model: Any, device: torch.device, kind: torch.dtype) -> tuple[Any, Slots]:
    """A decoder, and memory of six slots of 40 tokens of random keys and values, as prompts would have left it."""
    torch.manual_seed(5)
    decoder, slots = decoder_of(model, kind == torch.bfloat16), Slots(6, 40, kind)
    shape = model.config
    width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    for layer in range(shape.num_hidden_layers):
        like = torch.empty(0, device=device, dtype=kind)
        slots.memory[layer] = zeros((6 * 40, 2 * shape.num_key_value_heads, width), like).normal_()
    return decoder, slots


def turn_of(slots: Slots, positions: Tensor) -> Turn:
    """What the queue says of sequences that decode at positions, as `GraphedDecoder` reads it."""
    places = torch.arange(len(positions)) * slots.capacity + positions
    longest = int(positions.max()) + 1
    mask = torch.zeros(len(positions), longest).masked_fill(torch.arange(longest) > positions[:, None], -torch.inf)
    return Turn(places, None, 0, len(positions), longest, mask[:, None, None])


@torch.no_grad()
@pytest.mark.parametrize("poison", [0.0, 3e4, torch.nan])
def test_nobody_sees_what_is_behind_an_end_or_in_a_free_slot(poison: float) -> None:
    found, tape = [], Tape()
    for recorded in (False, True):
        decoder, slots = prepared(policy("qwen3"), CPU, torch.float32)
        graphs = GraphedDecoder(decoder, tape)
        positions = torch.tensor([3, 17, 39, 8, 1])
        for part in slots.memory.values():
            part.view(6, 40, -1)[5] = poison  # of the slot that nobody has
            behind = torch.arange(40) > positions[:, None]
            # Zero times what is not finite counts, so behind an end plain decoding bears numbers alone.
            part.view(6, 40, -1)[:5][behind] = 0.0 if math.isnan(poison) else poison
        for tokens in ([3, 4, 5, 6, 7], [8, 9, 10, 11, 12], [13, 14, 15, 16, 17]):  # warms up, records, replays
            slots.turn = turn_of(slots, positions)
            reads = graphs if recorded else decoder
            found.append(reads(torch.tensor(tokens), positions, slots, torch.arange(5)).clone())
            for part in slots.memory.values():  # a row that is none writes to one place alone
                free = part.view(6, 40, -1)[5, 1:]
                assert free.isnan().all() if math.isnan(poison) else (free == poison).all()
    assert tape.replayed == 2
    for plain, from_graph in zip(found[:3], found[3:], strict=True):
        assert plain.isfinite().all() and plain.shape == (5, VOCABULARY)
        torch.testing.assert_close(from_graph, plain, atol=1e-5 * float(plain.abs().max()), rtol=0)


@torch.no_grad()
def test_a_row_that_is_none_writes_to_the_first_place_of_its_slot_alone() -> None:
    """Also where a sequence has just left it."""
    decoder, slots = prepared(policy("llama"), CPU, torch.float32)
    graphs, positions = GraphedDecoder(decoder, Tape()), torch.tensor([3, 17, 39, 8, 1, 30])
    for first, count in enumerate((6, 6, 5, 4, 5), 3):
        for part in slots.memory.values():
            part.view(6, 40, -1)[count:].normal_()
        before = [part.clone().view(6, 40, -1) for part in slots.memory.values()]
        slots.turn = turn_of(slots, positions[:count])
        graphs(torch.arange(first, first + count), positions[:count], slots, torch.arange(count))
        for old, part in zip(before, slots.memory.values(), strict=True):
            changed = (part.view(6, 40, -1) != old).any(-1)
            written = torch.zeros(6, 40, dtype=torch.bool)
            written[torch.arange(count), positions[:count]] = True
            written[count:, 0] = True
            assert not (changed & ~written).any() and changed[:count].any()


@torch.no_grad()
def test_a_step_computed_twice_changes_nothing() -> None:
    decoder, slots = prepared(policy("llama"), CPU, torch.float32)
    given = torch.tensor([[3, 4, 5, 0], [9, 30, 2, 0]])
    first = step(decoder, slots, given, 40)
    memory = [part.clone() for part in slots.memory.values()]
    assert torch.equal(step(decoder, slots, given, 40), first)
    assert all(map(torch.equal, memory, slots.memory.values()))


@torch.no_grad()
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize(("architecture", "options"), CASES, ids=str)
def test_a_step_stays_on_its_device_and_asks_it_nothing(
    architecture: str, options: dict[str, Any], bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meta tensors have no numbers to ask for, and take the ways that any device but a CPU takes."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no meta device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)
    device = torch.device("meta")
    model = policy(architecture, **options).to(device)
    decoder, slots = prepared(model, device, torch.bfloat16 if bfloat16 else torch.float32)
    with Watched("meta") as watched:
        found = step(decoder, slots, torch.zeros(2, 4, dtype=torch.long, device=device), 32)
    assert found.shape == (4, 64)
    # No weights are copied to another dtype: a graph would do so at each replay.
    copies = [args[0] for function, args, *_ in watched.calls if "_to_copy" in str(function)]
    cast = {each.shape for each in copies if each.is_floating_point()}
    assert bool(cast) is bfloat16 and not cast & {weight.shape for weight in model.parameters() if weight.dim() == 2}


def test_what_a_graph_cannot_hold_is_seen() -> None:
    numbers = torch.tensor([1.0, 0.0, 2.0])
    for wrong in (
        lambda: numbers.sum().item(),
        lambda: numbers.nonzero(),
        lambda: numbers[numbers > 0],
        lambda: bool(numbers.any()),
    ):
        with pytest.raises(NotInAGraph), Watched("cpu"):
            wrong()
    with pytest.raises(NotInAGraph), Watched("meta"):
        torch.zeros(3, device="meta") + numbers.mean()


@torch.no_grad()
def test_other_memory_has_other_recordings() -> None:
    tape = Tape()
    model = policy("llama")
    decoder, _ = prepared(model, CPU, torch.float32)
    graphs = GraphedDecoder(decoder, tape)
    tokens, positions = torch.tensor([3, 4]), torch.tensor([5, 6])
    for _ in range(2):
        slots = prepared(model, CPU, torch.float32)[1]
        for _ in range(3):
            slots.turn = turn_of(slots, positions)
            found = graphs(tokens, positions, slots, torch.arange(2))
        slots.turn = turn_of(slots, positions)
        torch.testing.assert_close(found, decoder(tokens, positions, slots, torch.arange(2)), atol=1e-4, rtol=0)
    assert len(tape.recorded) == 2 and tape.once_computed == 2 and tape.replayed == 4


@torch.no_grad()
def test_a_hook_of_the_head_may_change_what_the_head_gets() -> None:
    """Else it would change what a graph keeps, or meet a tensor that nobody may write to."""

    def twice(_: object, inputs: tuple[Tensor, ...]) -> None:
        inputs[0].mul_(2.0)

    model, tape, found = policy("llama"), Tape(), []
    model.get_output_embeddings().register_forward_pre_hook(twice)
    decoder, slots = prepared(model, CPU, torch.float32)
    graphs, tokens, positions = GraphedDecoder(decoder, tape), torch.tensor([3, 4]), torch.tensor([5, 6])
    for _ in range(4):
        slots.turn = turn_of(slots, positions)
        found.append(graphs(tokens, positions, slots, torch.arange(2)))
    assert tape.replayed == 3
    for again in found[1:]:
        torch.testing.assert_close(again, found[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_prompts_and_unmade_memory_are_no_graphs() -> None:
    tape = Tape()
    decoder = decoder_of(policy("llama"), False)
    assert decoder is not None
    graphs, slots = GraphedDecoder(decoder, tape), Slots(2, 10, torch.float32)
    slots.turn = Turn(torch.tensor([0, 1, 2, 10]), pack([3, 1], CPU), 4, 0, 0, None)
    graphs(torch.tensor([3, 4, 5, 6]), torch.tensor([0, 1, 2, 0]), slots, torch.tensor([2, 3]))
    other = Slots(2, 10, torch.float32)
    other.turn = turn_of(other, torch.tensor([0, 0]))
    graphs(torch.tensor([3, 4]), torch.tensor([0, 0]), other, torch.arange(2))
    assert other.memory and not tape.once_computed and not tape.recorded


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
def test_what_has_no_graphs_says_why() -> None:
    device = torch.device("cuda")
    assert obstacle(policy("llama"), device, lockstep=False) is None
    assert "no CUDA device" in str(obstacle(policy("llama"), CPU, lockstep=False))
    assert "weights=replica" in str(obstacle(policy("llama"), device, lockstep=True))
    for unknown in (adapted(), policy("gpt2")):
        assert "by its modules" in str(obstacle(unknown, device, lockstep=False))
    changing = policy("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    assert "type dynamic" in str(obstacle(changing, device, lockstep=False))


def test_asked_for_on_a_cpu_they_change_nothing() -> None:
    model = policy("llama")
    wanted = GenerationConfig(max_new_tokens=20)
    generators = [NativeGenerator(model, STOP, PAD, wanted.model_copy(update={"cuda_graphs": on})) for on in (0, 1)]
    assert [generator.without_graphs for generator in generators] == [None, "there is no CUDA device"]
    plain, asked = (generator.sample(PROMPTS, range(9), seed=1, step=2) for generator in generators)
    assert torch.equal(plain.responses, asked.responses) and torch.equal(plain.logprobs, asked.logprobs)


def test_vllm_has_its_own(tmp_path: Any) -> None:
    (tmp_path / "recipe.yaml").write_text("ppo: {generation: {engine: vllm, weights: replica, cuda_graphs: true}}\n")
    with pytest.raises(ConfigError, match="cuda_graphs=true with engine=vllm: vLLM has graphs of its own; use cuda_g"):
        load_recipe(tmp_path / "recipe.yaml")


class Refusing(Tape):
    """A recorder that has no memory left."""

    def record(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB\nmore")


def test_where_recording_fails_the_batch_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    config = GenerationConfig(max_new_tokens=150, batch_size=6)
    model = policy("llama")
    plain = sampled(model, config)
    graphed(monkeypatch, Refusing())
    with pytest.warns(RuntimeWarning, match=r"without CUDA graphs \(CUDA out of memory. Tried to .* MiB\)$") as told:
        found = sampled(model, config)
    assert len(told) == 1 and torch.equal(found.responses, plain.responses)
