//! What became of each line that was read: waiting, acknowledged, or not delivered.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::client::{Event, Producer, Report, Reports};
use crate::error::{Error, Result};
use crate::lines::Line;

/// How many separate failures are told one by one at the end.
const TOLD: usize = 20;

/// How long a program that is told to end waits for acknowledgements: it has a second in all.
const LAST_WAIT: Duration = Duration::from_millis(700);

/// Numbers the lines, and knows which are not acknowledged yet.
#[derive(Default)]
pub struct Ledger {
    state: Mutex<State>,
    /// No line waits any more.
    settled: Condvar,
}

#[derive(Default)]
struct State {
    lines: u64,
    /// Handed over and not settled, in rising order; as many as a producer's buffer holds.
    waiting: VecDeque<u64>,
    failures: Vec<Failure>,
    failed: u64,
    broken: bool,
    closed: bool,
}

/// Lines next to each other that failed for the same reason.
struct Failure {
    first: u64,
    last: u64,
    why: String,
}

impl Ledger {
    /// An empty ledger, to be shared with a producer.
    pub fn new() -> Arc<Ledger> {
        Arc::default()
    }

    /// Feeds the ledger with reports, and `events` with the rest.
    pub fn reports(self: &Arc<Ledger>, events: impl Fn(Event) + Send + 'static) -> Reports {
        let (tx, rx) = std::sync::mpsc::channel();
        let ledger = self.clone();
        thread::spawn(move || {
            for report in rx {
                match report {
                    Report::Acknowledged {
                        first,
                        count,
                        partition,
                        offset,
                    } => ledger.acknowledged(first, count, partition, offset),
                    Report::Failed {
                        first, count, why, ..
                    } => (first..first + count).for_each(|line| ledger.failed(line, &why)),
                    Report::Connection(event) => events(event),
                }
            }
        });
        Reports::to::<Report>(tx)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers a line and hands it to the producer, or takes note that it is too long to be sent.
    pub fn send(&self, line: &Line<'_>, producer: &mut dyn Producer) {
        let number = self.number();
        match line {
            Line::Whole(text) => producer.send(number, text),
            Line::TooLong { bytes } => self.too_long(number, *bytes),
        }
    }

    /// Takes no more lines, as the program ends: whoever comes with another one waits for that.
    /// Else some might still be sent which the verdict knows nothing of.
    pub fn close(&self) {
        self.lock().closed = true;
    }

    /// The number of the next line, the first being 1; it waits from now on.
    fn number(&self) -> u64 {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            loop {
                thread::park();
            }
        }
        state.lines += 1;
        let number = state.lines;
        state.waiting.push_back(number);
        number
    }

    /// The line is too long to be sent: it has `bytes` bytes.
    fn too_long(&self, line: u64, bytes: u64) {
        let why = format!("{bytes} bytes, {}", Error::too_large());
        self.settle(|state| state.fail(line, why));
    }

    /// Whether a line was given up for a reason that the next one would share.
    pub fn is_broken(&self) -> bool {
        self.lock().broken
    }

    /// Why a program does not go on that [is broken](Ledger::is_broken).
    pub fn rest_is_unread(&self) -> Error {
        Error::failed(
            format!("stopped reading behind line {}", self.lock().lines),
            "lines can't be delivered any more",
        )
    }

    /// Waits until no line waits any more, at most `timeout`.
    pub fn wait(&self, timeout: Duration) {
        let _ = self
            .settled
            .wait_timeout_while(self.lock(), timeout, |state| !state.waiting.is_empty());
    }

    /// The verdict when a signal ends the program, after a short wait for acknowledgements that are
    /// under way. Where input is `typed`, it ends where the user stops; elsewhere there may be lines
    /// that were never read, which is a failure, too.
    pub fn interrupted(&self, typed: bool) -> Result<()> {
        self.close();
        self.wait(LAST_WAIT);
        self.verdict()?;
        match typed {
            true => Ok(()),
            false => Err(Error::failed(
                format!(
                    "interrupted after {}, all delivered",
                    lines(self.lock().lines)
                ),
                "what came behind them was not read",
            )),
        }
    }

    /// The verdict behind the reason, if any, for which no more lines came.
    pub fn verdict_after(&self, reason: Result<()>) -> Result<()> {
        match (reason, self.verdict()) {
            (Err(reason), Err(verdict)) => Err(reason.beside(verdict)),
            (reason, verdict) => reason.and(verdict),
        }
    }

