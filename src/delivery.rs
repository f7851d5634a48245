//! What became of each line of input: the one count of lines in flight, and the verdict on them.
//!
//! Two halves. [`Outbox`] is for the thread that reads input: it numbers each line and hands it to the
//! producer. [`Ledger`] is for the thread that owns the program's state: it receives the producer's
//! [reports](Report) and knows which lines are still in flight. The halves share one atomic: the number of
//! lines taken, and a bit that closes the outbox.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::client::{Cluster, Partitioning, Producer, Report, Reports, Route, excerpt};
use crate::error::{Error, Result};
use crate::lines::Line;
use crate::seal::{Sealer, Secret};
use crate::terminal::{is_typed, quoted};
use crate::time;

/// The most failures, and the most lines in flight, that are listed at the end.
const MAX_LISTED: usize = 20;

/// How long a program that is interrupted waits for acknowledgements: it has a second in all.
const INTERRUPTED_WAIT: Duration = Duration::from_millis(700);

/// The most typed lines in flight whose beginnings are kept.
const MAX_EXCERPTS: usize = 1000;

/// The bit of `taken` that says that no more lines are taken.
const CLOSED: u64 = 1 << 63;

/// Opens both halves, for one sender's lines to one topic; a line is given up after `timeout`. With a secret, lines are
/// sealed. The ledger's owner receives the reports.
pub fn open(
    cluster: &dyn Cluster,
    route: Route<'_>,
    secret: Option<Secret>,
    timeout: Duration,
    reports: Reports,
) -> Result<(Outbox, Ledger)> {
    let sealer = secret.map(|secret| Sealer::new(&secret, route.sender, route.topic));
    let sealer = sealer.transpose()?;
    // A reader takes the lines of a session in their order, which only a partition has.
    let partitioning = match sealer {
        Some(_) => Partitioning::Fixed,
        None => Partitioning::ByKey,
    };
    let producer = cluster.producer(route, partitioning, timeout, reports.clone())?;
    let ledger = Ledger::new(is_typed());
    let outbox = Outbox {
        sealer,
        ..Outbox::new(&ledger, producer, reports)
    };
    Ok((outbox, ledger))
}

/// The half that takes lines.
pub struct Outbox {
    taken: Arc<AtomicU64>,
    is_typed: bool,
    sealer: Option<Sealer>,
    producer: Box<dyn Producer>,
    reports: Reports,
}

impl Outbox {
    fn new(ledger: &Ledger, producer: Box<dyn Producer>, reports: Reports) -> Outbox {
        Outbox {
            taken: Arc::clone(&ledger.taken),
            is_typed: ledger.is_typed,
            sealer: None,
            producer,
            reports,
        }
    }

    /// Numbers a line, the first being 1, and hands it over; waits while the producer's buffer is full.
    /// A line that is too long is reported as failed. Returns false, and takes nothing, once the ledger
    /// is closed.
    pub fn send(&mut self, line: &Line<'_>) -> bool {
        let next = |taken: u64| (taken & CLOSED == 0).then_some(taken + 1);
        let order = Ordering::SeqCst;
        let Ok(before) = self.taken.fetch_update(order, order, next) else {
            return false;
        };
        let number = before + 1;
        match line {
            Line::Whole(text) => {
                if self.is_typed {
                    self.reports.send(Report::Typed {
                        line: number,
                        excerpt: excerpt(text).to_vec(),
                    });
                }
                match seal(&mut self.sealer, text) {
                    Ok(value) => self.producer.send(number, value),
                    Err(why) => self.fail(number, text, why),
                }
            }
            Line::TooLong { bytes, start } => {
                let why = match &self.sealer {
                    Some(sealer) => Error::too_large_to_seal(sealer.most_text()),
                    None => Error::too_large(),
                };
                self.fail(number, start, why.of_size(*bytes));
            }
        }
        true
    }

