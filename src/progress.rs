//! A publisher's progress: on standard error, if that is a terminal and standard input is not.

use std::fmt::{Display, Write};
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::ending::{can_say, say};
use crate::lines::Line;

/// Lines, bytes and rate; and how much of it is done, where the input is a file.
///
/// It goes away with [`Progress::end`], or when the last of its clones is dropped.
#[derive(Debug, Clone)]
pub struct Progress {
    /// `None` where nobody watches.
    shown: Option<Arc<Shown>>,
}

#[derive(Debug)]
struct Shown {
    bar: ProgressBar,
    lines: Arc<AtomicU64>,
}

impl Progress {
    /// Progress through standard input.
    pub fn of_input() -> Progress {
        let target = ProgressDrawTarget::stderr();
        let is_watched = !target.is_hidden() && !io::stdin().is_terminal();
        Progress {
            shown: is_watched.then(|| Arc::new(Shown::new(target))),
        }
    }

    /// One more line has been taken.
    pub fn line(&self, line: &Line<'_>) {
        if let Some(shown) = &self.shown {
            shown.lines.fetch_add(1, Ordering::Relaxed);
            shown.bar.inc(line.bytes() + 1);
        }
    }

    /// Prints a line on standard error, for which it is taken off the terminal.
    pub fn say(&self, text: impl Display) {
        match &self.shown {
            None => say(text),
            // Drawing holds the bar's lock, also while the terminal takes nothing.
            Some(shown) if can_say() => shown.bar.suspend(|| say(text)),
            Some(_) => {}
        }
    }

    /// Takes it off the terminal for good.
    pub fn end(&self) {
        if let Some(shown) = &self.shown {
            shown.end();
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shown {
    fn new(target: ProgressDrawTarget) -> Shown {
        let length = input_length();
        let lines = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lines);
        let style = ProgressStyle::with_template(match length {
            Some(_) => {
                "{lines} lines, {bytes} of {total_bytes} ({percent} %), {bytes_per_sec}, {eta} left"
            }
            None => "{lines} lines, {bytes}, {bytes_per_sec}",
        })
        // The templates are ours: the plain style stands in for one with a mistake.
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
        .with_key("lines", move |_: &ProgressState, out: &mut dyn Write| {
            _ = write!(out, "{}", counted.load(Ordering::Relaxed));
        });
        let bar = ProgressBar::with_draw_target(length, target);
        bar.set_style(style);
        bar.enable_steady_tick(Duration::from_millis(200));
        Shown { bar, lines }
    }

    fn end(&self) {
        if can_say() {
            self.bar.finish_and_clear();
        }
    }
}

/// The bytes of standard input, if it is a file.
fn input_length() -> Option<u64> {
    let input = File::from(io::stdin().as_fd().try_clone_to_owned().ok()?);
    let about = input.metadata().ok()?;
    about.is_file().then_some(about.len())
}
