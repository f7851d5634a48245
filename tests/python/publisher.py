"""Does what the tutorial's publisher.py does: sends each line to the other user's topic, and flushes it."""

import os

from kafka import KafkaProducer

servers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092").split(",")

input("What is your name? ")
peer = input("Who do want connect? ")

producer = KafkaProducer(bootstrap_servers=servers)
while True:
    try:
        line = input()
    except EOFError:
        break
    producer.send(peer, line.encode("utf-8"))
    producer.flush()
