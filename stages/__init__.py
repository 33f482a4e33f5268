"""One file, one stage, one `main`: sft, reward, ppo, evaluate; each also runs under torchrun and deepspeed."""

import logging

# Where it is installed, peft imports bitsandbytes, which warns of a missing kernel before anybody can ask for quiet.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
