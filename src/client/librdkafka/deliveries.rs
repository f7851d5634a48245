//! What became of the lines of one producer: librdkafka's delivery reports as the interface's.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::message::Message as _;
use rdkafka::producer::{
    BaseProducer, DeliveryResult, Producer as _, ProducerContext, PurgeConfig,
};

use super::errors::failed_by_code;
use super::read_back::Unsettled;
use super::status::{ClusterStatus, Context};
use super::topic::ANSWER_TIMEOUT;
use crate::broker::lock;
use crate::client::reports::ReportRun;
use crate::client::{Offsets, Reports, sentences};
use crate::error::Error;

/// A line smaller than this that is refused as too large was in a batch that is: librdkafka's batches
/// have at most 1,000,000 bytes, and it does not split one that is refused.
const SMALL_LINE_BYTES: usize = 500_000;

/// How long one wait for reports takes, while lines are taken back.
const POLL_TIME: Duration = Duration::from_millis(1);

/// A client that lines are handed to.
pub(super) type Base = BaseProducer<Context<Arc<Deliveries>>>;

/// Gathers what became of lines, and reports it.
pub(super) struct Deliveries {
    /// What fails if a delivery does: `cannot write to topic bob at localhost:9092`.
    pub(super) doing: String,
    pub(super) timeout: Duration,
    /// Locked for a moment, by the polling thread for each line, and by the caller's thread for a line
    /// that can't be sent.
    gathered: Mutex<Gathered>,
}

struct Gathered {
    run: ReportRun,
    /// How many lines were acknowledged.
    acknowledged: u64,
    /// The offset after the last of them, by partition.
    ends: Offsets,
    /// The lines that are taken back from a client, while they are.
    taken_back: Option<Vec<Unsettled>>,
}

impl Deliveries {
    pub(super) fn new(reports: Reports, doing: String, timeout: Duration) -> Deliveries {
        Deliveries {
            doing,
            timeout,
            gathered: Mutex::new(Gathered {
                run: ReportRun::new(reports),
                acknowledged: 0,
                ends: Offsets::new(),
                taken_back: None,
            }),
        }
    }

    /// Reports what has been gathered. Returns whether there was anything.
    pub(super) fn flush(&self) -> bool {
        lock(&self.gathered).run.flush()
    }

    /// How many lines were acknowledged.
    pub(super) fn acknowledged(&self) -> u64 {
        lock(&self.gathered).acknowledged
    }

    /// The partitions in which lines were acknowledged.
    pub(super) fn partitions(&self) -> Vec<i32> {
        lock(&self.gathered).ends.keys().copied().collect()
    }

    /// A line is in the log.
    pub(super) fn acknowledge(&self, line: u64, partition: i32, offset: i64) {
        let mut gathered = lock(&self.gathered);
        gathered.acknowledged += 1;
        gathered.run.acknowledged(line, partition, offset);
        // It has none if an earlier attempt wrote the line, and only its acknowledgement was lost.
        if offset >= 0 {
            gathered.ends.insert(partition, offset + 1);
        }
    }

    /// Takes all lines without an outcome back from `producer`. Returns them in their order, and the offset after
    /// the last line that was acknowledged, by partition.
    pub(super) fn take_back(&self, producer: &Base) -> (Vec<Unsettled>, Offsets) {
        lock(&self.gathered).taken_back = Some(Vec::new());
        producer.purge(PurgeConfig::default().queue().inflight());
        let end = Instant::now() + ANSWER_TIMEOUT;
        while producer.in_flight_count() > 0 && Instant::now() < end {
            producer.poll(POLL_TIME);
        }
        let mut gathered = lock(&self.gathered);
        let mut lines = gathered.taken_back.take().unwrap_or_default();
        lines.sort_by_key(|it| it.line);
        (lines, gathered.ends.clone())
    }

    /// Lines were given up, for which `why` holds.
    pub(super) fn fail_all(&self, lines: Vec<Unsettled>, why: &Error) {
        let mut gathered = lock(&self.gathered);
        for Unsettled { line, value } in lines {
            gathered.run.failed(line, &value, why.clone());
        }
    }

    /// A line that has `bytes` bytes with its key was given up.
    pub(super) fn fail(
        &self,
        line: u64,
        value: &[u8],
        bytes: usize,
        code: Code,
        status: &ClusterStatus,
    ) {
        let why = match code {
            Code::MessageSizeTooLarge if bytes < SMALL_LINE_BYTES => Error::too_large().hint(
                "The line is not large, its batch may be: -X batch.size=BYTES makes batches smaller.",
            ),
            Code::MessageSizeTooLarge => Error::too_large(),
            Code::MessageTimedOut => {
                let cause = status.cause();
                sentences::not_acknowledged(&self.doing, self.timeout, cause.as_deref())
            }
            Code::PurgeQueue | Code::PurgeInflight => {
                Error::unacknowledged(&self.doing, "ended before it was acknowledged")
            }
            code => failed_by_code(&self.doing, code),
        };
        lock(&self.gathered).run.failed(line, value, why);
    }
}

impl ProducerContext for Context<Arc<Deliveries>> {
    /// The number of the line. (It travels as a pointer: 32-bit machines count to 4 billion.)
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, line: usize) {
        let line = line as u64;
        match result {
            Ok(message) => {
                let (partition, offset) = (message.partition(), message.offset());
                self.role.acknowledge(line, partition, offset);
                self.status.on_answer();
            }
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
                let value = message.payload().unwrap_or_default();
                if let Code::PurgeQueue | Code::PurgeInflight = code
                    && let Some(lines) = &mut lock(&self.role.gathered).taken_back
                {
                    let value = value.to_vec();
                    return lines.push(Unsettled { line, value });
                }
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
    use crate::client::Report;

    #[test]
    fn a_line_that_failed_says_why() {
        let (tx, rx) = mpsc::channel::<Report>();
        let timeout = Duration::from_millis(1500);
        let deliveries = Deliveries::new(Reports::to(tx), "cannot write".into(), timeout);
        let status = ClusterStatus::new(Vec::new(), false, drop);
        for (code, bytes, said) in [
            (
                Code::MessageTimedOut,
                9,
                "cannot write: not acknowledged within 1.5 seconds",
            ),
            (Code::MessageSizeTooLarge, 9, "too large"),
            (Code::MessageSizeTooLarge, 9, "-X batch.size"),
            (Code::MessageSizeTooLarge, 600_000, "too large"),
            (Code::TopicAuthorizationFailed, 9, "not allowed"),
        ] {
            deliveries.fail(1, b"text", bytes, code, &status);
            deliveries.flush();
            let Ok(Report::Failed { why, .. }) = rx.try_recv() else {
                panic!("{code:?} is not reported");
            };
            assert!(why.to_string().contains(said), "{why}");
            assert!(bytes < SMALL_LINE_BYTES || !why.to_string().contains("batch.size"));
        }
    }
}
