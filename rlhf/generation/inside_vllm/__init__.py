"""What runs inside of vLLM, in its own environment: this folder is put on its path."""
