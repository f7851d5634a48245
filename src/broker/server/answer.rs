//! Which response a request gets.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::Shared;
use super::connection::Connection;
use crate::broker::group_offsets::{CommittedOffset, NotCommitted};
use crate::broker::identity;
use crate::broker::log::{NotAppended, NotCreated, NotRead, Topic};
use crate::broker::message::{self, Refused};
use crate::wire::{
    self, APIS, ApiVersionsResponse, CommittedPartition, EARLIEST, FetchPartition, FetchRequest,
    FindCoordinatorResponse, Header, LATEST, ListOffsetsPartition, ListOffsetsResponse,
    ListedPartition, MetadataBroker, MetadataPartition, MetadataResponse, MetadataTopic, Node,
    OffsetCommitRequest, OffsetCommitResponse, OffsetFetchResponse, OffsetFetchedPartition,
    ProducePartition, ProduceResponse, ProducedPartition, Request, TopicData, code, write_response,
};

/// The only partition that a topic has.
const PARTITION: i32 = 0;

/// The id of the only node.
pub(super) const NODE_ID: i32 = 0;

/// How many bytes of messages a response has at most, over all partitions.
const MAX_FETCH_BYTES: usize = 8 << 20;

/// How many bytes the metadata of a committed offset can have: Kafka's `offset.metadata.max.bytes`.
const MAX_METADATA_BYTES: usize = 4096;

/// How many bytes a group's id can have. Kafka has no such limit.
const MAX_GROUP_BYTES: usize = 1024;

/// How often a waiting fetch checks that its client is still connected.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

impl Shared {
    /// The response to a request; `None` where the client expects none.
    pub(super) fn answer(
        &self,
        node: &Node<'_>,
        header: &Header<'_>,
        request: Request<'_>,
        connection: &Connection,
    ) -> Option<Vec<u8>> {
        let version = header.api_version;
        Some(match request {
            Request::ApiVersions(_) => write_response(header, &self.api_versions(version)),
            Request::Metadata(body) => match body.names(version) {
                Some(names) => {
                    let topics = names.into_iter().map(|name| (name, self.create(name)));
                    write_response(header, &metadata(node, topics))
                }
                None => {
                    let names = self.log.topic_names();
                    let topics = names.iter().map(|name| (name.as_str(), code::NONE));
                    write_response(header, &metadata(node, topics))
                }
            },
            Request::Produce(body) => {
                let topics = answers(body.topics, |name, p| self.append(body.acks, name, p));
                if body.acks == 0 {
                    return None;
                }
                let response = ProduceResponse {
                    topics,
                    throttle_time_ms: 0,
                };
                write_response(header, &response)
            }
            Request::Fetch(body) => return self.fetch(header, &body, connection),
            Request::ListOffsets(body) => {
                let topics = answers(body.topics, |name, p| self.list_offsets(version, name, &p));
                write_response(header, &ListOffsetsResponse { topics })
            }
            Request::FindCoordinator(_) => {
                let response = FindCoordinatorResponse {
                    error_code: code::NONE,
                    node: *node,
                };
                write_response(header, &response)
            }
            Request::OffsetCommit(body) => {
                let topics = self.commit(body);
                write_response(header, &OffsetCommitResponse { topics })
            }
            Request::OffsetFetch(body) => {
                let topics = answers(body.topics, |name, p| self.committed(body.group, name, p));
                write_response(header, &OffsetFetchResponse { topics })
            }
        })
    }

    fn api_versions(&self, version: i16) -> ApiVersionsResponse {
        let mut api_keys = APIS.to_vec();
        api_keys.extend(identity::to_apis(self.log.id()));
        let error_code = match version {
            0 => code::NONE,
            _ => code::UNSUPPORTED_VERSION,
        };
        ApiVersionsResponse {
            error_code,
            api_keys,
        }
    }

    /// The topic, if it exists and has that partition.
    fn topic(&self, name: &str, partition: i32) -> Option<Arc<Topic>> {
        if partition != PARTITION {
            return None;
        }
        self.log.topic(name)
    }

    fn create(&self, name: &str) -> i16 {
        match self.log.create_topic(name) {
            Ok(()) => code::NONE,
            Err(NotCreated::Name) => code::INVALID_TOPIC_EXCEPTION,
            Err(NotCreated::TooMany) => code::POLICY_VIOLATION,
            Err(NotCreated::Io) => code::KAFKA_STORAGE_ERROR,
        }
    }

