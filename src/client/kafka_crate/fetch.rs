//! Fetches, and the records in their responses.

use std::ops::{ControlFlow, Range};

use kafka::client::FetchPartition;
use kafka::client::fetch::{Partition, Response};
use kafka::error::Error as KafkaError;

use super::connection::LONG_POLL;
use super::errors::CallError;
use super::topic_client::{REQUEST_TIMEOUT, TopicClient};
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

    /// Reads these offsets of a partition again, as far as there are records, and gives each to
    /// `each`, until it returns `Break`.
    pub(super) fn read_again(
        &mut self,
        partition: i32,
        mut offsets: Range<i64>,
        mut each: impl FnMut(Record<'_>) -> ControlFlow<()>,
    ) -> Result<(), CallError> {
        let mut size = FETCH_BYTES;
        while !offsets.is_empty() && size <= MAX_FETCH_BYTES {
            let before = offsets.start;
            let responses = self.fetch(Offsets::from([(partition, before)]), size)?;
            for record in records(&responses) {
                let record = record.map_err(|(_, error)| error)?;
                if record.offset >= offsets.start {
                    offsets.start = record.offset + 1;
                    if each(record).is_break() {
                        return Ok(());
                    }
                }
            }
            if offsets.start == before {
                size *= 2;
            }
        }
        Ok(())
    }
}

/// The records in `responses`; of a partition that has an error, that.
pub(super) fn records(
    responses: &[Response],
) -> impl Iterator<Item = Result<Record<'_>, (i32, CallError)>> {
    partitions(responses).flat_map(|part| {
        let partition = part.partition();
        let (messages, error) = match part.data() {
            Ok(data) => (data.messages(), None),
            Err(error) => (
                &[][..],
                Some((partition, KafkaError::ArcSelf(error).into())),
            ),
        };
        let records = messages.iter().map(move |message| Record {
            partition,
            offset: message.offset,
            key: Some(message.key),
            value: Some(message.value),
            ..Record::default()
        });
        error.map(Err).into_iter().chain(records.map(Ok))
    })
}

fn partitions(responses: &[Response]) -> impl Iterator<Item = &Partition<'_>> {
    let topics = responses.iter().flat_map(Response::topics);
    topics.flat_map(|topic| topic.partitions())
}

/// The partitions of which nothing was fetched although their log goes on after `position`, each with
/// the end of its log: the next record is larger than the fetch, or no record is left.
pub(super) fn ends_without_records(responses: &[Response], position: &Offsets) -> Offsets {
    let ends = partitions(responses).filter_map(|part| {
        let data = part.data().ok()?;
        let end = data.highwatermark_offset();
        let goes_on = position.get(&part.partition()) < Some(&end);
        (data.messages().is_empty() && goes_on).then_some((part.partition(), end))
    });
    ends.collect()
}
