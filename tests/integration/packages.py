"""See that SLURM and the databases are installed: run as a script, this installs them where there are apt and root.

Exits with 1 and one line that says what to install where it cannot.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGES = {  # Debian's and Ubuntu's, by a program of each
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "slurmdbd": "slurmdbd",
    "munged": "munge",
    "mariadbd": "mariadb-server-core",
    "mariadb": "mariadb-client-core",
    "initdb": "postgresql",
}
SYSTEM = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def program(name: str) -> str | None:
    """Where a program is: daemons live in folders that ordinary users have not on their PATH."""
    return shutil.which(name, path=SYSTEM) or next(map(str, _postgresql(name)), None)


def missing() -> list[str]:
    """The packages of programs that are not here."""
    return [package for name, package in PACKAGES.items() if program(name) is None]


def main() -> None:
    """Install what is missing, or say what it is."""
    wanted = missing()
    if not wanted:
        return
    if shutil.which("apt-get") and os.geteuid() == 0:
        print(f"installing {' '.join(wanted)} with apt-get", flush=True)
        _apt("update", "-q")
        _apt("install", "-y", "-q", "--no-install-recommends", *wanted)
        wanted = missing()
    if wanted:
        sys.exit(
            "the tests on a real SLURM need packages that are not installed; as root, on Debian or Ubuntu: "
            f"apt-get install --no-install-recommends {' '.join(wanted)}"
        )


def _apt(*arguments: str) -> None:
    done = subprocess.run(
        ["apt-get", *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\napt-get {arguments[0]} failed")


def _postgresql(name: str) -> Sequence[Path]:
    """Debian keeps PostgreSQL's programs apart, by version; the newest first."""
    found = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
    return sorted(found, key=lambda path: int(path.parts[-3]) if path.parts[-3].isdigit() else 0, reverse=True)


if __name__ == "__main__":
    main()
