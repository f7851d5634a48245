"""Does what the tutorial's subscriber.py does: prints what arrives in its user's topic from now on.

Prints `ready` on standard error when it knows the offset from which it reads, for tests to wait for.
"""

import os
import sys

from kafka import KafkaConsumer

servers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092").split(",")

name = input("What is your name? ")
print(flush=True)  # messages start on a new line, also where no terminal echoed the line ending

consumer = KafkaConsumer(name, bootstrap_servers=servers, auto_offset_reset="latest")
ready = False
while True:
    for messages in consumer.poll(timeout_ms=100).values():
        for message in messages:
            print(message.value.decode("utf-8"), flush=True)
    if not ready and consumer.assignment():
        ready = all(consumer.position(partition) is not None for partition in consumer.assignment())
        if ready:
            print("ready", file=sys.stderr, flush=True)
