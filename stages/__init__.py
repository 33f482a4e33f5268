"""One file, one stage, one `main`: sft, reward, ppo, evaluate; each also runs under torchrun and deepspeed."""