    /// An error that names every line which is not acknowledged by now, or none.
    pub fn verdict(&self) -> Result<()> {
        let state = self.lock();
        let undelivered = state.failed + state.waiting.len() as u64;
        if undelivered == 0 {
            return Ok(());
        }
        let mut why = String::new();
        for failure in state.failures.iter().take(TOLD) {
            let _ = write!(
                why,
                "\n  {}: {}",
                span(failure.first, failure.last),
                failure.why
            );
        }
        if state.failures.len() > TOLD {
            let _ = write!(why, "\n  and {} more", state.failures.len() - TOLD);
        }
        let waiting: Vec<u64> = state.waiting.iter().copied().collect();
        for run in waiting.chunk_by(|a, b| a + 1 == *b).take(TOLD) {
            let _ = write!(
                why,
                "\n  {}: not acknowledged yet",
                span(run[0], run[run.len() - 1])
            );
        }
        let were = if undelivered == 1 { "was" } else { "were" };
        Err(Error::failed(
            format!(
                "{undelivered} of {} {were} not delivered",
                lines(state.lines)
            ),
            why,
        ))
    }

    fn settle(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        // Nobody waits for less, and to wake somebody costs more than all the rest.
        if state.waiting.is_empty() {
            self.settled.notify_all();
        }
    }
}

impl Ledger {
    /// Settles `count` lines.
    pub fn acknowledged(&self, first: u64, count: u64, _partition: i32, _offset: i64) {
        self.settle(|state| {
            for line in first..first + count {
                state.remove(line);
            }
        });
    }

    /// A line failed.
    pub fn failed(&self, line: u64, why: &Error) {
        self.settle(|state| {
            state.broken |= !why.is_too_large();
            state.fail(line, why.to_string());
        });
    }
}

impl State {
    /// Lines are settled in order, or nearly so: the search ends at the front.
    fn remove(&mut self, line: u64) {
        if let Some(at) = self.waiting.iter().position(|&waiting| waiting == line) {
            self.waiting.remove(at);
        }
    }

    fn fail(&mut self, line: u64, why: String) {
        self.remove(line);
        self.failed += 1;
        match self.failures.last_mut() {
            Some(last) if last.last + 1 == line && last.why == why => last.last = line,
            _ => self.failures.push(Failure {
                first: line,
                last: line,
                why,
            }),
        }
    }
}

fn span(first: u64, last: u64) -> String {
    if first == last {
        format!("line {first}")
    } else {
        format!("lines {first}-{last}")
    }
}

fn lines(count: u64) -> String {
    match count {
        1 => "1 line".into(),
        n => format!("{n} lines"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn all_acknowledged_is_no_error() {
        let ledger = Ledger::new();
        for _ in 0..3 {
            ledger.number();
        }
        ledger.acknowledged(1, 3, 0, 0);
        ledger.wait(Duration::ZERO);
        assert!(ledger.verdict().is_ok());
    }

    #[test]
    fn every_line_not_delivered_is_named() {
        let ledger = Ledger::new();
        for _ in 0..8 {
            ledger.number();
        }
        ledger.too_long(2, 2_000_000);
        ledger.acknowledged(1, 1, 0, 0);
        ledger.failed(4, &Error::failed("cannot send", "no broker"));
        ledger.failed(5, &Error::failed("cannot send", "no broker"));
        ledger.acknowledged(6, 1, 0, 0);
        let error = ledger.verdict().unwrap_err().to_string();
        for part in [
            "6 of 8 lines were not delivered",
            "line 2: 2000000 bytes, too large",
            "lines 4-5: cannot send: no broker",
            "line 3: not acknowledged yet",
            "lines 7-8: not acknowledged yet",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(ledger.is_broken());
    }

    #[test]
    fn lines_that_were_lost_are_named_behind_the_reason_for_the_end() {
        let ledger = Ledger::new();
        ledger.number();
        let reason = || {
            Err(Error::failed(
                "cannot read standard input",
                "no such device",
            ))
        };
        let error = ledger.verdict_after(reason()).unwrap_err().to_string();
        assert!(
            error.contains("no such device") && error.contains("line 1"),
            "{error}"
        );
        let error = ledger.verdict_after(Err(Error::closed_pipe())).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        ledger.acknowledged(1, 1, 0, 0);
        assert!(ledger.verdict_after(reason()).is_err());
        let error = ledger.verdict_after(Err(Error::closed_pipe())).unwrap_err();
        assert_eq!(error.exit_code(), 0);
    }

    #[test]
    fn no_line_is_taken_any_more_once_it_is_closed() {
        let ledger = Ledger::new();
        let (tell, told) = mpsc::channel();
        ledger.number();
        ledger.close();
        let late = Arc::clone(&ledger);
        thread::spawn(move || tell.send(late.number()));
        assert!(told.recv_timeout(Duration::from_millis(100)).is_err());
        ledger.acknowledged(1, 1, 0, 0);
        let error = ledger.interrupted(false).unwrap_err().to_string();
        assert!(error.contains("after 1 line, all delivered"), "{error}");
    }

    #[test]
    fn a_line_too_long_does_not_stop_the_others() {
        let ledger = Ledger::new();
        let line = ledger.number();
        ledger.too_long(line, 2_000_000);
        assert!(!ledger.is_broken());
        let error = ledger.verdict().unwrap_err().to_string();
        assert!(
            error.starts_with("1 of 1 line was not delivered"),
            "{error}"
        );
    }
}
