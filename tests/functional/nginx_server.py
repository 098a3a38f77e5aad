"""An nginx of the tests' own, in a private directory on private ports, with the configuration of nginx/nova.conf."""

import contextlib
import re
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import free_port, wait_until

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "nginx" / "nova.conf"
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
    # as in Debian's nginx.conf
    sendfile on;
    tcp_nopush on;
    types_hash_max_size 2048;
    default_type application/octet-stream;
    ssl_protocols TLSv1 TLSv1.1 TLSv1.2 TLSv1.3;
    ssl_prefer_server_ciphers on;
    gzip on;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/conf.d/nova.conf;
    server {{ listen 127.0.0.1:{plain_port}; root {directory}/plain; }}
}}
"""


def set_up_tls(directory: Path, ca: Path) -> None:
    """Do what docs/nginx.rst says for TLS, its commands as they stand there, for the name `localhost`.

    :param directory: stands for /etc/nginx
    :param ca: stands for /var/lib/nova/ca
    """
    text = (ROOT / "docs" / "nginx.rst").read_text()
    chapter = text.partition("\nTLS\n---\n")[2].partition("\n\nThe names of the certificate")[0]
    lines = re.sub(r"\\\n *", "", chapter).splitlines()
    commands = [line.strip().removeprefix("# ") for line in lines if line.startswith("   # ")]
    assert len(commands) == 7 and commands.pop() == "nginx -t && systemctl reload nginx"
    script = "\n".join(commands).replace("/etc/nginx", str(directory)).replace("/var/lib/nova/ca", str(ca))
    done = subprocess.run(["bash", "-eu", "-c", script.replace("cloud.example.com", "localhost")], cwd=ROOT,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for file in (directory / "nova-tls.conf", directory / "conf.d" / "nova.conf"):
        file.write_text(re.sub("/etc/nginx/(nova-tls.conf|nova.pem|nova.key)", rf"{directory}/\1", file.read_text()))


class Nginx:
    """nginx before a nova-api and some nova-objectstores.

    :param directory: made when missing
    :param s3_backends: ports of object stores
    :param objects: the directory of their files
    :param api_backend: port of a nova-api; nobody's when 0
    :param ca: the directory of the cloud's certificate authority: nginx has TLS, for the name `localhost`
    """

    def __init__(self, directory: Path, s3_backends: Sequence[int], objects: Path, secret: str = "secret",
                 api_backend: int = 0, ca: Path | None = None):
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "plain").mkdir(exist_ok=True)
        self.s3_port, self.ec2_port, self.plain_port = free_port(), free_port(), free_port()
        self._process: subprocess.Popen | None = None
        configuration = directory / "conf.d" / "nova.conf"
        configuration.parent.mkdir(exist_ok=True)
        configuration.write_text(CONFIGURATION.read_text())
        if ca:
            set_up_tls(directory, ca)
        text = configuration.read_text()
        servers = "\n    ".join(f"server 127.0.0.1:{port} max_fails=0;" for port in s3_backends)
        for old, new in (("/etc/nginx/nova-secret.conf", f"{directory}/secret.conf"),
                         ("server 127.0.0.1:13333;", servers),
                         ("server 127.0.0.1:18773;", f"server 127.0.0.1:{api_backend or free_port()} max_fails=0;"),
                         ("listen 3333", f"listen 127.0.0.1:{self.s3_port}"),
                         ("listen 8773", f"listen 127.0.0.1:{self.ec2_port}"),
                         ("root /var/lib/nova/objects;", f"root {objects};")):
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        configuration.write_text(text)
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
