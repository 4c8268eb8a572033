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


def sources() -> str:
    """What a build directory was configured for: a new or removed source needs `meson setup` again."""
    names = [*ROOT.glob("netpoll_loop/netpoll/*.c"), *ROOT.glob("netpoll_loop/_core/*.pyx")]
    return "\n".join(sorted(str(name.relative_to(ROOT)) for name in names)) + "\n"


def build(directory: pathlib.Path) -> None:
    """Configures if needed, compiles, installs in place. Raises CalledProcessError when a step fails."""
    bin_dir = pathlib.Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}"}
    listed = directory / "sources.txt"
    if not listed.exists() or listed.read_text() != sources():
        reconfigure = ["--reconfigure"] if (directory / "build.ninja").exists() else []
        native = directory / "native.ini"
        native.write_text(f"[binaries]\npython = '{sys.executable}'\n")
        meson = [str(bin_dir / "meson"), "setup", *reconfigure, "--native-file", str(native)]
        subprocess.run([*meson, str(directory), str(ROOT)], env=env, check=True)
        listed.write_text(sources())
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
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            build(directory)
        except subprocess.CalledProcessError as error:
            return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
