"""What the tutorial's publisher.py does: each line goes to the topic of the other user, and is flushed."""

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
