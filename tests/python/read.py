"""read.py TOPIC COUNT [--keys] [--seconds S]: prints the first COUNT messages of a topic, byte for byte.

With --keys each is printed as `key: value`. The exit code is 1 if fewer arrived within S (120) seconds.
"""

import argparse
import os
import sys
import time

from kafka import KafkaConsumer, TopicPartition

parser = argparse.ArgumentParser()
parser.add_argument("topic")
parser.add_argument("count", type=int)
parser.add_argument("--keys", action="store_true")
parser.add_argument("--seconds", type=float, default=120)
wanted = parser.parse_args()

servers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092").split(",")
deadline = time.monotonic() + wanted.seconds
consumer = KafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False)

partitions = None
while not partitions and time.monotonic() < deadline:
    partitions = consumer.partitions_for_topic(wanted.topic)
if not partitions:
    sys.exit(f"topic {wanted.topic} did not exist within {wanted.seconds} seconds")
consumer.assign([TopicPartition(wanted.topic, partition) for partition in sorted(partitions)])
consumer.seek_to_beginning()

seen = 0
while seen < wanted.count and time.monotonic() < deadline:
    for messages in consumer.poll(timeout_ms=200).values():
        for message in messages[: wanted.count - seen]:
            if wanted.keys:
                sys.stdout.buffer.write((message.key or b"") + b": ")
            sys.stdout.buffer.write((message.value or b"") + b"\n")
            seen += 1
sys.stdout.buffer.flush()
if seen < wanted.count:
    sys.exit(f"{seen} of {wanted.count} messages within {wanted.seconds} seconds")
