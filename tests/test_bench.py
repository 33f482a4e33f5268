"""`rlhf bench`: what it counts, and that both sides do the same work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import rlhf

from stages.bench.load import PROMPT_TOKENS, Examples, Load, flops

SMALL = ("bench", "ppo", "--size", "2M", "--batch", "8", "--micro", "4", "--response-length", "12", "--eos-bias", "0.2")
SMALL = (*SMALL, "--threads", "1", "--updates", "2", "--json")
BLOCKS = 4 * (4 * 128 * 128 + 3 * 128 * 384)  # weights of matrices in four blocks


def test_lengths_are_geometric_and_end_at_the_longest() -> None:
    lengths = Load(batch=20_000, response_length=1000, eos_bias=0.04).lengths()
    assert sum(lengths) / len(lengths) == pytest.approx(25, rel=0.03) and min(lengths) == 1
    assert max(Load(batch=500, response_length=30, eos_bias=0.04).lengths()) == 30
    assert set(Load(batch=5, response_length=7).lengths()) == {7}
    assert {len(prompt) for prompt in Load(batch=500).prompts()} == set(range(PROMPT_TOKENS[0], PROMPT_TOKENS[1] + 1))


def test_useful_operations() -> None:
    """Two a weight and token read, six trained: by 4 models that read, and 2 that learn in each of 3 epochs."""
    load = Load(size="2M", batch=4, ppo_epochs=3)
    body, head = BLOCKS * load.tokens(), 4096 * 128 * sum(load.lengths())
    counted = flops(load)
    assert counted["generation"] == 2 * (body + head) and counted["scoring"] == 2 * (3 * body + head)
    assert counted["training"] == 6 * 3 * (2 * body + head)


def test_sampling_reads_a_prompt_once() -> None:
    load = Load(size="2M", batch=12, responses_per_prompt=3)
    prompts = load.prompts()
    assert len(prompts) == 12 and prompts[0] == prompts[2] != prompts[3]
    read = sum(map(len, prompts)) / 3 + sum(load.lengths())
    assert flops(load)["generation"] == 2 * (BLOCKS * read + 4096 * 128 * sum(load.lengths()))


def test_a_step_of_ours(tmp_path: Path) -> None:
    done = rlhf(*SMALL, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    load = Load(size="2M", batch=8, micro=4, response_length=12, eos_bias=0.2, threads=1)
    assert set(found["phases"]) == {"generation", "scoring", "training"}
    seconds = found["seconds_per_update"]
    assert sum(found["phases"].values()) == pytest.approx(seconds, rel=0.5)
    whole = sum(flops(load).values())
    assert found["mfu"] == pytest.approx(whole / seconds / found["ceiling_gflops"] / 1e9, rel=1e-6)
    assert found["tokens_per_second"] == pytest.approx(load.tokens() / seconds)
    assert found["response_tokens"] == sum(load.lengths())
    assert found["peak_memory_bytes"] > 2**27 and "ratio" not in found


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--size", "3M"), "--size=3M: not known; use one of 2M, 15M"),
        (("--against", "verl"), "--against=verl: not known; use one of trl"),
        (("--against", "trl", "--micro", "3"), "--batch=16 with --micro=3: TRL wants whole micro-batches"),
        (("--against", "trl", "--device", "cuda"), "the baseline runs on the CPU"),
        (("generate", "--against", "trl"), "--against=trl: not known; use one of transformers"),
        (("generate", "--batch", "9", "--responses-per-prompt", "4"), "each prompt has as many; use a divisor"),
        (("sft", "--batch", "9"), "--batch=9 with --micro=8: a step is of whole micro-batches; use a divisor"),
        (
            ("reward", "--shortest", "300"),
            "--shortest=300 --longest=256: no lengths lie between them",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(options: tuple[str, ...], problem: str, tmp_path: Path) -> None:
    kind = ["ppo"] if options[0].startswith("-") else []
    done = rlhf("bench", *kind, *options, folder=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and problem in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.services
@pytest.mark.timeout(900)
def test_against_trl_on_the_same_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The release is downloaded into an empty cache; both start from the same weights, which is checked there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = rlhf(*SMALL, "--against", "trl", folder=tmp_path, seconds=800)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (tmp_path / "cache" / "rlhf" / "trl-1.12.0" / "trl" / "experimental" / "ppo").is_dir()
    theirs = found["against"]
    assert theirs["version"] == "1.12.0" and set(theirs["phases"]) == set(found["phases"])
    assert theirs["response_tokens"] == found["response_tokens"]
    assert found["ratio"] == pytest.approx(theirs["seconds_per_update"] / found["seconds_per_update"])
    assert found["ratio"] > 1


ONCE = ("--size", "2M", "--batch", "8", "--threads", "1", "--updates", "2", "--json")


@pytest.mark.services
@pytest.mark.parametrize("kind", ["reward", pytest.param("sft", marks=pytest.mark.soak)])
def test_trainers_have_the_loss_of_trls(kind: str, tmp_path: Path) -> None:
    done = rlhf("bench", kind, *ONCE, "--against", "trl", folder=tmp_path, seconds=400)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["loss"] == pytest.approx(found["against"]["loss"], abs=1e-4) and found["loss"] > 0
    assert set(found["phases"]) == {"training"} and 0 < found["mfu"] < 1
    lengths = [len(tokens) for tokens in Examples(size="2M").sequences(16 if kind == "reward" else 8)]
    assert found["tokens_per_second"] == pytest.approx(sum(lengths) / found["seconds_per_update"])
    assert min(lengths) >= 8 and 200 < max(lengths) <= 256
    assert found["ratio"] == pytest.approx(found["against"]["seconds_per_update"] / found["seconds_per_update"])


@pytest.mark.soak
def test_generation_samples_as_many_tokens_as_transformers(tmp_path: Path) -> None:
    options = ("--response-length", "20", "--eos-bias", "0.2", "--against", "transformers")
    done = rlhf("bench", "generate", *ONCE, *options, folder=tmp_path, seconds=400)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    wanted = sum(Load(size="2M", batch=8, response_length=20, eos_bias=0.2).lengths())
    assert found["response_tokens"] == found["against"]["response_tokens"] == wanted
    assert set(found["phases"]) == {"generation"} and 0 < found["mfu"] < 1
