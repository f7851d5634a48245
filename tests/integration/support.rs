//! What all tests share: a Kafka to use, names and ports of a test's own, and the deadline of waits.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub(crate) use crate::program::{Capture, Ended, Program, Running};

/// The deadline of a wait. It only ends what hangs: no test passes or fails by how fast a machine is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A delivery timeout in seconds that no test lives to see: a program that ends did not wait for it.
pub(crate) const A_DAY: &str = "86400";

/// The Kafka that a test's programs use.
pub(crate) enum Kafka {
    /// The small broker, on a port and with a folder of the test's own.
    Embedded {
        /// Its port.
        port: u16,
        /// The folder of its log.
        dir: TempDir,
    },
    /// A broker that runs already, by its bootstrap servers.
    Real(String),
}

impl Kafka {
    /// A small broker of the test's own, which the first program that needs it starts.
    pub(crate) fn embedded() -> Kafka {
        Kafka::Embedded {
            port: free_port(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// The Kafka that `scripts/test-kafka` has started.
    pub(crate) fn real() -> Kafka {
        Kafka::Real(setting("KAFKA_CHAT_TEST_SERVERS"))
    }

    /// The same broker, for programs that never host it.
    pub(crate) fn by_address(&self) -> Kafka {
        Kafka::Real(self.servers())
    }

    /// Starts a program that hosts the small broker until it is dropped.
    #[track_caller]
    pub(crate) fn host(&self) -> Running {
        let host = self.program("subscriber", &["host"]).start();
        host.wait_for_notice("small broker of its own");
        host
    }

    /// Keeps the small broker running until what this returns is dropped; a real Kafka runs by itself.
    #[track_caller]
    pub(crate) fn keep_running(&self) -> Option<Running> {
        matches!(self, Kafka::Embedded { .. }).then(|| self.host())
    }

    /// `host:port,…`
    pub(crate) fn servers(&self) -> String {
        match self {
            Kafka::Embedded { port, .. } => format!("127.0.0.1:{port}"),
            Kafka::Real(servers) => servers.clone(),
        }
    }

    /// The small broker's port.
    pub(crate) fn port(&self) -> u16 {
        match self {
            Kafka::Embedded { port, .. } => *port,
            Kafka::Real(servers) => panic!("{servers} is not a small broker"),
        }
    }

    /// The folder of the small broker's log.
    pub(crate) fn dir(&self) -> &Path {
        match self {
            Kafka::Embedded { dir, .. } => dir.path(),
            Kafka::Real(servers) => panic!("{servers} is not a small broker"),
        }
    }

    /// The file in which the small broker keeps a topic's messages.
    pub(crate) fn segment(&self, topic: &str) -> PathBuf {
        let is_wanted = |path: &Path| {
            let is_log = path.extension().is_some_and(|extension| extension == "log");
            is_log && path.to_string_lossy().contains(topic)
        };
        find_file(self.dir(), &is_wanted)
            .unwrap_or_else(|| panic!("no messages of {topic} in {}", self.dir().display()))
    }

    /// One of our programs, which uses this Kafka.
    pub(crate) fn program(&self, name: &str, arguments: &[&str]) -> Program {
        let program = Program::ours(name, arguments);
        match self {
            Kafka::Embedded { port, dir } => program
                .arg(format!("--embedded={port}"))
                .arg("--data-dir")
                .arg(dir.path()),
            Kafka::Real(servers) => program.args(["-b", servers]),
        }
    }

    /// Sends lines from `me` to `peer`.
    #[track_caller]
    pub(crate) fn send(&self, me: &str, peer: &str, lines: impl Into<Vec<u8>>) {
        let publisher = self.program("publisher", &[me, peer]);
        publisher.input(lines).run().code(0);
    }

    /// The lines of a topic.
    #[track_caller]
    pub(crate) fn log(&self, topic: &str) -> String {
        String::from_utf8(self.log_bytes(topic, &[])).unwrap()
    }

    /// The lines of a topic, as `subscriber` prints them with these options.
    #[track_caller]
    pub(crate) fn log_bytes(&self, topic: &str, options: &[&str]) -> Vec<u8> {
        let subscriber = self.program("subscriber", &[topic, "--from", "earliest", "-e"]);
        subscriber.args(options).run().code(0).stdout
    }

    /// The first `count` lines of a topic, once it has so many.
    #[track_caller]
    pub(crate) fn first_lines(&self, topic: &str, count: usize) -> String {
        let count = count.to_string();
        let arguments = [topic, "--from", "earliest", "-n", &count];
        let ended = self.program("subscriber", &arguments).run().code(0);
        String::from_utf8(ended.stdout).unwrap()
    }

    /// A subscriber that prints a topic from its start, and goes on.
    #[track_caller]
    pub(crate) fn reader(&self, topic: &str) -> Running {
        let arguments = [topic, "--from", "earliest"];
        self.program("subscriber", &arguments).start()
    }
}

/// A file in a folder, or in the folders in it.
pub(crate) fn find_file(folder: &Path, is_wanted: &impl Fn(&Path) -> bool) -> Option<PathBuf> {
    fs::read_dir(folder).unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => find_file(&path, is_wanted),
            false => is_wanted(&path).then_some(path),
        }
    })
}

