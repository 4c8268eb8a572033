"""What the suites need from outside, in `.cache/`: unpacked sdists, and an environment for each suite and Python.

Only pip is used, by package name. An sdist is pinned by version and by the SHA-256 of its file; what else a suite's
tests import is pinned by version in `requirements/<suite>.txt`.
"""

import dataclasses
import hashlib
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
CACHE = (HERE / ".cache").resolve()


@dataclasses.dataclass(frozen=True)
class Sdist:
    name: str
    version: str
    sha256: str

    @property
    def folder(self) -> pathlib.Path:
        return CACHE / f"{self.name}-{self.version}"

    def unpack(self) -> pathlib.Path:
        """Downloads, checks and unpacks it once; returns its folder."""
        marker = self.folder / ".sha256"
        if marker.is_file() and marker.read_text() == self.sha256:
            return self.folder
        print(f"conformance: getting the sdist of {self.name} {self.version}", flush=True)
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            archive = self._download(pathlib.Path(scratch))
            digest = hashlib.sha256(archive.read_bytes()).hexdigest()
            if digest != self.sha256:
                sys.exit(f"conformance: {archive.name} has SHA-256 {digest}, not {self.sha256}")
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
            shutil.rmtree(self.folder, ignore_errors=True)
            unpacked = pathlib.Path(scratch, f"{self.name}-{self.version}")
            (unpacked / ".sha256").write_text(self.sha256)
            unpacked.rename(self.folder)
        return self.folder

    def _download(self, into: pathlib.Path) -> pathlib.Path:
        # pip checks the hash itself. It also prepares the metadata of an sdist, hence the build isolation and its time.
        requirements = into / "requirements.txt"
        requirements.write_text(f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n")
        _pip(
            sys.executable, "download", "--no-deps", "--no-binary", self.name, "--require-hashes",
            "--dest", str(into), "--requirement", str(requirements),
        )  # fmt: skip
        (archive,) = into.glob("*.tar.gz")
        return archive


def _pip(python: str, *arguments: str) -> None:
    done = subprocess.run(
        [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"conformance: pip {arguments[0]} failed\n{done.stdout}")


def python_tag() -> str:
    """As in the names of wheels: cp311; free-threaded builds are apart, cp313t."""
    return f"cp{sys.version_info.major}{sys.version_info.minor}{sys.abiflags.replace('d', '')}"


def environment(name: str) -> str:
    """The interpreter of the virtual environment with `requirements/<name>.txt` for the running Python."""
    requirements = HERE / "requirements" / f"{name}.txt"
    folder = CACHE / f"{name}-{python_tag()}"
    python = folder / "bin" / "python"
    marker = folder / ".requirements"
    if not (marker.is_file() and marker.read_text() == requirements.read_text()):
        print(f"conformance: setting up the environment of {name}'s tests", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        base = getattr(sys, "_base_executable", sys.executable)
        subprocess.run([base, "-m", "venv", str(folder)], check=True)
        _pip(str(python), "install", "--requirement", str(requirements))
        marker.write_text(requirements.read_text())
    return str(python)


def library(name: str, version: str) -> pathlib.Path:
    """A folder with one package alone, for PYTHONPATH: what may be in one run and must not be in the other."""
    folder = CACHE / f"{name}-{version}-{python_tag()}"
    if not (folder / name).is_dir():
        print(f"conformance: installing {name} {version}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        _pip(sys.executable, "install", "--no-deps", "--target", str(folder), f"{name}=={version}")
    return folder


def has_test_package() -> bool:
    """Some distributions leave CPython's own tests out."""
    return pathlib.Path(sysconfig.get_path("stdlib"), "test", "test_asyncio", "utils.py").is_file()
