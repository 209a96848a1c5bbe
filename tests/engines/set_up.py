"""``python -m tests.engines.set_up``: what the engines' tests need and pip does not bring. Quick when it is there.

Slurm, munge and iproute2 come from Debian's packages, as root; Ray goes into a virtual environment of its own, because
it is as large as ours. Exit status 3: this machine cannot have them, and one line has said why.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WANTED = "GRADIOMETER_ENGINES"
"""Set by `make engines`: run the tests in this folder."""
ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {"sbatch": "slurm-client", "slurmctld": "slurmctld", "slurmd": "slurmd", "munged": "munge", "ip": "iproute2"}
"""What must be found, and Debian's package that brings it."""
SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
CANNOT = 3


def main() -> int:
    if sys.platform != "linux" or os.geteuid() != 0:
        return cannot("they need Linux and root (for Slurm's daemons and for network namespaces)")
    if missing := missing_packages():
        if shutil.which("apt-get") is None:
            return cannot(f"{', '.join(missing)} are not installed, and there is no apt-get to install them with")
        print(f"Installing {', '.join(missing)}", flush=True)
        if not install(missing):
            return cannot(f"apt-get could not install {', '.join(missing)}; its words are above")
    if subprocess.run(["ip", "netns", "list"], capture_output=True, env=environment()).returncode:
        return cannot("this kernel gives no network namespaces")
    if not ray_python().exists():
        print(f"Installing Ray into {ray_folder()} (about 400 MB, once)", flush=True)
        if not install_ray():
            return cannot("Ray could not be installed; pip's words are above")
    return 0


def cannot(why: str) -> int:
    print(f"The engines' tests cannot run on this machine: {why}. Everything else is tested by `make test`.")
    return CANNOT


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": SYSTEM_PATH}


def missing_packages() -> list[str]:
    return [package for command, package in COMMANDS.items() if shutil.which(command, path=SYSTEM_PATH) is None]


def install(packages: list[str]) -> bool:
    """Without starting a daemon: a policy-rc.d that is found first on the PATH does not exist, so one is put in place
    for as long as it takes, unless the machine has its own."""
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    quiet = {**environment(), "DEBIAN_FRONTEND": "noninteractive"}
    try:
        if ours:
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
        update = subprocess.run(["apt-get", "update", "-qq"], env=quiet)
        words = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
        return update.returncode == 0 and subprocess.run(words, env=quiet).returncode == 0
    finally:
        if ours:
            policy.unlink(missing_ok=True)


def ray_folder() -> Path:
    """One for all checkouts of this user, by the version in constraints.txt."""
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    version = next(line.partition("==")[2].split()[0] for line in pins if line.startswith("ray=="))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "gradiometer" / f"ray-{version}-py{sys.version_info[0]}.{sys.version_info[1]}"


def ray_python() -> Path:
    return ray_folder() / "bin" / "python"


def install_ray() -> bool:
    """Beside its place first: a half that was broken off is never taken for a whole."""
    folder = ray_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    version = folder.name.split("-")[1]
    marker = Path(tempfile.mkdtemp(prefix=folder.name + ".", dir=folder.parent))
    made = subprocess.run([sys.executable, "-m", "venv", str(marker)])
    pip = [str(marker / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    if made.returncode or subprocess.run([*pip, f"ray[default]=={version}"]).returncode:
        shutil.rmtree(marker, ignore_errors=True)
        return False
    marker.rename(folder)
    return True


if __name__ == "__main__":
    sys.exit(main())
