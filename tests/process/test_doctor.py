"""The doctor's findings: each on a machine made for it, and all on this one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medserve import doctor, machine


def test_it_looks_at_everything_and_knows_every_runtime(tmp_path: Path) -> None:
    found = doctor.examine(tmp_path / "not yet there")
    whats = [one.what for one in found]
    assert whats[:10] == [
        "cores", "busy", "frequency", "hyper-threads", "CPU quota", "memory", "disk", "ONNX Runtime", "GPU",
        "reduced precision",
    ]  # fmt: skip
    assert {"runtime null", "runtime onnx_runtime", "runtime saved_model"} <= set(whats)
    for one in found:
        assert (one.mend is None) == (one.level == "good"), one


def texts(monkeypatch: pytest.MonkeyPatch, found: dict[str, str]) -> None:
    monkeypatch.setattr(machine, "read_text", found.get)


@pytest.mark.parametrize(
    ("limit", "level"),
    [("max 100000", "good"), ("150000 100000", "bad")],
)
def test_a_quota_of_a_container_is_bad(monkeypatch: pytest.MonkeyPatch, limit: str, level: str) -> None:
    texts(monkeypatch, {"/sys/fs/cgroup/cpu.max": limit})
    found = doctor._quota()
    assert found.level == level
    assert level == "good" or "1.5 cores" in found.seen


@pytest.mark.parametrize(("governor", "level"), [("performance", "good"), ("powersave", "warn"), (None, "good")])
def test_a_governor_that_saves_power_is_named(
    monkeypatch: pytest.MonkeyPatch, governor: str | None, level: str
) -> None:
    path = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    texts(monkeypatch, {} if governor is None else {path: governor})
    assert doctor._frequency().level == level


def test_a_system_that_pins_no_process_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity")
    found = doctor._cores()
    assert found.level == "warn"
    assert "pins no process to a core" in found.seen


def test_little_memory_and_little_disk_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    texts(monkeypatch, {"/proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 1000000 kB"})
    assert doctor._memory().level == "warn"
    monkeypatch.setattr(doctor, "DISK_BYTES", 1 << 62)
    assert doctor._disk(tmp_path).level == "warn"


@pytest.mark.parametrize(
    ("ticks", "level", "word"),
    [((100, 100, 0), "good", "0%"), ((100, 50, 0), "warn", "50%"), ((100, 90, 10), "warn", "10.0%")],
)
def test_what_else_runs_is_seen(
    monkeypatch: pytest.MonkeyPatch, ticks: tuple[int, int, int], level: str, word: str
) -> None:
    looks = iter([(0, 0, 0), ticks])
    monkeypatch.setattr(doctor, "_times", lambda: next(looks))
    monkeypatch.setattr(doctor, "OBSERVED_SECONDS", 0.0)
    found = doctor._busy()
    assert found.level == level
    assert word in found.seen


def test_one_core_for_two_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cpus", lambda: (0,))
    assert doctor._cores().level == "bad"


def test_a_runtime_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.plugins, "missing", lambda _package, _name: ["openvino"])
    found = doctor._runtime("onnx_runtime")
    assert found.level == "warn"
    assert found.seen == "openvino is not installed"
    assert found.mend == "pip install --constraint constraints.txt --editable '.[onnx-runtime]'"


def test_a_runtime_for_gpus_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.plugins, "missing", lambda _package, _name: [])
    monkeypatch.setattr(machine, "gpus", list)
    assert doctor._runtime("onnx_tensorrt").seen == "runs on a GPU only, and this machine has none"
    monkeypatch.setattr(machine, "gpus", lambda: ["a GPU"])
    monkeypatch.setattr(doctor, "find_library", lambda _name: None)
    assert doctor._runtime("onnx_tensorrt").seen == "the library nvinfer is not found"
    monkeypatch.setattr(doctor, "find_library", lambda name: f"lib{name}.so")
    assert doctor._runtime("onnx_tensorrt").level == "good"


def test_a_runtime_that_needs_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.plugins, "missing", lambda _package, _name: [])
    monkeypatch.setattr(doctor.shutil, "which", lambda _name: None)
    found = doctor._runtime("aotinductor")
    assert (found.level, found.mend) == ("warn", "install g++")


@pytest.mark.parametrize(
    ("flags", "level"), [("fpu avx512_vnni avx512_bf16", "good"), ("fpu avx2", "warn"), ("fpu avx512_bf16", "warn")]
)
def test_precisions_without_instructions_are_named(monkeypatch: pytest.MonkeyPatch, flags: str, level: str) -> None:
    texts(monkeypatch, {"/proc/cpuinfo": f"model name : A\nflags : {flags}"})
    found = doctor._precisions()
    assert found.level == level
    assert ("no instructions" in found.seen) == (level == "warn")


def test_the_command_prints_findings_and_json() -> None:
    command = [sys.executable, "-m", "medserve.cli", "doctor"]
    said = subprocess.run([*command, "--json"], capture_output=True, check=False, env={**os.environ})
    findings = json.loads(said.stdout)
    assert {one["level"] for one in findings} <= {"good", "warn", "bad"}
    assert said.returncode == (1 if any(one["level"] == "bad" for one in findings) else 0)
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    assert "cores" in text
    assert "ONNX Runtime" in text


@pytest.mark.parametrize(
    ("gpu", "installed", "seen"),
    [
        ("H100, 580.65.06, 81559 MiB", {"nvidia-cudnn-cu13": "9.28"}, "nvidia-cudnn-cu13 9.28"),
        ("A100, 535.54.03, 40960 MiB", {"nvidia-cudnn-cu12": "9.28"}, "nvidia-cudnn-cu12 9.28"),
        (
            "A100, 535.54.03, 40960 MiB",
            {"nvidia-cudnn-cu13": "9.28"},
            "nvidia-cudnn-cu13 9.28; driver 535 is too old for CUDA 13, which needs 580",
        ),
        (
            "H100, 580.65.06, 81559 MiB",
            {"nvidia-cudnn-cu13": "9.28", "nvidia-cudnn-cu12": "9.1"},
            "nvidia-cudnn-cu13 9.28, nvidia-cudnn-cu12 9.1: versions of CUDA that overwrite each other's files",
        ),
    ],
)
def test_libraries_of_a_gpu_are_compared_with_its_driver_and_with_each_other(
    gpu: str, installed: dict[str, str], seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(machine, "gpus", lambda: [gpu])
    monkeypatch.setattr(machine, "versions", lambda *_: installed)
    finding = doctor._on_gpu("torchscript")
    assert finding.seen == seen
    assert finding.level == ("good" if seen.endswith("9.28") else "bad")


def test_a_library_that_is_found_twice_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libcudnn.so.9").write_bytes(b"")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{tmp_path}")
    monkeypatch.setattr(machine, "gpus", lambda: ["H100, 580.65.06, 81559 MiB"])
    monkeypatch.setattr(machine, "versions", lambda *_: {"jax-cuda13-plugin": "0.10.2"})
    finding = doctor._on_gpu("stablehlo")
    assert f"another cuDNN is in {tmp_path}, which LD_LIBRARY_PATH puts first" in finding.seen
    assert (finding.level, finding.mend) == ("warn", "unset LD_LIBRARY_PATH")
