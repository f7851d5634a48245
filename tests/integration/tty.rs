//! A program on a pseudo-terminal, and the screen that a person would see.

use std::io::{ErrorKind, PipeReader, Read, Write};
use std::num::NonZero;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{Termios, tcgetattr};
use pty_process::Size;
use pty_process::blocking::{Pty, open};

use crate::support::{PATIENCE, Program};

/// Ctrl-C, Ctrl-D, Ctrl-G and Ctrl-R, the left arrow, and the Enter key, as a terminal sends them.
pub(crate) const CTRL_C: &str = "\x03";
pub(crate) const CTRL_D: &str = "\x04";
pub(crate) const CTRL_G: &str = "\x07";
pub(crate) const CTRL_R: &str = "\x12";
pub(crate) const LEFT: &str = "\x1b[D";
pub(crate) const ENTER: &str = "\r";

/// What scrolled off the screen is kept, up to so many lines.
const SCROLLBACK: usize = 20_000;

/// A program that runs on a terminal of its own; killed when dropped.
pub(crate) struct Tty {
    what: String,
    child: Child,
    pty: Arc<Pty>,
    shown: Arc<(Mutex<Shown>, Condvar)>,
    found: Termios,
    /// Whoever looks at the terminal does so until this is dropped.
    looking: Option<UnixStream>,
}

struct Shown {
    screen: vt100::Parser,
    raw: Vec<u8>,
    ended: bool,
}

impl Program {
    /// Starts it on a terminal of so many rows and columns.
    pub(crate) fn on_a_terminal(self, rows: u16, columns: u16) -> Tty {
        self.redirected(rows, columns, |command| command)
    }

    /// Starts it on a terminal, with standard input from elsewhere.
    pub(crate) fn fed_on_a_terminal(self, input: impl Into<Stdio>) -> Tty {
        self.redirected(24, 80, |command| command.stdin(input))
    }

    /// Starts it on a terminal, with standard output into a pipe.
    pub(crate) fn piped_on_a_terminal(self) -> (Tty, PipeReader) {
        let (output, to) = std::io::pipe().unwrap();
        (
            self.redirected(24, 80, |command| command.stdout(to)),
            output,
        )
    }

    fn redirected(
        self,
        rows: u16,
        columns: u16,
        redirect: impl FnOnce(pty_process::blocking::Command) -> pty_process::blocking::Command,
    ) -> Tty {
        let (pty, pts) = open().unwrap();
        pty.resize(Size::new(rows, columns)).unwrap();
        let found = tcgetattr(&pty).unwrap();
        let mut command = self.into_command();
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR");
        let what = format!("{command:?}");
        let child = redirect(command.into())
            .spawn(pts)
            .unwrap_or_else(|why| panic!("cannot run {what}: {why}"));
        let pty = Arc::new(pty);
        let shown = Arc::new((
            Mutex::new(Shown {
                screen: vt100::Parser::new(some(rows), some(columns), SCROLLBACK),
                raw: Vec::new(),
                ended: false,
            }),
            Condvar::new(),
        ));
        let (from, to) = (pty.clone(), shown.clone());
        let (looking, looked) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            loop {
                let mut watched = [
                    PollFd::new(from.as_fd(), PollFlags::POLLIN),
                    PollFd::new(looked.as_fd(), PollFlags::POLLIN),
                ];
                _ = poll(&mut watched, PollTimeout::NONE);
                if watched[1].any() == Some(true) {
                    to.0.lock().unwrap().ended = true;
                    to.1.notify_all();
                    return;
                }
                let n = match (&*from).read(&mut chunk) {
                    Err(why) if why.kind() == ErrorKind::Interrupted => continue,
                    // A terminal that nobody has open any more reads as an error.
                    result => result.unwrap_or(0),
                };
                let mut shown = to.0.lock().unwrap();
                shown.screen.process(&chunk[..n]);
                shown.raw.extend_from_slice(&chunk[..n]);
                shown.ended = n == 0;
                to.1.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
        Tty {
            what,
            child,
            pty,
            shown,
            found,
            looking: Some(looking),
        }
    }
}

impl Tty {
    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Types.
    pub(crate) fn keys(&self, keys: &str) {
        (&*self.pty).write_all(keys.as_bytes()).unwrap();
    }

    /// Types a line, and Enter.
    pub(crate) fn line(&self, line: &str) {
        self.keys(line);
        self.keys(ENTER);
    }

    /// Pastes, as a terminal does that was asked to mark pastes.
    pub(crate) fn paste(&self, text: &str) {
        self.keys(&format!("\x1b[200~{text}\x1b[201~"));
    }

