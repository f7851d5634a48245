"""records.py kafka-python|confluent|read|open TOPIC PARTITIONS: writes records as nobody here does, or reads them.

kafka-python and confluent write, in every compression, records with and without key, value and headers, of the past
and of the near future; confluent also in transactions, committed and aborted. read prints each record of the topic as
`subscriber --json` does, but for the field `time`. open leaves a transaction open, and aborts it at the end of standard
input. The exit code is 1 if a record was not acknowledged.
"""

import base64
import json
import os
import sys
import time
import uuid

servers = os.environ["KAFKA_BOOTSTRAP_SERVERS"]
library, topic, partitions = sys.argv[1], sys.argv[2], int(sys.argv[3])
now = int(time.time() * 1000)
SOON = now + 30 * 60 * 1000  # Kafka 4 refuses what is more than an hour ahead


def records(writer):
    """Keys, values, headers and times."""
    headers = [("trace", b"1"), ("trace", b"\xff"), ("", b"")]
    return [
        (None, f"{writer}, no key".encode(), [], now),
        (b"bob", None, [], now),
        (b"bob", b"", [], now),
        (b"", b"an empty key", [], now),
        (b"bob", f"{writer}: xin chào 🎉".encode(), headers, now),
        (b"\xff\xfe", b"\0\xff\x1b[2J", headers, now),
        (b"bob", f"{writer}, long {'x' * 3000}".encode(), [], 0),
        (b"bob", f"{writer}, soon".encode(), [], SOON),
    ]


def write_kafka_python():
    from kafka import KafkaProducer

    for codec in None, "gzip", "snappy", "lz4", "zstd":
        producer = KafkaProducer(bootstrap_servers=servers.split(","), acks="all", compression_type=codec)
        sent = [
            producer.send(topic, value, key, headers, partition, timestamp)
            for partition in range(partitions)
            for key, value, headers, timestamp in records(f"kafka-python, {codec}")
        ]
        for future in sent:
            future.get(60)


def producer(codec="none", **more):
    from confluent_kafka import Producer

    return Producer({"bootstrap.servers": servers, "compression.type": codec} | more)


def write_confluent(producer, writer):
    def on_delivery(error, _):
        if error:
            sys.exit(str(error))

    for partition in range(partitions):
        for key, value, headers, timestamp in records(writer):
            producer.produce(
                topic, value, key, partition, on_delivery=on_delivery, timestamp=timestamp, headers=headers
            )
    if producer.flush(60):
        sys.exit("no acknowledgement")


def write_all_confluent():
    for codec in "none", "gzip", "snappy", "lz4", "zstd":
        write_confluent(producer(codec), f"confluent, {codec}")
    transactional = producer(**{"transactional.id": str(uuid.uuid4())})
    transactional.init_transactions(60)
    for word, end in (("aborted", "abort"), ("committed", "commit"), ("aborted", "abort")):
        transactional.begin_transaction()
        write_confluent(transactional, word)
        getattr(transactional, f"{end}_transaction")(60)


def leave_open():
    transactional = producer(**{"transactional.id": str(uuid.uuid4())})
    transactional.init_transactions(60)
    transactional.begin_transaction()
    transactional.produce(topic, "never\n")
    transactional.flush(60)
    print("open", flush=True)
    sys.stdin.read()
    transactional.abort_transaction(60)


def text(name, value):
    if value is None:
        return {name: None}
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value).decode()}


def read():
    from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

    consumer = Consumer({"bootstrap.servers": servers, "group.id": "reader", "enable.partition.eof": True})
    unread = set(range(partitions))
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in unread])
    while unread:
        record = consumer.poll(60)
        if record is None:
            sys.exit("no answer")
        if record.error():
            if record.error().code() != KafkaError._PARTITION_EOF:
                sys.exit(str(record.error()))
            unread.discard(record.partition())
            continue
        found = {"topic": topic, "partition": record.partition(), "offset": record.offset()}
        found |= {"timestamp": record.timestamp()[1]} | text("key", record.key()) | text("value", record.value())
        if record.headers():
            found["headers"] = [{"key": key} | text("value", value) for key, value in record.headers()]
        print(json.dumps(found))
    consumer.close()


{"kafka-python": write_kafka_python, "confluent": write_all_confluent, "open": leave_open, "read": read}[library]()
