//! What became of the lines of one producer: librdkafka's delivery reports as the interface's.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::client::Client;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::message::Message as _;
use rdkafka::producer::{
    BaseProducer, DeliveryResult, Producer as _, ProducerContext, PurgeConfig,
};

use super::errors::failed_by_code;
use super::read_back::Unsettled;
use super::status::{ClusterStatus, Context};
use super::topic::{ANSWER_TIMEOUT, Asking};
use crate::broker::lock;
use crate::client::reports::ReportRun;
use crate::client::{Offsets, Reports, sentences};
use crate::error::Error;

/// How long one wait for reports takes, while lines are taken back.
const POLL_TIME: Duration = Duration::from_millis(1);

/// How often lines are taken out of the queue meanwhile: a batch that is tried again returns to it.
const PURGE_INTERVAL: Duration = Duration::from_millis(50);

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
    /// Lines that a client gave back without an outcome.
    returned: Vec<Unsettled>,
    /// The lines of a batch that was refused as too large.
    refused: Vec<Unsettled>,
    /// The topic may not be written to.
    is_denied: bool,
    /// Why lines wait, as it was reported, until one is acknowledged.
    stall: Option<String>,
    /// Since when some of the returned lines are without a partition.
    stranded_since: Option<Instant>,
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
                returned: Vec::new(),
                refused: Vec::new(),
                is_denied: false,
                stall: None,
                stranded_since: None,
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
        gathered.stall = None;
        gathered.run.acknowledged(line, partition, offset);
        // It has none if an earlier attempt wrote the line, and only its acknowledgement was lost.
        if offset >= 0 {
            gathered.ends.insert(partition, offset + 1);
        }
    }

    /// Takes all lines without an outcome back from `producer`. Returns them in their order, and the offset after
    /// the last line that was acknowledged, by partition.
    pub(super) fn take_back(&self, producer: &Base) -> (Vec<Unsettled>, Offsets) {
        self.drain(producer, PurgeConfig::default().queue().inflight());
        let mut gathered = lock(&self.gathered);
        let mut lines = gathered.take_returned();
        lines.sort_by_key(|it| it.line);
        (lines, gathered.ends.clone())
    }

    /// Waits until a producer that has stopped has no line any more: the broker may be about to answer for some.
    pub(super) fn wait_for_last(&self, producer: &Base) {
        self.drain(producer, PurgeConfig::default().queue());
    }

    fn drain(&self, producer: &Base, what: PurgeConfig) {
        producer.purge(what);
        let mut purged = Instant::now();
        let end = purged + ANSWER_TIMEOUT;
        while producer.in_flight_count() > 0 && Instant::now() < end {
            producer.poll(POLL_TIME);
            if purged.elapsed() >= PURGE_INTERVAL {
                producer.purge(what);
                purged = Instant::now();
            }
        }
    }

    /// Keeps lines that a client does not take now, for the next one.
    pub(super) fn put_back(&self, lines: impl IntoIterator<Item = Unsettled>) {
        lock(&self.gathered).returned.extend(lines);
    }

    /// Whether a batch was refused as too large.
    pub(super) fn has_refused(&self) -> bool {
        !lock(&self.gathered).refused.is_empty()
    }

    /// The lines of a batch that was refused as too large.
    pub(super) fn take_refused(&self) -> Vec<Unsettled> {
        std::mem::take(&mut lock(&self.gathered).refused)
    }

    /// Whether a line was refused because the topic may not be written to, since the last call.
    pub(super) fn take_denied(&self) -> bool {
        std::mem::take(&mut lock(&self.gathered).is_denied)
    }

    /// It is reported why lines wait.
    pub(super) fn on_stall(&self, why: &str) {
        lock(&self.gathered).stall = Some(why.to_string());
    }

    /// Since when lines have been without a partition: the topic was created again, with fewer.
    pub(super) fn stranded_since(&self) -> Option<Instant> {
        lock(&self.gathered).stranded_since
    }

    /// A client has stopped for good, or nobody takes its lines any more: gives up those that it gave back.
    pub(super) fn fail_returned(&self, code: Code, status: &ClusterStatus) {
        let lines = lock(&self.gathered).take_returned();
        self.fail_all(lines, &self.reason(code, status));
    }

    /// Lines were given up, for which `why` holds.
    pub(super) fn fail_all(&self, lines: Vec<Unsettled>, why: &Error) {
        let mut gathered = lock(&self.gathered);
        for Unsettled { line, value } in lines {
            gathered.run.failed(line, &value, why.clone());
        }
    }

    /// A line was given up.
    pub(super) fn fail(&self, line: u64, value: &[u8], why: Error) {
        lock(&self.gathered).run.failed(line, value, why);
    }

    /// Why a line was given up.
    pub(super) fn reason(&self, code: Code, status: &ClusterStatus) -> Error {
        match code {
            Code::MessageTimedOut => {
                // A connection that fails meanwhile is another broker's, unless all are away.
                let stall = lock(&self.gathered).stall.clone();
                let cause = stall.filter(|_| !status.is_away()).or(status.cause());
                sentences::not_acknowledged(&self.doing, self.timeout, cause.as_deref())
            }
            code => failed_by_code(&self.doing, code),
        }
    }
}

