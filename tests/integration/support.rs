//! Runs programs with a deadline on every wait, and says on failure what ran and what it printed.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The deadline of every wait that has none of its own. Generous: machines are noisy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Which Kafka a test's programs talk to.
pub(crate) enum Kafka {
    /// The embedded broker, on a port and with a folder that no other test has.
    Embedded {
        /// Its port.
        port: u16,
        /// Where its log lies.
        dir: TempDir,
    },
    /// A real one, by its bootstrap servers.
    Real(String),
}

impl Kafka {
    /// An embedded broker of the test's own, which the first program that needs it will start.
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

    /// The same broker, for programs that only talk to it, and never run it.
    pub(crate) fn by_address(&self) -> Kafka {
        Kafka::Real(self.servers())
    }

    /// Runs the embedded broker until it is dropped.
    pub(crate) fn host(&self) -> Running {
        let host = self.program("subscriber", &["host"]).start();
        host.wait_for_notice("a small broker of its own");
        host
    }

    /// `host:port,…`
    pub(crate) fn servers(&self) -> String {
        match self {
            Kafka::Embedded { port, .. } => format!("127.0.0.1:{port}"),
            Kafka::Real(servers) => servers.clone(),
        }
    }

    /// The folder of the embedded broker's log.
    pub(crate) fn dir(&self) -> &Path {
        match self {
            Kafka::Embedded { dir, .. } => dir.path(),
            Kafka::Real(servers) => panic!("{servers} is not an embedded broker"),
        }
    }

    /// One of our programs, told to talk to this Kafka.
    pub(crate) fn program(&self, name: &str, arguments: &[&str]) -> Program {
        let mut program = Program::ours(name, arguments);
        match self {
            Kafka::Embedded { port, dir } => {
                program.command.arg(format!("--embedded={port}"));
                program.command.arg("--data-dir").arg(dir.path());
            }
            Kafka::Real(servers) => {
                program.command.arg("-b").arg(servers);
            }
        }
        program
    }
}

/// A setting that `scripts/test-kafka` makes; without it the test can't run, and so fails.
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

/// A port of 127.0.0.1 that nobody else has: outside the range from which connections get theirs.
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

/// A program to be run.
pub(crate) struct Program {
    command: Command,
    input: Option<Vec<u8>>,
}

impl Program {
    /// One of our three programs, with an environment that says nothing of Kafka.
    pub(crate) fn ours(name: &str, arguments: &[&str]) -> Program {
        let path = match name {
            "publisher" => env!("CARGO_BIN_EXE_publisher"),
            "subscriber" => env!("CARGO_BIN_EXE_subscriber"),
            "chat" => env!("CARGO_BIN_EXE_chat"),
            other => panic!("there is no program {other}"),
        };
        let mut program = Program::other(path, arguments);
        program.command.env_remove("KAFKA_BOOTSTRAP_SERVERS");
        program.command.env_remove("KAFKA_CHAT_DATA_DIR");
        program
    }

    /// Any program.
    pub(crate) fn other(path: impl AsRef<OsStr>, arguments: &[&str]) -> Program {
        let mut command = Command::new(path);
        command.args(arguments);
        Program {
            command,
            input: None,
        }
    }

    /// With one more argument.
    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Program {
        self.command.arg(argument);
        self
    }

    /// With more arguments.
    pub(crate) fn args<A: AsRef<OsStr>>(
        mut self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Program {
        self.command.args(arguments);
        self
    }

    /// With this environment variable.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Program {
        self.command.env(name, value);
        self
    }

    /// With all of its standard input, which ends behind it.
    pub(crate) fn input(mut self, input: impl Into<Vec<u8>>) -> Program {
        self.input = Some(input.into());
        self
    }

    /// The command, for a test that starts it in its own way.
    pub(crate) fn into_command(self) -> Command {
        self.command
    }

    /// Starts it; without [`Program::input`], its standard input stays open.
    pub(crate) fn start(mut self) -> Running {
        let what = format!("{:?}", self.command);
        self.command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self
            .command
            .spawn()
            .unwrap_or_else(|why| panic!("cannot run {what}: {why}"));
        let stdout = Capture::of(child.stdout.take().unwrap());
        let stderr = Capture::of(child.stderr.take().unwrap());
        let mut stdin = child.stdin.take();
        if let Some(input) = self.input {
            let mut to = stdin.take().unwrap();
            thread::spawn(move || match to.write_all(&input) {
                Err(why) if why.kind() != ErrorKind::BrokenPipe => panic!("{why}"),
                _ => drop(to),
            });
        }
        Running {
            what,
            child,
            stdin,
            stdout,
            stderr,
        }
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> Ended {
        self.start().wait()
    }
}

/// A program that runs; killed when dropped.
pub(crate) struct Running {
    what: String,
    child: Child,
    stdin: Option<ChildStdin>,
    /// What it has printed on standard output.
    pub(crate) stdout: Capture,
    /// What it has printed on standard error.
    pub(crate) stderr: Capture,
}

impl Running {
    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Types into its standard input.
    pub(crate) fn write(&mut self, text: impl AsRef<[u8]>) {
        let stdin = self.stdin.as_mut().expect("standard input is open");
        stdin.write_all(text.as_ref()).unwrap();
    }

    /// Gives it some standard input. Says whether it took that.
    pub(crate) fn give(&mut self, input: &[u8]) -> bool {
        let stdin = self.stdin.as_mut().expect("standard input is open");
        stdin.write_all(input).is_ok()
    }

    /// Ends its standard input.
    pub(crate) fn close(&mut self) {
        self.stdin = None;
    }

    /// Waits until its standard output contains `text`.
    pub(crate) fn wait_for(&self, text: &str) {
        self.wait_until(&self.stdout, text);
    }

