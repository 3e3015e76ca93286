"""``sam-ds check --hosts``, with a program that stands for ssh: every host is this machine, seen otherwise."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from sam_ds.cli.main import main
from sam_ds.planning import probe

# ssh … HOST COMMAND, where HOST.sh may change what the command sees; and ssh -G HOST, which shows settings.
SSH = """#!/usr/bin/env bash
if [[ $1 == -G ]]; then echo "serveraliveinterval $ALIVE"; exit; fi
here=$(dirname "$0")
host=${@: -2:1}
export PATH=$here/$host:$PATH PYTHONPATH=$here/$host HOME=$here/$host
[[ ! -f $here/$host.sh ]] || source "$here/$host.sh"
exec bash -c "${@: -1}"
"""
NVIDIA_SMI = """#!/usr/bin/env bash
for _ in $(seq {}); do echo 535.104.05; done
"""
PAIR = ("picture.jpg", "picture.json")


class Hosts:
    """Three hosts with a GPU each, of which each may be made odd."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        self.port = free_port()
        self.config = folder / "config.json"
        self.config.write_text(json.dumps({"train_batch_size": 3, "train_micro_batch_size_per_gpu": 1}))
        self.hostfile = folder / "hosts"
        self.hostfile.write_text("".join(f"{host} slots=1\n" for host in "abc"))
        self.program("ssh", SSH)
        self.program("pdsh", "")
        for host in "abc":
            (folder / host / "pictures").mkdir(parents=True)
            for name in PAIR:
                (folder / host / "pictures" / name).touch()
            self.program(f"{host}/nvidia-smi", NVIDIA_SMI.format(1))

    def program(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def reached(self, host: str, script: str) -> None:
        """What happens where ssh would have reached the host."""
        (self.folder / f"{host}.sh").write_text(script)

    def python(self, host: str, text: str) -> None:
        """What Python runs there first."""
        (self.folder / host / "sitecustomize.py").write_text(text)

    def check(self, *more: object) -> tuple[int, str, list[str]]:
        """The exit code of the command, what it prints, and the faults that it finds."""
        what = ("--recipe", "tiny", "--deepspeed_config", self.config, "--hostfile", self.hostfile, "--hosts")
        where = ("--master_addr", "127.0.0.1", "--master_port", self.port)
        code = main([str(word) for word in ("check", *what, *where, *more)])
        said = self.capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err.splitlines()

    def faults(self, *more: object) -> list[str]:
        code, _, faults = self.check(*more)
        assert code == 2
        return faults


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Hosts:
    # Whatever this machine's name means to itself.
    (tmp_path / "environment").write_text("GLOO_SOCKET_IFNAME=lo\n")
    monkeypatch.setenv("DS_ENV_FILE", str(tmp_path / "environment"))
    monkeypatch.setenv("ALIVE", "15")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name in ("DS_ACCELERATOR", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    return Hosts(tmp_path, capsys)


def test_all_is_well(hosts: Hosts, tmp_path: Path) -> None:
    output = tmp_path / "runs" / "new"
    code, said, faults = hosts.check("--data", "~/pictures", "--output", output)
    assert (code, faults) == (0, [])
    assert f"3 hosts, 3 ranks; they meet at 127.0.0.1:{hosts.port}, by lo: all is well" in said
    assert "note" not in said
    assert not output.parent.exists()  # it was only looked at
    assert not list(tmp_path.glob(".sam_ds_check_*"))


def test_one_host_on_this_machine_needs_no_ssh(hosts: Hosts) -> None:
    hosts.config.write_text(json.dumps({"train_micro_batch_size_per_gpu": 1}))
    hosts.hostfile.write_text("localhost slots=1\n")
    hosts.program("nvidia-smi", NVIDIA_SMI.format(1))
    hosts.program("ssh", "#!/bin/sh\nexit 1\n")
    assert hosts.check()[0] == 0


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ("ssh: Could not resolve hostname b: Name or service not known", ["name is unknown here", "/etc/hosts"]),
        ("ssh: connect to host b port 22: Connection refused", ["refuses ssh", "start sshd"]),
        ("ssh: connect to host b port 22: Connection timed out", ["does not answer", "is it up"]),
        ("root@b: Permission denied (publickey).", ["without a password", "ssh-copy-id b"]),
        ("Host key verification failed.", ["its key is not known", "ssh b"]),
        ("kex_exchange_identification: banner line too long", ["ssh fails there", "banner line too long"]),
    ],
)
def test_a_host_that_ssh_does_not_reach(says: str, words: list[str], hosts: Hosts) -> None:
    hosts.reached("b", f"echo '{says}' >&2; exit 255")
    (line,) = hosts.faults()
    assert line.startswith("sam-ds: b: ")
    for word in words:
        assert word in line


