"""What a secured cluster adds: certificates, users with passwords, and ACLs."""

import shutil
import subprocess

from kafka_programs import Failure, program, write_properties
from kafka_wire import create_acls

# Certificates are for `localhost`, so the TLS listeners are advertised by that name.
LISTENERS = {"SASL_SSL": "localhost", "SSL": "localhost", "SASL_PLAINTEXT": "127.0.0.1"}
PASSWORDS = {"alice": "alice-secret", "bob": "bob-secret"}
# What is denied to everyone: one operation on a topic, or on the groups whose names start so. All else is allowed.
DENIED = {
    ("topic", "unreadable"): "READ",
    ("topic", "unwritable"): "WRITE",
    ("groups", "chat:hidden:"): "DESCRIBE",
    ("groups", "here:hidden:"): "DESCRIBE",
    ("groups", "here:shy:"): "READ",
}
MECHANISMS = {"plain": ("PLAIN", "plain.Plain"), "scram": ("SCRAM-SHA-256", "scram.Scram")}
MODULES = "org.apache.kafka.common.security"

OPENSSL_CONFIGURATION = """
[req]
distinguished_name=name
[name]
[ca]
basicConstraints=critical,CA:TRUE
keyUsage=critical,keyCertSign,cRLSign
subjectKeyIdentifier=hash
[server]
subjectAltName=DNS:localhost
basicConstraints=CA:FALSE
extendedKeyUsage=serverAuth
"""


def broker_properties(folder):
    plain = " ".join(f'user_{user}="{password}"' for user, password in PASSWORDS.items())
    properties = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": folder / "tls" / "server.pem",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
        "super.users": "User:ANONYMOUS",
    }
    for listener in ("sasl_ssl", "sasl_plaintext"):
        name = f"listener.name.{listener}"
        properties[f"{name}.plain.sasl.jaas.config"] = f"{MODULES}.plain.PlainLoginModule required {plain};"
        properties[f"{name}.scram-sha-256.sasl.jaas.config"] = f"{MODULES}.scram.ScramLoginModule required;"
    return properties


def format_arguments():
    """Arguments that make Kafka's StorageTool create the SCRAM users."""
    users = [f"SCRAM-SHA-256=[name={user},password={password}]" for user, password in PASSWORDS.items()]
    return [argument for user in users for argument in ("--add-scram", user)]


def write_certificates(folder):
    """A CA, a certificate for `localhost` only, and another CA that signed nothing."""
    tls = folder / "tls"
    tls.mkdir()
    (tls / "openssl.cnf").write_text(OPENSSL_CONFIGURATION)

    def openssl(*arguments):
        done = subprocess.run([program("openssl", "openssl"), *arguments], cwd=tls, capture_output=True, text=True)
        if done.returncode:
            raise Failure(f"openssl {arguments[0]} failed: {done.stderr.strip()}")

    key = ("-newkey", "rsa:2048", "-nodes", "-config", "openssl.cnf")
    for name in ("ca", "other-ca"):
        files = ("-keyout", f"{name}.key", "-out", f"{name}.pem")
        openssl("req", "-x509", *key, "-extensions", "ca", "-days", "3650", "-subj", f"/CN=kafka-chat {name}", *files)
        shutil.copy(tls / f"{name}.pem", folder)
    openssl("req", *key, "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr")
    openssl(
        *("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-extfile", "openssl.cnf", "-extensions", "server", "-days", "3650", "-out", "server.crt"),
    )
    (tls / "server.pem").write_text((tls / "server.key").read_text() + (tls / "server.crt").read_text())


def write_client_properties(folder):
    """For each user and mechanism, a file for Kafka's Java clients and one for librdkafka."""
    for user, password in PASSWORDS.items():
        for name, (mechanism, module) in MECHANISMS.items():
            java = {
                "security.protocol": "SASL_SSL",
                "sasl.mechanism": mechanism,
                "sasl.jaas.config": f"{MODULES}.{module}LoginModule required"
                f' username="{user}" password="{password}";',
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": folder / "ca.pem",
            }
            librdkafka = {
                "security.protocol": "SASL_SSL",
                "sasl.mechanisms": mechanism,
                "sasl.username": user,
                "sasl.password": password,
                "ssl.ca.location": folder / "ca.pem",
            }
            write_properties(folder / f"client-{user}-{name}.properties", java)
            write_properties(folder / f"librdkafka-{user}-{name}.properties", librdkafka)


def deny(address):
    """Creates the ACLs for DENIED. Once something has a rule, what no rule allows is denied."""
    rules = [(resource, operation, "DENY") for resource, operation in DENIED.items()]
    rules += [(resource, "ALL", "ALLOW") for resource in DENIED]
    refused = create_acls(address, rules)
    if refused:
        raise Failure(f"an ACL was refused: {refused[0]}")
