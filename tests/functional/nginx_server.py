"""An nginx of the tests' own, in a private directory on private ports, with the configuration of nginx/nova.conf."""

import contextlib
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import free_port, wait_until

CONFIGURATION = Path(__file__).parents[2] / "nginx" / "nova.conf"
_MODULES = Path("/usr/lib/nginx/modules")
_MAIN = """
load_module {modules}/ndk_http_module.so;
load_module {modules}/ngx_http_lua_module.so;
daemon off;
user root;
worker_processes 1;
pid {directory}/pid;
error_log {directory}/error.log notice;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    types {{ }}
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/nova.conf;
    server {{ listen 127.0.0.1:{plain_port}; root {directory}/plain; }}
}}
"""


class Nginx:
    """nginx before a nova-api and some nova-objectstores.

    :param directory: made when missing
    :param s3_backends: ports of object stores
    :param objects: the directory of their files
    :param api_backend: port of a nova-api; nobody's when 0
    """

    def __init__(self, directory: Path, s3_backends: Sequence[int], objects: Path, secret: str = "secret",
                 api_backend: int = 0):
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "plain").mkdir(exist_ok=True)
        self.s3_port, self.ec2_port, self.plain_port = free_port(), free_port(), free_port()
        self._process: subprocess.Popen | None = None
        text = CONFIGURATION.read_text()
        servers = "\n    ".join(f"server 127.0.0.1:{port} max_fails=0;" for port in s3_backends)
        for old, new in (("/etc/nginx/nova-secret.conf", f"{directory}/secret.conf"),
                         ("server 127.0.0.1:13333;", servers),
                         ("server 127.0.0.1:18773;", f"server 127.0.0.1:{api_backend or free_port()} max_fails=0;"),
                         ("listen 3333;", f"listen 127.0.0.1:{self.s3_port};"),
                         ("listen 8773;", f"listen 127.0.0.1:{self.ec2_port};"),
                         ("root /var/lib/nova/objects;", f"root {objects};")):
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (directory / "nova.conf").write_text(text)
        (directory / "secret.conf").write_text(f'map $host $nova_secret {{ default "{secret}"; }}\n')
        (directory / "nginx.conf").write_text(_MAIN.format(
            modules=_MODULES, directory=directory, plain_port=self.plain_port))

    def start(self) -> None:
        """Start it; returns when it listens."""
        command = ["nginx", "-p", str(self.directory), "-c", str(self.directory / "nginx.conf"), "-e",
                   str(self.directory / "error.log")]
        tested = subprocess.run([*command, "-t"], capture_output=True, text=True)
        assert tested.returncode == 0, tested.stderr
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def listens() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.s3_port), 1):
                return True
            return False
        wait_until(listens, 30, "nginx")

    def stop(self) -> None:
        """End it."""
        if self._process:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def give(self, file: Path) -> None:
        """Have it give out a file at its plain port, as it does without Nova."""
        (self.directory / "plain" / file.name).hardlink_to(file)
