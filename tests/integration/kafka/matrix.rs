//! What each client writes, each client reads: ours, kcat's, and kafka-python.

use super::{Ours, cluster};
use crate::others;
use crate::support::{Kafka, Program, user};

/// Who writes or reads.
#[derive(Debug, Clone, Copy)]
enum Client {
    Ours(Ours),
    Kcat,
    KafkaPython,
}

impl Client {
    /// All that the Kafka of this run serves.
    fn all() -> Vec<Client> {
        let ours = Ours::all().into_iter().map(Client::Ours);
        ours.chain([Client::Kcat, Client::KafkaPython]).collect()
    }

    /// Writes lines to a topic, all with one key.
    fn write(self, on: &Kafka, topic: &str, key: &str, lines: &[u8]) {
        match self {
            Client::Ours(ours) => ours.program(on, "publisher", &[key, topic]).input(lines),
            // Given a key for all lines (-k) kcat leaves out the empty ones, so each brings its own;
            // and without idempotence it changes their order when it has to try again.
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

    /// A program that reads so many lines from the start of a topic, each as `key: line`.
    fn read(self, on: &Kafka, topic: &str, count: usize) -> Program {
        let count = count.to_string();
        match self {
            Client::Ours(ours) => {
                let arguments = [topic, "--from", "earliest", "-s", "-n", &count];
                ours.program(on, "subscriber", &arguments)
            }
            Client::Kcat => {
                let format = ["-C", "-q", "-f", "%k: %s\n"];
                kcat(on, topic, &format).args(["-o", "beginning", "-c", &count])
            }
            Client::KafkaPython => others::python("read.py", &[topic, &count, "--keys"], on),
        }
    }
}

fn kcat(on: &Kafka, topic: &str, arguments: &[&str]) -> Program {
    Program::other("kcat", &["-b", &on.servers(), "-t", topic]).args(arguments)
}

/// The lines, each behind the key.
fn with_key(lines: &[u8], key: &str, separator: &str) -> Vec<u8> {
    let mut all = Vec::with_capacity(lines.len());
    for line in lines.split_inclusive(|&byte| byte == b'\n') {
        all.extend_from_slice(key.as_bytes());
        all.extend_from_slice(separator.as_bytes());
        all.extend_from_slice(line);
    }
    all
}

/// Every pair of clients: the same lines, whole, in order, and under the writer's key.
fn each_reads_what_each_has_written(lines: &[u8]) {
    let on = Kafka::real();
    let count = lines.iter().filter(|&&byte| byte == b'\n').count();
    for writer in Client::all() {
        // A failure shows what the reader printed, and so this name.
        let me = user(&format!("{writer:?}").replace(['(', ')'], "-"));
        let peer = user("bob");
        // kafka-python does not wait until each of several brokers knows of a new topic.
        cluster(&["topic", &peer]);
        writer.write(&on, &peer, &me, lines);
        let expected = with_key(lines, &me, ": ");
        for reader in Client::all() {
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
    each_reads_what_each_has_written(&lines);
}

#[test]
#[ignore = "needs a real Kafka"]
fn each_client_reads_the_lines_of_900_kb_of_each_other() {
    let mut lines = Vec::new();
    for byte in b'a'..=b'd' {
        lines.extend(vec![byte; 900_000]);
        lines.push(b'\n');
    }
    each_reads_what_each_has_written(&lines);
}

#[test]
#[ignore = "needs a real Kafka"]
fn each_client_reads_ten_thousand_piped_lines_of_each_other_in_order() {
    let lines: String = (1..=10_000).map(|n| format!("line {n}\n")).collect();
    each_reads_what_each_has_written(lines.as_bytes());
}
