"""confluent.py TOPIC: with confluent-kafka, appends the lines of standard input, lists the topic, and prints all its lines.

The exit code is 1 if any line was not acknowledged, or could not be read within a minute.
"""

import os
import sys
import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

servers = {"bootstrap.servers": os.environ["KAFKA_BOOTSTRAP_SERVERS"]}
topic = sys.argv[1]


def on_delivery(error, _):
    if error:
        sys.exit(str(error))


producer = Producer(servers)
for line in sys.stdin:
    producer.produce(topic, line.removesuffix("\n"), "carol", on_delivery=on_delivery)
if producer.flush(60):
    sys.exit("not all lines were acknowledged")

# Without a group, of which it never becomes a member.
consumer = Consumer(servers | {"group.id": "none", "enable.auto.commit": False})
partition = TopicPartition(topic, 0, OFFSET_BEGINNING)
_, left = consumer.get_watermark_offsets(partition)
print(f"{topic} has {left} lines")
consumer.assign([partition])
deadline = time.monotonic() + 60
while left and time.monotonic() < deadline:
    message = consumer.poll(0.2)
    if message and not message.error():
        print(f"{message.key().decode()}: {message.value().decode()}")
        left -= 1
consumer.close()
if left:
    sys.exit(f"{left} lines could not be read")