    fn fail(&self, line: u64, text: &[u8], why: Error) {
        self.reports.send(Report::Failed {
            first: line,
            count: 1,
            excerpt: excerpt(text).to_vec(),
            why,
        });
    }
}

/// The value of a line's record.
fn seal<'a>(sealer: &'a mut Option<Sealer>, text: &'a [u8]) -> Result<&'a [u8]> {
    let Some(sealer) = sealer else {
        return Ok(text);
    };
    if text.len() > sealer.most_text() {
        let why = Error::too_large_to_seal(sealer.most_text());
        return Err(why.of_size(text.len() as u64));
    }
    sealer.seal(time::now(), text)
}

/// The half that knows what became of them.
#[derive(Debug)]
pub struct Ledger {
    /// Lines are known by how they begin, and not by their numbers.
    is_typed: bool,
    taken: Arc<AtomicU64>,
    /// Lines 1 to `settled` are acknowledged or failed.
    settled: u64,
    /// Settled ranges after that: first line → last line.
    settled_later: BTreeMap<u64, u64>,
    /// How the first of the typed lines in flight begin.
    typed: BTreeMap<u64, String>,
    /// The failures of the first lines, in the lines' order, adjacent ones of the same reason as one.
    failures: Vec<Failure>,
    failed: u64,
    /// How many of these may have arrived all the same.
    unacknowledged: u64,
    /// How many lines failed that are not among `failures`.
    unlisted: u64,
    is_broken: bool,
}

/// Adjacent lines that failed for the same reason.
#[derive(Debug)]
struct Failure {
    first: u64,
    last: u64,
    /// How the first of them begins.
    excerpt: String,
    why: String,
}

impl Failure {
    /// Takes in the next one, if that is adjacent and of the same reason. Returns whether it is.
    fn joins(&mut self, next: &Failure) -> bool {
        let is_same = self.last + 1 == next.first && self.why == next.why;
        if is_same {
            self.last = next.last;
        }
        is_same
    }
}

impl Ledger {
    /// A ledger of no lines. Lines that are `typed` are named by how they begin, others by their
    /// numbers.
    pub(crate) fn new(is_typed: bool) -> Ledger {
        Ledger {
            is_typed,
            taken: Arc::default(),
            settled: 0,
            settled_later: BTreeMap::new(),
            typed: BTreeMap::new(),
            failures: Vec::new(),
            failed: 0,
            unacknowledged: 0,
            unlisted: 0,
            is_broken: false,
        }
    }

    /// From now on no more lines are taken, so that the verdict is on all of them.
    pub fn close(&self) {
        self.taken.fetch_or(CLOSED, Ordering::SeqCst);
    }

    /// As if so many lines had been taken.
    #[cfg(test)]
    pub(crate) fn take(&self, lines: u64) {
        self.taken.fetch_add(lines, Ordering::SeqCst);
    }

    /// How many lines were taken.
    fn taken(&self) -> u64 {
        self.taken.load(Ordering::SeqCst) & !CLOSED
    }

    /// Whether every line taken is acknowledged or failed.
    pub fn is_settled(&self) -> bool {
        self.settled == self.taken()
    }

    /// Whether a line failed for a reason that the next one would share.
    pub fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Whether the lines are typed.
    pub fn is_typed(&self) -> bool {
        self.is_typed
    }

    /// Takes note of what is reported about lines.
    pub fn apply(&mut self, report: &Report) {
        match report {
            Report::Typed { line, excerpt } if self.typed.len() < MAX_EXCERPTS => {
                self.typed.insert(*line, quoted(excerpt));
            }
            Report::Acknowledged { first, count, .. } => self.settle(*first, first + count - 1),
            Report::Failed {
                first,
                count,
                excerpt,
                why,
            } => {
                let excerpt = self.excerpt(*first, excerpt);
                self.settle(*first, first + count - 1);
                self.fail(*first, *count, excerpt, why);
            }
            Report::Typed { .. } | Report::Connection(_) => {}
        }
    }

