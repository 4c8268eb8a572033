"""Builds the extension modules and puts them beside their sources: `python tools/build.py BUILD_DIR`.

Run by `make build` with the Python of a virtual environment that has meson, ninja and Cython. Each environment has a
build directory of its own, and the names of the extension modules carry the Python they are for
(`handles.cpython-313-x86_64-linux-gnu.so`), so that one source tree serves several Pythons at once. A module is
replaced by rename: a process that has the old one loaded keeps it.
"""

import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

ROOT = pathlib.Path(__file__).resolve().parent.parent
CORE = pathlib.Path("netpoll_loop", "_core")
LOCK = "lock"


def configure(directory: pathlib.Path, bin_dir: pathlib.Path, env: dict[str, str]) -> None:
    """Runs `meson setup`, unless it has been run for this Python and this tree; ninja notices the rest by itself."""
    done = directory / "configured-for"
    wanted = f"{ROOT}\n{sys.executable}\n{sys.version}\n"
    if done.exists() and done.read_text() == wanted:
        return
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
    native = directory / "native.ini"
    native.write_text(f"[binaries]\npython = '{sys.executable}'\n")
    meson = [str(bin_dir / "meson"), "setup", "--native-file", str(native), str(directory), str(ROOT)]
    subprocess.run(meson, env=env, check=True)
    done.write_text(wanted)


def build(directory: pathlib.Path) -> None:
    """Configures if needed, compiles, installs in place. Raises CalledProcessError when a step fails."""
    bin_dir = pathlib.Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}"}
    configure(directory, bin_dir, env)
    subprocess.run([str(bin_dir / "ninja"), "-C", str(directory), "--quiet"], env=env, check=True)

    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    built = {path.name: path for path in (directory / CORE).glob(f"*{suffix}")}
    for path in (ROOT / CORE).glob(f"*{suffix}"):
        if path.name not in built:
            path.unlink()
    for name, path in built.items():
        target = ROOT / CORE / name
        if target.exists() and target.stat().st_mtime_ns == path.stat().st_mtime_ns:
            continue
        shutil.copy2(path, target.with_name(f".{name}.new"))
        os.replace(target.with_name(f".{name}.new"), target)
        print(f"built {CORE / name}")


def main() -> int:
    directory = pathlib.Path(sys.argv[1]).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            build(directory)
        except subprocess.CalledProcessError as error:
            return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