    /// Changes the terminal's size.
    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        let mut shown = self.shown.0.lock().unwrap();
        shown
            .screen
            .screen_mut()
            .set_size(some(rows), some(columns));
        self.pty.resize(Size::new(rows, columns)).unwrap();
    }

    /// What is on the screen, without trailing spaces and empty rows.
    pub(crate) fn screen(&self) -> String {
        contents(self.shown.0.lock().unwrap().screen.screen())
    }

    /// Everything that was shown, also what has scrolled away, as unwrapped lines.
    pub(crate) fn history(&self) -> String {
        let mut shown = self.shown.0.lock().unwrap();
        history(&mut shown.screen)
    }

    /// The bytes that came to the terminal.
    pub(crate) fn raw(&self) -> Vec<u8> {
        self.shown.0.lock().unwrap().raw.clone()
    }

    /// Waits until the screen contains this.
    #[track_caller]
    pub(crate) fn wait_for(&self, text: &str) {
        self.wait(&format!("{text:?} on the screen"), |screen| {
            contents(screen).contains(text)
        });
    }

    /// Waits until the screen satisfies `enough`, which is described by `what`.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, mut enough: impl FnMut(&vt100::Screen) -> bool) {
        let (state, changed) = &*self.shown;
        let (mut shown, _) = changed
            .wait_timeout_while(state.lock().unwrap(), PATIENCE, |shown| {
                !shown.ended && !enough(shown.screen.screen())
            })
            .unwrap();
        let is_enough = enough(shown.screen.screen());
        let report = history(&mut shown.screen);
        drop(shown);
        assert!(is_enough, "no {what}\nran: {}\nshown:\n{report}", self.what);
    }

    /// The most memory that it has had, in kB.
    #[cfg(target_os = "linux")]
    pub(crate) fn peak_memory(&self) -> u64 {
        crate::support::kilobytes(self.pid(), "VmHWM")
    }

    /// Sends it a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let status = std::process::Command::new("kill")
            .args([format!("-{name}"), pid])
            .status();
        assert!(status.unwrap().success());
    }

    /// Waits for its end; gives the status, and whether the terminal is set as it was found.
    #[track_caller]
    pub(crate) fn wait_for_end(&mut self) -> (ExitStatus, bool) {
        let end = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() > end => {
                    panic!("{} still runs; shown:\n{}", self.what, self.history())
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        // What it wrote last may still be on its way.
        let (state, changed) = &*self.shown;
        let shown = state.lock().unwrap();
        drop(changed.wait_timeout_while(shown, PATIENCE, |shown| !shown.ended));
        (status, tcgetattr(&*self.pty).unwrap() == self.found)
    }

    /// Closes the terminal, as one closes a window, and fails unless the program then ends with
    /// this exit code.
    #[track_caller]
    pub(crate) fn closes_with(mut self, code: i32) {
        // The thread that looks at it has the other half.
        self.pty = Arc::new(open().unwrap().0);
        self.looking = None;
        let (status, _) = self.wait_for_end();
        assert_eq!(status.code(), Some(code), "{}", self.what);
    }

    /// Fails unless it ends with this exit code, and leaves its terminal as it was.
    #[track_caller]
    pub(crate) fn ends_with(mut self, code: i32) -> Tty {
        let (status, sane) = self.wait_for_end();
        let history = self.history();
        assert_eq!(status.code(), Some(code), "{}\n{history}", self.what);
        assert!(sane, "{} left the terminal changed\n{history}", self.what);
        self
    }
}

impl Drop for Tty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn some(size: u16) -> NonZero<u16> {
    NonZero::new(size).unwrap()
}

fn contents(screen: &vt100::Screen) -> String {
    let (_, columns) = screen.size();
    let rows: Vec<String> = screen
        .rows(0, columns.get())
        .map(|row| row.trim_end().to_string())
        .collect();
    rows.join("\n").trim_end().to_string()
}

fn history(parser: &mut vt100::Parser) -> String {
    let mut text = String::new();
    let screen = parser.screen_mut();
    let (rows, columns) = screen.size();
    screen.set_scrollback(usize::MAX);
    let mut back = screen.scrollback();
    let mut add = |screen: &vt100::Screen, take: usize| {
        for (n, row) in screen.rows(0, columns.get()).enumerate().take(take) {
            text.push_str(&row);
            if !screen.row_wrapped(n as u16) {
                text.truncate(text.trim_end_matches(' ').len());
                text.push('\n');
            }
        }
    };
    while back > 0 {
        screen.set_scrollback(back);
        let page = back.min(usize::from(rows.get()));
        add(screen, page);
        back -= page;
    }
    screen.set_scrollback(0);
    add(screen, usize::from(rows.get()));
    text
}