impl Gathered {
    fn take_returned(&mut self) -> Vec<Unsettled> {
        self.stranded_since = None;
        std::mem::take(&mut self.returned)
    }
}

impl Asking for Base {
    type Role = Arc<Deliveries>;

    fn as_client(&self) -> &Client<Context<Arc<Deliveries>>> {
        self.client()
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
                let unsettled = || Unsettled {
                    line,
                    value: value.to_vec(),
                };
                let gathered = &self.role.gathered;
                match code {
                    Code::PurgeQueue | Code::PurgeInflight => {
                        lock(gathered).returned.push(unsettled());
                    }
                    // The second is what a partition that is gone says of lines that were being tried again.
                    Code::UnknownPartition | Code::BrokerDestroy => {
                        let mut gathered = lock(gathered);
                        gathered.returned.push(unsettled());
                        gathered.stranded_since.get_or_insert_with(Instant::now);
                    }
                    Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => {
                        lock(gathered).refused.push(unsettled());
                    }
                    code => {
                        if code == Code::TopicAuthorizationFailed {
                            lock(gathered).is_denied = true;
                        }
                        let why = self.role.reason(code, &self.status);
                        self.role.fail(line, value, why);
                    }
                }
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
        let status = ClusterStatus::new(Vec::new(), false, None, drop);
        for (code, said) in [
            (
                Code::MessageTimedOut,
                "cannot write: not acknowledged within 1.5 seconds",
            ),
            (Code::TopicAuthorizationFailed, "not allowed"),
        ] {
            deliveries.fail(1, b"text", deliveries.reason(code, &status));
            deliveries.flush();
            let Ok(Report::Failed { why, .. }) = rx.try_recv() else {
                panic!("{code:?} is not reported");
            };
            assert!(why.to_string().contains(said), "{why}");
        }
    }

    #[test]
    fn a_line_that_timed_out_names_why_lines_wait_until_one_is_acknowledged() {
        let (tx, _rx) = mpsc::channel::<Report>();
        let timeout = Duration::from_secs(5);
        let deliveries = Deliveries::new(Reports::to(tx), "cannot write".into(), timeout);
        let status = ClusterStatus::new(Vec::new(), false, None, drop);
        let why = || {
            deliveries
                .reason(Code::MessageTimedOut, &status)
                .to_string()
        };
        deliveries.on_stall("too few replicas");
        assert!(why().ends_with("within 5 seconds (too few replicas)"));
        deliveries.acknowledge(1, 0, 0);
        assert!(why().ends_with("within 5 seconds"));
    }
}
