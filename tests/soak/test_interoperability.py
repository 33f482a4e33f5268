"""What a run leaves behind is taken up by TRL's trainers and by vLLM's model loader: `make soak ARGS="-k opens"`.

vLLM gets an environment of its own (`tests/vllm_environment.py`), made at the first run: 3.5 GB, some minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from running import ROOT, rlhf
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer
from vllm_environment import vllm_python

from data import toy
from tests.test_interoperability import ANSWERS, QUESTIONS, conversations, plain_scores, rendered

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore")]
HERE = Path(__file__).parent
NEW_TOKENS = 24
# A recipe that learns, so that greedy responses differ; vLLM's kernels for CPUs begin at heads of size 32.
LEARNING = str(ROOT / "tests" / "recipes" / "learning.yaml")
WIDER = ["model.init.heads=2", "ppo.steps=4"]
CONTEXT = 96


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run whose heads are as wide as vLLM wants them."""
    folder = tmp_path_factory.mktemp("wider")
    done = rlhf("run", LEARNING, *WIDER, folder=folder, seconds=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "learning"


@pytest.fixture(scope="module")
def adapted(run: Path) -> Path:
    """The same with adapters, from its SFT model on; the model handed on is the merged one."""
    folder = run.parents[1] / "adapted"
    folder.mkdir()
    model = f"model.path={json.dumps(str(run / 'sft' / 'model'))}"
    done = rlhf("run", LEARNING, model, "model.lora={rank: 4, alpha: 8.0}", *WIDER, folder=folder, seconds=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "learning"


def ask_vllm(request: dict[str, Any], folder: Path) -> list[Any]:
    """The answers of vLLM, in its own environment and without a network."""
    question, answer = folder / "request.json", folder / "answer.json"
    question.write_text(json.dumps(request))
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    command = [str(vllm_python()), str(HERE / "vllm_answers.py"), str(question), str(answer)]
    done = subprocess.run(command, cwd=folder, env={**environment, **own}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    answers: list[Any] = json.loads(answer.read_text())
    return answers


@pytest.mark.parametrize("kind", ["run", "adapted"])
def test_the_policy_opens_in_vllm(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    directory = request.getfixturevalue(kind) / "ppo" / "model"
    prompts = rendered(directory, [prompt.text for prompt in toy.prompts()[:32]])
    question = {
        "model": str(directory),
        "kind": "policy",
        "rows": prompts,
        "new_tokens": NEW_TOKENS,
        "context": CONTEXT,
    }
    answers = ask_vllm(question, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(directory).eval()
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = torch.tensor([prompt])
        with torch.no_grad():
            output = plain.generate(tokens, do_sample=False, max_new_tokens=NEW_TOKENS)
            logprobs = plain(tokens).logits[0, :-1].log_softmax(-1).gather(-1, tokens[0, 1:, None]).squeeze(-1)
        assert answer["response"] == output[0, len(prompt) :].tolist()
        assert answer["prompt_logprobs"] == pytest.approx(logprobs.tolist(), rel=1e-4, abs=1e-4)
    assert len({tuple(answer["response"]) for answer in answers}) > 1


def test_the_reward_model_opens_in_vllm(run: Path, tmp_path: Path) -> None:
    directory = run / "reward" / "model"
    plain = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    padded, rows = conversations(directory, AutoTokenizer.from_pretrained(directory).eos_token)
    question = {"model": str(directory), "kind": "reward", "rows": rows, "context": CONTEXT}
    assert ask_vllm(question, tmp_path) == pytest.approx(plain_scores(plain, padded).tolist(), rel=1e-4, abs=1e-4)


def options(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 3,
        "learning_rate": 1e-3,
        "bf16": False,
        "report_to": [],
        "use_cpu": True,
        "save_strategy": "no",
        "max_length": CONTEXT,
    }


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_the_policy_opens_in_trl(run: Path, tmp_path: Path) -> None:
    directory = run / "ppo" / "model"
    rows = [{"messages": turns(*pair)} for pair in zip(QUESTIONS, ANSWERS, strict=True)]
    trainer = SFTTrainer(
        model=str(directory), args=SFTConfig(**options(tmp_path)), train_dataset=Dataset.from_list(rows)
    )
    plain = AutoModelForCausalLM.from_pretrained(directory).eval()
    batch = torch.tensor([rendered(directory)[0]])
    with torch.no_grad():
        torch.testing.assert_close(trainer.model.eval()(batch).logits, plain(batch).logits, rtol=1e-5, atol=1e-5)
    assert trainer.processing_class.eos_token_id == AutoTokenizer.from_pretrained(directory).eos_token_id
    trainer.train()
    assert trainer.state.global_step == 2


def test_the_reward_model_opens_in_trl(run: Path, tmp_path: Path) -> None:
    directory = run / "reward" / "model"
    rows = [
        {"chosen": turns(question, answer), "rejected": turns(question, "No no no.")}
        for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    trainer = RewardTrainer(
        model=str(directory), args=RewardConfig(**options(tmp_path)), train_dataset=Dataset.from_list(rows)
    )
    plain = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    padded, _ = conversations(directory, "")
    torch.testing.assert_close(
        plain_scores(trainer.model.eval(), padded), plain_scores(plain, padded), rtol=1e-5, atol=1e-5
    )
    trainer.train()
    assert trainer.state.global_step == 2
