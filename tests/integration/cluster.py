"""A SLURM of two nodes with pretended GPUs on this machine, everything of it in one temporary folder.

The settings that differ from SLURM's defaults are there because it does not work on one machine without them, or
because tests cannot wait as long as an administrator would.
"""

import contextlib
import getpass
import os
import secrets
import signal
import socket
import subprocess
from collections.abc import Callable

from tests.integration.processes import Crew, free_ports, wait_for

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/urandom")  # what passes for a GPU: any character device
BINARIES = ("munged", "slurmctld", "slurmd", "sbatch")
ACCOUNTING_BINARIES = ("slurmdbd", "mariadbd", "mariadb-install-db", "mariadb")

SLURM_CONF = """
ClusterName=edkd
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
AuthType=auth/munge
# cred_expire is also the time before a job that was requeued may start again: 120 s by default, 5 s at least
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
# neither cgroups nor systemd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
# nodes may claim more cores than this machine has
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=2,bf_interval=2
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=10
KillWait=2
# a step that ends while the controller is away may try to say so for longer than the default, and drain its node
UnkillableStepTimeout=600
InactiveLimit=0
MinJobAge=3600
JobRequeue=1
# a job of the partition `urgent` takes the place of others, without any time of grace
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
MaxArraySize={array}
{accounting}
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeAddr=127.0.0.1 NodeHostname={host} Port={port} CPUs={cpus} RealMemory=8000 Gres=gpu:{gpus}"
ACCOUNTING = """AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={database_daemon}
AccountingStoragePass={folder}/munge.sock
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5"""
SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={database_daemon}
SlurmUser={user}
PidFile={folder}/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct
CommitDelay=1
"""


