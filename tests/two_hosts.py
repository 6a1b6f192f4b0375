"""Two hosts that listen for SSH, and a third machine on their network, made from namespaces of this machine.

Each has its own address, processes, shared memory, ``/home``, ``/tmp``, ``/run`` and ``/var/log``; the rest of the file
system is this machine's. This machine is not on their network. All three end with one process, and that one ends with
the test's: however a test ends, nothing of them stays.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

HEAD, WORKER = "10.77.0.2", "10.77.0.3"
USER, HOME = "ubuntu", "/home/ubuntu"
"""The user that logs in; its id is root's."""

PATH = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TOOLS = ("curl", "ip", "nsenter", "rsync", "setpriv", "ssh", "ssh-keygen", "sshd", "unshare")
OWN_NAMESPACES = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")

OWN_DIRECTORIES = f"""
set -eu
held=()
for shared in "$@"; do exec {{opened}}< "$shared"; held+=($opened); done
for own in /dev/shm /home /run /tmp /var/log; do mount -t tmpfs tmpfs $own; done
for shared in "$@"; do
    mkdir -p "$shared"
    mount --no-canonicalize --rbind "/proc/self/fd/${{held[0]}}" "$shared"
    held=("${{held[@]:1}}")
done
mkdir -p {HOME} /run/sshd
touch {HOME}/.bashrc /var/log/lastlog
ip link set lo up
"""
"""Shell code that hides this machine's directories, except those given as arguments."""

HOST = f"""
{OWN_DIRECTORIES}
until ip link show eth0 > /dev/null 2>&1; do sleep 0.02; done
ip address add $ADDRESS/24 dev eth0
ip link set eth0 up
# Ray finds out a node's address by its route to the internet.
ip route add default via 10.77.0.1
exec "$(command -v sshd)" -D -e -f "$PLACE/sshd_config"
"""

BESIDE = f"""
{OWN_DIRECTORIES}
mount --bind "$PLACE/passwd" /etc/passwd
mount --bind "$PLACE/shadow" /etc/shadow
ip link add lan type bridge
ip address add 10.77.0.1/24 dev lan
ip link set lan up
for address in {HEAD} {WORKER}; do
    ADDRESS=$address {" ".join(OWN_NAMESPACES)} bash "$PLACE/host.sh" "$@" &
    until [ "$(readlink /proc/$!/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.02; done
    ip link add "to-${{address##*.}}" master lan type veth peer name eth0 netns $!
    ip link set "to-${{address##*.}}" up
done
for address in {HEAD} {WORKER}; do
    timeout 20 bash -c "until (: 3<> /dev/tcp/$address/22) 2> /dev/null; do sleep 0.02; done"
done
echo ready
wait -n
"""


def what_is_missing():
    """Describe what the hosts need but this machine lacks or forbids; None if nothing is missing."""
    if os.geteuid() != 0:
        return "simulated hosts need root"
    if missing := [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]:
        return (
            f"not installed: {', '.join(missing)} (on Debian: curl iproute2 openssh-server rsync util-linux)"
        )
    attempt = [*OWN_NAMESPACES, "bash", "-c", "mount -t tmpfs tmpfs /tmp && ip link add lan type bridge"]
    done = subprocess.run(attempt, capture_output=True, text=True, env={"PATH": PATH})
    return f"namespaces are not permitted here: {done.stderr.strip()}" if done.returncode else None


class Hosts:
    """The hosts ``HEAD`` and ``WORKER``, and the third machine, where ``run`` runs commands.

    All three see ``place`` and the directories ``shared``, and log in with ``key``.
    """

    def __init__(self, place, *shared):
        self.place, self.key = place, place / "key"
        for name in ("key", "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / name], check=True)
        files = {
            "host.sh": HOST,
            "beside.sh": BESIDE,
            "passwd": f"{USER}:x:0:0::{HOME}:/bin/bash\nsshd:x:101:65534::/run/sshd:/usr/sbin/nologin\n",
            "shadow": f"{USER}:*:::::::\nsshd:*:::::::\n",
            "sshd_config": f"HostKey {place}/host_key\nAuthorizedKeysFile {place}/key.pub\nStrictModes no\nUsePAM no\n",
        }
        for name, text in files.items():
            (place / name).write_text(text)
        directories = [str(path) for path in (place, *shared, sys.prefix, sys.base_prefix)]
        with (place / "hosts.log").open("w") as log:
            self._process = subprocess.Popen(
                # A killed test process cannot clean up, so this process is then killed too.
                [
                    "setpriv",
                    "--pdeathsig",
                    "KILL",
                    *OWN_NAMESPACES,
                    "bash",
                    place / "beside.sh",
                    *directories,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={"PATH": PATH, "PLACE": str(place)},
                start_new_session=True,
            )

    def wait(self):
        """Wait until both hosts listen."""
        said = self._process.stdout.readline()
        assert said == "ready\n", self._log()

    def run(self, *command, cwd=HOME, seconds=120, **environment):
        """Run a command on the third machine, and return its output."""
        (first,) = psutil.Process(self._process.pid).children()
        done = subprocess.run(
            [
                "nsenter",
                f"--target={first.pid}",
                "--mount",
                "--net",
                "--pid",
                "env",
                f"--chdir={cwd}",
                *command,
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            env={"PATH": PATH, "HOME": HOME, "USER": USER, **environment},
        )
        assert done.returncode == 0, "\n".join([str(command), done.stdout, done.stderr, self._log()])
        return done.stdout

    def processes(self):
        """Return every process of the three machines."""
        return psutil.Process(self._process.pid).children(recursive=True)

    def remove(self):
        """End the machines, and wait until none of their processes is left."""
        processes = self.processes()
        self._process.kill()
        self._process.communicate()
        _, left = psutil.wait_procs(processes, 20)
        assert not left, left

    def _log(self):
        return (self.place / "hosts.log").read_text()


@contextlib.contextmanager
def two_hosts(place, *shared):
    hosts = Hosts(place, *shared)
    try:
        hosts.wait()
        yield hosts
    finally:
        hosts.remove()
