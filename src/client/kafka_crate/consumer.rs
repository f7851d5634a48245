//! Reads a topic: fetches from all its partitions at once, and gives what came record by record.

use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use kafka::client::FetchOffset;
use kafka::client::fetch::Response;
use kafka::error::KafkaCode;

use super::errors::CallError;
use super::fetch::{FETCH_BYTES, MAX_FETCH_BYTES, ends_without_records, records};
use super::topic_client::{FIRST_PAUSE, TopicClient};
use crate::client::position::{Fingerprint, Positions};
use crate::client::{Consumer, Event, Offsets, Record, Start, needs_librdkafka};
use crate::error::Result;

pub(super) struct KafkaCrateConsumer {
    client: TopicClient,
    positions: Positions,
    fetch_bytes: i32,
    /// Fetched, and not all given yet, because `each` returned `Break`.
    pending: Vec<Response>,
    /// Not returned by a poll yet.
    events: Vec<Event>,
}

impl KafkaCrateConsumer {
    pub(super) fn new(mut client: TopicClient, start: Start) -> Result<KafkaCrateConsumer> {
        let from = match &start {
            Start::Latest => FetchOffset::Latest,
            Start::Earliest | Start::At(_) => FetchOffset::Earliest,
            Start::Since(_) => return Err(needs_librdkafka("--from with a time")),
        };
        let offsets = client.retry_until_timeout(|client| client.offsets(from))?;
        Ok(KafkaCrateConsumer {
            client,
            positions: Positions::new(offsets, start),
            fetch_bytes: FETCH_BYTES,
            pending: Vec::new(),
            events: Vec::new(),
        })
    }

    /// Fetches from all partitions, unless something fetched is still to be given.
    fn fetch(&mut self) -> Result<(), CallError> {
        if !self.pending.is_empty() {
            return Ok(());
        }
        self.client.ensure_connected()?;
        self.positions.set_partitions(&self.client.partitions);
        self.pending = self
            .client
            .fetch(self.positions.offsets(), self.fetch_bytes)?;
        self.events.extend(self.client.on_success());
        Ok(())
    }

    /// Gives what was fetched to `each`. Returns whether there was anything.
    fn give(
        &mut self,
        each: &mut dyn FnMut(Record<'_>) -> ControlFlow<()>,
    ) -> Result<bool, CallError> {
        let responses = std::mem::take(&mut self.pending);
        let (mut has_given, mut is_stopped) = (false, false);
        let mut failed = Vec::new();
        for record in records(&responses) {
            match record {
                Err(error) => failed.push(error),
                Ok(record) if self.positions.advance(&record) => {
                    has_given = true;
                    is_stopped = each(record).is_break();
                    if is_stopped {
                        break;
                    }
                }
                Ok(_) => {}
            }
        }
        if is_stopped {
            self.pending = responses;
            return Ok(true);
        }
        for (partition, error) in failed {
            match error {
                CallError::Code(KafkaCode::OffsetOutOfRange) => self.reconcile(partition)?,
                other => return Err(other),
            }
        }
        if has_given {
            self.fetch_bytes = FETCH_BYTES;
        } else {
            self.fetch_more(&responses);
        }
        Ok(has_given)
    }

    /// Makes the next fetch larger if the next record did not fit into this one.
    fn fetch_more(&mut self, responses: &[Response]) {
        let ends = ends_without_records(responses, &self.positions.offsets());
        if ends.is_empty() {
            return;
        }
        if self.fetch_bytes < MAX_FETCH_BYTES {
            self.fetch_bytes = self.fetch_bytes.saturating_mul(2).min(MAX_FETCH_BYTES);
        } else {
            // No record is that large: these offsets are a transaction's markers, or compacted.
            for (partition, end) in ends {
                self.positions.skip_to(partition, end);
            }
            self.fetch_bytes = FETCH_BYTES;
        }
        // The broker did not hold this fetch, and may not hold the next one.
        thread::sleep(FIRST_PAUSE);
    }

    /// The log does not have the position: continues where it does.
    fn reconcile(&mut self, partition: i32) -> Result<(), CallError> {
        let oldest = self.client.offset(partition, FetchOffset::Earliest)?;
        let end = self.client.offset(partition, FetchOffset::Latest)?;
        let event = self.positions.reconcile(partition, oldest..end, |offset| {
            let mut found = None;
            self.client.read_again(partition, offset..end, |record| {
                found = Some(Fingerprint::of(&record));
                ControlFlow::Break(())
            })?;
            Ok::<_, CallError>(found)
        })?;
        self.events.extend(event);
        Ok(())
    }
}

impl Consumer for KafkaCrateConsumer {
    fn poll(
        &mut self,
        wait: Duration,
        each: &mut dyn FnMut(Record<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Event>> {
        let end = Instant::now() + wait;
        loop {
            match self.fetch().and_then(|()| self.give(each)) {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) if error.is_fatal() => {
                    return Err(error.into_error(&self.client.broker, &self.client.topic));
                }
                Err(error) => {
                    if matches!(error, CallError::Code(_)) {
                        self.client.disconnect();
                    }
                    self.events.extend(self.client.back_off(&error, end));
                }
            }
            if !self.events.is_empty() || Instant::now() >= end {
                break;
            }
        }
        Ok(std::mem::take(&mut self.events))
    }

    fn position(&self) -> Offsets {
        self.positions.offsets()
    }

    fn end_offsets(&mut self) -> Result<Offsets> {
        self.client
            .retry_until_timeout(|client| client.offsets(FetchOffset::Latest))
    }
}
