//! Fetches, and the records in their responses.

use std::ops::ControlFlow;

use kafka::client::FetchPartition;
use kafka::client::fetch::Response;
use kafka::error::{Error as KafkaError, KafkaCode};

use super::connection::LONG_POLL;
use super::errors::CallError;
use super::topic_client::{REQUEST_TIMEOUT, TopicClient};
use crate::client::position::Fingerprint;
use crate::client::{Offsets, Record};

/// How many bytes of a partition are fetched at once: at first, and at most.
pub(super) const FETCH_BYTES: i32 = 1 << 20;
pub(super) const MAX_FETCH_BYTES: i32 = 1 << 28;

impl TopicClient {
    /// Fetches up to `max_bytes` of each partition, from these offsets on.
    pub(super) fn fetch(
        &mut self,
        from: Offsets,
        max_bytes: i32,
    ) -> Result<Vec<Response>, CallError> {
        let topic = self.topic.clone();
        self.call(REQUEST_TIMEOUT + LONG_POLL, move |client| {
            client.fetch_messages(from.iter().map(|(&partition, &offset)| {
                FetchPartition::new(&topic, partition, offset).with_max_bytes(max_bytes)
            }))
        })
    }

    /// The fingerprint of the first record at `offset` or later.
    pub(super) fn fingerprint_at(
        &mut self,
        partition: i32,
        offset: i64,
    ) -> Result<Option<Fingerprint>, CallError> {
        let mut found = None;
        let mut size = FETCH_BYTES;
        while found.is_none() && size <= MAX_FETCH_BYTES {
            let responses = self.fetch(Offsets::from([(partition, offset)]), size)?;
            each_record(&responses, |_, record| match record {
                Err(code) => Err(CallError::Code(code)),
                Ok(record) if record.offset < offset => Ok(ControlFlow::Continue(())),
                Ok(record) => {
                    found = Some(Fingerprint::of(&record));
                    Ok(ControlFlow::Break(()))
                }
            })?;
            size *= 2;
        }
        Ok(found)
    }
}

/// Gives each record, or the error of a partition, to `each`, until it returns `Break`.
pub(super) fn each_record<'a>(
    responses: &'a [Response],
    mut each: impl FnMut(i32, Result<Record<'a>, KafkaCode>) -> Result<ControlFlow<()>, CallError>,
) -> Result<(), CallError> {
    let topics = responses.iter().flat_map(Response::topics);
    for part in topics.flat_map(|topic| topic.partitions()) {
        let partition = part.partition();
        let data = match part.data() {
            Ok(data) => data,
            Err(error) => match CallError::from(KafkaError::ArcSelf(error)) {
                CallError::Code(code) => {
                    if each(partition, Err(code))?.is_break() {
                        return Ok(());
                    }
                    continue;
                }
                other => return Err(other),
            },
        };
        for message in data.messages() {
            let record = Record {
                partition,
                offset: message.offset,
                key: message.key,
                value: message.value,
            };
            if each(partition, Ok(record))?.is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The partitions of which nothing was fetched although their log goes on after `position`, each with
/// the end of its log: the next record is larger than the fetch, or no record is left.
pub(super) fn ends_without_records(responses: &[Response], position: &Offsets) -> Offsets {
    let topics = responses.iter().flat_map(Response::topics);
    topics
        .flat_map(|topic| topic.partitions())
        .filter_map(|part| {
            let data = part.data().ok()?;
            let end = data.highwatermark_offset();
            let goes_on = position.get(&part.partition()) < Some(&end);
            (data.messages().is_empty() && goes_on).then_some((part.partition(), end))
        })
        .collect()
}
