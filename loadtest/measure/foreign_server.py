"""A server that others wrote: started in its environment or found at an address, and observed as far as it tells."""

import http.client
import os
import re
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from numpy.typing import NDArray

import medserve
from loadtest.generator.payload import Load, ask, body_of, target
from loadtest.measure.locust_process import free_ports
from loadtest.measure.server_process import process_facts
from medserve import environments, machine, process
from medserve.errors import CannotRun
from medserve.spec import Deployment
from medserve.tables import FORMATS, profile
from medserve.timing import now

PATIENCE_SECONDS = 2.0
"""The least that one request to a server may take before it is ready."""
PAUSE_SECONDS = 0.1
"""Between two requests to a server that does not answer yet."""
PACKAGES = Path(medserve.__file__).parent
_ANY = profile("closed-loop", users=1)


class ForeignServer:
    """The server of a deployment, on `cpus` where it is started here; its log goes into `folder`."""

    def __init__(self, artifact: Path, deployment: Deployment, cpus: tuple[int, ...], folder: Path) -> None:
        assert deployment.server is not None
        self._server = server = deployment.server
        self.log = folder / "server.log"
        self.log.touch()
        self.pid: int | None = None
        self.model, self.url = server.model, server.url.rstrip("/")
        self._child: subprocess.Popen[bytes] | None = None
        self._facts: dict[str, Any] = {}
        self._started = now()
        if server.command:
            self._start(artifact, deployment, cpus, folder)

    def _start(self, artifact: Path, deployment: Deployment, cpus: tuple[int, ...], folder: Path) -> None:
        server, path = self._server, ""
        port, spare, another = free_ports(3)
        self.url = f"http://127.0.0.1:{port}"
        places = {
            "port": port, "spare": spare, "another": another, "threads": deployment.threads, "model": server.model,
            "file": artifact / FORMATS[server.format].path, "artifact": artifact,
            "folder": mkdtemp(dir=folder), "studies": PACKAGES / "studies", "source": PACKAGES.parent,
        }  # fmt: skip

        def fill(word: str) -> str:
            # Other braces, as of JSON, stay.
            return re.sub(r"{(\w+)}", lambda found: str(places[found[1]]), word)

        words = list(map(fill, server.command))
        if deployment.environment is not None:
            programs = environments.programs(deployment.environment)
            known = environments.installed(programs.parent)
            self._facts["versions"] = known.versions if known else {}
            path = f"{programs}:"
        variables = {name: fill(value) for name, value in server.variables.items()}
        # What this program's own packages need must not reach those of another environment.
        env = {
            "PATH": path + os.environ.get("PATH", os.defpath),
            "PYTHONPATH": "",
            **machine.thread_environment(deployment.threads),
            **variables,
        }
        if shutil.which(words[0], path=env["PATH"]) is None:
            needs = f"; it needs {server.needs}" if server.needs else ""
            raise CannotRun(f"{server.name} cannot be started: there is no program {words[0]}{needs}")
        start = ["-m", "medserve.environments", "start", ",".join(map(str, cpus)), *words]
        with self.log.open("wb") as log:
            self._child = process.start(start, stdout=log, stderr=subprocess.STDOUT, env=env)
        self.pid = self._child.pid

    def wait_ready(self) -> None:
        """Return when it listens. Raises CannotRun with the reason when it does not in its time."""
        deadline = time.monotonic() + self._server.ready_seconds
        while True:
            what = "it does not listen"
            try:
                with suppress(http.client.HTTPException):
                    ask("GET", self.url + "/", seconds=PATIENCE_SECONDS)
                break
            except TimeoutError:
                what = "it listens, and does not answer"
            except OSError:
                pass
            self._give_up(deadline, what)
        self._facts["ready_seconds"] = self._since_start()

    def answer_first(self, images: NDArray[np.uint8]) -> None:
        """Send the first request, uint8 (1, H, W, C), until it is answered: servers listen before a model is loaded.

        Raises CannotRun with its last answer when there is none in its time.
        """
        server = self._server
        load = Load(url=self.url, model=self.model, profile=_ANY, body=server.body, path=server.path)
        headers, body = body_of(load).encode(images)
        deadline = time.monotonic() + server.ready_seconds
        while True:
            last = "it closes the connection"
            try:
                left = max(PATIENCE_SECONDS, deadline - time.monotonic())
                status, answer = ask("POST", target(load), headers, body, left)
                if status == http.client.OK:
                    break
                last = f"it answers HTTP {status}: {answer[:200].decode(errors='replace')}"
            except TimeoutError:
                last = "it takes a request, and does not answer"
            except (OSError, http.client.HTTPException):
                pass
            self._give_up(deadline, last)
        self._facts["first_answer_seconds"] = self._since_start()

    def _give_up(self, deadline: float, what: str) -> None:
        """Wait a little, or raise CannotRun when the time is over or the server has ended."""
        if reason := self.why_dead():
            raise CannotRun(reason)
        if time.monotonic() > deadline:
            last = process.last_line(self.log)
            said = f"; the last line of its log: {last}" if last else ""
            raise CannotRun(f"{self._server.name} was not ready in {self._server.ready_seconds:g} s: {what}{said}")
        time.sleep(PAUSE_SECONDS)

    def _since_start(self) -> float:
        return round((now() - self._started) / 1e9, 3)

    def why_dead(self) -> str | None:
        """Why the server ended, in one line; null while it runs, or where it was not started here."""
        code = None if self._child is None else self._child.poll()
        if code is None:
            return None
        last = process.last_line(self.log)
        return f"{self._server.name} ended: {process.describe_exit(code)}" + (f": {last}" if last else "")

    def facts(self) -> dict[str, Any]:
        """What is known of it: the versions of its environment, its times, and what the system reports of it."""
        return {**self._facts, **({} if self.pid is None else process_facts(self.pid, itself=False))}

    def stop(self) -> None:
        """End it and its children, if it was started here."""
        if self._child is None:
            return
        process.stop(self._child)