def test_the_first_host_is_not_reached_and_the_others_are_looked_at(hosts: Hosts) -> None:
    hosts.reached("a", "echo 'ssh: connect to host a port 22: No route to host' >&2; exit 255")
    hosts.program("c/nvidia-smi", NVIDIA_SMI.format(0))
    first, second = hosts.faults()
    assert "a: there is no way to it" in first
    assert "c: " in second and "nvidia-smi shows 0 GPUs there; install its driver" in second


def test_a_host_that_hangs(hosts: Hosts) -> None:
    hosts.reached("b", "exec sleep 100")
    hosts.program("c/nvidia-smi", "#!/bin/sh\nexec sleep 100")
    silent, looking = hosts.faults("--timeout", "5")
    assert "b: it takes ssh, but runs nothing, for 5 s" in silent
    assert "c: it hangs at nvidia-smi, for 5 s" in looking


def test_slow_hosts_have_their_time_each(hosts: Hosts) -> None:
    for host in "ab":
        hosts.reached(host, "sleep 4")  # together longer than the time of one
    code, _, faults = hosts.check("--timeout", "7")
    assert (code, faults) == (0, [])


def test_another_python(hosts: Hosts) -> None:
    hosts.reached("b", "exec bash -c '/nowhere/python -'")
    hosts.python("c", "import os\nprint('a login script speaks', flush=True)\nos._exit(3)")
    missing, broken = hosts.faults()
    assert "b: it has no such Python" in missing and "/nowhere/python" in missing and "--python" in missing
    assert "c: its Python cannot look around" in broken


def test_a_login_script_may_speak(hosts: Hosts) -> None:
    hosts.python("b", "print('welcome to b\\n{}', flush=True)")
    assert hosts.check()[0] == 0


