//! Fetches, and the records in their responses.

use std::net::TcpStream;
use std::ops::{ControlFlow, Range};
use std::time::Duration;

use kafka::client::FetchPartition;
use kafka::client::fetch::{Partition, Response};
use kafka::error::{Error as KafkaError, KafkaCode};

use super::connection::Call;
use super::errors::CallError;
use super::topic_client::{REQUEST_TIMEOUT, TopicClient};
use crate::client::{Offsets, Record, probe};
use crate::wire::{
    self, FetchRequest, FetchResponse, FetchedPartition, Header, Request, TopicData,
};

/// How many bytes of a partition are fetched at once: at first, and at most.
pub(super) const FETCH_BYTES: i32 = 1 << 20;
pub(super) const MAX_FETCH_BYTES: i32 = 1 << 28;

/// How much longer than it may wait a fetch may take. Less than other requests: a broker that is silent for so long
/// after a wait is asked again on another connection.
const FETCH_GRACE: Duration = Duration::from_secs(2);

impl TopicClient {
    /// Starts to fetch up to `max_bytes` of each partition, from these offsets on. If there is nothing, the broker
    /// waits for `max_wait`.
    pub(super) fn fetch(
        &mut self,
        from: Offsets,
        max_bytes: i32,
        max_wait: Duration,
    ) -> Result<Call<Vec<Response>>, CallError> {
        let topic = self.topic.clone();
        let limit = REQUEST_TIMEOUT.max(max_wait + FETCH_GRACE);
        self.start(limit, move |client| {
            client.set_fetch_max_wait_time(max_wait)?;
            client.fetch_messages(from.iter().map(|(&partition, &offset)| {
                FetchPartition::new(&topic, partition, offset).with_max_bytes(max_bytes)
            }))
        })
    }

    /// As [`fetch`](Self::fetch), without a wait, to the end.
    pub(super) fn fetch_now(
        &mut self,
        from: Offsets,
        max_bytes: i32,
    ) -> Result<Vec<Response>, CallError> {
        let call = self.fetch(from, max_bytes, Duration::ZERO)?;
        self.settled(call.result())
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
            let from = Offsets::from([(partition, before)]);
            let responses = self.fetch_now(from, size)?;
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

/// A connection for requests of our own.
pub(super) fn open(server: &str) -> Result<TcpStream, CallError> {
    let opened = probe::connect(server, REQUEST_TIMEOUT);
    opened.map_err(|error| CallError::connection(error.without_hint()))
}

/// A fetch of our own, for what the crate does not tell.
pub(super) fn fetch_request<'a>(
    topic: &'a str,
    from: &Offsets,
    max_bytes: i32,
    max_wait: Duration,
) -> Request<'a> {
    let partitions = from.iter();
    let partitions = partitions.map(|(&partition, &fetch_offset)| wire::FetchPartition {
        partition,
        fetch_offset,
        partition_max_bytes: max_bytes,
    });
    Request::Fetch(FetchRequest {
        replica_id: -1,
        max_wait_ms: max_wait.as_millis() as i32,
        min_bytes: 1,
        topics: vec![TopicData {
            name: topic,
            partitions: partitions.collect(),
        }],
    })
}

/// What is in the answer to a fetch with this header.
pub(super) fn fetched<'a>(
    header: &Header<'_>,
    answer: &'a mut [u8],
) -> Result<impl Iterator<Item = FetchedPartition<'a>> + use<'a>, CallError> {
    let response = wire::read_response::<FetchResponse>(header, answer);
    let response = response.map_err(|_| CallError::no_sense())?;
    Ok(response.topics.into_iter().flat_map(|it| it.partitions))
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

/// Whether some partition has an error that crate `kafka` does not know.
pub(super) fn has_unknown_error(responses: &[Response]) -> bool {
    partitions(responses).any(|part| {
        let error = part.data().err().map(KafkaError::ArcSelf);
        matches!(
            error.map(CallError::from),
            Some(CallError::Code(KafkaCode::Unknown))
        )
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
