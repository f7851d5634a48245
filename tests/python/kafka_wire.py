"""The requests of Kafka's protocol that starting a cluster and changing topics needs.

Kafka's own tools send the same, but each run of them takes two seconds of Java. The versions used are
understood by every Kafka from 2.3 to 4.3. https://kafka.apache.org/protocol
"""

import socket
import struct

METADATA, CREATE_TOPICS, CREATE_ACLS = (3, 4), (19, 2), (30, 1)  # API key, version
CREATE_PARTITIONS, ALTER_CONFIGS, DELETE_TOPICS, DESCRIBE_CONFIGS = (37, 0), (44, 0), (20, 1), (32, 1)
TOPIC, SET = 2, 0  # a type of resource, an operation on its configuration
TIMEOUT = 10  # seconds
CHANGE_TIMEOUT_MS = 30_000
CHANGE_TIMEOUT = 40  # seconds; a change that is asked for again is refused, if it was made

# The codes of ACLs: org.apache.kafka.common.acl and .resource
RESOURCES = {"topic": (2, 3), "groups": (3, 4)}  # a type, and whether the name is literal or a prefix
OPERATIONS = {"ALL": 2, "READ": 3, "WRITE": 4, "DESCRIBE": 8}
PERMISSIONS = {"DENY": 2, "ALLOW": 3}


def string(text):
    data = text.encode()
    return struct.pack(">h", len(data)) + data


class Response:
    """A response's body, read field by field. struct.error if it is too short."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def number(self, code):
        """A number; `code` is the struct module's: b, h or i."""
        (value,) = struct.unpack_from(">" + code, self.data, self.at)
        self.at += struct.calcsize(">" + code)
        return value

    def string(self):
        """A string; null reads as empty."""
        size = max(self.number("h"), 0)
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def array(self, item):
        return [item() for _ in range(self.number("i"))]


def host_and_port(address):
    """`host:port` as two; an IPv6 address stands in brackets."""
    host, port = address.rsplit(":", 1)
    return host.strip("[]"), int(port)


def send(address, api, body, timeout=TIMEOUT):
    """Sends one request to the broker at `host:port` and returns its response. OSError if none comes in time."""
    message = struct.pack(">hhi", *api, 1) + string("kafka-chat") + body
    with socket.create_connection(host_and_port(address), timeout=timeout) as connection:
        connection.sendall(struct.pack(">i", len(message)) + message)
        with connection.makefile("rb") as stream:
            size = stream.read(4)
            if len(size) < 4:
                raise OSError(f"{address} closed the connection")
            response = Response(stream.read(struct.unpack(">i", size)[0]))
    response.number("i")  # correlation id
    return response


def metadata(address, topics=()):
    """The brokers' addresses by id, the controller's id, and for each topic its partitions' leaders (-1: none)."""
    body = struct.pack(">i", len(topics)) + b"".join(map(string, topics)) + b"\0"  # no auto-creation
    response = send(address, METADATA, body)
    response.number("i")  # throttle time

    def broker():
        node, host, port = response.number("i"), response.string(), response.number("i")
        response.string()  # rack
        return node, f"{host}:{port}"

    def ids():
        return response.array(lambda: response.number("i"))

    def leader():
        response.number("h"), response.number("i")  # error code, index
        node = response.number("i")
        ids(), ids()  # replicas, in-sync replicas
        return node

    def topic():
        response.number("h")  # error code: such a topic has no partitions
        name = response.string()
        response.number("b")  # internal
        return name, response.array(leader)

    brokers = dict(response.array(broker))
    response.string()  # cluster id
    controller = response.number("i")
    return brokers, controller, dict(response.array(topic))


def controller_of(address):
    """The address of the controller."""
    brokers, controller, _ = metadata(address)
    if controller not in brokers:
        raise OSError("the cluster has no controller yet")
    return brokers[controller]


def create_topics(address, names, partitions, replicas, validate_only=False):
    """Asks the controller to create topics. Returns the reasons of those that it refused."""
    topics = [string(name) + struct.pack(">ihii", partitions, replicas, 0, 0) for name in names]
    body = struct.pack(">i", len(topics)) + b"".join(topics) + struct.pack(">ib", CHANGE_TIMEOUT_MS, validate_only)
    response = send(controller_of(address), CREATE_TOPICS, body, CHANGE_TIMEOUT)
    response.number("i")  # throttle time
    results = response.array(lambda: (response.string(), response.number("h"), response.string()))
    return [f"{name}: {text or f'error {code}'}" for name, code, text in results if code]


def create_partitions(address, name, count):
    """Asks the controller for so many partitions in all. Returns why it refused, as a list."""
    body = struct.pack(">i", 1) + string(name) + struct.pack(">iiib", count, -1, CHANGE_TIMEOUT_MS, False)
    response = send(controller_of(address), CREATE_PARTITIONS, body, CHANGE_TIMEOUT)
    response.number("i")  # throttle time
    results = response.array(lambda: (response.string(), response.number("h"), response.string()))
    return [f"{name}: {text or f'error {code}'}" for name, code, text in results if code]


def delete_topic(address, name):
    """Asks the controller to delete a topic. Returns why it refused, as a list."""
    body = struct.pack(">i", 1) + string(name) + struct.pack(">i", CHANGE_TIMEOUT_MS)
    response = send(controller_of(address), DELETE_TOPICS, body, CHANGE_TIMEOUT)
    response.number("i")  # throttle time
    results = response.array(lambda: (response.string(), response.number("h")))
    return [f"{name}: error {code}" for name, code in results if code]


def configure_topic(address, name, configs):
    """Sets properties of a topic. Returns why that was refused, as a list."""
    body = struct.pack(">ib", 1, TOPIC) + string(name) + struct.pack(">i", len(configs))
    body += b"".join(string(key) + struct.pack(">b", SET) + string(value) for key, value in configs.items()) + b"\0"
    response = send(controller_of(address), ALTER_CONFIGS, body)
    response.number("i")  # throttle time
    results = response.array(lambda: (response.number("h"), response.string(), response.number("b"), response.string()))
    return [f"{name}: {text or f'error {code}'}" for code, text, _, _ in results if code]


def topic_properties(address, name, keys):
    """Properties of a topic, as the broker at this address knows them."""
    body = struct.pack(">ib", 1, TOPIC) + string(name) + struct.pack(">i", len(keys)) + b"".join(map(string, keys))
    response = send(address, DESCRIBE_CONFIGS, body + b"\0")  # no synonyms
    response.number("i")  # throttle time

    def property():
        key, value = response.string(), response.string()
        response.number("b"), response.number("b"), response.number("b")  # read-only, source, sensitive
        response.array(lambda: (response.string(), response.string(), response.number("b")))
        return key, value

    def resource():
        response.number("h"), response.string(), response.number("b"), response.string()  # error, type, name
        return dict(response.array(property))

    return response.array(resource)[0]


def create_acls(address, rules):
    """Adds rules ((kind, name), operation, permission) for every user. Returns the reasons of those refused."""
    body = struct.pack(">i", len(rules))
    for (kind, name), operation, permission in rules:
        resource, pattern = RESOURCES[kind]
        body += struct.pack(">b", resource) + string(name) + struct.pack(">b", pattern)
        body += string("User:*") + string("*")
        body += struct.pack(">bb", OPERATIONS[operation], PERMISSIONS[permission])
    response = send(address, CREATE_ACLS, body)
    response.number("i")  # throttle time
    results = response.array(lambda: (response.number("h"), response.string()))
    return [text or f"error {code}" for code, text in results if code]