    /// How a line that failed begins: of a sealed one, a report only knows the value.
    fn excerpt(&self, line: u64, value: &[u8]) -> String {
        let typed = self.typed.get(&line).cloned();
        typed.unwrap_or_else(|| quoted(value))
    }

    /// What to say at once if a report is about lines that failed. To be asked before the report is
    /// [applied](Ledger::apply), which forgets how they begin.
    pub fn failure_notice(&self, report: &Report) -> Option<String> {
        let Report::Failed {
            first,
            count,
            excerpt,
            why,
        } = report
        else {
            return None;
        };
        let excerpt = self.excerpt(*first, excerpt);
        let unacknowledged = if why.is_unacknowledged() { *count } else { 0 };
        let what = not_delivered(*count, unacknowledged);
        Some(match count - 1 {
            0 => format!("{excerpt} {what}: {why}"),
            more => format!("{excerpt} and {more} more {what}: {why}"),
        })
    }

    fn fail(&mut self, first: u64, count: u64, excerpt: String, why: &Error) {
        let last = first + count - 1;
        self.failed += count;
        self.unacknowledged += if why.is_unacknowledged() { count } else { 0 };
        self.is_broken |= !why.is_too_large();
        let failure = Failure {
            first,
            last,
            excerpt,
            why: why.to_string(),
        };
        // A line can be refused before an earlier one, which was on its way when the reason became known.
        let at = self.failures.partition_point(|it| it.first < first);
        self.failures.insert(at, failure);
        self.failures.dedup_by(|it, before| before.joins(it));
        if self.failures.len() > MAX_LISTED {
            let cut = self.failures.pop();
            self.unlisted += cut.map_or(0, |it| it.last - it.first + 1);
        }
    }

    fn settle(&mut self, first: u64, last: u64) {
        self.typed.retain(|line, _| !(first..=last).contains(line));
        match self.settled_later.range_mut(..first).next_back() {
            Some((_, before)) if *before + 1 == first => *before = last,
            _ => _ = self.settled_later.insert(first, last),
        }
        while let Some(next) = self.settled_later.first_entry()
            && *next.key() == self.settled + 1
        {
            self.settled = next.remove();
        }
    }

    /// Why a program whose ledger [is broken](Ledger::is_broken) stops reading.
    pub fn rest_is_unread(&self) -> Error {
        Error::failed(
            format!("stopped reading after line {}", self.taken()),
            "lines can't be delivered any more",
        )
    }

    /// The verdict, given why no more lines came.
    pub fn verdict_after(&self, cause: Cause) -> Result<()> {
        match (cause, self.verdict()) {
            (Cause::Ended(Err(reason)), Err(verdict)) => Err(reason.beside(verdict)),
            (Cause::Ended(reason), verdict) => reason.and(verdict),
            (Cause::Interrupted, Ok(())) if !self.is_typed => Err(Error::failed(
                format!("interrupted after {}, all delivered", lines(self.taken())),
                "the rest of the input was not read",
            )),
            (Cause::Interrupted, verdict) => verdict,
        }
    }

    /// An error that names every line which is not acknowledged by now, or none.
    pub fn verdict(&self) -> Result<()> {
        let taken = self.taken();
        let in_flight: Vec<(u64, u64)> = self.in_flight(taken).collect();
        let in_flight_count: u64 = in_flight.iter().map(|(a, b)| b - a + 1).sum();
        let undelivered = self.failed + in_flight_count;
        if undelivered == 0 {
            return Ok(());
        }
        let mut why = String::new();
        // Writing to a String can't fail.
        for failure in &self.failures {
            let name = self.name(failure.first, failure.last, &failure.excerpt);
            _ = write!(why, "\n  {name}: {}", failure.why);
        }
        if self.unlisted > 0 {
            _ = write!(why, "\n  and {} more", self.unlisted);
        }
        let unknown = "not acknowledged yet";
        let names: Vec<String> = match self.is_typed {
            true => self.typed.values().cloned().collect(),
            false => in_flight.iter().map(|(a, b)| span(*a, *b)).collect(),
        };
        for name in names.iter().take(MAX_LISTED) {
            _ = write!(why, "\n  {name}: {unknown}");
        }
        if names.len() > MAX_LISTED {
            _ = write!(why, "\n  and later ones: {unknown}");
        }
        let what = not_delivered(undelivered, self.unacknowledged + in_flight_count);
        let what = format!("{undelivered} of {} {what}", lines(taken));
        Err(Error::listed(what, &why))
    }

