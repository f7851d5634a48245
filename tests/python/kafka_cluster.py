"""Clusters of Kafka on 127.0.0.1, each in a folder of its own."""

import base64
import errno
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
import uuid
from pathlib import Path

import kafka_security
from kafka_programs import Failure, is_kraft, jars, java, read_properties, say, write_properties
from kafka_wire import (
    configure_topic,
    create_partitions,
    create_topics,
    delete_topic,
    host_and_port,
    metadata,
    topic_properties,
)

READY_TIMEOUT = 180  # seconds
STOP_TIMEOUT = 10  # seconds, then the processes are killed
LOG_LINES = 25  # shown when a process does not start


def is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port(taken):
    """A free port below those that the system gives to outgoing connections."""
    for port in range(20_000 + os.getpid() * 97 % 12_000, 32_767):
        if port not in taken and is_free(port):
            taken.add(port)
            return port
    raise Failure("no free port between 20000 and 32767")


def connect(address):
    socket.create_connection(host_and_port(address), timeout=5).close()


def command_line(pid):
    if Path("/proc/self/cmdline").exists():
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    return subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True).stdout


def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True)


def unmount(folder):
    # Also while a process that ends has files open.
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(file):
    """Writes to a file until its disk is full."""
    try:
        while True:
            file.write(bytes(4096))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


class Node:
    """One process of a cluster: `zookeeper`, or a broker by its number from 1."""

    def __init__(self, cluster, name):
        self.version, self.name = cluster.version, name
        self.folder = cluster.folder / (name if name == "zookeeper" else f"broker-{name}")
        self.properties = self.folder / "server.properties"
        self.log = self.folder / "log"
        self.data = self.folder / "data"

    def pid(self):
        """Its process id, or None if it does not run. A process that reuses the id does not count."""
        try:
            pid = int((self.folder / "pid").read_text())
            return pid if str(self.properties) in command_line(pid) else None
        except (OSError, ValueError):
            return None

    def spawn(self, heap, main, *arguments):
        with open(self.log, "ab") as log:
            command = java(self.version, heap, main, *arguments)
            return subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def start(self):
        heap, main = "512m", "kafka.Kafka"
        if self.name == "zookeeper":
            heap, main = "256m", "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        process = self.spawn(heap, main, str(self.properties))
        (self.folder / "pid").write_text(f"{process.pid}\n")
        while process.poll() is None and not self.pid():
            time.sleep(0.01)  # until Java's command line shows

    def send(self, what):
        pid = self.pid()
        try:
            if pid:
                os.kill(pid, what)
        except ProcessLookupError:
            pass
        return bool(pid)

    # ---- A disk of its own ----

    def mount_disk(self, megabytes):
        """Puts its data on a disk of this size, in memory."""
        self.data.mkdir()
        mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", self.data)

    def set_disk(self, state):
        """Makes its disk `full`, `read-only`, or `usable` again."""
        ballast = self.data / "ballast"
        if state == "full":
            with open(ballast, "wb", buffering=0) as file:
                fill(file)
        elif state == "read-only":
            # Files that are open stay so, as on a disk that the system makes read-only.
            mount("--bind", "-o", "ro", self.data, self.data)
        elif ballast.exists():
            ballast.unlink()
        else:
            unmount(self.data)

    def unmount_disk(self):
        while self.data.is_mount():
            unmount(self.data)

    def log_tail(self, count=LOG_LINES):
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(f"  {line}" for line in lines[-count:])


