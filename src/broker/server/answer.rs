//! Which response a request gets.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::Shared;
use super::connection::Connection;
use crate::broker::log::Topic;
use crate::broker::{identity, lock, message};
use crate::wire::{
    self, APIS, ApiVersionsResponse, CommittedOffset, CommittedPartition, EARLIEST, ErrorCode,
    FetchRequest, FindCoordinatorResponse, Header, LATEST, ListOffsetsPartition, ListedPartition,
    MetadataBroker, MetadataPartition, MetadataRequest, MetadataResponse, MetadataTopic, Node,
    OffsetCommitPartition, OffsetFetchedPartition, ProducePartition, ProduceResponse,
    ProducedPartition, Request, TopicData, code, write_response,
};

/// The only partition that a topic has.
const PARTITION: i32 = 0;

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
            Request::ApiVersions(_) => {
                let response = ApiVersionsResponse {
                    error_code: match version {
                        0 => code::NONE,
                        _ => code::UNSUPPORTED_VERSION,
                    },
                    api_keys: [APIS, &identity::to_apis(self.log.id)].concat(),
                };
                write_response(header, &response)
            }
            Request::Metadata(body) => self.metadata(node, header, body),
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
                write_response(header, &topics)
            }
            Request::FindCoordinator(_) => {
                let response = FindCoordinatorResponse {
                    error_code: code::NONE,
                    node: *node,
                };
                write_response(header, &response)
            }
            Request::OffsetCommit(body) => {
                let topics = answers(body.topics, |name, p| CommittedPartition {
                    partition: p.partition,
                    error_code: error_code(&self.commit(body.group, name, p)),
                });
                write_response(header, &topics)
            }
            Request::OffsetFetch(body) => {
                let topics = answers(body.topics, |name, p| self.committed(body.group, name, p));
                write_response(header, &topics)
            }
        })
    }

    /// The topic, if it exists and has that partition.
    fn topic(&self, name: &str, partition: i32) -> Result<Arc<Topic>, ErrorCode> {
        let topic = self.log.topic(name).filter(|_| partition == PARTITION);
        topic.ok_or(code::UNKNOWN_TOPIC_OR_PARTITION)
    }

    /// Topics with one partition each, led by the only node, or the error codes of those that cannot
    /// be created.
    fn metadata(&self, node: &Node<'_>, header: &Header<'_>, body: MetadataRequest<'_>) -> Vec<u8> {
        let all;
        let names = match body.names(header.api_version) {
            Some(names) => names,
            None => {
                all = self.log.topic_names();
                all.iter().map(String::as_str).collect()
            }
        };
        let topics = names.into_iter().map(|name| {
            let created = self.log.create_topic(name);
            let partition = |()| MetadataPartition {
                error_code: code::NONE,
                partition: PARTITION,
                leader_id: node.node_id,
                replica_nodes: vec![node.node_id],
                isr_nodes: vec![node.node_id],
            };
            MetadataTopic {
                error_code: error_code(&created),
                name,
                is_internal: 0,
                partitions: created.into_iter().map(partition).collect(),
            }
        });
        let response = MetadataResponse {
            brokers: vec![MetadataBroker {
                node: *node,
                rack: None,
            }],
            controller_id: node.node_id,
            topics: topics.collect(),
        };
        write_response(header, &response)
    }

    fn append(&self, acks: i16, name: &str, p: ProducePartition<'_>) -> ProducedPartition {
        let topic = self.topic(name, p.partition);
        let appended = match acks {
            -1..=1 => topic.and_then(|topic| topic.append(p.records)),
            _ => Err(code::INVALID_REQUIRED_ACKS),
        };
        ProducedPartition {
            partition: p.partition,
            error_code: match error_code(&appended) {
                // On that, producers look for another broker and retry for minutes before they
                // report anything. There is no other broker.
                code::KAFKA_STORAGE_ERROR => code::UNKNOWN_SERVER_ERROR,
                error_code => error_code,
            },
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
        let topics = request.topics.iter();
        let watched: Vec<_> = topics
            .filter_map(|topic| self.log.topic(topic.name))
            .collect();
        let mut waited = false;
        let response = loop {
            // Registered before the read, so that no message is missed between the two.
            watched.iter().for_each(|topic| topic.watch());
            let (mut bytes, mut failed) = (0, false);
            let response = wire::fetch_response(header, &request.topics, |name, p, out| {
                let start = out.len();
                let max_bytes = non_negative(p.partition_max_bytes).min(MAX_FETCH_BYTES - bytes);
                let topic = self.topic(name, p.partition);
                let read = topic.and_then(|topic| topic.read(p.fetch_offset, max_bytes, out));
                // Timestamps came with version 2.
                if header.api_version < 2 {
                    message::down_convert(out, start);
                }
                bytes += out.len() - start;
                failed |= read.is_err();
                (error_code(&read), read.unwrap_or(-1))
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
            thread::park_timeout(left.min(WATCH_INTERVAL));
            waited = true;
        };
        watched.iter().for_each(|topic| topic.unwatch());
        response
    }

    fn list_offsets(&self, version: i16, name: &str, p: &ListOffsetsPartition) -> ListedPartition {
        let listed = self.topic(name, p.partition).and_then(|topic| {
            Ok(match p.timestamp {
                LATEST => (-1, vec![topic.offsets()?.end]),
                EARLIEST => (-1, vec![topic.offsets()?.start]),
                time if version == 0 => (-1, topic.segments_until(time)?),
                time => match topic.first_since(time)? {
                    Some((offset, timestamp)) => (timestamp, vec![offset]),
                    None => (-1, Vec::new()),
                },
            })
        });
        let error_code = error_code(&listed);
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

    fn commit(
        &self,
        group: &str,
        name: &str,
        p: OffsetCommitPartition<'_>,
    ) -> Result<(), ErrorCode> {
        let metadata = p.committed_metadata.unwrap_or_default();
        if group.is_empty() || group.len() > MAX_GROUP_BYTES {
            return Err(code::INVALID_GROUP_ID);
        }
        if metadata.len() > MAX_METADATA_BYTES {
            return Err(code::OFFSET_METADATA_TOO_LARGE);
        }
        self.topic(name, p.partition)?;
        let committed = CommittedOffset {
            offset: p.committed_offset,
            metadata: metadata.to_string(),
        };
        lock(&self.group_offsets).commit(group, name, committed)
    }

    fn committed(&self, group: &str, name: &str, partition: i32) -> OffsetFetchedPartition {
        let committed = lock(&self.group_offsets).committed(group, name);
        let committed = committed.filter(|_| partition == PARTITION);
        OffsetFetchedPartition {
            partition,
            committed: committed.unwrap_or_else(CommittedOffset::none),
            error_code: code::NONE,
        }
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

fn error_code<T>(result: &Result<T, ErrorCode>) -> ErrorCode {
    result.as_ref().err().copied().unwrap_or(code::NONE)
}
