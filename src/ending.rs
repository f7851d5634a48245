//! How a program ends: with its owner's result, on a signal, or when its output is closed.
//!
//! Each program has one owner of its state, and only that ends it: a signal or a closed output is a message
//! to the owner.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::{Error, Result};

/// How long a message waits for standard error, in milliseconds.
const MESSAGE_WAIT: u8 = 200;

/// How many bytes a pipe takes without waiting, if it takes any: POSIX's least `PIPE_BUF`.
const PIPE_BYTES: usize = 512;

/// Runs a program, and turns its failure into a sentence and an exit code.
pub fn run(program: impl FnOnce() -> Result<()>) -> ExitCode {
    ExitCode::from(code(program()))
}

fn code(result: Result<()>) -> u8 {
    let Err(error) = result else {
        return 0;
    };
    if !error.is_closed_pipe() {
        let program = std::env::args_os().next().map(PathBuf::from);
        let name = program.as_ref().and_then(|path| path.file_name());
        let name = name.map_or("kafka-chat".into(), |name| name.to_string_lossy());
        say(format_args!("{name}: {error}"));
    }
    error.exit_code()
}

/// Prints a line on standard error. If that takes nothing (a terminal after Ctrl-S, a full pipe), the rest of
/// the line is lost: it must not hold up a program, or its end.
pub fn say(text: impl Display) {
    for part in format!("{text}\n").as_bytes().chunks(PIPE_BYTES) {
        if !can_say() || io::stderr().write_all(part).is_err() {
            return;
        }
    }
}

/// Whether standard error takes something, at once or very soon.
pub fn can_say() -> bool {
    can_take(io::stderr(), MESSAGE_WAIT)
}

/// Whether an output takes something within so many milliseconds.
pub(crate) fn can_take(output: impl AsFd, wait: u8) -> bool {
    let mut asked = [PollFd::new(output.as_fd(), PollFlags::POLLOUT)];
    poll(&mut asked, wait).is_ok_and(|ready| ready > 0)
}

/// Sends `owner` a message for every Ctrl-C, SIGTERM and SIGHUP, from a thread of its own.
///
/// If neither output is a terminal, SIGHUP is left alone: under `nohup` it stays ignored, otherwise it
/// kills the process silently.
pub fn on_signal<T: Send + 'static>(owner: Sender<T>, message: fn() -> T) -> Result<()> {
    let mut wanted = vec![SIGINT, SIGTERM];
    if io::stdout().is_terminal() || io::stderr().is_terminal() {
        wanted.push(SIGHUP);
    }
    let mut signals =
        Signals::new(wanted).map_err(|why| Error::failed("cannot listen for signals", why))?;
    spawn("signals", move || {
        // Without an owner the program is about to end.
        let mut signals = signals.forever();
        while signals
            .next()
            .is_some_and(|_| owner.send(message()).is_ok())
        {}
    })
}

/// Sends `owner` a message when nobody can read standard output any more, because the other end of its pipe
/// or the terminal is closed; from a thread of its own. It never sends if standard output is a file.
pub fn on_output_closed<T: Send + 'static>(owner: Sender<T>, message: fn() -> T) -> Result<()> {
    spawn("output", move || {
        let stdout = io::stdout();
        loop {
            // An error or a hang-up is reported without being asked for.
            let mut watched = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
            match poll(&mut watched, PollTimeout::NONE) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return drop(owner.send(message())),
                Err(_) => return,
            }
        }
    })
}

/// The thread that owns a program's state, and ends the program, while the first thread reads input.
pub struct Owner(JoinHandle<()>);

impl Owner {
    /// Runs `own` on a thread called `name`, and ends the process with its result.
    pub fn start(name: &str, own: impl FnOnce() -> Result<()> + Send + 'static) -> Result<Owner> {
        let thread = thread::Builder::new().name(name.into());
        // A panic must not leave a program that shows nothing and ignores signals.
        let own = move || catch_unwind(AssertUnwindSafe(own)).unwrap_or_else(|_| Err(panicked()));
        let thread = thread.spawn(move || process::exit(code(own()).into()));
        thread.map(Owner).map_err(|why| cannot_start(name, why))
    }

    /// Waits until the owner ends the process.
    pub fn wait(self) -> Result<()> {
        _ = self.0.join();
        Err(panicked())
    }
}

fn panicked() -> Error {
    Error::failed("the program ended", "its owner panicked")
}

/// Tells a worker when to stop.
pub struct Stop(Receiver<()>);

impl Stop {
    /// Whether it is time. The worker checks this at least every [`POLL_WAIT`](crate::client::POLL_WAIT).
    pub fn is_requested(&self) -> bool {
        matches!(self.0.try_recv(), Err(TryRecvError::Disconnected))
    }
}

/// How long a worker may take to stop: the end of a program has a second in all.
const STOP_WAIT: Duration = Duration::from_millis(800);

/// Runs `work` on a thread called `name`, and returns its result, unless the output is closed first.
///
/// At a signal `work` is asked to stop. If it does not soon, because it waits for a broker or for
/// its reader, or at a second signal, the result is what `if_stuck` then returns.
pub fn supervise(
    name: &str,
    if_stuck: impl FnOnce() -> Result<()>,
    work: impl FnOnce(&Stop) -> Result<()> + Send + 'static,
) -> Result<()> {
    /// Why the program is to end: a result, or a signal.
    type Ending = Option<Result<()>>;
    let (tx, endings) = mpsc::channel::<Ending>();
    let (stop, stopped) = mpsc::channel();
    on_signal(tx.clone(), || None)?;
    on_output_closed(tx.clone(), || Some(Ok(())))?;
    spawn(name, move || drop(tx.send(Some(work(&Stop(stopped))))))?;
    if let Ok(Some(result)) = endings.recv() {
        return result;
    }
    drop(stop);
    match endings.recv_timeout(STOP_WAIT) {
        Ok(Some(result)) => result,
        Ok(None) | Err(_) => if_stuck(),
    }
}

/// Starts a thread with a name.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .map(drop)
        .map_err(|why| cannot_start(name, why))
}

fn cannot_start(name: &str, why: io::Error) -> Error {
    Error::failed(format!("cannot start the thread '{name}'"), why)
}