    fn append(&self, acks: i16, name: &str, p: ProducePartition<'_>) -> ProducedPartition {
        let appended = if !(-1..=1).contains(&acks) {
            Err(code::INVALID_REQUIRED_ACKS)
        } else if let Some(topic) = self.topic(name, p.partition) {
            topic.append(p.records).map_err(|e| match e {
                NotAppended::Refused(Refused::Corrupt) => code::CORRUPT_MESSAGE,
                NotAppended::Refused(Refused::TooLarge) => code::MESSAGE_TOO_LARGE,
                NotAppended::Refused(Refused::Compressed) => code::UNSUPPORTED_COMPRESSION_TYPE,
                NotAppended::Refused(Refused::Magic) => code::UNSUPPORTED_FOR_MESSAGE_FORMAT,
                // Not KAFKA_STORAGE_ERROR: on that, producers look for another broker and retry for
                // minutes before they report anything. There is no other broker.
                NotAppended::Io => code::UNKNOWN_SERVER_ERROR,
            })
        } else {
            Err(code::UNKNOWN_TOPIC_OR_PARTITION)
        };
        ProducedPartition {
            partition: p.partition,
            error_code: appended.err().unwrap_or(code::NONE),
            base_offset: appended.unwrap_or(-1),
            log_append_time_ms: -1,
        }
    }

    /// Reads, and while that gives less than `min_bytes` and time is left, waits for more messages
    /// and reads again. `None` if the client has closed the connection meanwhile.
    fn fetch(
        &self,
        header: &Header<'_>,
        request: &FetchRequest<'_>,
        connection: &Connection,
    ) -> Option<Vec<u8>> {
        let max_wait = Duration::from_millis(non_negative(request.max_wait_ms) as u64);
        // A client that is gone is not always noticed, so that no fetch outlasts the idle timeout.
        let deadline = Instant::now() + max_wait.min(self.config.idle_timeout);
        let watched: Vec<_> = request
            .topics
            .iter()
            .filter_map(|topic| self.log.topic(topic.name))
            .collect();
        let (mut watching, mut waited) = (false, false);
        let response = loop {
            let (mut bytes, mut failed) = (0, false);
            let response = wire::fetch_response(header, &request.topics, |name, p, out| {
                let before = out.len();
                let max_bytes = MAX_FETCH_BYTES - bytes;
                let read = self.read_log(header.api_version, name, p, max_bytes, out);
                bytes += out.len() - before;
                failed |= read.is_err();
                (read.err().unwrap_or(code::NONE), read.unwrap_or(-1))
            });
            let left = deadline.saturating_duration_since(Instant::now());
            let enough = bytes >= non_negative(request.min_bytes);
            if enough || failed || watched.is_empty() || left.is_zero() {
                break Some(response);
            }
            // A waiting fetch holds no memory.
            drop(response);
            // Checked only after a wait, so that it delays no response.
            if waited && connection.is_closed() {
                break None;
            }
            if watching {
                thread::park_timeout(left.min(WATCH_INTERVAL));
                waited = true;
            }
            // Registered before the next read, so that no message is missed between the two.
            watched.iter().for_each(|topic| topic.watch());
            watching = true;
        };
        if watching {
            watched.iter().for_each(|topic| topic.unwatch());
        }
        response
    }

