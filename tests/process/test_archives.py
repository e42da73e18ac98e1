import hashlib
import http.server
import itertools
import json
import subprocess
import sys
import threading

import disk_faults
import msgspec
import numpy as np
import pytest

from medserve.errors import BadInput, CannotRun
from train import archives


def test_the_table_of_archives_is_read_without_importing_medmnist():
    code = (
        "import sys; from train.archives import official; from medserve.tables import DATASETS as D\n"
        "for s in D.values():\n"
        "    for size in s.sizes:\n"
        "        row = official(s.name, size)\n"
        "        assert len(row.classes) == s.classes and len(row.md5) == 32 and row.url.startswith('https://')\n"
        "assert not {'medmnist', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with pytest.raises(CannotRun, match="no nothingmnist at 28 px"):
        archives.official("nothingmnist", 28)


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `content`; honours Range when `ranges`; breaks off after `most` bytes of an answer."""

    content = b""
    ranges = True
    most = 1 << 30
    asked: list[str | None]

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        start = int(wanted.split("=")[1].rstrip("-")) if wanted and self.ranges else 0
        if self.path == "/absent":
            self.send_error(404)
        elif start >= len(self.content):
            self.send_error(416)
        else:
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(self.content) - start))
            self.end_headers()
            self.wfile.write(self.content[start : start + self.most])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    class Own(Server):
        content = np.random.default_rng(0).bytes(300_000)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,)).start()
        Own.asked = []
        Own.url = f"http://127.0.0.1:{running.server_port}"
        yield Own
        running.shutdown()


def source(server, **changes):
    md5 = hashlib.md5(server.content).hexdigest()
    row = archives.Source(url=f"{server.url}/file", md5=md5, classes=())
    return msgspec.structs.replace(row, **changes)


def test_fetch_brings_the_file_once(server, tmp_path, capfd):
    target = tmp_path / "new" / "bloodmnist.npz"
    archives.fetch(source(server), target)
    archives.fetch(source(server), target)
    assert target.read_bytes() == server.content
    assert len(server.asked) == 1
    assert "fetch bloodmnist.npz: MB 1/1" in capfd.readouterr().err


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path, ranges):
    server.ranges, server.most = ranges, 100_000
    target = tmp_path / "bloodmnist.npz"
    with pytest.raises(CannotRun, match="run again to go on"):
        archives.fetch(source(server), target)
    assert not target.exists()
    server.most = 1 << 30
    archives.fetch(source(server), target)
    assert target.read_bytes() == server.content
    assert server.asked == [None, "bytes=100000-"]


def test_a_download_killed_before_its_check_is_only_checked(server, tmp_path):
    (tmp_path / ".bloodmnist.npz.partial").write_bytes(server.content)
    archives.fetch(source(server), tmp_path / "bloodmnist.npz")
    assert (tmp_path / "bloodmnist.npz").read_bytes() == server.content


def test_a_download_of_another_file_is_removed(server, tmp_path):
    with pytest.raises(CannotRun, match=f"expected MD5 {'0' * 32}; removed"):
        archives.fetch(source(server, md5="0" * 32), tmp_path / "bloodmnist.npz")
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_fetch_says_what_failed_and_what_to_do(server, tmp_path):
    target = tmp_path / "bloodmnist.npz"
    with pytest.raises(CannotRun, match=r"absent: HTTP 404 .*put the file at .*bloodmnist.npz by hand"):
        archives.fetch(source(server, url=f"{server.url}/absent"), target)
    with pytest.raises(CannotRun, match="refused"):
        archives.fetch(source(server, url="http://127.0.0.1:9/file"), target)
    target.write_bytes(b"mine")
    with pytest.raises(BadInput, match="is there, but is not the official archive; move it away"):
        archives.fetch(source(server), target)
    assert target.read_bytes() == b"mine"


def test_an_archive_is_on_the_disk_before_it_has_its_name(server, tmp_path):
    """After a power failure a file of its name has its content."""
    record, folder = tmp_path / "record.json", tmp_path / "root"
    folder.mkdir()
    ended = disk_faults.attempt(
        lambda: archives.fetch(source(server), folder / "bloodmnist.npz"), disk_faults.Disk(folder), record=record
    )
    assert ended == "done"
    done = [step for step in json.loads(record.read_bytes()) if not step[1].endswith(".lock")]
    assert sum(kind in ("rename", "replace") for kind, *_ in done) == 1
    disk_faults.check_order(done)


@pytest.mark.parametrize("fault", disk_faults.FAULTS)
def test_a_download_goes_on_after_a_fault_of_the_disk(server, tmp_path, fault):
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        folder.mkdir()
        disk = disk_faults.Disk(folder, fault, number)
        ended = disk_faults.attempt(lambda: archives.fetch(source(server), folder / "bloodmnist.npz"), disk)  # noqa: B023
        if (folder / "bloodmnist.npz").exists():
            assert (folder / "bloodmnist.npz").read_bytes() == server.content
        archives.fetch(source(server), folder / "bloodmnist.npz")
        assert sorted(path.name for path in folder.iterdir()) == [".bloodmnist.npz.lock", "bloodmnist.npz"]
        assert (folder / "bloodmnist.npz").read_bytes() == server.content
        if ended == "done":
            break
    assert number > 4
