"""Commands of the documentation that cannot be run as they stand: what is run instead, and why."""

from __future__ import annotations

INSTEAD: dict[str, tuple[str, str]] = {
    "make demo": ("make -C $REPOSITORY -n demo", "takes five minutes"),
    "make test": ("make -C $REPOSITORY -n test", "would call itself"),
    "make install": ("make -C $REPOSITORY -n install", "fetches packages"),
    "make docs": ("make -C $REPOSITORY -n docs", "test_site_builds does it"),
    "make install TORCH_INDEX=https://download.pytorch.org/whl/cpu": (
        "make -C $REPOSITORY -n install TORCH_INDEX=https://download.pytorch.org/whl/cpu",
        "fetches packages",
    ),
    '.venv/bin/python -m pip install -c constraints.txt -e ".[docs]"': (
        "python -m pip install -c $REPOSITORY/constraints.txt mkdocs mkdocs-material --dry-run --no-index",
        "fetches packages",
    ),
    ". .venv/bin/activate": (
        'test -f "$(dirname "$(command -v rlhf)")/activate"',
        "the environment is that of the tests",
    ),
    "hf download Qwen/Qwen2.5-0.5B-Instruct --local-dir DATA/Qwen2.5-0.5B-Instruct": ("hf download --help", "no hub"),
    "hf download Anthropic/hh-rlhf --repo-type dataset --local-dir DATA/hh-rlhf --include "
    "helpful-base/train.jsonl.gz --include harmless-base/train.jsonl.gz": ("hf download --help", "no hub"),
    "rlhf run qwen2.5-0.5b-hh --data-dir DATA": (
        "rlhf run qwen2.5-0.5b-hh --data-dir DATA --dry-run || test $? -eq 2",
        "needs a GPU; tests/test_recipes_shipped.py runs it shrunk",
    ),
    "rlhf run qwen2.5-1.5b-ultrafeedback --data-dir DATA": (
        "rlhf run qwen2.5-1.5b-ultrafeedback --data-dir DATA --dry-run || test $? -eq 2",
        "needs eight GPUs; tests/test_recipes_shipped.py runs it shrunk",
    ),
    "torchrun --nproc-per-node 8 -m stages.ppo --recipe qwen2.5-1.5b-ultrafeedback --run-dir "
    "runs/qwen2.5-1.5b-ultrafeedback": (
        "python -m stages.ppo --help",
        "needs eight GPUs; that of README.md runs on two processes",
    ),
    "python tests/gpu/check.py --table gpu.md": (
        "python $REPOSITORY/tests/gpu/check.py --help",
        "needs a GPU; tests/test_gpu_check.py runs it on a CPU",
    ),
    "python tests/gpu/check.py --size half-billion --table gpu.md": (
        "python $REPOSITORY/tests/gpu/check.py --help",
        "needs a GPU",
    ),
    "python tests/imitated_gpu.py tests/gpu/check.py --size tiny --variants bfloat16-full": (
        "python $REPOSITORY/tests/imitated_gpu.py $REPOSITORY/tests/gpu/check.py --help",
        "takes a minute; tests/test_imitated_gpu.py runs it in float32",
    ),
    "rlhf sync demo tracking.mlflow.uri=http://127.0.0.1:5000": (
        "rlhf sync demo tracking.mlflow.uri=mlruns",
        "no server listens there; tests/test_tracking_mlflow.py has one",
    ),
    "rlhf study overoptimization --seeds 501,502,503 --steps 50 --at-once 2": (
        "rlhf study overoptimization --help",
        "takes half an hour; tests/test_overoptimization.py runs it on the tiny recipe",
    ),
    "rlhf study optimum --beta 0.25,0.5,1": (
        "rlhf study optimum --beta 0.25,1 --seeds 1 --steps 2",
        "takes half an hour; tests/soak/test_optimum.py does it",
    ),
    "rlhf study optimum --variants all --seeds 1,2,3 --output runs/studies/elsewhere": (
        "rlhf study optimum --variants all --seeds 1 --steps 1 --output runs/studies/elsewhere",
        "takes half an hour",
    ),
    "rlhf init": ("rlhf init --help", "asks a person"),
    "rlhf init my.yaml --sft-use ./Qwen2.5-0.5B-Instruct --comparisons votes/ --yes": (
        "rlhf init written.yaml --sft-use ./Qwen2.5-0.5B-Instruct --comparisons votes/ --yes && "
        "rlhf run written.yaml --dry-run",
        "my.yaml is that of the page",
    ),
    "rlhf init my.yaml --sft-use ./Qwen2.5-0.5B-Instruct --comparisons preferences.jsonl --yes": (
        "rlhf init written.yaml --sft-use ./Qwen2.5-0.5B-Instruct --comparisons preferences.jsonl --yes && "
        "rlhf run written.yaml --dry-run",
        "my.yaml is that of the page",
    ),
    "rlhf bench ppo --batch 64 --response-length 128 --eos-bias 0.04 --against trl": (
        "rlhf bench ppo --size 2M --batch 4 --response-length 8 --eos-bias 0.2 --updates 1",
        "takes eight minutes; tests/test_bench.py compares with TRL",
    ),
    "rlhf bench ppo --recipe demo ppo.micro_batch_tokens=8192": (
        "rlhf bench ppo --recipe demo ppo.prompts_per_step=4 --updates 1",
        "takes a minute",
    ),
    "rlhf bench generate --recipe qwen2.5-0.5b-hh --device cuda": (
        "rlhf bench generate --help",
        "wants a GPU, and the model's config.json",
    ),
    "rlhf bench generate --recipe qwen2.5-0.5b-hh model.lora=null ppo.generation.cuda_graphs=true --device cuda": (
        "rlhf bench generate --recipe demo ppo.generation.cuda_graphs=true ppo.prompts_per_step=4 --updates 1",
        "wants a GPU, and the model's config.json",
    ),
    "rlhf bench ppo --size 60M --batch 32 --response-length 64 --eos-bias 0.06 --against trl": (
        "rlhf bench ppo --help",
        "takes seven minutes; tests/test_bench.py compares with TRL",
    ),
    "rlhf bench generate --against vllm": (
        "rlhf bench generate --help",
        "wants vLLM's environment; tests/soak/test_vllm_server.py makes one",
    ),
    "rlhf bench generate --against vllm --dtype bfloat16": ("rlhf bench generate --help", "as the one before"),
    "rlhf bench ppo --against trl": ("rlhf bench ppo --help", "takes minutes, and the one before is alike"),
    "rlhf bench sft --against trl": ("rlhf bench sft --help", "takes minutes; tests/test_bench.py has it small"),
    "rlhf bench reward --against trl": ("rlhf bench reward --help", "takes minutes; tests/test_bench.py has it small"),
    "rlhf bench generate --against transformers": (
        "rlhf bench generate --size 2M --batch 4 --updates 1",
        "takes minutes",
    ),
    "rlhf generation serve demo --wait --python vllm/bin/python": (
        "rlhf generation serve --help",
        "vLLM has an environment of its own; tests/soak/test_vllm_server.py makes it",
    ),
    "rlhf launch my.yaml": (
        "rlhf launch my.yaml --dry-run",
        "goes on behind its end; tests/test_launch_here.py waits for it",
    ),
    "rlhf status demo": ("rlhf status --help", "the run of the tests was not launched"),
    "rlhf logs demo ppo": ("rlhf logs --help", "the run of the tests was not launched"),
    "rlhf cancel demo": ("rlhf cancel --help", "the run of the tests was not launched"),
    "rlhf run demo": ("rlhf run demo --dry-run", "takes five minutes"),
    "sysctl -w net.ipv4.tcp_retries2=7": ("cat /proc/sys/net/ipv4/tcp_retries2", "is a setting of the machine"),
    "export GLOO_SOCKET_IFNAME=eth0 TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1": ("true", "there may be no eth0"),
    "torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint 10.77.0.1:29400 --rdzv-conf "
    "is_host=true,join_timeout=60,read_timeout=20 --local-addr 10.77.0.1 --monitor-interval 0.5 --max-restarts 3 "
    "-m stages.ppo --recipe my.yaml --run-dir runs/my": (
        "torchrun --help | grep -e --local-addr",
        "needs two nodes; tests/test_network_faults.py has them",
    ),
    "torchrun --nproc-per-node 8 -m stages.ppo --recipe my.yaml --run-dir runs/my": (
        "torchrun --nproc-per-node 2 -m stages.ppo --recipe my.yaml --run-dir runs/my --restart",
        "has two cores, and the stage is complete",
    ),
    "rlhf doctor my.yaml --nodes node-1,node-2": (
        "rlhf doctor my.yaml --nodes localhost",
        "needs two nodes; tests/test_doctor_over_ssh.py has them",
    ),
    "rlhf doctor my.yaml --hosts hosts --site cluster.yaml --processes 8": (
        "rlhf doctor --help",
        "needs two nodes; tests/test_doctor_over_ssh.py has them",
    ),
    "rlhf doctor my.yaml --nodes 2 --rendezvous node-1:29400 --processes 8": (
        "rlhf doctor --help",
        "needs two nodes; tests/test_doctor_nodes.py has them",
    ),
    "pdsh -w node-1,node-2 'cd /shared && rlhf doctor my.yaml --nodes 2 --rendezvous node-1:29400'": (
        "rlhf doctor --help",
        "needs two nodes",
    ),
    "srun --nodes 4 --ntasks-per-node 1 rlhf doctor my.yaml --nodes 4 --rendezvous node-1:29400": (
        "rlhf doctor --help",
        "needs Slurm",
    ),
    "torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint node-1:29400 --no-python rlhf doctor "
    "my.yaml --nodes 2 --rendezvous node-1:29401": (
        "torchrun --nproc-per-node 2 --no-python rlhf doctor my.yaml --nodes 2 --rendezvous 127.0.0.1:29401",
        "there is one machine",
    ),
    "rlhf launch demo --on slurm --nodes 4 --gpus 8 --site cluster.yaml --run runs/slurm": (
        "rlhf launch demo --on slurm --nodes 4 --gpus 8 --site cluster.yaml --run runs/slurm --dry-run",
        "needs Slurm; tests/test_slurm.py has one",
    ),
    "rlhf status runs/slurm": ("rlhf status --help", "nothing was submitted; tests/test_slurm.py does"),
    "rlhf logs runs/slurm ppo --rank 3 -f": ("rlhf logs --help", "nothing was submitted; tests/test_slurm.py does"),
    "rlhf cancel runs/slurm": ("rlhf cancel --help", "nothing was submitted; tests/soak/test_slurm.py does"),
    "rlhf resume runs/slurm": ("rlhf resume --help", "nothing was submitted; tests/soak/test_slurm.py does"),
    "rlhf data drift votes.jsonl --every 7d": ("rlhf data drift --help", "the votes have no time"),
    "rlhf data drift votes.jsonl --batch-field batch": ("rlhf data drift --help", "the votes are in one batch"),
    "rlhf data groups votes.jsonl --by language --annotators people.csv --reference census.json": (
        "rlhf data groups --help",
        "there are no such files; tests/test_groups.py has them",
    ),
    "rlhf label up": ("rlhf label up --help", "runs until Ctrl-C; tests/test_label_studio.py starts one"),
    "rlhf label sample demo --prompts 500 --output responses.jsonl": (
        "rlhf label sample demo --prompts 5 --output responses.jsonl",
        "takes minutes at that size",
    ),
    'rlhf label push responses.jsonl --project "round 1" --overlap 3 --gold gold.jsonl': (
        "rlhf label push --help",
        "needs a server; tests/test_labelling_loop.py has one",
    ),
    "rlhf data check labels/round-1/votes.jsonl": (
        "rlhf data check votes.jsonl || test $? -eq 3",
        "nobody has voted; tests/test_labelling_loop.py does",
    ),
    "rlhf data consensus labels/round-1/votes.jsonl --output consensus.jsonl": (
        "rlhf data consensus votes.jsonl --output consensus.jsonl",
        "nobody has voted",
    ),
    "rlhf run my.yaml --from reward": (
        "rlhf run my.yaml --from reward --dry-run",
        "takes a minute, and the page has no SFT model; README.md runs all of it",
    ),
    'rlhf label watch --project "round 1"': ("rlhf label watch --help", "needs a server"),
    'rlhf label pull --project "round 1"': ("rlhf label pull --help", "needs a server"),
    'rlhf label report --project "round 1"': ("rlhf label report --help", "needs votes"),
    "transformers serve Qwen/Qwen2.5-7B-Instruct": (
        "transformers serve --help",
        "fetches a model; tests/test_judging_served.py starts one",
    ),
    "rlhf label judge demo --model Qwen/Qwen2.5-7B-Instruct --people labels/round-1/votes.jsonl": (
        "rlhf label judge --help",
        "needs a server; tests/test_judging_served.py has one",
    ),
    "rlhf label judge demo --url https://api.openai.com/v1 --model gpt-4.1-mini --count 500 "
    "--requests-per-minute 300 --budget-tokens 1000000": ("rlhf label judge --help", "costs money"),
    "rlhf data check votes.jsonl --words words.txt --classifier ./toxicity --label toxic --json": (
        "rlhf data check votes.jsonl --words words.txt --json",
        "needs a classifier; tests/test_data_flags.py trains one",
    ),
    "rlhf label select responses.jsonl --rewards seed-1 --rewards seed-2 --by disagreement --budget 200 "
    "--output next.jsonl": (
        "rlhf label select --help",
        "needs runs of other seeds; tests/test_selection.py has some",
    ),
}
