"""The last release of TRL that had a PPO trainer, in a cache of its own: it is measured against, and never imported."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from launch.local import stage_environment
from rlhf.errors import ConfigError

VERSION = "1.12.0"
SHA256 = "9c8f117b21a941edbc85744f5a341c9453d38e81f24ae81d3c6e9b9ca3b96409"


def trl_with_ppo() -> Path:
    """A directory to put on the path before others. Raises ConfigError where the wheel cannot be had."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlhf"
    place = cache / f"trl-{VERSION}"
    if place.is_dir():
        return place
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"trl=={VERSION}", "-d", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=stage_environment(1))
        wheels = list(Path(folder).glob("*.whl"))
        if not wheels:
            said = done.stderr.strip().splitlines()
            why = said[-1] if said else "no reason given"
            raise ConfigError(f"--against trl: pip cannot download trl {VERSION} ({why}); it must be reached once")
        found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
        if found != SHA256:
            raise ConfigError(f"--against trl: {wheels[0].name} has checksum {found[:16]}..., not {SHA256[:16]}...")
        unpacked = Path(folder) / "unpacked"
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extractall(unpacked)
        try:
            unpacked.replace(place)
        except OSError:
            if not place.is_dir():  # another process was faster
                raise
    return place
