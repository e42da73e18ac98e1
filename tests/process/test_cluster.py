"""Studies on workers of a real scheduler. All of them have this one host: units of two kinds of machines take turns."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from conftest import Stage

from medserve import store, study_file, units
from medserve.cluster import Cluster, check_address
from medserve.errors import BadInput, CannotRun
from medserve.result import Result
from medserve.units import Lost

STUDY = """
name = "mini"
title = "Mini"
datasets = ["synthetic"]
sizes = [28]
architectures = ["cnn"]
frameworks = ["pytorch"]
formats = ["onnx"]
runtimes = ["onnx_runtime"]
launches = {launches}
machines = ["a", "b"]
recipe = {{ epochs = 1 }}

[[measure]]
profiles = ["in-process-1"]
seconds = 0.2
warmup_seconds = 0.1
requests = 0
"""


def write(tmp_path: Path, launches: int = 1, **instead: str) -> Path:
    path = tmp_path / "mini.toml"
    text = STUDY.format(launches=launches)
    for old, new in instead.items():
        text = text.replace(old, new)
    path.write_text(text)
    return path


@contextmanager
def running(*words: str, log: Path, **env: str) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("ab") as file:
        child = subprocess.Popen([sys.executable, "-m", *words], stdout=file, stderr=file, env={**os.environ, **env})
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def wait_for(what: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.05)


def scheduler(port: int, tmp_path: Path) -> AbstractContextManager["subprocess.Popen[bytes]"]:
    return running("medserve.cli", "scheduler", f"127.0.0.1:{port}", log=tmp_path / "scheduler.log")


@pytest.fixture
def port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def worker(port: int, name: str, tmp_path: Path) -> AbstractContextManager["subprocess.Popen[bytes]"]:
    words = ("medserve.cli", "worker", f"127.0.0.1:{port}", "--kind", name[0], "--folder", str(tmp_path / name))
    return running(*words, log=tmp_path / f"{name}.log")


def processes(*words: str) -> list[psutil.Process]:
    """Those that run these words, whoever began them."""
    found = []
    for one in psutil.process_iter():
        try:
            if " ".join(words) in " ".join(one.cmdline()) and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
        except psutil.Error:
            continue
    return found


def results(out: Path) -> list[Result]:
    return [store.read_json(path, Result) for path in sorted(out.glob("machines/*/results/*/*/result.json"))]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.0.0.1:8786", "its port runs the code of every client"),
        ("tcp://example.org:8786", "its port runs the code of every client"),
        ("http://127.0.0.1:8786", "expected HOST:PORT"),
        ("127.0.0.1", "expected HOST:PORT"),
    ],
)
def test_an_address_that_everybody_could_use_or_that_is_none_is_refused(address: str, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        check_address(address)


def test_certificates_or_the_loopback_address_are_taken() -> None:
    assert check_address("localhost:8786") == "tcp://localhost:8786"
    assert check_address("tls://example.org:8786") == "tls://example.org:8786"


def test_no_scheduler_is_one_line(stage: Stage, tmp_path: Path, port: int) -> None:
    done = stage("medserve.cli", "run", str(write(tmp_path)), "--out", str(tmp_path / "run"),
                 "--scheduler", f"127.0.0.1:{port}")  # fmt: skip
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert f"no scheduler at 127.0.0.1:{port}" in lines[0]


def test_without_dask_it_says_what_to_install(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "distributed").mkdir()
    (tmp_path / "distributed" / "__init__.py").write_text(
        "raise ModuleNotFoundError('distributed is absent', name='distributed')"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = stage("medserve.cli", "run", str(write(tmp_path)), "--scheduler", "127.0.0.1:1", PYTHONPATH=path)
    assert done.returncode == 2
    assert "pip install 'medserve[cluster]'" in done.stderr


def test_a_study_on_two_kinds_of_machines_with_a_plain_worker_beside(stage: Stage, tmp_path: Path, port: int) -> None:
    study, out = write(tmp_path), tmp_path / "run"
    words = ("medserve.cli", "run", str(study), "--out", str(out), "--scheduler", f"127.0.0.1:{port}", "--json")
    with ExitStack() as stack:
        stack.enter_context(scheduler(port, tmp_path))
        for name in ("a", "b"):
            stack.enter_context(worker(port, name, tmp_path))
        plain = ("distributed.cli.dask_worker", f"tcp://127.0.0.1:{port}", "--no-nanny", "--no-dashboard")
        stack.enter_context(running(*plain, log=tmp_path / "plain.log"))
        with running(*words, log=tmp_path / "run.log") as run:
            wait_for(lambda: bool(processes("medserve.units", str(tmp_path))) or run.poll() is not None)
            (measuring,) = processes("medserve.units", str(tmp_path))
            variables = measuring.environ()
            run.wait(300)
        text = (tmp_path / "run.log").read_text()
        assert run.returncode == 0, text
        again = stage(*words[:-1])
    # Dask's nanny would have set them for all that is below it.
    assert "MALLOC_TRIM_THRESHOLD_" not in variables
    assert variables.get("OMP_NUM_THREADS") == os.environ.get("OMP_NUM_THREADS")
    steps = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert [step["kind"] for step in steps if step["state"] == "done"] == ["train", "export", "measure", "measure"]
    assert {(result.status, result.launch) for result in results(out)} == {("done", 0)}
    assert len(results(out)) == 4
    assert [Path(run).name for run in steps[-1]["runs"]] == ["a", "b"]
    # What is done is not done again.
    assert again.returncode == 0, again.stderr
    assert "measure" not in again.stderr
    assert (out / "comparison" / "report.html").is_file()
    for kind in ("a", "b"):
        verified = stage("loadtest", "verify", str(out / "machines" / kind))
        assert verified.returncode == 0, verified.stderr


@pytest.mark.full
def test_workers_killed_at_twenty_moments_lose_and_double_nothing(stage: Stage, tmp_path: Path, port: int) -> None:
    study, out = write(tmp_path, launches=12), tmp_path / "run"
    words = ("medserve.cli", "run", str(study), "--out", str(out), "--scheduler", f"127.0.0.1:{port}", "--json")
    seed = random.randrange(10**6)
    chance, kills, most = random.Random(seed), 0, 0
    with ExitStack() as stack:
        stack.enter_context(scheduler(port, tmp_path))
        for name in ("a1", "a2", "b1"):
            stack.enter_context(worker(port, name, tmp_path))
        wait_for(lambda: len(processes("medserve.cluster", f"tcp://127.0.0.1:{port}")) == 3)
        with running(*words, log=tmp_path / "run.log") as run:
            due = time.monotonic() + chance.uniform(3, 8)
            while run.poll() is None:
                measuring = [one for one in processes("medserve.units") if str(tmp_path) in " ".join(one.cmdline())]
                most = max(most, len(measuring))
                victims = processes("medserve.cluster", f"tcp://127.0.0.1:{port}")
                if kills < 20 and time.monotonic() > due and victims:
                    os.kill(chance.choice(victims).pid, signal.SIGKILL)
                    kills, due = kills + 1, time.monotonic() + chance.uniform(1, 6)
                time.sleep(0.05)
        text = (tmp_path / "run.log").read_text()
        assert run.returncode == 0, f"seed {seed}: {text}"
    found = results(out)
    assert len(found) == 2 * 2 * 12
    assert {result.status for result in found} == {"done"}, seed
    assert most == 1, seed
    assert kills == 20, f"seed {seed}: the run ended after {kills} kills"
    steps = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    ended = [(step["kind"], step["name"]) for step in steps if step["state"] == "done"]
    assert sorted(ended) == sorted([
        ("train", "synthetic-28-cnn-pytorch-s0"), ("export", "synthetic-28-cnn-pytorch-s0.onnx"),
        ("measure", "mini on a"), ("measure", "mini on b"),
    ])  # fmt: skip


@pytest.mark.full
def test_a_scheduler_that_dies_between_two_questions_is_said(tmp_path: Path, port: int) -> None:
    with scheduler(port, tmp_path) as first, worker(port, "a", tmp_path):
        wait_for(lambda: "scheduler at" in (tmp_path / "scheduler.log").read_text())
        cluster = Cluster(f"127.0.0.1:{port}")
        wait_for(lambda: bool(cluster.workers()))
        (address,) = cluster.workers()
        assert cluster.ask(address, os.getpid) != os.getpid()
        with pytest.raises(FileNotFoundError):
            cluster.ask(address, os.listdir, str(tmp_path / "none"))
        first.kill()
        first.wait()
        with pytest.raises(CannotRun, match="the same command goes on"):
            for _ in range(3):
                with suppress(Lost):
                    cluster.ask(address, os.getpid)
        cluster.close()


@pytest.mark.full
def test_a_scheduler_or_a_client_that_dies_and_comes_back(stage: Stage, tmp_path: Path, port: int) -> None:
    study, out = write(tmp_path, launches=6), tmp_path / "run"
    words = ("medserve.cli", "run", str(study), "--out", str(out), "--scheduler", f"127.0.0.1:{port}", "--json")
    with ExitStack() as stack:
        for name in ("a", "b"):
            stack.enter_context(worker(port, name, tmp_path))
        with scheduler(port, tmp_path) as first, running(*words, log=tmp_path / "run.log") as run:
            wait_for(lambda: (out / "checkpoints").is_dir())
            first.kill()
            run.wait(120)
            assert run.returncode == 1
            assert "the same command goes on" in (tmp_path / "run.log").read_text()
        stack.enter_context(scheduler(port, tmp_path))
        with running(*words, log=tmp_path / "again.log") as run:
            wait_for(lambda: bool(processes("medserve.units", str(tmp_path))))
            run.kill()
        done = stage(*words)
        assert done.returncode == 0, done.stderr
    assert "train" not in {json.loads(line)["kind"] for line in done.stdout.splitlines()[:-1]}
    assert {result.status for result in results(out)} == {"done"}
    assert len(results(out)) == 2 * 2 * 6


@pytest.mark.full
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
def test_with_certificates_and_without(stage: Stage, tmp_path: Path, port: int) -> None:
    files = {name: str(tmp_path / f"{name}.pem") for name in ("cert", "key")}
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=medserve"]
    subprocess.run([*words, "-keyout", files["key"], "-out", files["cert"]], check=True, capture_output=True)
    prefix = "DASK_DISTRIBUTED__COMM__"
    env = {f"{prefix}REQUIRE_ENCRYPTION": "true", f"{prefix}TLS__CA_FILE": files["cert"]}
    for part in ("SCHEDULER", "WORKER", "CLIENT"):
        env |= {f"{prefix}TLS__{part}__CERT": files["cert"], f"{prefix}TLS__{part}__KEY": files["key"]}
    study, out, address = write(tmp_path), tmp_path / "run", f"tls://127.0.0.1:{port}"
    study.write_text(study.read_text().replace('machines = ["a", "b"]', ""))
    run = ("medserve.cli", "run", str(study), "--out", str(out), "--json", "--scheduler")
    own = ("medserve.cli", "worker", address, "--folder", str(tmp_path / "w"))
    with (
        running("medserve.cli", "scheduler", address, log=tmp_path / "scheduler.log", **env),
        running(*own, log=tmp_path / "w.log", **env),
    ):
        done = stage(*run, address, **env)
        assert done.returncode == 0, done.stderr
        for without in (stage(*run, address), stage(*run, f"127.0.0.1:{port}")):
            assert without.returncode == 2, without.stderr
            assert "no scheduler at" in without.stderr
    # Without kinds, and undivided, it is an ordinary run.
    verified = stage("medserve.cli", "run", str(study), "--out", str(out))
    assert verified.returncode == 0, verified.stderr


@pytest.mark.full
def test_a_kind_that_nobody_has_is_rows(stage: Stage, tmp_path: Path, port: int) -> None:
    study, out = write(tmp_path), tmp_path / "run"
    with scheduler(port, tmp_path), worker(port, "a", tmp_path):
        done = stage("medserve.cli", "run", str(study), "--out", str(out), "--scheduler", f"127.0.0.1:{port}")
    assert done.returncode == 1
    reasons = {result.reason for result in results(out) if result.status == "failed"}
    assert reasons == {"no worker of the kind b; there is: a"}
    assert "no worker of the kind b; there is: a" in done.stderr


def test_who_waits_to_be_alone_lets_no_other_in(tmp_path: Path) -> None:
    script = (
        "import sys, time, tempfile; tempfile.tempdir = sys.argv[2]\n"
        "from medserve import units\n"
        "with units.holding_host(alone=sys.argv[1] == 'alone'):\n"
        "    print('in', flush=True); sys.stdin.readline()\n"
    )

    def enter(how: str) -> "subprocess.Popen[bytes]":
        return stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", script, how, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        )

    def is_in(child: "subprocess.Popen[bytes]") -> bool:
        assert child.stdout is not None
        return child.stdout.readline() == b"in\n"

    def blocked(child: "subprocess.Popen[bytes]") -> bool:
        """Whether the kernel lists it among those that wait for a lock."""
        return f" {child.pid} " in "".join(
            line for line in Path("/proc/locks").read_text().splitlines(True) if "->" in line
        )

    def leave(child: "subprocess.Popen[bytes]") -> None:
        child.communicate(b"\n")

    with ExitStack() as stack:
        one, two = enter("beside"), enter("beside")
        assert is_in(one)
        assert is_in(two)
        alone = enter("alone")
        wait_for(lambda: blocked(alone))
        late = enter("beside")
        wait_for(lambda: blocked(late))
        leave(one)
        two.kill()  # the kernel frees it
        assert is_in(alone)
        assert blocked(late)
        leave(alone)
        assert is_in(late)
        leave(late)


def test_a_folder_of_a_worker_goes_on_with_more_launches(tmp_path: Path) -> None:
    study = study_file.read(str(write(tmp_path)))
    assert units.key(study) == units.key(study_file.read(str(write(tmp_path, launches=4))))
