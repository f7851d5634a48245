//! How far a publisher is, on standard error, where that is a terminal.

use std::fmt::Write;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// Lines, bytes and rate; and how much of it is done, where the input is a file.
///
/// It shows nothing where standard error is no terminal, and goes away when it is dropped.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    lines: Arc<AtomicU64>,
}

impl Progress {
    /// Progress through standard input.
    pub fn of_input() -> Progress {
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
        let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr());
        bar.set_style(style);
        bar.enable_steady_tick(Duration::from_millis(200));
        Progress { bar, lines }
    }

    /// One more line has been taken: `bytes` long, with its ending.
    pub fn line(&self, bytes: u64) {
        self.lines.fetch_add(1, Ordering::Relaxed);
        self.bar.inc(bytes);
    }

    /// Takes the progress off the terminal while `aside` writes there.
    pub fn aside<T>(&self, aside: impl FnOnce() -> T) -> T {
        self.bar.suspend(aside)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The bytes of standard input, if it is a file.
fn input_length() -> Option<u64> {
    let input = File::from(io::stdin().as_fd().try_clone_to_owned().ok()?);
    let about = input.metadata().ok()?;
    about.is_file().then_some(about.len())
}