/// A setting that `scripts/test-kafka` makes, without which the test fails.
pub(crate) fn setting(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: run this test by scripts/test-kafka"))
}

/// Whether `scripts/test-kafka` has started Kafka 4 or later.
pub(crate) fn is_kafka_4() -> bool {
    let version = setting("KAFKA_CHAT_TEST_VERSION");
    let major = version.split('.').next().unwrap().parse::<u32>();
    major.unwrap() >= 4
}

/// A port of 127.0.0.1 that is free, and outside the range of the ports of outgoing connections.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id() * 53;
        let port = 10_000 + (n % 20_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A user's name that no other test and no earlier run has.
pub(crate) fn user(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let time = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() % 100_000_000;
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{name}-{time}-{}-{n}", std::process::id())
}

/// Polls until `attempt` gives something, where nothing signals that it would; fails with `what`
/// after `patience`.
#[track_caller]
pub(crate) fn poll_until<T>(
    patience: Duration,
    what: impl FnOnce() -> String,
    mut attempt: impl FnMut() -> Option<T>,
) -> T {
    let end = Instant::now() + patience;
    while Instant::now() < end {
        if let Some(found) = attempt() {
            return found;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("within {patience:?} not {}", what())
}

/// Sends a signal by name: `INT`, `KILL`, `STOP`, …
pub(crate) fn send_signal(pid: u32, name: &str) {
    let arguments = [format!("-{name}"), pid.to_string()];
    let status = Command::new("kill").args(arguments).status().unwrap();
    assert!(status.success(), "kill -{name} {pid}: {status}");
}

/// A process's memory in kB, under one of the names that proc_pid_status(5) has for it.
#[cfg(target_os = "linux")]
pub(crate) fn kilobytes(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let found = status.lines().find_map(|line| line.strip_prefix(name));
    let found = found.and_then(|rest| rest.strip_prefix(':')?.trim().strip_suffix(" kB"));
    found.unwrap().parse().unwrap()
}

/// Whether `bytes` contain `part`.
pub(crate) fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Lines of random printable bytes, the same for the same seed.
pub(crate) fn random_lines(seed: u64, count: usize, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut lines = Vec::with_capacity(count * (length + 1));
    for _ in 0..count {
        for _ in 0..length {
            // Xorshift: good enough for bytes that no compression and no pattern may shorten.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            lines.push(b' ' + (state % 95) as u8);
        }
        lines.push(b'\n');
    }
    lines
}

/// Writes the log of a topic as earlier versions of the small broker did: what crate `kafka` sends has no time.
pub(crate) fn write_without_times(on: &Kafka, topic: &str, lines: &[&str]) {
    let folder = on.dir().join(format!("{topic}-0"));
    fs::create_dir(&folder).unwrap();
    let messages = (0..).zip(lines);
    let messages = messages.map(|(offset, line)| message(offset, line.as_bytes()));
    let segment = messages.collect::<Vec<_>>().concat();
    fs::write(folder.join(format!("{:020}.log", 0)), segment).unwrap();
}

/// A message of magic 0 without a key.
pub(crate) fn message(offset: i64, value: &[u8]) -> Vec<u8> {
    let size = (value.len() as i32).to_be_bytes();
    let body = [&[0, 0, 0xff, 0xff, 0xff, 0xff][..], &size, value].concat();
    let sum = crc32fast::hash(&body).to_be_bytes();
    let length = (4 + body.len() as i32).to_be_bytes();
    [&offset.to_be_bytes()[..], &length, &sum, &body].concat()
}

/// Tests of functions that stand in the module around, on the small broker.
macro_rules! on_the_small_broker {
    ($($name:ident($($argument:expr),*);)*) => {
        $(
            #[test]
            fn $name() {
                super::$name(&$crate::support::Kafka::embedded() $(, $argument)*);
            }
        )*
    };
}
pub(crate) use on_the_small_broker;
