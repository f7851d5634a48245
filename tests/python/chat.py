"""Does what the tutorial's chat.py does, which has the topics the wrong way round: it subscribes to the topic of
the *other* user and publishes to its *own*.

Prints `ready` on standard error when it knows the offset from which it reads, for tests to wait for.
"""

import os
import sys
import threading

from kafka import KafkaConsumer, KafkaProducer

servers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092").split(",")

name = input("What is your name? ")
peer = input("Who do want connect? ")
print(flush=True)  # messages start on a new line, also where no terminal echoed the line ending


def subscribe():
    consumer = KafkaConsumer(peer, bootstrap_servers=servers, auto_offset_reset="latest")
    ready = False
    while True:
        for messages in consumer.poll(timeout_ms=100).values():
            for message in messages:
                print(message.value.decode("utf-8"), flush=True)
        if not ready and consumer.assignment():
            ready = all(consumer.position(partition) is not None for partition in consumer.assignment())
            if ready:
                print("ready", file=sys.stderr, flush=True)


threading.Thread(target=subscribe, daemon=True).start()
producer = KafkaProducer(bootstrap_servers=servers)
while True:
    try:
        line = input()
    except EOFError:
        break
    producer.send(name, line.encode("utf-8"))
    producer.flush()
