"""What README shows: one's own model and files, with adapters and bfloat16, through the whole chain."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet
from running import rlhf

from data import toy

RECIPE = """
name: my
model: {{path: {model}, dtype: bfloat16, lora: {{rank: 4, alpha: 8.0}}}}
data:
  demonstrations: [{{path: demonstrations.jsonl}}]
  comparisons: [{{path: comparisons.jsonl}}]
  prompts: [{{path: prompts.jsonl}}]
  test_fraction: 0.2
sft: {{epochs: 1, learning_rate: 1e-3, batch_size: 16}}
reward: {{learning_rate: 1e-3, batch_size: 16}}
ppo: {{steps: 2, prompts_per_step: 8, learning_rate: 1e-4, kl: {{coef: 0.05}}, generation: {{max_new_tokens: 8}}}}
evaluate: {{prompts: 8}}
tracking: {{wandb: {{mode: disabled}}}}
"""


def test_own_model_and_files(tiny_run: Path, tmp_path: Path) -> None:
    prompts = toy.prompts()[:200]
    lines = {
        "demonstrations": [
            {"prompt": d.prompt.text, "completion": d.completion} for d in toy.demonstrations(128, 0, prompts)
        ],
        "comparisons": [
            {
                "prompt": c.prompt.text,
                "chosen": c.chosen,
                "rejected": c.rejected,
                "tie": c.tie,
                "annotator": c.annotator,
            }
            for c in toy.comparisons(128, 0, prompts).records
        ],
        "prompts": [{"prompt": p.text} for p in prompts],
    }
    for kind, records in lines.items():
        (tmp_path / f"{kind}.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "my.yaml").write_text(RECIPE.format(model=tiny_run / "sft" / "model"))
    done = rlhf("run", "my.yaml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "my"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["reward"]["bayes_accuracy"] is None  # nobody knows it for votes from a file
    assert summary["ppo"]["judge"] == "reward model"
    assert (run / "ppo" / "adapter" / "adapter_model.safetensors").is_file()
    samples = pyarrow.parquet.read_table(next((run / "evaluate" / "samples").glob("*.parquet")))
    assert {row["prompt"] for row in samples.to_pylist()} <= {p.text for p in prompts}
