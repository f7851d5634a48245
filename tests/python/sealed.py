"""Seals and opens lines as docs/sealed.md says: another implementation, to test that page and ours.

    sealed.py seal SECRET_FILE SENDER TOPIC    values for the lines of standard input
    sealed.py open SECRET_FILE SENDER TOPIC    the lines in the values of standard input; exits with 1 if any is refused
"""
import base64
import os
import struct
import sys
import time

from argon2.low_level import Type, hash_secret_raw
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt as decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt as encrypt,
)
from nacl.exceptions import CryptoError

CONTEXT = b"kafka-chat seal 1\0"
PREFIX = b"sealed1:"


def read_secret(path):
    with open(path, "rb") as file:
        secret = file.read()
    if secret.endswith(b"\n"):
        secret = secret[:-2] if secret.endswith(b"\r\n") else secret[:-1]
    return secret


def derive(secret, topic):
    derived = hash_secret_raw(
        secret, CONTEXT + topic, time_cost=2, memory_cost=19456, parallelism=1, hash_len=48, type=Type.ID, version=0x13
    )
    return derived[:32], derived[32:]


def encode(data):
    return PREFIX + base64.urlsafe_b64encode(data).rstrip(b"=")


def seal(key, key_id, data, session, number, text):
    nonce = os.urandom(24)
    plain = session + struct.pack(">Qq", number, time.time_ns() // 1_000_000) + text
    return encode(key_id + nonce + encrypt(plain, data, nonce, key))


def unseal(key, key_id, data, value):
    """The session, the number, the clock and the text; ValueError or CryptoError if the value is refused."""
    encoded = value.removeprefix(PREFIX)
    decoded = base64.urlsafe_b64decode(encoded + b"=" * (-len(encoded) % 4))
    if encode(decoded) != value or decoded[:16] != key_id:
        raise ValueError("not sealed, another secret, or not canonical")
    plain = decrypt(decoded[40:], data, decoded[16:40], key)
    return plain[:16], *struct.unpack(">Qq", plain[16:32]), plain[32:]


def main(action, path, sender, topic):
    sender, topic = sender.encode(), topic.encode()
    key, key_id = derive(read_secret(path), topic)
    data = CONTEXT + sender + b"\0" + topic
    session, highest, is_refused = os.urandom(16), {}, False
    for number, line in enumerate(sys.stdin.buffer):
        line = line.removesuffix(b"\n")
        if action == "seal":
            sys.stdout.buffer.write(seal(key, key_id, data, session, number, line) + b"\n")
            continue
        try:
            theirs, number, _, text = unseal(key, key_id, data, line)
        except (ValueError, CryptoError):
            is_refused = True
            continue
        if number <= highest.get(theirs, -1):
            is_refused = True
        else:
            highest[theirs] = number
            sys.stdout.buffer.write(text + b"\n")
    sys.exit(is_refused)


main(*sys.argv[1:])
