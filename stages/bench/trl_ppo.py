"""The other side of `rlhf bench ppo --against trl`: updates of TRL's last PPOTrainer, on the same work.

    PYTHONPATH=FOLDER_OF_TRL_1.12.0 python -m stages.bench.trl_ppo '{"size": "15M", ...}'

TRL 1.13 and later have no PPOTrainer. Each response ends where the load says: its stop token is refused until then.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
import trl
from datasets import Dataset
from transformers import LogitsProcessorList, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer  # type: ignore[import-not-found]

from stages.bench.endings import Endings
from stages.bench.load import PAD, Load, Models, checksum, models
from stages.bench.turns import Turns
from stages.bench.words import tokenizer

UPDATES = 10_000  # more than anybody waits for: the other side says when it is enough


def main(load: Load) -> None:
    """Take turns until told to end."""
    torch.set_num_threads(load.threads)
    turns = Turns()
    made = models(load)
    generate = made.policy.generate

    sampled: list[int] = []

    def ending(*arguments: Any, **options: Any) -> Any:
        endings = Endings(load)
        output = generate(*arguments, logits_processor=LogitsProcessorList([endings]), **options)
        responses = output.sequences[:, endings.begun :]
        # Behind its stop token a row is padded.
        sampled.append(int((responses != PAD).sum()))
        return output

    made.policy.generate = ending
    ppo_trainer.batch_generation = turns.timed("generation", ppo_trainer.batch_generation)
    ppo_trainer.get_reward = turns.timed("scoring", ppo_trainer.get_reward)
    forward = ppo_trainer.forward
    ppo_trainer.forward = lambda *given, **named: (
        forward(*given, **named) if torch.is_grad_enabled() else turns.timed("scoring", forward)(*given, **named)
    )

    class Watch(TrainerCallback):
        """Takes turns between updates."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            turns.ready(checksum=checksum(made.policy), version=trl.__version__)
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds = time.perf_counter() - self.started
            turns.phases["training"] = seconds - sum(turns.phases.values())
            counted = sum(sampled)
            sampled.clear()
            if not turns.done(seconds, response_tokens=counted):
                os._exit(0)
            self.started = time.perf_counter()

    trainer(load, made, Path(tempfile.gettempdir()), Watch()).train()


def trainer(load: Load, made: Models, folder: Path, watch: Any) -> Any:
    """TRL's trainer; in its rollouts the whole batch is one forward."""
    config = PPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=load.micro,
        gradient_accumulation_steps=load.batch // load.micro,
        num_mini_batches=1,
        num_ppo_epochs=load.ppo_epochs,
        total_episodes=load.batch * UPDATES,
        response_length=load.response_length,
        local_rollout_forward_batch_size=load.batch,
        stop_token="eos",
        learning_rate=1e-5,
        report_to=[],
        num_sample_generations=0,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        seed=load.seed,
    )
    rows = Dataset.from_list([{"input_ids": prompt} for prompt in load.prompts()])
    return PPOTrainer(
        args=config,
        processing_class=tokenizer(load.shape.vocabulary),
        model=made.policy,
        ref_model=made.reference,
        reward_model=made.reward,
        value_model=made.value,
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[watch],
    )


if __name__ == "__main__":
    main(Load(**json.loads(sys.argv[1])))
