//! How a program ends: by what its own thread returns, by a signal, or by a closed output.
//!
//! Each program has one owner of its state, and only that ends it: a signal or a closed output is a message
//! to the owner.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
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

/// How long the last words wait for a terminal, in milliseconds.
const LAST_WORDS_WAIT: u8 = 200;

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
        if can_write_soon() {
            say(format_args!("{name}: {error}"));
        }
    }
    error.exit_code()
}

/// Whether standard error takes the last words. A terminal that takes nothing (Ctrl-S) must not hold up the
/// end; a pipe's reader is waited for.
fn can_write_soon() -> bool {
    let stderr = io::stderr();
    let mut asked = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    !stderr.is_terminal() || poll(&mut asked, LAST_WORDS_WAIT).is_ok_and(|ready| ready > 0)
}

/// Prints a line on standard error. If that is closed, nobody reads it.
pub fn say(text: impl Display) {
    _ = io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Sends `owner` a message for every Ctrl-C, SIGTERM and SIGHUP, from a thread of its own.
///
/// Where neither output is a terminal, SIGHUP keeps its disposition: `nohup` has it ignored, and
/// otherwise it ends the program without a word.
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
/// or the terminal is closed; from a thread of its own. Never, where standard output is a file.
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
        let thread = thread.spawn(move || process::exit(code(own()).into()));
        thread.map(Owner).map_err(|why| cannot_start(name, why))
    }

    /// Waits until the owner ends the process. Returns only if it has panicked instead.
    pub fn wait(self) -> Result<()> {
        _ = self.0.join();
        Err(Error::failed("the program ended", "its owner panicked"))
    }
}

/// Whether a worker is asked to stop.
pub struct Stop(Receiver<()>);

impl Stop {
    /// To be looked at by the worker, at least every 400 ms.
    pub fn is_requested(&self) -> bool {
        matches!(self.0.try_recv(), Err(TryRecvError::Disconnected))
    }
}

/// How long a worker may take to stop: the end of a program has a second in all.
const STOP_WAIT: Duration = Duration::from_millis(800);

/// Runs `work` on a thread called `name`, and returns its result, unless the output is closed first.
///
/// At a signal `work` is asked to stop. If it does not soon, because it waits for a broker or for
/// its reader, or at a second signal, `if_stuck` is the result.
pub fn supervise(
    name: &str,
    if_stuck: Result<()>,
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
        Ok(None) | Err(_) => if_stuck,
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
