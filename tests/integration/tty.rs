//! A program on a pseudo-terminal, and the screen that a person would see.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, PipeReader, Read, Write};
use std::num::NonZero;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc::O_NOCTTY;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{FlowArg, LocalFlags, SetArg, Termios, tcflow, tcgetattr, tcsetattr};
use nix::unistd::ttyname;
use pty_process::Size;
use pty_process::blocking::{Pty, open};

use crate::support::{Kafka, PATIENCE, Program, poll_until, send_signal};

/// Ctrl-C, Ctrl-D, Ctrl-G, Ctrl-R, Ctrl-U and Ctrl-Z, the left and the up arrow, Enter and Tab, as a terminal sends them.
pub(crate) const CTRL_C: &str = "\x03";
pub(crate) const CTRL_D: &str = "\x04";
pub(crate) const CTRL_G: &str = "\x07";
pub(crate) const CTRL_R: &str = "\x12";
pub(crate) const CTRL_U: &str = "\x15";
pub(crate) const CTRL_Z: &str = "\x1a";
pub(crate) const LEFT: &str = "\x1b[D";
pub(crate) const UP: &str = "\x1b[A";
pub(crate) const ENTER: &str = "\r";
pub(crate) const TAB: &str = "\t";

/// The first byte of an escape sequence.
const ESCAPE: u8 = 0x1b;

/// What a terminal sends before and after a paste, if it was asked to mark pastes.
pub(crate) const PASTE_START: &str = "\x1b[200~";
pub(crate) const PASTE_END: &str = "\x1b[201~";

/// How long an editor may take to read Enter before it is taken to wait for an output that is stopped.
const STOPPED_PAINTING: Duration = Duration::from_secs(2);

/// How many lines are kept that have scrolled off the screen.
const SCROLLBACK: usize = 20_000;

/// A program that runs on a terminal of its own; killed when dropped.
pub(crate) struct Tty {
    command: String,
    child: Child,
    pty: Arc<Pty>,
    /// The device that the program has open.
    device: PathBuf,
    display: Display,
    settings: Termios,
    /// Closed to stop the thread that reads the terminal.
    reading: Option<UnixStream>,
}

/// What a terminal shows, and the signal that this has changed.
type Display = Arc<(Mutex<Shown>, Condvar)>;

struct Shown {
    screen: vt100::Parser,
    raw: Vec<u8>,
    ended: bool,
    /// Nothing more is read from the program while the screen contains this.
    hold: Option<String>,
}

impl Kafka {
    /// Opens a chat on a terminal, and waits for its prompt.
    #[track_caller]
    pub(crate) fn chat(&self, me: &str, peer: &str) -> Tty {
        self.chat_with(me, peer, &[])
    }

    /// The same with options.
    #[track_caller]
    pub(crate) fn chat_with(&self, me: &str, peer: &str, options: &[&str]) -> Tty {
        let program = self.program("chat", &[me, peer]).args(options);
        let chat = program.on_a_terminal();
        chat.wait_for(&format!("{me}>"));
        chat
    }
}

impl Program {
    /// Starts it on a terminal of 24 rows and 100 columns.
    #[track_caller]
    pub(crate) fn on_a_terminal(self) -> Tty {
        self.redirected(|command| command)
    }

    /// Starts it on a terminal, with other standard input.
    #[track_caller]
    pub(crate) fn fed_on_a_terminal(self, input: impl Into<Stdio>) -> Tty {
        self.redirected(|command| command.stdin(input))
    }

    /// Starts it on a terminal, with standard output into a pipe.
    #[track_caller]
    pub(crate) fn piped_on_a_terminal(self) -> (Tty, PipeReader) {
        let (output, pipe) = std::io::pipe().unwrap();
        (self.redirected(|command| command.stdout(pipe)), output)
    }

    #[track_caller]
    fn redirected(
        self,
        redirect: impl FnOnce(pty_process::blocking::Command) -> pty_process::blocking::Command,
    ) -> Tty {
        let (rows, columns) = (24, 100);
        let (pty, pts) = open().unwrap();
        pty.resize(Size::new(rows, columns)).unwrap();
        let settings = tcgetattr(&pty).unwrap();
        let device = ttyname(&pts).unwrap();
        let mut command = self.into_command();
        let set: Vec<OsString> = command.get_envs().map(|(name, _)| name.into()).collect();
        if !set.contains(&"TERM".into()) {
            command.env("TERM", "xterm-256color");
        }
        if !set.contains(&"NO_COLOR".into()) {
            command.env_remove("NO_COLOR");
        }
        let name = format!("{command:?}");
        let child = redirect(command.into())
            .spawn(pts)
            .unwrap_or_else(|error| panic!("cannot run {name}: {error}"));
        let pty = Arc::new(pty);
        let display = Arc::new((
            Mutex::new(Shown {
                screen: vt100::Parser::new(some(rows), some(columns), SCROLLBACK),
                raw: Vec::new(),
                ended: false,
                hold: None,
            }),
            Condvar::new(),
        ));
        let (reading, stopped) = UnixStream::pair().unwrap();
        let (from, to) = (pty.clone(), display.clone());
        thread::spawn(move || read(&from, &to, &stopped));
        Tty {
            command: name,
            child,
            pty,
            device,
            display,
            settings,
            reading: Some(reading),
        }
    }
}