    /// Waits until its standard error contains `text`.
    pub(crate) fn wait_for_notice(&self, text: &str) {
        self.wait_until(&self.stderr, text);
    }

    fn wait_until(&self, capture: &Capture, text: &str) {
        if !capture.wait(PATIENCE, |bytes| contains(bytes, text.as_bytes())) {
            panic!("no {text:?} within {PATIENCE:?}\n{}", self.report());
        }
    }

    /// Sends it a signal by name: `INT`, `KILL`, `STOP`, …
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([format!("-{name}"), self.pid().to_string()])
            .status()
            .unwrap();
        assert!(status.success(), "kill -{name} {}", self.what);
    }

    /// Waits for its end.
    pub(crate) fn wait(self) -> Ended {
        self.wait_within(PATIENCE)
    }

    /// Waits for its end, at most this long.
    pub(crate) fn wait_within(mut self, patience: Duration) -> Ended {
        let end = Instant::now() + patience;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() > end => {
                    panic!("still running after {patience:?}\n{}", self.report())
                }
                // There is no portable wait with a deadline.
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        self.stdout.wait_for_end();
        self.stderr.wait_for_end();
        Ended {
            what: self.what.clone(),
            status,
            stdout: self.stdout.bytes(),
            stderr: String::from_utf8_lossy(&self.stderr.bytes()).into_owned(),
        }
    }

    fn report(&self) -> String {
        report(
            &self.what,
            "running",
            &self.stdout.bytes(),
            &String::from_utf8_lossy(&self.stderr.bytes()),
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that has ended.
pub(crate) struct Ended {
    what: String,
    status: ExitStatus,
    /// All that it printed on standard output.
    pub(crate) stdout: Vec<u8>,
    /// All that it printed on standard error.
    pub(crate) stderr: String,
}

impl Ended {
    /// Its exit code, unless a signal ended it.
    pub(crate) fn exit_code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Fails unless it ended with this exit code.
    #[track_caller]
    pub(crate) fn code(self, code: i32) -> Ended {
        assert_eq!(self.status.code(), Some(code), "{}", self.report());
        self
    }

    /// Fails unless all of this is in its standard error.
    #[track_caller]
    pub(crate) fn says(self, parts: &[&str]) -> Ended {
        for part in parts {
            assert!(self.stderr.contains(part), "no {part:?}\n{}", self.report());
        }
        self
    }

    /// Fails if this is anywhere in what it printed.
    #[track_caller]
    pub(crate) fn does_not_say(self, part: &str) -> Ended {
        let both = [&self.stdout, self.stderr.as_bytes()].concat();
        assert!(
            !contains(&both, part.as_bytes()),
            "{part:?}\n{}",
            self.report()
        );
        self
    }

    /// Fails unless its standard output is exactly this.
    #[track_caller]
    pub(crate) fn prints(self, expected: impl AsRef<[u8]>) -> Ended {
        let expected = expected.as_ref();
        if self.stdout != expected {
            let at = self.stdout.iter().zip(expected).position(|(a, b)| a != b);
            panic!(
                "printed {} bytes where {} were expected, the first difference at {:?}\n{}",
                self.stdout.len(),
                expected.len(),
                at,
                self.report()
            );
        }
        self
    }

    /// What ran, how it ended, and what it printed.
    pub(crate) fn report(&self) -> String {
        report(
            &self.what,
            &self.status.to_string(),
            &self.stdout,
            &self.stderr,
        )
    }
}

fn report(what: &str, status: &str, stdout: &[u8], stderr: &str) -> String {
    let mut report = format!("ran: {what}\nstatus: {status}\n");
    let head = &stdout[..stdout.len().min(2000)];
    let _ = write!(
        report,
        "stdout ({} bytes):\n{}\nstderr:\n{stderr}",
        stdout.len(),
        String::from_utf8_lossy(head)
    );
    report
}

/// Bytes that a thread collects from a pipe.
#[derive(Clone)]
pub(crate) struct Capture(Arc<(Mutex<Captured>, Condvar)>);

#[derive(Default)]
struct Captured {
    bytes: Vec<u8>,
    ended: bool,
}

impl Capture {
    /// Collects what `from` gives, until it ends.
    pub(crate) fn of(mut from: impl Read + Send + 'static) -> Capture {
        let capture = Capture(Arc::default());
        let collected = capture.clone();
        thread::spawn(move || {
            let mut chunk = [0; 65536];
            loop {
                let n = match from.read(&mut chunk) {
                    Err(why) if why.kind() == ErrorKind::Interrupted => continue,
                    result => result.unwrap_or(0),
                };
                let (state, changed) = &*collected.0;
                let mut state = state.lock().unwrap();
                state.bytes.extend_from_slice(&chunk[..n]);
                state.ended = n == 0;
                changed.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
        capture
    }

    /// What has come so far.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.0.lock().unwrap().bytes.clone()
    }

    /// Waits until what has come satisfies `enough`. Says whether it did in time.
    pub(crate) fn wait(&self, patience: Duration, enough: impl Fn(&[u8]) -> bool) -> bool {
        let (state, changed) = &*self.0;
        let (state, _) = changed
            .wait_timeout_while(state.lock().unwrap(), patience, |state| {
                !state.ended && !enough(&state.bytes)
            })
            .unwrap();
        enough(&state.bytes)
    }

    /// Waits until no more can come.
    fn wait_for_end(&self) {
        let (state, changed) = &*self.0;
        let (state, _) = changed
            .wait_timeout_while(state.lock().unwrap(), PATIENCE, |state| !state.ended)
            .unwrap();
        assert!(state.ended, "a pipe is still held open by another process");
    }
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