    /// Adds messages to `out`, and returns the offset of the next message to be written, or an
    /// error code.
    fn read_log(
        &self,
        version: i16,
        name: &str,
        p: &FetchPartition,
        max_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Result<i64, i16> {
        let start = out.len();
        let max_bytes = non_negative(p.partition_max_bytes).min(max_bytes);
        let topic = self.topic(name, p.partition);
        let topic = topic.ok_or(code::UNKNOWN_TOPIC_OR_PARTITION)?;
        let end = topic
            .read(p.fetch_offset, max_bytes, out)
            .map_err(|e| match e {
                NotRead::OutOfRange => code::OFFSET_OUT_OF_RANGE,
                NotRead::Io => code::KAFKA_STORAGE_ERROR,
            })?;
        // Timestamps came with version 2.
        if version < 2 {
            message::down_convert(out, start);
        }
        Ok(end)
    }

    fn list_offsets(&self, version: i16, name: &str, p: &ListOffsetsPartition) -> ListedPartition {
        let list = |topic: Arc<Topic>| {
            Ok(match p.timestamp {
                LATEST => (-1, vec![topic.offsets()?.end]),
                EARLIEST => (-1, vec![topic.offsets()?.start]),
                time if version == 0 => (-1, topic.segments_until(time)?),
                time => match topic.first_since(time)? {
                    Some((offset, timestamp)) => (timestamp, vec![offset]),
                    None => (-1, Vec::new()),
                },
            })
        };
        let listed = match self.topic(name, p.partition) {
            None => Err(code::UNKNOWN_TOPIC_OR_PARTITION),
            Some(topic) => list(topic).map_err(|_: io::Error| code::KAFKA_STORAGE_ERROR),
        };
        let error_code = listed.as_ref().err().copied().unwrap_or(code::NONE);
        let (timestamp, mut offsets) = listed.unwrap_or((-1, Vec::new()));
        let offset = offsets.first().copied().unwrap_or(-1);
        offsets.truncate(non_negative(p.max_num_offsets));
        ListedPartition {
            partition: p.partition,
            error_code,
            old_style_offsets: offsets,
            timestamp,
            offset,
        }
    }

    /// Commits the offsets that can be committed, all or none of them.
    fn commit<'a>(
        &self,
        request: OffsetCommitRequest<'a>,
    ) -> Vec<TopicData<'a, CommittedPartition>> {
        let group = request.group;
        let mut offsets = Vec::new();
        let mut topics = answers(request.topics, |name, p| {
            let metadata = p.committed_metadata.unwrap_or_default();
            let error_code = if group.is_empty() || group.len() > MAX_GROUP_BYTES {
                code::INVALID_GROUP_ID
            } else if metadata.len() > MAX_METADATA_BYTES {
                code::OFFSET_METADATA_TOO_LARGE
            } else if self.topic(name, p.partition).is_none() {
                code::UNKNOWN_TOPIC_OR_PARTITION
            } else {
                let committed = CommittedOffset {
                    offset: p.committed_offset,
                    metadata: metadata.to_string(),
                };
                offsets.push((name.to_string(), committed));
                code::NONE
            };
            CommittedPartition {
                partition: p.partition,
                error_code,
            }
        });
        let failed = match self.group_offsets.commit(group, offsets) {
            Ok(()) => return topics,
            Err(NotCommitted::TooMany) => code::POLICY_VIOLATION,
            Err(NotCommitted::Io) => code::KAFKA_STORAGE_ERROR,
        };
        for p in topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
            if p.error_code == code::NONE {
                p.error_code = failed;
            }
        }
        topics
    }

    fn committed(&self, group: &str, name: &str, partition: i32) -> OffsetFetchedPartition {
        let committed = match partition {
            PARTITION => self.group_offsets.committed(group, name),
            _ => None,
        };
        let (committed_offset, metadata) =
            committed.map_or((-1, String::new()), |c| (c.offset, c.metadata));
        OffsetFetchedPartition {
            partition,
            committed_offset,
            metadata,
            error_code: code::NONE,
        }
    }
}

/// Topics with one partition each, led by the only node, or the error codes of those that cannot
/// be created.
fn metadata<'a>(
    node: &Node<'a>,
    topics: impl Iterator<Item = (&'a str, i16)>,
) -> MetadataResponse<'a> {
    let partition = || MetadataPartition {
        error_code: code::NONE,
        partition: PARTITION,
        leader_id: node.node_id,
        replica_nodes: vec![node.node_id],
        isr_nodes: vec![node.node_id],
    };
    let topics = topics.map(|(name, error_code)| MetadataTopic {
        error_code,
        name,
        is_internal: 0,
        partitions: match error_code {
            code::NONE => vec![partition()],
            _ => Vec::new(),
        },
    });
    MetadataResponse {
        brokers: vec![MetadataBroker {
            node: *node,
            rack: None,
        }],
        controller_id: node.node_id,
        topics: topics.collect(),
    }
}

/// The answers for all topics of a request: one for each of their partitions.
fn answers<'a, P, Q>(
    topics: Vec<TopicData<'a, P>>,
    mut answer: impl FnMut(&str, P) -> Q,
) -> Vec<TopicData<'a, Q>> {
    let topics = topics.into_iter().map(|TopicData { name, partitions }| {
        let partitions = partitions.into_iter().map(|p| answer(name, p)).collect();
        TopicData { name, partitions }
    });
    topics.collect()
}

/// A number of bytes, milliseconds or offsets in a request, where a negative one means 0.
fn non_negative(number: i32) -> usize {
    usize::try_from(number).unwrap_or(0)
}