class Cluster:
    """A cluster's folder: `info`, and for each process a folder with its configuration, data, log and pid.

    `info` has the version, the number of brokers, and for each listener its addresses, separated by commas.
    Clients use the listeners named in `listeners`; brokers and this module use INTERNAL, which is never secured.
    """

    def __init__(self, folder):
        self.folder = Path(folder).resolve()
        info = self.folder / "info"
        self.info = read_properties(info) if info.exists() else {}

    @property
    def version(self):
        return self.info["version"]

    @property
    def bootstrap(self):
        return self.info["bootstrap"]

    def addresses(self, listener):
        return [address for address in self.info.get(listener, "").split(",") if address]

    def brokers(self):
        return [Node(self, str(n)) for n in range(1, int(self.info.get("brokers", 0)) + 1)]

    def zookeepers(self):
        return [Node(self, "zookeeper")] if "zookeeper" in self.info else []

    def nodes(self):
        return self.zookeepers() + self.brokers()

    def node(self, name):
        nodes = {node.name: node for node in self.nodes()}
        if name not in nodes:
            raise Failure(f"{self.folder} has no node {name!r}, only {', '.join(nodes)}")
        return nodes[name]

    def runs(self):
        return any(node.pid() for node in self.nodes())

    # ---- Configuration ----

    def choose_addresses(self, version, brokers, port, secure, ipv6):
        """Fills `info`. `port` is the first broker's; 0: any free ones. `ipv6`: see tests/cluster."""
        taken = set(range(port, port + brokers)) if port else set()
        for one in sorted(taken):
            if not 0 < one <= 65_535 or not is_free(one):
                raise Failure(f"port {one} is taken, perhaps by the small broker of a running chat; end it, or choose --port")
        listeners = kafka_security.LISTENERS if secure else {"PLAINTEXT": "[::1]" if ipv6 else "127.0.0.1"}
        hosts = listeners | {"INTERNAL": "127.0.0.1"}
        if is_kraft(version):
            hosts["CONTROLLER"] = "127.0.0.1"
        self.info = {"version": version, "brokers": str(brokers), "listeners": ",".join(listeners)}
        if not is_kraft(version):
            self.info["zookeeper"] = f"127.0.0.1:{free_port(taken)}"
        for listener, host in hosts.items():
            ports = [port + n if port else free_port(taken) for n in range(brokers)]
            port = 0  # only the first listener has fixed ports
            self.info[listener] = ",".join(f"{host}:{one}" for one in ports)
        self.info["bootstrap"] = self.info[next(iter(listeners))]

    def broker_properties(self, n, advertise, auto_create, secure):
        """The configuration of broker `n`. `advertise` replaces the address that clients are given."""
        clients = self.info["listeners"].split(",")
        names = [name for name in (*clients, "INTERNAL", "CONTROLLER") if name in self.info]
        here = {name: self.addresses(name)[n - 1] for name in names}
        advertised = {name: here[name].replace("[::1]", "localhost") for name in (*clients, "INTERNAL")}
        bound = {name: "[::1]" if at.startswith("[") else "127.0.0.1" for name, at in here.items()}
        if advertise:
            advertised[clients[0]] = advertise
        replicas = 3 if len(self.brokers()) >= 3 else 1
        in_sync = 2 if replicas == 3 else 1
        protocols = {"INTERNAL": "PLAINTEXT", "CONTROLLER": "PLAINTEXT"}
        properties = {
            "listeners": ",".join(f"{name}://{bound[name]}:{at.rsplit(':', 1)[1]}" for name, at in here.items()),
            "advertised.listeners": ",".join(f"{name}://{at}" for name, at in advertised.items()),
            "listener.security.protocol.map": ",".join(f"{name}:{protocols.get(name, name)}" for name in names),
            "inter.broker.listener.name": "INTERNAL",
            "auto.create.topics.enable": "true" if auto_create else "false",
            "num.partitions": 1,
            "default.replication.factor": replicas,
            "min.insync.replicas": in_sync,
            "offsets.topic.num.partitions": 3,
            "offsets.topic.replication.factor": replicas,
            "transaction.state.log.num.partitions": 1,
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.min.isr": in_sync,
            "group.initial.rebalance.delay.ms": 0,
            "log.dirs": self.node(str(n)).data,
        }
        if is_kraft(self.version):
            voters = enumerate(self.addresses("CONTROLLER"), 1)
            properties |= {
                "process.roles": "broker,controller",
                "node.id": n,
                "controller.listener.names": "CONTROLLER",
                "controller.quorum.voters": ",".join(f"{voter}@{at}" for voter, at in voters),
            }
        else:
            zookeeper = self.info["zookeeper"]
            properties |= {"broker.id": n, "zookeeper.connect": zookeeper, "zookeeper.session.timeout.ms": 6000}
            # By default the same, and then a broker on a busy machine ends at its start.
            properties["zookeeper.connection.timeout.ms"] = 60000
        return properties | (kafka_security.broker_properties(self.folder) if secure else {})

    def write_configuration(self, advertise, auto_create, secure, disks):
        for node in self.nodes():
            node.folder.mkdir(parents=True)
        if disks:
            for node in self.brokers():
                node.mount_disk(disks)
        for node in self.zookeepers():
            properties = {
                "dataDir": node.folder / "data",
                "clientPort": self.info["zookeeper"].rsplit(":", 1)[1],
                "clientPortAddress": "127.0.0.1",
                "admin.enableServer": "false",
                "maxClientCnxns": 0,
                "tickTime": 1000,
            }
            write_properties(node.properties, properties)
        for n, node in enumerate(self.brokers(), 1):
            write_properties(node.properties, self.broker_properties(n, advertise, auto_create, secure))
        if secure:
            kafka_security.write_certificates(self.folder)
            kafka_security.write_client_properties(self.folder)
        write_properties(self.folder / "info", self.info)

    def format(self, secure):
        """Prepares the data folders of brokers without ZooKeeper."""
        cluster_id = base64.urlsafe_b64encode(b"kafka" + uuid.uuid4().bytes[5:]).decode().rstrip("=")
        more = kafka_security.format_arguments() if secure else []
        running = []
        try:
            for node in self.brokers():
                arguments = ("format", "-t", cluster_id, "-c", str(node.properties), *more)
                running.append((node, node.spawn("256m", "kafka.tools.StorageTool", *arguments)))
            for node, process in running:
                if process.wait():
                    raise Failure(f"the data folder could not be formatted; {node.log} ends in\n{node.log_tail()}")
        finally:
            for _, process in running:
                process.kill()
                process.wait()

    # ---- Starting and stopping ----

    def start(self):
        for node in self.nodes():
            node.start()
            if node.name == "zookeeper":
                self.wait("ZooKeeper", [node], lambda: connect(self.info["zookeeper"]))
        self.wait("Kafka", self.nodes(), self.check)

    def check(self):
        """OSError unless every broker knows all others, takes topics, and listens for clients."""
        count, internal = len(self.brokers()), self.addresses("INTERNAL")
        for address in internal:
            known = len(metadata(address)[0])
            if known != count:
                raise OSError(f"{address} knows {known} of {count} brokers")
        refused = create_topics(internal[0], [f"ready-{uuid.uuid4()}"], 1, count, validate_only=True)
        if refused:
            raise OSError(refused[0])
        for address in self.addresses("PLAINTEXT"):
            metadata(address)
        for listener in self.info["listeners"].split(","):
            for address in self.addresses(listener):
                connect(address)

    def start_node(self, node):
        """Starts a process that was killed, and returns when it serves."""
        if node.pid():
            raise Failure(f"{node.name} of {self.folder} runs already")
        node.start()
        if node.name == "zookeeper":
            return self.wait("ZooKeeper", [node], lambda: connect(self.info["zookeeper"]))
        address = self.addresses("INTERNAL")[int(node.name) - 1]

        def check():
            if int(node.name) not in metadata(address)[0]:
                raise OSError(f"{address} is not in the cluster yet")

        self.wait("Kafka", [node], check)

    def wait(self, what, nodes, check):
        """Returns the check's result once it passes. Failure if a process exits or the time is up."""
        deadline = time.monotonic() + READY_TIMEOUT
        while True:
            ended = []
            for node in nodes:
                if node.pid():
                    continue
                # ZooKeeper refuses a killed broker until its old session has expired.
                if "NodeExists" in node.log_tail(200) and time.monotonic() < deadline:
                    node.start()
                else:
                    ended.append(node)
            if ended:
                raise Failure(f"{what} exited; {ended[-1].log} ends in\n{ended[-1].log_tail()}")
            try:
                return check()
            except (OSError, struct.error) as error:
                if time.monotonic() > deadline:
                    log = f"; {nodes[-1].log} ends in\n{nodes[-1].log_tail()}" if nodes else ""
                    raise Failure(f"{what} was not ready within {READY_TIMEOUT} seconds: {error}{log}") from None
            time.sleep(0.1)

    def replicas(self):
        """How many replicas a new topic has."""
        return 3 if len(self.addresses("INTERNAL")) >= 3 else 1

    def create_topics(self, names, partitions=1):
        """Creates topics, and returns when every broker knows the leaders of all their partitions."""
        self.change_topics(create_topics, names, partitions, self.replicas())
        for name in names:
            self.wait_for_partitions(name, partitions)

    def wait_for_partitions(self, name, count):
        """Returns when every broker knows the leaders of so many partitions of a topic."""

        def check():
            for address in self.addresses("INTERNAL"):
                leaders = metadata(address, [name])[2].get(name, [])
                if len(leaders) != count or -1 in leaders:
                    raise OSError(f"topic {name} has no {count} leaders yet on {address}")

        self.wait("the topic", [], check)

    def change_topics(self, change, *what):
        """Asks for a change of topics with a function of kafka_wire."""
        address = self.addresses("INTERNAL")[0]
        # A busy cluster has no controller for a moment now and then.
        refused = self.wait("the controller", [], lambda: change(address, *what))
        if refused:
            raise Failure("\n".join(refused))

    def add_partitions(self, name, count):
        """Gives a topic so many partitions in all, and returns when every broker knows their leaders."""
        self.change_topics(create_partitions, name, count)
        self.wait_for_partitions(name, count)

    def delete_topic(self, name):
        """Deletes a topic."""
        self.change_topics(delete_topic, name)

    def recreate_topic(self, name):
        """Deletes a topic, if that was not done, and creates it again, with one partition."""
        address, replicas = self.addresses("INTERNAL")[0], self.replicas()

        def create():
            refused = create_topics(address, [name], 1, replicas)
            # With ZooKeeper, it is still being deleted. Without, a client was faster, and Kafka has created it for that.
            if refused and not is_kraft(self.version):
                raise OSError("\n".join(refused))

        self.wait("the controller", [], lambda: delete_topic(address, name))
        self.wait("the new topic", [], create)
        self.wait_for_partitions(name, 1)

    def configure_topic(self, name, properties):
        """Sets properties of a topic, and returns when every broker knows them."""

        def check():
            for address in self.addresses("INTERNAL"):
                known = topic_properties(address, name, properties)
                if known != properties:
                    raise OSError(f"{address} has {known} for topic {name}")

        self.change_topics(configure_topic, name, properties)
        self.wait("the properties", [], check)

    def stop(self):
        """Ends its processes, brokers before ZooKeeper, and returns when they are gone. Disks of their own are lost."""
        for nodes in (self.brokers(), self.zookeepers()):
            for node in nodes:
                node.send(signal.SIGTERM)
                node.send(signal.SIGCONT)  # a process that was stopped would not see the other signal
            deadline = time.monotonic() + STOP_TIMEOUT
            while any(node.pid() for node in nodes):
                if time.monotonic() > deadline:
                    for node in nodes:
                        node.send(signal.SIGKILL)
                time.sleep(0.05)
        for node in self.brokers():
            node.unmount_disk()

    def delete(self):
        """Deletes its folder, if it is one: a folder without `info` is left alone."""
        if (self.folder / "info").exists():
            shutil.rmtree(self.folder)


def start_cluster(folder, version, brokers=1, port=0, secure=False, auto_create=True, advertise="", ipv6=False, disks=0):
    """Starts a new cluster in this folder, and returns it when it is ready."""
    jars(version)
    if secure and not is_kraft(version):
        raise Failure("a secured cluster needs Kafka 3.5 or later, which keeps its users without ZooKeeper")
    cluster = Cluster(folder)
    if cluster.info:
        raise Failure(f"{cluster.folder} has a cluster already")
    cluster.choose_addresses(version, brokers, port, secure, ipv6)
    try:
        cluster.write_configuration(advertise, auto_create, secure, disks)
        if is_kraft(version):
            cluster.format(secure)
        cluster.start()
        if secure:
            kafka_security.deny(cluster.addresses("INTERNAL")[0])
            cluster.create_topics([name for kind, name in kafka_security.DENIED if kind == "topic"])
    except BaseException:
        cluster.stop()
        raise
    say(f"Kafka {version} is ready at {cluster.bootstrap}")
    return cluster