def test_the_slots_are_the_gpus(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts.config.write_text(json.dumps({"train_micro_batch_size_per_gpu": 1}))
    hosts.hostfile.write_text("a slots=1\nb slots=2\nc slots=1\n")
    hosts.program("c/nvidia-smi", NVIDIA_SMI.format(4))
    code, said, (line,) = hosts.check()
    assert code == 2
    assert f"b: {hosts.hostfile} gives it slots=2, and nvidia-smi shows 1 GPUs there; write slots=1" in line
    assert "note: c: " in said and "shows 4 GPUs there; the others will be idle" in said
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert hosts.check()[0] == 0


def test_other_versions(hosts: Hosts) -> None:
    (hosts.folder / "b" / "torch-1.13.0.dist-info").mkdir()
    (hosts.folder / "b" / "torch-1.13.0.dist-info" / "METADATA").write_text("Name: torch\nVersion: 1.13.0\n")
    hosts.program("c/nvidia-smi", NVIDIA_SMI.format(1).replace("535", "470"))
    torch, driver = hosts.faults()
    assert "b: torch is 1.13.0, and " in torch and " on a (2 of 3 hosts)" in torch
    assert "c: driver is 470.104.05, and 535.104.05 on a (2 of 3 hosts)" in driver


def test_the_odd_one_may_be_the_first(hosts: Hosts) -> None:
    hosts.python("a", "import platform\nplatform.python_version = lambda: '3.8.2'")
    (line,) = hosts.faults()
    assert "a: python is 3.8.2, and" in line and "on b (2 of 3 hosts)" in line


def test_other_code_and_no_such_folder(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    (hosts.folder / "b" / "sam_ds").mkdir()
    (hosts.folder / "b" / "sam_ds" / "__init__.py").touch()
    monkeypatch.chdir(hosts.folder)  # not into the checkout, which would come first
    hosts.python("c", "import os\nos.path.isdir = lambda path: False")
    folder, code = hosts.faults()
    assert f"c: there is no folder {hosts.folder}, where the launcher starts" in folder
    assert "b: sam_ds is of code" in code and "on a (2 of 3 hosts)" in code


def test_pictures_that_some_hosts_lack(hosts: Hosts) -> None:
    shutil.rmtree(hosts.folder / "a" / "pictures")
    (hosts.folder / "c" / "pictures" / PAIR[0]).rename(hosts.folder / "c" / "pictures" / "other.jpg")
    missing, other = hosts.faults("--data", "~/pictures")
    assert "a: ~/pictures: No such file or directory; give a folder" in missing
    assert "c: ~/pictures holds 2 files, which are not the 2 of b (1 of 2 hosts)" in other


def test_tars_of_other_sizes(hosts: Hosts) -> None:
    for host in "abc":
        (hosts.folder / host / "pictures" / "sa_000001.tar").write_bytes(b"0" * (4 if host == "b" else 5))
    (line,) = hosts.faults("--data", "~/pictures")
    assert "b: ~/pictures holds 3 files, which are not the 3 of a (2 of 3 hosts)" in line


def test_an_output_folder_that_is_not_shared(hosts: Hosts, tmp_path: Path) -> None:
    hosts.python(
        "b", "import os\nreal = os.path.exists\nos.path.exists = lambda p: '.sam_ds_check' not in p and real(p)"
    )
    (line,) = hosts.faults("--output", tmp_path)
    assert f"b: it does not see what a writes to {tmp_path}; --output must lie" in line


def test_clocks(hosts: Hosts) -> None:
    later = "import time\nreal = time.time\ntime.time = lambda: real() + {}"
    hosts.python("b", later.format(30))
    (line,) = hosts.faults()
    assert "b: its clock is 30." in line and "s ahead; set it with NTP" in line
    hosts.python("c", later.format(30))
    (line,) = hosts.faults()
    assert "a: its clock is 30.0 s behind" in line


def test_the_first_host_must_be_reached_by_the_others(hosts: Hosts) -> None:
    unreached = "import socket\ndef no(*_, **__): raise TimeoutError('timed out')\nsocket.create_connection = no"
    hosts.python("b", unreached)
    (line,) = hosts.faults()
    assert f"b: it cannot reach a at 127.0.0.1:{hosts.port} (timed out); open the port" in line


def test_the_port_must_be_free(hosts: Hosts) -> None:
    with socket.create_server(("", hosts.port)):
        (line,) = hosts.faults()
    assert f"a: port {hosts.port} is taken (Address already in use)" in line and "--master_port" in line


def test_what_gloo_will_listen_on(hosts: Hosts, tmp_path: Path) -> None:
    (tmp_path / "environment").write_text("GLOO_SOCKET_IFNAME=ib7\n")
    lines = hosts.faults()
    assert len(lines) == 3 and "a: has no network interface ib7; correct GLOO_SOCKET_IFNAME" in lines[0]
    (tmp_path / "environment").unlink()
    for host, name in zip("abc", ("localhost", "no-such-host.invalid", "good"), strict=True):
        answer = "\nsocket.gethostbyname = lambda name: '10.0.0.7'" if name == "good" else ""
        hosts.python(host, f"import socket\nsocket.gethostname = lambda: '{name}'{answer}")
    loopback, nothing = hosts.faults()
    assert "a: its own name localhost means 127.0.0.1 there" in loopback
    assert "b: its own name no-such-host.invalid means nothing there" in nothing
    assert "GLOO_SOCKET_IFNAME=lo" in nothing  # the interface that leads to a


@pytest.mark.parametrize("told", ["ib", "=l", "=ib0,ib1", "^lo,eth", "ib0:4000"])
def test_no_interface_is_what_nccl_is_told(told: str, hosts: Hosts, tmp_path: Path) -> None:
    for host in "bc":
        hosts.python(host, "import socket\nsocket.if_nameindex = lambda: [(1, 'lo'), (2, 'eth0')]")
    hosts.python("a", "import socket\nsocket.if_nameindex = lambda: [(1, 'lo'), (2, 'x'), (3, 'ib0'), (4, 'l')]")
    (tmp_path / "environment").write_text(f"GLOO_SOCKET_IFNAME=lo\nNCCL_SOCKET_IFNAME={told}\n")
    lines = hosts.faults()
    assert [line.split(":")[1] for line in lines] == [" b", " c"]
    assert f"NCCL_SOCKET_IFNAME={told} fits none of its network interfaces (lo, eth0); correct" in lines[0]


@pytest.mark.parametrize("told", ["", "e", "ib,eth", "=eth0", "=ib0,eth0", "^lo", "^=eth", "^docker,lo", "eth0:4000"])
def test_an_interface_that_nccl_is_told(told: str) -> None:
    assert probe.nccl_takes("eth0", told)


def test_the_launcher_hands_on_what_nccl_is_told_here(
    hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "nowhere")
    for host in "abc":
        hosts.reached(host, "unset NCCL_SOCKET_IFNAME")  # ssh itself hands nothing on
    assert len(hosts.faults()) == 3
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # which does not use NCCL
    assert hosts.check()[0] == 0
    monkeypatch.delenv("DS_ACCELERATOR")
    (tmp_path / "environment").write_text("GLOO_SOCKET_IFNAME=lo\nNCCL_SOCKET_IFNAME=lo\n")  # goes before it
    assert hosts.check()[0] == 0


def test_a_file_of_variables_that_the_launcher_cannot_read(hosts: Hosts, tmp_path: Path) -> None:
    (tmp_path / "environment").write_bytes(b"GLOO_SOCKET_IFNAME=lo\n\n\xff\n")
    empty, other = hosts.faults()
    assert f"this machine: {tmp_path}/environment, line 2: '' is not NAME=value" in empty
    assert "line 3: " in other


def test_what_the_launcher_needs_here(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIVE", "0")
    code, said, _ = hosts.check()
    assert code == 0
    assert "note: this machine: its ssh does not notice that a host is gone" in said
    (hosts.folder / "pdsh").unlink()
    which = shutil.which
    monkeypatch.setattr(shutil, "which", without("pdsh", which))
    (line,) = hosts.faults()
    assert "this machine: there is no pdsh" in line


def without(missing: str, which: Callable[[str], str | None]) -> Callable[[str], str | None]:
    return lambda name: None if name == missing else which(name)


def test_without_hosts_it_looks_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = ("check", "--recipe", "tiny", "--deepspeed_config", "zero2_local", "--set", "train.keep_last=3")
    hostfile = ("--hostfile", "hostfiles/local.hostfile")
    (tmp_path / "full").mkdir()
    for name in PAIR:
        (tmp_path / "full" / name).touch()
    assert main([*check, *hostfile, "--data", str(tmp_path / "full"), "--output", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    wrong = ("--data", str(tmp_path / "empty"), "--val", str(tmp_path / "none"), "--output", str(tmp_path / "file/run"))
    assert main([*check, *hostfile, *wrong]) == 2
    empty, none, file = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/empty holds no picture; give" in empty
    assert f"{tmp_path}/none: No such file or directory; give" in none
    assert f"{tmp_path}/file/run cannot be written (Not a directory); choose another --output" in file


def test_space_for_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check = ("check", "--recipe", "sam_vit_h", "--deepspeed_config", "zero2_local", "--output", str(tmp_path))
    check += ("--hostfile", "hostfiles/local.hostfile")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 2 * 10**9))
    assert main(check) == 2
    # 641 million parameters of 12 bytes.
    assert f"{tmp_path} has 2.00 GB free, and a checkpoint of this model needs 7.69;" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 8 * 10**9))
    assert main(check) == 0
    # Of 90,000 steps the newest three, the best, and one being written.
    assert f"note: {tmp_path} lacks 30.47 GB for the checkpoints" in capsys.readouterr().out
    assert main([*check, "--set", "train.keep_every=10000"]) == 0
    assert f"note: {tmp_path} lacks 99.70 GB for the checkpoints" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--gradients", "--data", "a", "--hosts"), ["--gradients runs one step here", "--data and --hosts"]),
        (("--gradients", "--hostfile", "hostfiles/local.hostfile"), ["makes no use of --hostfile"]),
        (("--gradients", "--val", "a", "--output", "b"), ["--val and --output"]),
        (("--gradients", "--timeout", "5"), ["makes no use of --timeout"]),
        (("--python", "python3", "--timeout", "20"), ["--python and --timeout would do nothing", "--hosts"]),
        (("--master_addr", "a", "--master_port", "29500"), ["--master_addr and --master_port would do nothing"]),
        (("--hosts", "--master_port", "x"), ["--master_port: 'x' is no whole number from 1 to 65535"]),
        (("--hosts", "--master_port", "65536"), ["'65536' is no whole number from 1 to 65535"]),
        (("--hosts", "--timeout", "soon"), ["--timeout: 'soon' is no number of seconds from 1 to 1000000"]),
        (("--hosts", "--timeout", "nan"), ["'nan' is no number of seconds"]),
    ],
)
def test_options_that_mean_nothing(
    options: tuple[str, ...], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--recipe", "tiny", *options]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    for word in words:
        assert word in line


def test_hosts_of_no_hostfile(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--recipe", "tiny", "--hosts"]) == 2
    assert capsys.readouterr().err.count("--hostfile") == 1
