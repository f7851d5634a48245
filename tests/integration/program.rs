//! A program as a child process: its arguments and input, its output, and its end.

use std::ffi::OsStr;
use std::io::{ErrorKind, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use crate::support::{PATIENCE, contains, poll_until, send_signal};

/// A program to be run.
pub(crate) struct Program {
    command: Command,
    input: Option<Input>,
}

/// What a program reads from standard input.
enum Input {
    /// All of it.
    Whole(Vec<u8>),
    /// This, for as long as the program reads.
    Endless(Vec<u8>),
}

impl Input {
    /// Writes it, and closes the pipe.
    fn write(self, mut to: ChildStdin) {
        let written = match self {
            Input::Whole(bytes) => to.write_all(&bytes),
            Input::Endless(bytes) => loop {
                if let Err(error) = to.write_all(&bytes) {
                    break Err(error);
                }
            },
        };
        match written {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => panic!("{error}"),
            _ => {}
        }
    }
}

impl Program {
    /// One of our three programs, in an environment that does not name a Kafka.
    pub(crate) fn ours(name: &str, arguments: &[&str]) -> Program {
        let path = match name {
            "publisher" => env!("CARGO_BIN_EXE_publisher"),
            "subscriber" => env!("CARGO_BIN_EXE_subscriber"),
            "chat" => env!("CARGO_BIN_EXE_chat"),
            other => panic!("{other} is not one of our programs"),
        };
        let mut program = Program::other(path, arguments);
        program.command.env_remove("KAFKA_BOOTSTRAP_SERVERS");
        program.command.env_remove("KAFKA_CHAT_DATA_DIR");
        program.command.env_remove("KAFKA_CHAT_SECRET_FILE");
        program
    }

    /// Any program.
    pub(crate) fn other(path: impl AsRef<OsStr>, arguments: &[&str]) -> Program {
        let mut command = Command::new(path);
        // Cargo adds the folder in which librdkafka was built: kcat would load it from there.
        command.args(arguments).env_remove("LD_LIBRARY_PATH");
        Program {
            command,
            input: None,
        }
    }

    /// Adds an argument.
    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Program {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub(crate) fn args<A: AsRef<OsStr>>(
        mut self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Program {
        self.command.args(arguments);
        self
    }

    /// Sets an environment variable.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Program {
        self.command.env(name, value);
        self
    }

    /// Gives it this standard input, and then closes that.
    pub(crate) fn input(mut self, input: impl Into<Vec<u8>>) -> Program {
        self.input = Some(Input::Whole(input.into()));
        self
    }

    /// Gives it this over and over as standard input, until it reads no more.
    pub(crate) fn endless_input(mut self, input: impl Into<Vec<u8>>) -> Program {
        self.input = Some(Input::Endless(input.into()));
        self
    }

    /// The command, for a test that starts it in its own way.
    pub(crate) fn into_command(self) -> Command {
        self.command
    }

    /// Starts it. Its standard input stays open, unless the test has given it some.
    #[track_caller]
    pub(crate) fn start(mut self) -> Running {
        let command = format!("{:?}", self.command);
        self.command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self
            .command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {command}: {error}"));
        let stdout = Capture::of(child.stdout.take().unwrap());
        let stderr = Capture::of(child.stderr.take().unwrap());
        let mut stdin = child.stdin.take();
        if let Some(input) = self.input {
            let pipe = stdin.take().unwrap();
            thread::spawn(move || input.write(pipe));
        }
        Running {
            command,
            child,
            stdin,
            stdout,
            stderr,
        }
    }

    /// Runs it to its end.
    #[track_caller]
    pub(crate) fn run(self) -> Ended {
        self.start().wait()
    }
}

/// A program that runs; killed when dropped.
pub(crate) struct Running {
    command: String,
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

    /// Writes to its standard input.
    #[track_caller]
    pub(crate) fn write(&mut self, text: impl AsRef<[u8]>) {
        assert!(self.try_write(text), "it reads no more\n{}", self.report());
    }

    /// Writes to its standard input, unless it reads no more. Returns whether it does.
    pub(crate) fn try_write(&mut self, text: impl AsRef<[u8]>) -> bool {
        let stdin = self.stdin.as_mut().expect("standard input is open");
        stdin.write_all(text.as_ref()).is_ok()
    }

    /// Closes its standard input.
    pub(crate) fn close(&mut self) {
        self.stdin = None;
    }

    /// Waits until its standard output contains `text`.
    #[track_caller]
    pub(crate) fn wait_for(&self, text: &str) {
        let enough = |bytes: &[u8]| contains(bytes, text.as_bytes());
        self.wait_until(&self.stdout, &format!("{text:?}"), enough);
    }

    /// Waits until its standard output contains `text` after its first `start` bytes.
    #[track_caller]
    pub(crate) fn wait_for_after(&self, start: usize, text: &str) {
        let enough = |bytes: &[u8]| {
            let new = bytes.get(start..).unwrap_or_default();
            contains(new, text.as_bytes())
        };
        self.wait_until(&self.stdout, &format!("{text:?}"), enough);
    }

    /// Waits until its standard error contains `text`.
    #[track_caller]
    pub(crate) fn wait_for_notice(&self, text: &str) {
        let enough = |bytes: &[u8]| contains(bytes, text.as_bytes());
        self.wait_until(&self.stderr, &format!("{text:?}"), enough);
    }

    /// Waits until its standard output has at least so many bytes.
    #[track_caller]
    pub(crate) fn wait_for_bytes(&self, length: usize) {
        let what = format!("{length} bytes of output");
        self.wait_until(&self.stdout, &what, |bytes| bytes.len() >= length);
    }

    #[track_caller]
    fn wait_until(&self, capture: &Capture, what: &str, enough: impl Fn(&[u8]) -> bool) {
        if !capture.wait(PATIENCE, enough) {
            panic!("no {what} within {PATIENCE:?}\n{}", self.report());
        }
    }

    /// Sends it a signal by name.
    #[track_caller]
    pub(crate) fn signal(&self, name: &str) {
        send_signal(self.pid(), name);
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(self) -> Ended {
        self.wait_within(PATIENCE)
    }

    /// Waits for its end, with this deadline.
    #[track_caller]
    pub(crate) fn wait_within(mut self, patience: Duration) -> Ended {
        let command = self.command.clone();
        let (stdout, stderr) = (self.stdout.clone(), self.stderr.clone());
        let report = |status| report(&command, status, &stdout.bytes(), &stderr.bytes());
        let what = || format!("ended\n{}", report("running"));
        let status = poll_until(patience, what, || self.child.try_wait().unwrap());
        for pipe in [&stdout, &stderr] {
            let is_closed = pipe.wait_for_end();
            assert!(
                is_closed,
                "another process holds a pipe\n{}",
                report("ended")
            );
        }
        Ended {
            status,
            stdout: stdout.bytes(),
            stderr: String::from_utf8_lossy(&stderr.bytes()).into_owned(),
            command,
        }
    }

    /// What runs, and what it has printed.
    pub(crate) fn report(&self) -> String {
        let (stdout, stderr) = (self.stdout.bytes(), self.stderr.bytes());
        report(&self.command, "running", &stdout, &stderr)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Where a test fails, the cause may be in another program than the one that it waited for.
        if thread::panicking() {
            println!("{}", self.report());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that has ended.
pub(crate) struct Ended {
    command: String,
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
        let is_there = contains(&both, part.as_bytes());
        assert!(!is_there, "{part:?} is there\n{}", self.report());
        self
    }

    /// Fails unless its standard output is exactly this.
    #[track_caller]
    pub(crate) fn prints(self, expected: impl AsRef<[u8]>) -> Ended {
        let expected = expected.as_ref();
        if self.stdout != expected {
            let at = self.stdout.iter().zip(expected).position(|(a, b)| a != b);
            panic!(
                "printed {} bytes, not {}; the first difference is at {at:?}\n{}",
                self.stdout.len(),
                expected.len(),
                self.report()
            );
        }
        self
    }

    /// What ran, how it ended, and what it printed.
    pub(crate) fn report(&self) -> String {
        let status = self.status.to_string();
        report(&self.command, &status, &self.stdout, self.stderr.as_bytes())
    }
}

fn report(command: &str, status: &str, stdout: &[u8], stderr: &[u8]) -> String {
    format!(
        "ran: {command}\nstatus: {status}\nstdout ({} bytes):\n{}\nstderr:\n{}",
        stdout.len(),
        String::from_utf8_lossy(&stdout[..stdout.len().min(2000)]),
        String::from_utf8_lossy(stderr)
    )
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
    /// Collects the bytes of `pipe` until it is closed.
    pub(crate) fn of(mut pipe: impl Read + Send + 'static) -> Capture {
        let capture = Capture(Arc::default());
        let collected = capture.clone();
        thread::spawn(move || {
            let mut chunk = [0; 65536];
            loop {
                let n = match pipe.read(&mut chunk) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
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

    /// The bytes so far.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.0.lock().unwrap().bytes.clone()
    }

    /// Waits until the bytes satisfy `enough`. Returns whether they do, at the deadline or at the end
    /// of the pipe.
    pub(crate) fn wait(&self, patience: Duration, enough: impl Fn(&[u8]) -> bool) -> bool {
        let (state, changed) = &*self.0;
        let (state, _) = changed
            .wait_timeout_while(state.lock().unwrap(), patience, |state| {
                !state.ended && !enough(&state.bytes)
            })
            .unwrap();
        enough(&state.bytes)
    }

    /// Waits until the pipe is closed. Returns whether it is.
    fn wait_for_end(&self) -> bool {
        let (state, changed) = &*self.0;
        let (state, _) = changed
            .wait_timeout_while(state.lock().unwrap(), PATIENCE, |state| !state.ended)
            .unwrap();
        state.ended
    }
}
