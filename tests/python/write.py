"""write.py TOPIC [KEY]: sends each line of standard input, byte for byte.

The exit code is 1 if any was not acknowledged.
"""

import os
import sys

from kafka import KafkaProducer

servers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092").split(",")
topic = sys.argv[1]
key = sys.argv[2].encode("utf-8") if len(sys.argv) > 2 else None

producer = KafkaProducer(bootstrap_servers=servers, acks="all", max_in_flight_requests_per_connection=1)
sent = [producer.send(topic, line.removesuffix(b"\n"), key=key) for line in sys.stdin.buffer]
producer.flush()
failed = [future.exception for future in sent if not future.succeeded()]
if failed:
    sys.exit(f"{len(failed)} of {len(sent)} lines failed, the first with {failed[0]!r}")
