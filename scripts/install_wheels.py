"""Install wheels of ``dist`` into the environment of the interpreter that runs this: those that tox.ini makes.

``python scripts/install_wheels.py agentrl-core[train] agentrl-ray`` installs the two, as users do, with what they
declare. What core's training is built on takes 3 GB and minutes: that is installed once, into a folder beside the
environment, and every environment looks there after its own packages. So an environment's own are what it declares
beyond that, or in another version. Wheels that are as they were at the last time are left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
WHEELS = CHECKOUT / "dist"
SHARED = "agentrl-core[train]"
PIP = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")


def main(requirements: list[str]) -> None:
    """Install ``requirements``, each the name of a distribution here; raises where pip fails."""
    here = Path(sys.prefix)
    folder = here.parent / f"shared-{sys.version_info[0]}.{sys.version_info[1]}"
    shared = share(folder)
    (Path(sysconfig.get_path("purelib")) / "shared.pth").write_text(f"{folder}\n")
    mark = here / "wheels.json"
    held = json.loads(mark.read_text()) if mark.exists() else {}
    wheels = {requirement: wheel_of(requirement) for requirement in requirements}
    wanted = {requirement: f"{shared} {content_of(wheel)}" for requirement, wheel in wheels.items()}
    if wanted.items() <= held.items():
        return
    pip("--find-links", str(WHEELS), *requirements)
    # The same versions, of another content, may have been there.
    pip("--no-index", "--no-deps", "--force-reinstall", *map(str, wheels.values()))
    mark.write_text(json.dumps(held | wanted))


def share(folder: Path) -> str:
    """Fill ``folder`` with what core's training is built on, unless it is there; returns what tells its content."""
    wheel = wheel_of(SHARED)
    with zipfile.ZipFile(wheel) as archive:
        [name] = [each for each in archive.namelist() if each.endswith(".dist-info/METADATA")]
        declared = [line for line in archive.read(name).decode().splitlines() if line.startswith("Requires-Dist")]
    pins = (CHECKOUT / "constraints.txt").read_text()
    content = hashlib.sha256("\n".join([*declared, pins]).encode()).hexdigest()
    mark = folder / "content"
    with alone(Path(f"{folder}.lock")):
        if not mark.exists() or mark.read_text() != content:
            shutil.rmtree(folder, ignore_errors=True)
            # Whether it fits what the environment has of its own says nothing.
            pip("--no-warn-conflicts", "--find-links", str(WHEELS), "--target", str(folder), SHARED)
            for path in folder.glob("agentrl*"):  # Core itself is every environment's own.
                shutil.rmtree(path)
            mark.write_text(content)
    return content


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold ``lock``, for which others wait: environments are made beside each other."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def wheel_of(requirement: str) -> Path:
    """The wheel of the distribution that ``requirement`` names."""
    name = requirement.partition("[")[0].replace("-", "_")
    found = list(WHEELS.glob(f"{name}-*.whl"))
    if len(found) != 1:
        sys.exit(f"{WHEELS} has {len(found)} wheels of {requirement}: run `make dist`")
    return found[0]


def content_of(wheel: Path) -> str:
    """What tells the files of ``wheel`` from others, whenever it was built."""
    with zipfile.ZipFile(wheel) as archive:
        files = sorted((each.filename, each.CRC) for each in archive.infolist())
    return hashlib.sha256(repr(files).encode()).hexdigest()


def pip(*arguments: str) -> None:
    """Run pip by the constraints, also where tox does not say so; without compiling, since little is imported."""
    pinned = {"PIP_CONSTRAINT": str(CHECKOUT / "constraints.txt"), "PIP_NO_COMPILE": "1"}
    subprocess.run([*PIP, *arguments], check=True, env=os.environ | pinned)  # noqa: S603


if __name__ == "__main__":
    main(sys.argv[1:])