class Cluster:
    """One SLURM: `boot` it, give commands to it by `run`, break it, and `stop` it."""

    nodes = ("n1", "n2")

    def __init__(self, *, accounting: bool, cpus: int = 4, gpus: int = 2, array: int = 1001) -> None:
        self.accounting = accounting
        self.crew = Crew("slurm")
        self.folder = self.crew.folder
        self.crew.environment["SLURM_CONF"] = str(self.folder / "slurm.conf")
        ports = free_ports(3 + len(self.nodes))
        self.values = {
            "folder": self.folder,
            "host": socket.gethostname().partition(".")[0],
            "user": getpass.getuser(),
            "password": secrets.token_hex(8),
            "controller": ports[0],
            "database_daemon": ports[1],
            "database": ports[2],
            "array": array,
        }
        lines = [
            NODE.format(name=name, port=port, cpus=cpus, gpus=gpus, **self.values)
            for name, port in zip(self.nodes, ports[3:], strict=True)
        ]
        self.values["nodes"] = "\n".join(lines)
        none = "AccountingStorageType=accounting_storage/none"
        self.values["accounting"] = ACCOUNTING.format(**self.values) if accounting else none
        self._write("slurm.conf", SLURM_CONF)
        self._write("gres.conf", f"NodeName={','.join(self.nodes)} Name=gpu File={','.join(DEVICES[:gpus])}\n")

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs in its environment to speak to this cluster."""
        return dict(self.crew.environment)

    def boot(self) -> None:
        """Start all daemons; returns when every node is idle. A boot that fails stops what it has started."""
        try:
            self._boot()
        except BaseException:
            self.stop()
            raise

    def run(self, *command: str, check: bool = True, timeout: float = 60.0) -> str:
        """The output of one of SLURM's commands. Raises AssertionError with its words where it fails."""
        done = subprocess.run(
            command, env=self.crew.environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def waits(self, job: str) -> Callable[[], bool]:
        """Whether a job waits in the queue."""
        return lambda: self.run("squeue", "-h", "-r", "-j", job, "-o", "%T").strip() == "PENDING"

    def kill_node(self, name: str) -> None:
        """What a power failure does: the node's daemon, its jobs' keepers and the jobs themselves are gone at once."""
        self.crew.stop(f"slurmd.{name}", how=signal.SIGKILL)
        for pid, environment in self.crew.members().items():
            if environment.get("SLURMD_NODENAME") == name:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def start_node(self, name: str) -> None:
        """Bring a node up; returns when SLURM would give it jobs."""
        self.crew.start(f"slurmd.{name}", ["slurmd", "-D", "-N", name])
        wait_for(f"node {name}", lambda: self._usable(name))

    def kill_controller(self) -> None:
        """SIGKILL to slurmctld; jobs run on."""
        self.crew.stop("slurmctld", how=signal.SIGKILL)

    def start_controller(self) -> None:
        """Start slurmctld; returns when it answers."""
        self.crew.start("slurmctld", ["slurmctld", "-D"])
        wait_for("slurmctld", self._answers)

    def stop(self) -> None:
        """Stop everything, jobs included, and remove the folder."""
        for pid, environment in self.crew.members().items():
            if "SLURMD_NODENAME" in environment:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.crew.dismiss()

    def _boot(self) -> None:
        for name in ("state", "spool", *(f"spool/{node}" for node in self.nodes)):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        socket_ = self.folder / "munge.sock"
        files = [f"--{each}-file={self.folder}/munge.{each}" for each in ("pid", "key", "log", "seed")]
        self.crew.start("munged", ["munged", "-F", f"--socket={socket_}", *files])
        wait_for("munged", lambda: self._succeeds("munge", "-n", "-S", str(socket_)))
        if self.accounting:
            self._boot_accounting()
        self.start_controller()
        for name in self.nodes:
            self.start_node(name)

    def _boot_accounting(self) -> None:
        data, socket_ = self.folder / "database", self.folder / "mariadb.sock"
        user = f"--user={self.values['user']}"
        self.run(
            "mariadb-install-db", "--no-defaults", user, f"--datadir={data}", "--skip-test-db",
            "--auth-root-authentication-method=normal", timeout=300,
        )  # fmt: skip
        small = "--innodb-buffer-pool-size=32M --innodb-log-file-size=16M --innodb-flush-log-at-trx-commit=0"
        self.crew.start("mariadbd", [
            "mariadbd", "--no-defaults", user, f"--datadir={data}", f"--socket={socket_}", "--bind-address=127.0.0.1",
            f"--port={self.values['database']}", f"--pid-file={self.folder}/mariadbd.pid", "--skip-name-resolve",
            "--innodb-lock-wait-timeout=900", "--skip-log-bin", "--performance-schema=OFF", *small.split(),
        ])  # fmt: skip
        client = ("mariadb", "--no-defaults", f"--socket={socket_}", "--user=root", "-e")
        wait_for("mariadbd", lambda: self._succeeds(*client, "select 1"))
        self.run(
            *client,
            "CREATE DATABASE slurm_acct;"
            f"CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY '{self.values['password']}';"
            "GRANT ALL ON slurm_acct.* TO 'slurm'@'127.0.0.1'",
        )
        self._write("slurmdbd.conf", SLURMDBD_CONF, mode=0o600)
        self.crew.start("slurmdbd", ["slurmdbd", "-D"])
        wait_for("slurmdbd", lambda: self._succeeds("sacctmgr", "-nP", "show", "cluster"))

    def _write(self, name: str, template: str, mode: int = 0o644) -> None:
        path = self.folder / name
        path.touch(mode=mode)
        path.write_text(template.format(**self.values))

    def _succeeds(self, *command: str) -> bool:
        """Whether a command that may hang, since its daemon is not there yet, works."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return (
                subprocess.run(
                    command, env=self.crew.environment, capture_output=True, timeout=10, check=False
                ).returncode
                == 0
            )
        return False

    def _answers(self) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return "is UP" in self.run("scontrol", "ping", check=False, timeout=10)
        return False

    def _usable(self, name: str) -> bool:
        return self.run("sinfo", "-h", "-n", name, "-o", "%T").strip() in ("idle", "mixed", "allocated")