/// Shows what a program writes to its terminal, until it has ended or the other end of `stopped` is
/// closed.
fn read(mut pty: &Pty, (shown, changed): &(Mutex<Shown>, Condvar), stopped: &UnixStream) {
    let mut chunk = [0; 4096];
    loop {
        let mut watched = [
            PollFd::new(pty.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        _ = poll(&mut watched, PollTimeout::NONE);
        let n = match watched[1].any() {
            Some(true) => 0,
            _ => match pty.read(&mut chunk) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // A terminal that no process has open reads as an error.
                result => result.unwrap_or(0),
            },
        };
        let mut rest = &chunk[..n];
        while !rest.is_empty() {
            let mut shown = shown.lock().unwrap();
            let (now, later) = rest.split_at(match shown.hold {
                None => rest.len(),
                // What the screen contains is looked at before each escape sequence.
                Some(_) => 1 + rest[1..].iter().take_while(|byte| **byte != ESCAPE).count(),
            });
            shown.screen.process(now);
            shown.raw.extend_from_slice(now);
            changed.notify_all();
            drop(changed.wait_while(shown, |shown| {
                let text = shown.hold.as_deref();
                text.is_some_and(|text| contents(shown.screen.screen()).contains(text))
            }));
            rest = later;
        }
        if n == 0 {
            shown.lock().unwrap().ended = true;
            changed.notify_all();
            return;
        }
    }
}

impl Tty {
    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets the terminal show only what the program writes.
    pub(crate) fn without_echo(mut self) -> Tty {
        self.settings.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(&*self.pty, SetArg::TCSANOW, &self.settings).unwrap();
        self
    }

    /// Types.
    #[track_caller]
    pub(crate) fn keys(&self, keys: &str) {
        if let Err(error) = (&*self.pty).write_all(keys.as_bytes()) {
            panic!("cannot type {keys:?}: {error}\n{}", self.report());
        }
    }

    /// Types a line, and Enter.
    #[track_caller]
    pub(crate) fn line(&self, line: &str) {
        self.keys(line);
        self.keys(ENTER);
    }

    /// Types the same over and over, until the program has ended.
    pub(crate) fn keep_typing(&self, keys: &'static str) {
        let (pty, display) = (self.pty.clone(), self.display.clone());
        thread::spawn(move || {
            while !display.0.lock().unwrap().ended && (&*pty).write_all(keys.as_bytes()).is_ok() {}
        });
    }

    /// Types Enter, and does this while a line editor is between two lines: it has given the terminal
    /// other settings, and its next write waits.
    #[track_caller]
    pub(crate) fn between_two_lines(&self, act: impl FnOnce()) {
        let editing = tcgetattr(&*self.pty).unwrap();
        let mut attempt = || {
            let device = self.stop_output();
            self.keys(ENTER);
            let end = Instant::now() + STOPPED_PAINTING;
            while Instant::now() < end {
                if tcgetattr(&*self.pty).unwrap() != editing {
                    return Some(device);
                }
                thread::sleep(Duration::from_millis(1));
            }
            // The editor was just painting, and waits for the output. It takes that Enter now, and an empty
            // line is not sent.
            tcflow(&device, FlowArg::TCOON).unwrap();
            self.keys("x");
            self.wait_for("> x");
            self.keys(CTRL_U);
            self.wait("the empty prompt", |screen| {
                !contents(screen).contains("> x")
            });
            None
        };
        let what = || format!("between two lines\n{}", self.report());
        let device = poll_until(PATIENCE, what, &mut attempt);
        act();
        tcflow(&device, FlowArg::TCOON).unwrap();
    }

    /// Stops the terminal's output, as Ctrl-S does; returns the device, by which it can be started again.
    pub(crate) fn stop_output(&self) -> File {
        let mut device = OpenOptions::new();
        let device = device.read(true).write(true).custom_flags(O_NOCTTY);
        let device = device.open(&self.device).unwrap();
        tcflow(&device, FlowArg::TCOOFF).unwrap();
        device
    }

    /// Changes the terminal's size.
    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        let mut shown = self.shown();
        let screen = shown.screen.screen_mut();
        screen.set_size(some(rows), some(columns));
        self.pty.resize(Size::new(rows, columns)).unwrap();
    }

    /// Lets the program write until the screen contains this, and then takes nothing more, as a
    /// terminal does on Ctrl-S. Ends an earlier hold.
    pub(crate) fn hold_at(&self, text: &str) {
        self.set_hold(Some(text.into()));
    }

    /// Lets the program write again.
    pub(crate) fn release(&self) {
        self.set_hold(None);
    }

    fn set_hold(&self, hold: Option<String>) {
        self.shown().hold = hold;
        self.display.1.notify_all();
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.display.0.lock().unwrap()
    }

    /// What is on the screen, without trailing spaces and empty rows.
    pub(crate) fn screen(&self) -> String {
        contents(self.shown().screen.screen())
    }

    /// Everything that was shown, also what has scrolled away, as unwrapped lines.
    pub(crate) fn history(&self) -> String {
        history(&mut self.shown().screen)
    }

    /// The bytes that the program wrote to the terminal.
    pub(crate) fn raw(&self) -> Vec<u8> {
        self.shown().raw.clone()
    }

    /// What runs, and what it has shown.
    pub(crate) fn report(&self) -> String {
        format!("ran: {}\nshown:\n{}", self.command, self.history())
    }

    /// Waits until the screen contains this.
    #[track_caller]
    pub(crate) fn wait_for(&self, text: &str) {
        self.wait(&format!("{text:?} on the screen"), |screen| {
            shows(&contents(screen), text)
        });
    }

    /// Waits until what is typed is not echoed.
    #[track_caller]
    pub(crate) fn wait_for_no_echo(&self) {
        let is_off = || {
            let settings = tcgetattr(&*self.pty).unwrap();
            (!settings.local_flags.contains(LocalFlags::ECHO)).then_some(())
        };
        poll_until(PATIENCE, || "without echo".into(), is_off);
    }

    /// Waits until the screen satisfies `enough`, which `what` describes.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, mut enough: impl FnMut(&vt100::Screen) -> bool) {
        let (_, changed) = &*self.display;
        let (shown, _) = changed
            .wait_timeout_while(self.shown(), PATIENCE, |shown| {
                !shown.ended && !enough(shown.screen.screen())
            })
            .unwrap();
        let is_enough = enough(shown.screen.screen());
        drop(shown);
        assert!(is_enough, "no {what}\n{}", self.report());
    }

    /// Fails unless all of these were shown.
    #[track_caller]
    pub(crate) fn has_shown(&self, parts: &[&str]) {
        let history = self.history();
        for part in parts {
            assert!(shows(&history, part), "no {part:?}\n{}", self.report());
        }
    }

    /// Fails if this was shown.
    #[track_caller]
    pub(crate) fn has_not_shown(&self, part: &str) {
        self.has_shown_times(part, 0);
    }

    /// Fails unless this was shown so many times.
    #[track_caller]
    pub(crate) fn has_shown_times(&self, part: &str, times: usize) {
        let found = unbroken(&self.history()).matches(part).count();
        assert_eq!(found, times, "of {part:?}\n{}", self.report());
    }

    /// The most memory that it has had, in kB.
    #[cfg(target_os = "linux")]
    pub(crate) fn peak_memory(&self) -> u64 {
        crate::support::kilobytes(self.pid(), "VmHWM")
    }

    /// Sends it a signal by name.
    #[track_caller]
    pub(crate) fn signal(&self, name: &str) {
        send_signal(self.pid(), name);
    }

    /// Waits for its end; gives the status, and whether the terminal's settings are as they were
    /// before it started.
    #[track_caller]
    pub(crate) fn wait_for_end(&mut self) -> (ExitStatus, bool) {
        let (command, display) = (self.command.clone(), self.display.clone());
        let what = || {
            let history = history(&mut display.0.lock().unwrap().screen);
            format!("ended\nran: {command}\nshown:\n{history}")
        };
        let status = poll_until(PATIENCE, what, || self.child.try_wait().unwrap());
        // What it wrote last may not have been read yet.
        let (_, changed) = &*self.display;
        drop(changed.wait_timeout_while(self.shown(), PATIENCE, |shown| !shown.ended));
        (status, tcgetattr(&*self.pty).unwrap() == self.settings)
    }

    /// Closes the terminal, as one closes a window, and fails unless the program then ends with
    /// this exit code.
    #[track_caller]
    pub(crate) fn closes_with(mut self, code: i32) {
        // The thread that reads the terminal has the other handle.
        self.pty = Arc::new(open().unwrap().0);
        self.reading = None;
        let (status, _) = self.wait_for_end();
        assert_eq!(status.code(), Some(code), "{}", self.report());
    }

    /// Fails unless it ends with this exit code, and leaves its terminal as it was.
    #[track_caller]
    pub(crate) fn ends_with(mut self, code: i32) -> Tty {
        let (status, is_restored) = self.wait_for_end();
        assert_eq!(status.code(), Some(code), "{}", self.report());
        assert!(is_restored, "the settings differ\n{}", self.report());
        self
    }
}

impl Drop for Tty {
    fn drop(&mut self) {
        // The reading thread must not wait for ever.
        if let Ok(mut shown) = self.display.0.lock() {
            shown.hold = None;
        }
        self.display.1.notify_all();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether `part` is in a text of a screen, as it is or broken at spaces into rows.
fn shows(text: &str, part: &str) -> bool {
    text.contains(part) || unbroken(text).contains(part)
}

/// Without the breaks between the rows of a message or a notice.
pub(crate) fn unbroken(text: &str) -> String {
    text.replace("\n  ", " ")
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
