"""`make gpu-check OUT=FOLDER`: the whole way on a machine without network, with what its Python has.

    FOLDER/site/          what that Python lacks, from wheels that `make gpu-wheels` collected elsewhere
    FOLDER/gpu-check/     the run of the study `gpu-check`: on the GPU, or on the processor of a machine without one
    FOLDER/gpu-check.zip  its bundle, of which `medserve report` makes the report on any machine
    FOLDER/many-cores     and its bundle: where there are many cores, which verdicts of the processor hold here too

`python medserve/gpu_check.py collect FOLDER VERSION [NAME...]` collects wheels for a Python such as 3.12, and those of
further packages; `python medserve/gpu_check.py run FOLDER WHEELS` makes the check. Both need the standard library.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
STUDY, OF_CORES = "gpu-check", "many-cores"
MANY_CORES = 8
"""Cores from which on a machine is asked what its processor says."""
WITH_NEEDS = (
    "msgspec", "uvicorn", "uvloop", "httptools", "prometheus-client", "pillow", "typer", "rich", "locust", "psutil",
    "safetensors", "nvidia-ml-py",
)  # fmt: skip
"""Collected with all that they need."""
ALONE = (
    "pyarrow", "scipy", "onnxscript", "onnx-ir", "tf2onnx", "jax2onnx", "dm-pix", "equinox", "jaxtyping",
    "wadler-lindig",
)  # fmt: skip
"""Collected alone: what exporters need beside is a framework, which the machine has or has not."""
NUMPY = "numpy"
"""Not collected unless it is named: frameworks are built for the version that the machine has."""
UNUSED = re.compile(
    r"""(.*/)?tests/ | .*\.(pyx|pxd|pxi|h|c|cc|cpp)$
    | pyarrow/.*(flight|s3|orc|azure|gcs|hdfs|feather|gandiva)
    | pyarrow/lib\w+\.so(\.\d+\.\d+\.\d+)?$         # name.so and name.so.1.2.3: name.so.1 is loaded
    | scipy/(?!special/|_lib/|[^/]+$) | scipy/special/cython_special
    | scipy\.libs/lib(gfortran|quadmath)-[^-]+$        # of what is left out; OpenBLAS has its own
    | (PIL|pillow\.libs)/.*avif | locust/webui/
    """,
    re.VERBOSE,
)
"""Files of a wheel that a check does not import: tests, sources, formats of files and images, Locust's web page, and
all of SciPy but its special functions, which intervals need."""
LACKS = ("is not installed", "does not run on", "sees no", "no GPU", "needs a C++ compiler")
"""Words of a reason that is this machine's, not a fault: a row says it, and the check is passed."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def collect(folder: Path, python: str, *more: str) -> int:
    """Collect wheels into a folder, for 64-bit Linux on x86 and a Python, in the versions of constraints.txt."""
    constraints = HOME / "constraints.txt"
    pinned = [line.strip() for line in constraints.read_text().splitlines() if "==" in line]
    known = {line.split("==")[0].lower().replace("_", "-"): line for line in pinned}
    if unknown := [name for name in more if name not in known]:
        return _refuse(f"constraints.txt has no {', '.join(unknown)}; take names from it")
    alone = [known[name] for name in (*ALONE, *more)]
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", str(folder)]
    words += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    words += [f"--platform={name}" for name in PLATFORMS]
    for path in folder.glob("*.whl"):
        # Two versions of a package stop the installation.
        path.unlink()
    for asked in (["--constraint", str(constraints), *WITH_NEEDS], ["--no-deps", *alone]):
        if subprocess.run([*words, *asked], check=False).returncode:
            return _refuse(f"pip has no wheels for Python {python}, for the reason above; FOR is 3.11, 3.12 or 3.13")
    wheels = list(folder.glob("*.whl"))
    print(f"packing {len(wheels)} wheels smaller (about a minute)", flush=True)
    for path in wheels:
        _pack(path)
    size = sum(path.stat().st_size for path in wheels)
    print(f"{folder}: {len(wheels)} wheels for Python {python}, {size / 1e6:.0f} MB")
    return 0


