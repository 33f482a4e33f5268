"""Programs that tests need and Debian has: installed where they are missing, or a failure that says what to install."""

from __future__ import annotations

import os
import shutil
import subprocess


def require(packages: str, *programs: str) -> None:
    """Have programs on the path, from packages (their names with spaces between)."""
    # Where sbin is not on the path, as in many a shell that is no login.
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    missing = [program for program in programs if shutil.which(program, path=places) is None]
    if missing and shutil.which("apt-get"):
        # A package's scripts would start daemons of the system's, were there an init to ask.
        quiet = {**os.environ, "RUNLEVEL": "1", "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "-o", "DPkg::Lock::Timeout=120", "install", "-y", "--no-install-recommends"]
        if subprocess.run([*install, *packages.split()], env=quiet, check=False).returncode:
            subprocess.run(["apt-get", "update"], env=quiet, check=False)  # its lists may be old, or none
            subprocess.run([*install, *packages.split()], env=quiet, check=False)
    missing = [program for program in programs if shutil.which(program, path=places) is None]
    assert not missing, f"needs {', '.join(missing)}: apt-get install {packages}"
