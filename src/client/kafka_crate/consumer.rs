//! Reads a topic: fetches from all its partitions at once, and gives what came record by record.

use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use kafka::client::FetchOffset;
use kafka::client::fetch::Response;
use kafka::error::KafkaCode;

use super::connection::Call;
use super::errors::CallError;
use super::fetch::{FETCH_BYTES, MAX_FETCH_BYTES, ends_without_records, records};
use super::topic_client::{FIRST_PAUSE, TopicClient};
use crate::client::position::{Fingerprint, Positions};
use crate::client::{Consumer, Event, Offsets, Record, Start};
use crate::error::Result;

/// How long the broker waits for records if it has none. No poll waits for that: a fetch goes on between two.
const LONG_POLL: Duration = Duration::from_secs(8);

/// The most compressed records that are reported together.
const MAX_UNREADABLE: i64 = 1000;

pub(super) struct KafkaCrateConsumer {
    client: TopicClient,
    positions: Positions,
    fetch_bytes: i32,
    /// The size of the last batch that was compressed.
    compressed_bytes: i32,
    /// The fetch in progress.
    fetching: Option<Call<Vec<Response>>>,
    /// Fetched, and not all given yet: `each` returned `Break`, or an event comes first.
    pending: Vec<Response>,
    /// Not returned by a poll yet.
    events: Vec<Event>,
}

impl KafkaCrateConsumer {
    pub(super) fn new(mut client: TopicClient, start: Start) -> Result<KafkaCrateConsumer> {
        Ok(KafkaCrateConsumer {
            positions: client.positions(start)?,
            client,
            fetch_bytes: FETCH_BYTES,
            compressed_bytes: 0,
            fetching: None,
            pending: Vec::new(),
            events: Vec::new(),
        })
    }

    /// Fetches from all partitions, unless something fetched is still to be given. Waits for that until `end`.
    fn fetch(&mut self, end: Instant) -> Result<(), CallError> {
        if !self.pending.is_empty() {
            return Ok(());
        }
        let fetching = match self.fetching.take() {
            Some(fetching) => fetching,
            None => {
                self.client.ensure_connected()?;
                self.positions.set_partitions(&self.client.partitions);
                // After a failure, any answer is news.
                let max_wait = match self.client.has_failed() {
                    true => Duration::ZERO,
                    false => LONG_POLL,
                };
                let from = self.positions.offsets();
                self.client.fetch(from, self.fetch_bytes, max_wait)?
            }
        };
        let Some(fetched) = fetching.wait(end.saturating_duration_since(Instant::now())) else {
            self.fetching = Some(fetching);
            return Ok(());
        };
        self.pending = match self.client.settled(fetched) {
            Err(CallError::Compressed) => self.fetch_readable()?,
            Ok(fetched) if self.client.has_refused(&fetched) => self.fetch_readable()?,
            fetched => fetched?,
        };
        Ok(())
    }

    /// Fetches from each partition up to the first compressed record, and moves past such records.
    fn fetch_readable(&mut self) -> Result<Vec<Response>, CallError> {
        let mut all = Vec::new();
        for (partition, start) in self.positions.offsets() {
            let mut next = start;
            while next - start < MAX_UNREADABLE {
                let size = &mut self.compressed_bytes;
                match self.client.fetch_readable(partition, next, size) {
                    Ok(None) => next += 1,
                    Ok(Some(fetched)) => {
                        all.extend(fetched);
                        break;
                    }
                    Err(CallError::Code(KafkaCode::OffsetOutOfRange)) if next == start => {
                        self.reconcile(partition)?;
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
            if next > start {
                self.positions.skip_to(partition, next);
                self.events.push(Event::Unreadable {
                    topic: self.client.topic.clone(),
                    partition,
                    offsets: start..next,
                });
            }
        }
        Ok(all)
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
                Ok(record) => {
                    if self.client.broker.is_small()
                        && let Some(offsets) = self.positions.skip_gap(&record)
                    {
                        self.events.push(Event::Damaged { offsets });
                        is_stopped = true;
                        break;
                    }
                    if !self.positions.advance(&record) {
                        continue;
                    }
                    has_given = true;
                    is_stopped = each(record).is_break();
                    if is_stopped {
                        break;
                    }
                }
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
        if !responses.is_empty() {
            self.events.extend(self.client.on_success());
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
            let again = self.client.read_again(partition, offset..end, |record| {
                found = Some(Fingerprint::of(&record));
                ControlFlow::Break(())
            });
            match again {
                // What was given was not compressed: it is another record.
                Ok(()) | Err(CallError::Compressed) => Ok(found),
                Err(error) => Err(error),
            }
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
            match self.fetch(end).and_then(|()| self.give(each)) {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) if error.is_fatal() => {
                    return Err(self.client.error(error));
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
        // The broker would answer only after the fetch in progress.
        if self.fetching.take().is_some() {
            self.client.disconnect();
        }
        self.client.end_offsets()
    }
}