    fn name(&self, first: u64, last: u64, excerpt: &str) -> String {
        match (self.is_typed, last - first) {
            (false, _) => span(first, last),
            (true, 0) => excerpt.to_string(),
            (true, more) => format!("{excerpt} and {} after it", lines(more)),
        }
    }

    /// The ranges of lines that are in flight, each from its first to its last line.
    fn in_flight(&self, taken: u64) -> impl Iterator<Item = (u64, u64)> {
        let starts = self.settled_later.values().copied();
        let ends = self.settled_later.keys().map(|first| first - 1);
        let starts = std::iter::once(self.settled).chain(starts);
        let ends = ends.chain(std::iter::once(taken));
        starts
            .zip(ends)
            .map(|(before, last)| (before + 1, last))
            .filter(|(first, last)| first <= last)
    }
}

/// Why no more lines are taken.
#[derive(Debug)]
pub enum Cause {
    /// The input has ended, or the program can't go on.
    Ended(Result<()>),
    /// The user, or the system, wants the program to end before its input does. For typed lines, where the user
    /// stops is the end.
    Interrupted,
}

/// What the owner of a publisher's ledger receives.
#[derive(Debug)]
pub enum Arrival {
    /// From the producer.
    Report(Report),
    /// No more lines come, and why.
    InputEnded(Result<()>),
    /// The user, or the system, wants the program to end.
    Interrupted,
}

impl From<Report> for Arrival {
    fn from(report: Report) -> Arrival {
        Arrival::Report(report)
    }
}

/// Keeps a publisher's ledger until every line is settled and no more come, and returns the verdict.
///
/// The last lines have `patience` to be settled, but after an interruption less than a second. An
/// interruption is a failure unless lines are typed: then the input ends where the user stops. Who types
/// also gets a notice of each line that fails while more can be typed; the verdict names it again.
pub fn settle(
    mut ledger: Ledger,
    arrivals: &Receiver<Arrival>,
    patience: Duration,
    mut notice: impl FnMut(&dyn Display),
) -> Result<()> {
    // Why no more lines are taken, and until when the last ones may be settled.
    let mut end: Option<(Cause, Instant)> = None;
    let mut is_interrupted = false;
    loop {
        let arrival = match &end {
            None => arrivals.recv().map_err(RecvTimeoutError::from),
            Some(_) if ledger.is_settled() => break,
            Some((_, at)) => arrivals.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        match arrival {
            Ok(Arrival::Report(Report::Connection(event))) => notice(&event),
            Ok(Arrival::Report(report)) => {
                let failure = ledger.failure_notice(&report);
                ledger.apply(&report);
                if end.is_some() {
                    continue;
                }
                if ledger.is_broken() {
                    ledger.close();
                    let cause = Cause::Ended(Err(ledger.rest_is_unread()));
                    end = Some((cause, Instant::now() + patience));
                } else if ledger.is_typed()
                    && let Some(failure) = failure
                {
                    notice(&failure);
                }
            }
            Ok(Arrival::InputEnded(result)) => {
                end.get_or_insert((Cause::Ended(result), Instant::now() + patience));
            }
            // A second signal: do not wait.
            Ok(Arrival::Interrupted) if is_interrupted => break,
            Ok(Arrival::Interrupted) => {
                is_interrupted = true;
                ledger.close();
                let soon = Instant::now() + INTERRUPTED_WAIT;
                let (_, at) = end.get_or_insert((Cause::Interrupted, soon));
                *at = soon.min(*at);
            }
            Err(_) => break,
        }
    }
    ledger.verdict_after(end.map_or(Cause::Interrupted, |(cause, _)| cause))
}

/// What can be said of so many lines, of which so many may have arrived.
fn not_delivered(lines: u64, unacknowledged: u64) -> &'static str {
    match lines {
        _ if unacknowledged == lines => "may not have arrived",
        _ if unacknowledged > 0 => "were not delivered, or may not have arrived",
        1 => "was not delivered",
        _ => "were not delivered",
    }
}

