//! What producers report about the lines handed to them.

use std::sync::{Arc, mpsc};

use super::Event;
use crate::error::Error;

/// The most bytes of a line that [`Report::Failed`] repeats, so that reports stay small: enough for 40
/// characters of any script, and one more to see that there are more.
pub const EXCERPT_BYTES: usize = 164;

/// How a line begins: at most [`EXCERPT_BYTES`] of it.
pub fn excerpt(line: &[u8]) -> &[u8] {
    &line[..line.len().min(EXCERPT_BYTES)]
}

/// What becomes of lines, in the order in which it becomes known. All but [`Report::Typed`] is from a producer.
#[derive(Debug, Clone)]
pub enum Report {
    /// A line that a person typed was handed over.
    Typed {
        /// Its number.
        line: u64,
        /// How it begins, by which a person knows it: at most [`EXCERPT_BYTES`] bytes.
        excerpt: Vec<u8>,
    },
    /// `count` lines from number `first` on are in `partition`, at consecutive offsets from
    /// `offset` on.
    Acknowledged {
        /// The number of the first of these lines.
        first: u64,
        /// How many lines.
        count: u64,
        /// The partition they are in.
        partition: i32,
        /// The offset of the first one.
        offset: i64,
    },
    /// `count` lines from number `first` on were given up: they are not in the log, or it cannot
    /// be known whether they are.
    Failed {
        /// The number of the first of these lines.
        first: u64,
        /// How many lines.
        count: u64,
        /// The first [`EXCERPT_BYTES`] bytes of the first one, as they were handed over: not safe
        /// to show yet.
        excerpt: Vec<u8>,
        /// Why.
        why: Error,
    },
    /// Something happened to the producer's connection.
    Connection(Event),
}

/// Where a producer sends its reports: the sending half of a channel, whatever type of message its
/// owner receives.
///
/// Adjacent lines with the same outcome share one report: the channel holds a few reports a batch,
/// not one a line.
#[derive(Clone)]
pub struct Reports(Arc<dyn Fn(Report) + Send + Sync>);

impl Reports {
    /// Reports to the receiver of `tx`. If that is gone, they are dropped.
    pub fn to<T: From<Report> + Send + 'static>(tx: mpsc::Sender<T>) -> Reports {
        Reports(Arc::new(move |report| drop(tx.send(report.into()))))
    }

    /// Sends a report.
    pub fn send(&self, report: Report) {
        (self.0)(report);
    }
}

/// Joins reports of adjacent lines with the same outcome: to report each line would cost more than
/// to send it.
pub(super) struct ReportRun {
    reports: Reports,
    run: Option<Report>,
}

impl ReportRun {
    pub(super) fn new(reports: Reports) -> ReportRun {
        ReportRun { reports, run: None }
    }

    pub(super) fn acknowledged(&mut self, line: u64, partition: i32, offset: i64) {
        match &mut self.run {
            Some(Report::Acknowledged {
                first,
                count,
                partition: p,
                offset: o,
            }) if (*first + *count, *p, *o + *count as i64) == (line, partition, offset) => {
                *count += 1;
            }
            _ => self.begin(Report::Acknowledged {
                first: line,
                count: 1,
                partition,
                offset,
            }),
        }
    }

    pub(super) fn failed(&mut self, line: u64, value: &[u8], cause: Error) {
        match &mut self.run {
            Some(Report::Failed {
                first, count, why, ..
            }) if *first + *count == line && *why == cause => *count += 1,
            _ => self.begin(Report::Failed {
                first: line,
                count: 1,
                excerpt: excerpt(value).to_vec(),
                why: cause,
            }),
        }
    }

    fn begin(&mut self, report: Report) {
        self.flush();
        self.run = Some(report);
    }

    /// Sends what has been gathered. Returns whether there was anything.
    pub(super) fn flush(&mut self) -> bool {
        let run = self.run.take();
        let is_some = run.is_some();
        run.into_iter().for_each(|run| self.reports.send(run));
        is_some
    }
}

impl Drop for ReportRun {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_lines_with_the_same_outcome_share_a_report() {
        let (tx, rx) = mpsc::channel::<Report>();
        let mut run = ReportRun::new(Reports::to(tx));
        for (line, partition, offset) in [
            (1, 0, 10),
            (2, 0, 11),
            (3, 0, 12),
            (4, 0, 20),
            (5, 1, 21),
            (7, 1, 22),
        ] {
            run.acknowledged(line, partition, offset);
        }
        for (line, why) in [(8, "late"), (9, "late"), (10, "refused"), (12, "refused")] {
            run.failed(line, b"text", Error::failed("cannot send", why));
        }
        assert!(run.flush());
        assert!(!run.flush());
        let spans: Vec<(u64, u64)> = rx
            .try_iter()
            .map(|report| match report {
                Report::Acknowledged { first, count, .. } => (first, count),
                Report::Failed { first, count, .. } => (first, count),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            spans,
            [(1, 3), (4, 1), (5, 1), (7, 1), (8, 2), (10, 1), (12, 1)]
        );
    }

    #[test]
    fn a_failed_line_is_repeated_only_in_part() {
        for (bytes, repeated) in [(0, 0), (10, 10), (1000, EXCERPT_BYTES)] {
            let (tx, rx) = mpsc::channel::<Report>();
            ReportRun::new(Reports::to(tx)).failed(1, &vec![b'x'; bytes], Error::too_large());
            let Ok(Report::Failed { excerpt, .. }) = rx.try_recv() else {
                panic!("nothing is reported");
            };
            assert_eq!(excerpt.len(), repeated);
        }
    }
}
