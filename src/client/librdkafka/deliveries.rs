//! librdkafka's delivery reports, which come one a line, as runs of lines with the same outcome.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::message::Message as _;
use rdkafka::producer::{DeliveryResult, ProducerContext};

use super::errors::failed_by_code;
use super::status::{ClusterStatus, Context};
use crate::client::{Report, Reports, excerpt, sentences};
use crate::error::Error;

/// A line smaller than this that is refused as too large was in a batch that is: librdkafka's batches
/// have at most 1,000,000 bytes, and it does not split one that is refused.
const SMALL_LINE_BYTES: usize = 500_000;

/// Gathers what became of lines, and reports it.
pub(super) struct Deliveries {
    reports: Reports,
    /// What fails if a delivery does: `cannot write to topic bob at localhost:9092`.
    doing: String,
    timeout: Duration,
    /// The last lines with the same outcome, not reported yet: to report each line would cost more than
    /// to send it. Locked for a moment, by the polling thread for each line; by the caller's for a line
    /// that can't be sent.
    run: Mutex<Option<Run>>,
}

/// Consecutive lines with the same outcome.
struct Run {
    first: u64,
    count: u64,
    outcome: Outcome,
}

enum Outcome {
    Acknowledged {
        partition: i32,
        offset: i64,
    },
    Failed {
        code: Code,
        is_small: bool,
        excerpt: Vec<u8>,
        why: Error,
    },
}

impl Deliveries {
    pub(super) fn new(reports: Reports, doing: String, timeout: Duration) -> Deliveries {
        Deliveries {
            reports,
            doing,
            timeout,
            run: Mutex::new(None),
        }
    }

    fn acknowledge(&self, line: u64, partition: i32, offset: i64) {
        let continues = |run: &Run| match run.outcome {
            Outcome::Acknowledged {
                partition: p,
                offset: o,
            } => p == partition && o + run.count as i64 == offset,
            Outcome::Failed { .. } => false,
        };
        self.add(line, continues, || Outcome::Acknowledged {
            partition,
            offset,
        });
    }

    /// A line of `bytes` bytes, with its key, was given up.
    pub(super) fn fail(
        &self,
        line: u64,
        value: &[u8],
        bytes: usize,
        code: Code,
        status: &ClusterStatus,
    ) {
        let is_small = bytes < SMALL_LINE_BYTES;
        let continues = |run: &Run| match &run.outcome {
            Outcome::Failed {
                code: c,
                is_small: s,
                ..
            } => (*c, *s) == (code, is_small),
            Outcome::Acknowledged { .. } => false,
        };
        self.add(line, continues, || Outcome::Failed {
            code,
            is_small,
            excerpt: excerpt(value),
            why: self.why(code, is_small, status),
        });
    }

    /// Adds a line to the run, or reports that and begins another.
    fn add(&self, line: u64, continues: impl Fn(&Run) -> bool, outcome: impl FnOnce() -> Outcome) {
        let mut run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *run {
            Some(run) if line == run.first + run.count && continues(run) => run.count += 1,
            run => {
                let (first, count) = (line, 1);
                let outcome = outcome();
                let before = run.replace(Run {
                    first,
                    count,
                    outcome,
                });
                self.report(before);
            }
        }
    }

    /// Reports what has been gathered. Returns whether there was anything.
    pub(super) fn flush(&self) -> bool {
        let mut run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        self.report(run.take())
    }

    fn report(&self, run: Option<Run>) -> bool {
        let Some(Run {
            first,
            count,
            outcome,
        }) = run
        else {
            return false;
        };
        self.reports.send(match outcome {
            Outcome::Acknowledged { partition, offset } => Report::Acknowledged {
                first,
                count,
                partition,
                offset,
            },
            Outcome::Failed { excerpt, why, .. } => Report::Failed {
                first,
                count,
                excerpt,
                why,
            },
        });
        true
    }

    fn why(&self, code: Code, is_small: bool, status: &ClusterStatus) -> Error {
        match code {
            Code::MessageSizeTooLarge if is_small => Error::too_large().hint(
                "The line is not large, its batch may be: -X batch.size=BYTES makes batches smaller.",
            ),
            Code::MessageSizeTooLarge => Error::too_large(),
            Code::MessageTimedOut => {
                let cause = status.cause();
                sentences::not_acknowledged(&self.doing, self.timeout, cause.as_deref())
            }
            Code::PurgeQueue | Code::PurgeInflight => {
                Error::failed(&self.doing, "ended before it was acknowledged")
            }
            code => failed_by_code(&self.doing, code),
        }
    }
}

impl Drop for Deliveries {
    /// Lines can be acknowledged while librdkafka closes.
    fn drop(&mut self) {
        self.flush();
    }
}

impl ProducerContext for Context<Deliveries> {
    /// The number of the line. (It travels as a pointer: 32-bit machines count to 4 billion.)
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, line: usize) {
        let line = line as u64;
        match result {
            Ok(message) => {
                self.role
                    .acknowledge(line, message.partition(), message.offset());
                self.status.on_answer();
            }
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
                let value = message.payload().unwrap_or_default();
                let bytes = value.len() + message.key().map_or(0, <[u8]>::len);
                self.role.fail(line, value, bytes, code, &self.status);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn lines_with_the_same_outcome_share_a_report() {
        let (tx, rx) = mpsc::channel::<Report>();
        let timeout = Duration::from_millis(1500);
        let deliveries = Deliveries::new(Reports::to(tx), "cannot write".into(), timeout);
        let status = ClusterStatus::new(Vec::new(), false, None);
        for line in 1..=3 {
            deliveries.acknowledge(line, 0, 10 + line as i64);
        }
        deliveries.acknowledge(4, 0, 20);
        for line in 5..=6 {
            deliveries.fail(line, b"late", 9, Code::MessageTimedOut, &status);
        }
        deliveries.fail(7, b"large", 9, Code::MessageSizeTooLarge, &status);
        deliveries.fail(
            8,
            &[b'x'; 600_000],
            600_005,
            Code::MessageSizeTooLarge,
            &status,
        );
        assert!(deliveries.flush());
        assert!(!deliveries.flush());
        let said: Vec<String> = rx
            .try_iter()
            .map(|report| match report {
                Report::Acknowledged {
                    first,
                    count,
                    offset,
                    ..
                } => {
                    format!("{count} from {first} at {offset}")
                }
                Report::Failed {
                    first,
                    count,
                    excerpt,
                    why,
                } => {
                    format!("{count} from {first} ({} bytes): {why}", excerpt.len())
                }
                Report::Connection(event) => panic!("{event}"),
            })
            .collect();
        assert_eq!(said[..2], ["3 from 1 at 11", "1 from 4 at 20"]);
        assert_eq!(
            said[2],
            "2 from 5 (4 bytes): cannot write: not acknowledged within 1.5 seconds"
        );
        assert!(said[3].contains("batch.size"), "{}", said[3]);
        assert!(said[4].starts_with("1 from 8 (64 bytes)"), "{}", said[4]);
        assert!(!said[4].contains("batch.size"), "{}", said[4]);
    }
}