fn span(first: u64, last: u64) -> String {
    if first == last {
        format!("line {first}")
    } else {
        format!("lines {first}-{last}")
    }
}

/// `1 line`, `2 lines`.
pub fn lines(count: u64) -> String {
    match count {
        1 => "1 line".into(),
        n => format!("{n} lines"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Does nothing with lines.
    struct Nowhere;

    impl Producer for Nowhere {
        fn send(&mut self, _: u64, _: &[u8]) {}
    }

    #[test]
    fn a_sealed_line_that_failed_is_named_by_its_text() {
        let mut ledger = Ledger::new(true);
        ledger.take(1);
        ledger.apply(&Report::Typed {
            line: 1,
            excerpt: b"hello".to_vec(),
        });
        ledger.apply(&Report::Failed {
            first: 1,
            count: 1,
            excerpt: b"sealed1:AAAA".to_vec(),
            why: Error::failed("cannot write", "refused"),
        });
        let verdict = ledger.verdict().unwrap_err().to_string();
        assert!(verdict.contains("\n  'hello': cannot write"), "{verdict}");
    }

    /// A ledger of so many lines, which are handed over.
    fn ledger(is_typed: bool, count: u64) -> Ledger {
        let mut ledger = Ledger::new(is_typed);
        let (tx, arrivals) = mpsc::channel::<Arrival>();
        let mut outbox = Outbox::new(&ledger, Box::new(Nowhere), Reports::to(tx));
        for n in 1..=count {
            assert!(outbox.send(&Line::of(format!("text {n}").as_bytes())));
        }
        for arrival in arrivals.try_iter() {
            match arrival {
                Arrival::Report(report) => ledger.apply(&report),
                other => panic!("{other:?}"),
            }
        }
        ledger
    }

    fn acknowledged(first: u64, count: u64) -> Report {
        Report::Acknowledged {
            first,
            count,
            partition: 0,
            offset: 0,
        }
    }

    fn failed(first: u64, why: Error) -> Report {
        Report::Failed {
            first,
            count: 1,
            excerpt: format!("text {first}").into(),
            why,
        }
    }

    fn no_broker() -> Error {
        Error::failed("cannot send", "no broker")
    }

    #[test]
    fn all_acknowledged_is_no_error() {
        let mut ledger = ledger(false, 3);
        assert!(!ledger.is_settled());
        ledger.apply(&acknowledged(1, 3));
        assert!(ledger.is_settled());
        assert!(ledger.verdict().is_ok());
    }

    #[test]
    fn every_line_not_delivered_is_named() {
        for (is_typed, parts) in [
            (
                false,
                [
                    "6 of 8 lines were not delivered, or may not have arrived",
                    "line 2: 2000000 bytes, too large",
                    "lines 4-5: cannot send: no broker",
                    "line 3: not acknowledged yet",
                    "lines 7-8: not acknowledged yet",
                ],
            ),
            (
                true,
                [
                    "6 of 8 lines were not delivered, or may not have arrived",
                    "'text 2': 2000000 bytes, too large",
                    "'text 4' and 1 line after it: cannot send: no broker",
                    "'text 3': not acknowledged yet",
                    "'text 8': not acknowledged yet",
                ],
            ),
        ] {
            let mut ledger = ledger(is_typed, 8);
            ledger.apply(&failed(2, Error::too_large().of_size(2_000_000)));
            assert!(!ledger.is_broken());
            ledger.apply(&acknowledged(1, 1));
            ledger.apply(&failed(4, no_broker()));
            ledger.apply(&failed(5, no_broker()));
            ledger.apply(&acknowledged(6, 1));
            let error = ledger.verdict().unwrap_err().to_string();
            for part in parts {
                assert!(error.contains(part), "{part}: {error}");
            }
            assert!(ledger.is_broken() && !ledger.is_settled());
        }
    }

    #[test]
    fn only_a_line_that_is_known_to_be_missing_was_not_delivered() {
        let timeout = || Error::unacknowledged("cannot send", "not acknowledged within 1 second");
        for (first, second, said) in [
            (
                Some(no_broker()),
                Some(no_broker()),
                "2 of 2 lines were not delivered",
            ),
            (
                Some(timeout()),
                Some(timeout()),
                "2 of 2 lines may not have arrived",
            ),
            (Some(timeout()), None, "2 of 2 lines may not have arrived"),
            (None, None, "2 of 2 lines may not have arrived"),
            (
                Some(no_broker()),
                Some(timeout()),
                "2 of 2 lines were not delivered, or may not have arrived",
            ),
            (
                Some(no_broker()),
                None,
                "2 of 2 lines were not delivered, or may not have arrived",
            ),
        ] {
            let mut ledger = ledger(true, 2);
            for (line, why) in (1..).zip([first, second]) {
                why.into_iter()
                    .for_each(|why| ledger.apply(&failed(line, why)));
            }
            let error = ledger.verdict().unwrap_err().to_string();
            assert_eq!(error.split(':').next(), Some(said));
        }
    }

    #[test]
    fn many_failures_take_bounded_memory_and_are_all_counted() {
        let mut ledger = ledger(true, 5_000);
        assert_eq!(ledger.typed.len(), MAX_EXCERPTS);
        for line in 1..=5_000 {
            ledger.apply(&failed(line, Error::failed("no", line)));
        }
        assert_eq!(
            (ledger.failures.len(), ledger.typed.len(), ledger.settled),
            (MAX_LISTED, 0, 5_000)
        );
        let error = ledger.verdict().unwrap_err().to_string();
        assert!(error.contains("5000 of 5000 lines"), "{error}");
        assert!(error.contains("and 4980 more"), "{error}");
    }

    #[test]
    fn the_first_lines_are_listed_even_if_later_ones_failed_before() {
        let mut ledger = ledger(false, 100);
        for line in (4..=100).step_by(2).chain([2, 1]) {
            ledger.apply(&failed(line, Error::too_large()));
        }
        let listed = ledger.failures.iter().map(|it| (it.first, it.last));
        let expected = (4..=40).step_by(2).map(|line| (line, line));
        assert!(listed.eq(std::iter::once((1, 2)).chain(expected)));
        let error = ledger.verdict().unwrap_err().to_string();
        assert!(error.contains("and 30 more"), "{error}");
    }

    #[test]
    fn lines_settled_in_any_order_are_settled_once_each() {
        let mut ledger = ledger(false, 10);
        for (first, count) in [(9, 2), (4, 1), (2, 2), (6, 3), (5, 1)] {
            ledger.apply(&acknowledged(first, count));
            assert!(!ledger.is_settled());
        }
        ledger.apply(&acknowledged(1, 1));
        assert!(ledger.is_settled() && ledger.settled_later.is_empty());
    }

    #[test]
    fn undelivered_lines_are_named_after_the_reason_for_the_end() {
        let mut ledger = ledger(false, 1);
        let reason = || {
            let error = Error::failed("cannot read standard input", "no such device");
            Cause::Ended(Err(error))
        };
        let closed = || Cause::Ended(Err(Error::closed_pipe()));
        let error = ledger.verdict_after(reason()).unwrap_err().to_string();
        assert!(
            error.contains("no such device") && error.contains("line 1"),
            "{error}"
        );
        let error = ledger.verdict_after(closed()).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        ledger.apply(&acknowledged(1, 1));
        assert!(ledger.verdict_after(reason()).is_err());
        let error = ledger.verdict_after(closed()).unwrap_err();
        assert_eq!(error.exit_code(), 0);
    }

    #[test]
    fn no_line_is_taken_once_the_ledger_is_closed() {
        let ledger = Ledger::new(false);
        let (tx, _arrivals) = mpsc::channel::<Arrival>();
        let mut outbox = Outbox::new(&ledger, Box::new(Nowhere), Reports::to(tx));
        assert!(outbox.send(&Line::Whole(b"one")));
        ledger.close();
        assert!(!outbox.send(&Line::Whole(b"two")));
        assert_eq!(ledger.taken(), 1);
    }

    /// How a publisher ends that took so many lines, and at whose owner this arrives.
    fn ends(is_typed: bool, count: u64, arrivals: Vec<Arrival>) -> Result<(), String> {
        let (tx, rx) = mpsc::channel();
        for arrival in arrivals {
            tx.send(arrival).unwrap();
        }
        let patience = Duration::from_millis(1);
        settle(ledger(is_typed, count), &rx, patience, |_| ()).map_err(|error| error.to_string())
    }

    #[test]
    fn who_types_is_told_of_a_line_that_failed_while_more_can_be_typed() {
        let too_large = |line| Arrival::Report(failed(line, Error::too_large_to_seal(9)));
        let notice =
            "'text 1' was not delivered: too large to be sealed: a sealed line has at most 9 bytes";
        for (is_typed, expected) in [(true, &[notice][..]), (false, &[])] {
            let (tx, rx) = mpsc::channel();
            for arrival in [too_large(1), Arrival::InputEnded(Ok(())), too_large(2)] {
                tx.send(arrival).unwrap();
            }
            let mut notices = Vec::new();
            let patience = Duration::from_millis(1);
            let verdict = settle(ledger(is_typed, 2), &rx, patience, |it| {
                notices.push(it.to_string());
            });
            assert!(verdict.unwrap_err().to_string().starts_with("2 of 2 lines"));
            assert_eq!(notices, expected);
        }
    }

    #[test]
    fn a_publisher_ends_when_its_input_has_ended_and_every_line_is_settled() {
        let report = |report| Arrival::Report(report);
        let input_ended = || Arrival::InputEnded(Ok(()));
        for (is_typed, arrivals, expected) in [
            (false, vec![input_ended(), report(acknowledged(1, 2))], ""),
            (false, vec![report(acknowledged(1, 2)), input_ended()], ""),
            (
                false,
                vec![report(acknowledged(1, 1)), input_ended()],
                "line 2: not acknowledged yet",
            ),
            (
                false,
                vec![
                    report(failed(1, no_broker())),
                    report(acknowledged(2, 1)),
                    input_ended(),
                ],
                "stopped reading after line 2: lines can't be delivered any more",
            ),
            (
                false,
                vec![report(acknowledged(1, 2)), Arrival::Interrupted],
                "interrupted after 2 lines, all delivered: the rest of the input was not read",
            ),
            (
                true,
                vec![report(acknowledged(1, 2)), Arrival::Interrupted],
                "",
            ),
            // All was read: there is no rest.
            (
                false,
                vec![
                    input_ended(),
                    Arrival::Interrupted,
                    report(acknowledged(1, 2)),
                ],
                "",
            ),
            (
                false,
                vec![Arrival::Interrupted, Arrival::Interrupted],
                "2 of 2 lines may not have arrived",
            ),
        ] {
            let what = format!("{is_typed} {arrivals:?}");
            match ends(is_typed, 2, arrivals) {
                Ok(()) => assert_eq!(expected, "", "{what}"),
                Err(error) => assert!(
                    !expected.is_empty() && error.contains(expected),
                    "{what}: {error}"
                ),
            }
        }
    }
}