def run(out: Path, wheels: Path) -> int:
    """Make the check into a folder. Returns 0 when all was measured but what this machine lacks."""
    site, version = out.resolve() / "site", ".".join(map(str, sys.version_info[:2]))
    lacking = [path for path in sorted(wheels.glob("*.whl")) if not _is_installed(path)]
    if lacking and not site.is_dir():
        words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(site)]
        if subprocess.run([*words, *map(str, lacking)], check=False).returncode:
            shutil.rmtree(site, ignore_errors=True)
            return _refuse(f"the wheels in {wheels} are not for this Python: make gpu-wheels FOR={version}")
    sys.path.insert(0, str(site))
    needed = (NUMPY, "scipy", "pyarrow", "msgspec", "locust")
    if absent := [name for name in needed if importlib.util.find_spec(name) is None]:
        mend = f"make gpu-wheels FOR={version}" + (f" MORE={NUMPY}" if NUMPY in absent else "")
        return _refuse(f"{sys.executable} has no {', '.join(absent)}; collect them where there is a network: {mend}")
    device = "cuda" if _has_gpu() else "cpu"
    where = "GPU" if device == "cuda" else "processor, for there is no GPU"
    print(f"on the {where}, with {sys.executable}", flush=True)
    paths = [str(site), str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    code = _measure(STUDY, device, out, env)
    if _cores() >= MANY_CORES:
        print(f"on the processor, with {_cores()} cores", flush=True)
        code = _measure(OF_CORES, "cpu", out, env) or code
    return code


def _pack(wheel: Path) -> None:
    """Write a wheel again without what is unused, compressed by LZMA, which pip unpacks too.

    Where `strip` is at hand, libraries lose what only a debugger reads, unless they were changed to find others in
    their wheel: `strip` may break those.
    """
    packed, strip = wheel.with_suffix(".packed"), shutil.which("strip")
    try:
        with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as new:
            names = old.namelist()
            is_alone = not any(".libs/" in name for name in names)
            for name in names:
                if UNUSED.match(name):
                    continue
                content = old.read(name)
                if strip and is_alone and name.endswith(".so") and b".debug_info" in content:
                    content = _stripped(strip, content)
                new.writestr(name, content)
        packed.replace(wheel)
    finally:
        packed.unlink(missing_ok=True)


def _stripped(strip: str, library: bytes) -> bytes:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(library)
        done = subprocess.run([strip, "--strip-debug", file.name], capture_output=True, check=False)
        return library if done.returncode else Path(file.name).read_bytes()


def _measure(study: str, device: str, out: Path, env: dict[str, str]) -> int:
    """Run a study and bundle it. Returns 0 when all was measured but what this machine lacks."""
    medserve = [sys.executable, "-m", "medserve.cli"]
    folder, bundle = out / study, out / f"{study}.zip"
    # Rows are marked where the self-test fails: a check is of what runs, not of how fast.
    asked = [*medserve, "run", study, "--device", device, "--out", str(folder), "--anyway"]
    subprocess.run(asked, check=False, env=env)
    if subprocess.run([*medserve, "bundle", str(folder), "--out", str(bundle)], check=False, env=env).returncode:
        return 1
    asked = [*medserve, "results", str(folder), "--format", "json"]
    rows = json.loads(subprocess.run(asked, check=True, env=env, stdout=subprocess.PIPE).stdout)
    done = [row for row in rows if row["status"] == "done"]
    failed = {row["reason"] for row in rows if row["status"] != "done"}
    for reason in sorted(failed):
        print(f"not measured: {reason}")
    unforeseen = [reason for reason in failed if not any(words in reason for words in LACKS)]
    print(f"{len(done)} of {len(rows)} rows measured, {len(unforeseen)} unforeseen reasons; take {bundle} with you")
    return int(bool(unforeseen) or not done)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _has_gpu() -> bool:
    found = shutil.which("nvidia-smi")
    return found is not None and subprocess.run([found], capture_output=True, check=False).returncode == 0


def _is_installed(wheel: Path) -> bool:
    try:
        metadata.version(wheel.name.split("-")[0])
    except metadata.PackageNotFoundError:
        return False
    return True


def _refuse(reason: str) -> int:
    print(f"error: {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    verb, target, given, *others = sys.argv[1:]
    try:
        sys.exit(collect(Path(target), given, *others) if verb == "collect" else run(Path(target), Path(given)))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
