//! Each client reads the lines of each other: ours, kcat, and kafka-python.

use super::cluster;
use crate::others;
use crate::support::{Kafka, Program, user};

/// A client that writes or reads.
#[derive(Debug, Clone, Copy)]
enum Client {
    Ours,
    Kcat,
    KafkaPython,
}

impl Client {
    const ALL: [Client; 3] = [Client::Ours, Client::Kcat, Client::KafkaPython];

    /// Writes lines to a topic, all with one key.
    fn write(self, on: &Kafka, topic: &str, key: &str, lines: &[u8]) {
        match self {
            Client::Ours => on.program("publisher", &[key, topic]).input(lines),
            // With one key for all lines (-k) kcat drops the empty ones, so each has its own key. And
            // without idempotence a retry changes their order.
            Client::Kcat => kcat(
                on,
                topic,
                &["-P", "-K", "\t", "-X", "enable.idempotence=true"],
            )
            .input(with_key(lines, key, "\t")),
            Client::KafkaPython => others::python("write.py", &[topic, key], on).input(lines),
        }
        .run()
        .code(0);
    }

    /// A program that prints the first `count` lines of a topic, each as `key: line`.
    fn read(self, on: &Kafka, topic: &str, count: usize) -> Program {
        let count = count.to_string();
        match self {
            Client::Ours => {
                let arguments = [topic, "--from", "earliest", "-s", "-n", &count];
                on.program("subscriber", &arguments)
            }
            Client::Kcat => {
                let format = ["-C", "-q", "-f", "%k: %s\n"];
                kcat(on, topic, &format).args(["-o", "beginning", "-c", &count])
            }
            Client::KafkaPython => others::python("read.py", &[topic, &count, "--keys"], on),
        }
    }
}

pub(super) fn kcat(on: &Kafka, topic: &str, arguments: &[&str]) -> Program {
    Program::other("kcat", &["-b", &on.servers(), "-t", topic]).args(arguments)
}

/// The lines, each after the key.
fn with_key(lines: &[u8], key: &str, separator: &str) -> Vec<u8> {
    let mut all = Vec::with_capacity(lines.len());
    for line in lines.split_inclusive(|&byte| byte == b'\n') {
        all.extend_from_slice(key.as_bytes());
        all.extend_from_slice(separator.as_bytes());
        all.extend_from_slice(line);
    }
    all
}

/// For every pair of clients: the lines come out whole, in order, and with the writer's key.
fn each_client_reads_the_lines_of_each(lines: &[u8]) {
    let on = Kafka::real();
    let count = lines.iter().filter(|&&byte| byte == b'\n').count();
    for writer in Client::ALL {
        // A failure shows what the reader printed, and so the writer.
        let me = user(&format!("{writer:?}"));
        let peer = user("bob");
        // kafka-python does not wait until all brokers know a new topic.
        cluster(&["topic", &peer]);
        writer.write(&on, &peer, &me, lines);
        let expected = with_key(lines, &me, ": ");
        for reader in Client::ALL {
            reader
                .read(&on, &peer, count)
                .run()
                .code(0)
                .prints(&expected);
        }
    }
}

#[test]
#[ignore = "needs a real Kafka"]
fn each_client_reads_the_text_the_empty_lines_and_the_bytes_of_each_other() {
    let mut lines = Vec::new();
    lines.extend(b"first\n\n\n with\ttabs : and spaces \n");
    lines.extend("xin chào, Việt Nam\n你好，世界\nпривет\nمرحبا\nनमस्ते\n🎉🇻🇳\n".bytes());
    lines.extend(b"\xff\xfe\x80 no UTF-8\nnul\0in the middle\n\x1b[2J\n\nlast\n");
    each_client_reads_the_lines_of_each(&lines);
}

#[test]
#[ignore = "needs a real Kafka"]
fn each_client_reads_the_lines_of_900_kb_of_each_other() {
    let mut lines = Vec::new();
    for byte in b'a'..=b'd' {
        lines.extend(vec![byte; 900_000]);
        lines.push(b'\n');
    }
    each_client_reads_the_lines_of_each(&lines);
}

#[test]
#[ignore = "needs a real Kafka"]
fn each_client_reads_ten_thousand_piped_lines_of_each_other_in_order() {
    let lines: String = (1..=10_000).map(|n| format!("line {n}\n")).collect();
    each_client_reads_the_lines_of_each(lines.as_bytes());
}
