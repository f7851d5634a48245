//! Which response a request gets.

use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::Shared;
use super::budget::{OWN_BYTES, Share};
use super::buffer::Buffer;
use super::connection::{Activity, Connection, ELEMENT_BYTES};
use crate::broker::log::Topic;
use crate::broker::{identity, lock, message};
use crate::wire::{
    self, APIS, ApiVersionsResponse, CommittedOffset, CommittedPartition, EARLIEST, ErrorCode,
    FetchPartition, FetchRequest, FindCoordinatorResponse, Header, LATEST, ListOffsetsPartition,
    ListedPartition, MetadataBroker, MetadataPartition, MetadataRequest, MetadataResponse,
    MetadataTopic, Node, OffsetCommitPartition, OffsetFetchedPartition, ProducePartition,
    ProduceResponse, ProducedPartition, Request, TopicData, code, write_response,
};

/// The only partition that a topic has.
const PARTITION: i32 = 0;

/// How many bytes of messages a response has at most, over all partitions: enough for any message.
const MAX_FETCH_BYTES: usize = message::MAX_BYTES;

/// How many bytes the metadata of a committed offset can have: Kafka's `offset.metadata.max.bytes`.
const MAX_METADATA_BYTES: usize = 4096;

/// How many bytes a group's id can have. Kafka has no such limit.
const MAX_GROUP_BYTES: usize = 1024;

/// How often a waiting fetch checks that its client is still connected.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

impl Shared {
    /// The response to a request; `None` where the client expects none. Fails if the client is gone, or
    /// if there is no memory for the response.
    pub(super) fn answer(
        &self,
        node: &Node<'_>,
        header: &Header<'_>,
        request: Request<'_>,
        connection: &Connection,
        share: &Share<'_>,
    ) -> io::Result<Option<Vec<u8>>> {
        let version = header.api_version;
        // A response repeats the names in its request.
        share.take(match &request {
            Request::Produce(body) => body.topics.iter().map(|topic| topic.name.len()).sum(),
            _ => share.bytes(),
        })?;
        let mut seen = Seen::default();
        Ok(Some(match request {
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
            Request::Metadata(body) => self.metadata(node, header, body, share)?,
            Request::Produce(body) => {
                let mut is_gone = false;
                let topics = answers(body.topics, |name, p| {
                    // The first is appended at once: most requests have no other. A client that wants no
                    // answer may leave.
                    let may_leave = seen.is_empty() || body.acks == 0;
                    is_gone = is_gone || !may_leave && connection.is_closed();
                    let topic = match is_gone {
                        true => Err(code::UNKNOWN_SERVER_ERROR),
                        false => self.topic_once(&mut seen, name, p.partition),
                    };
                    append(topic, body.acks, p, share)
                });
                if is_gone {
                    return Err(ErrorKind::ConnectionAborted.into());
                }
                if body.acks == 0 {
                    return Ok(None);
                }
                let response = ProduceResponse {
                    topics,
                    throttle_time_ms: 0,
                };
                write_response(header, &response)
            }
            Request::Fetch(body) => self.fetch(header, &body, connection, share)?,
            Request::ListOffsets(body) => {
                let mut is_gone = false;
                let topics = answers(body.topics, |name, p| {
                    is_gone = is_gone || connection.is_closed();
                    let topic = match is_gone {
                        true => Err(code::UNKNOWN_SERVER_ERROR),
                        false => self.topic_once(&mut seen, name, p.partition),
                    };
                    list_offsets(version, topic, &p, || match connection.is_closed() {
                        true => Err(ErrorKind::ConnectionAborted.into()),
                        false => self.walk(connection),
                    })
                });
                if is_gone {
                    return Err(ErrorKind::ConnectionAborted.into());
                }
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
                    error_code: error_code(
                        &self
                            .topic_once(&mut seen, name, p.partition)
                            .and_then(|_| self.commit(body.group, name, p)),
                    ),
                });
                write_response(header, &topics)
            }
            Request::OffsetFetch(body) => {
                let mut taken = Ok(());
                let topics = answers(body.topics, |name, p| {
                    let mut found = OffsetFetchedPartition {
                        partition: p,
                        committed: CommittedOffset::none(),
                        error_code: code::NONE,
                    };
                    if p == PARTITION && taken.is_ok() {
                        match seen.insert(name) {
                            true => taken = self.committed(body.group, name, &mut found, share),
                            false => found.error_code = code::INVALID_REQUEST,
                        }
                    }
                    found
                });
                taken?;
                write_response(header, &topics)
            }
        }))
    }

    /// The topic, if it exists and has that partition.
    fn topic(&self, name: &str, partition: i32) -> Result<Arc<Topic>, ErrorCode> {
        let topic = self.log.topic(name).filter(|_| partition == PARTITION);
        topic.ok_or(code::UNKNOWN_TOPIC_OR_PARTITION)
    }

    /// The topic, unless the request has named it before: that could cost any amount of work.
    fn topic_once<'a>(
        &self,
        seen: &mut Seen<'a>,
        name: &'a str,
        partition: i32,
    ) -> Result<Arc<Topic>, ErrorCode> {
        let topic = self.topic(name, partition)?;
        match seen.insert(name) {
            true => Ok(topic),
            false => Err(code::INVALID_REQUEST),
        }
    }

    /// Topics with one partition each, led by the only node, or the error codes of those that cannot
    /// be created.
    fn metadata(
        &self,
        node: &Node<'_>,
        header: &Header<'_>,
        body: MetadataRequest<'_>,
        share: &Share<'_>,
    ) -> io::Result<Vec<u8>> {
        let all;
        let mut names = match body.names(header.api_version) {
            Some(names) => names,
            None => {
                // Its name is in memory twice.
                share.take(self.log.topic_count() * 2 * ELEMENT_BYTES)?;
                all = self.log.topic_names();
                all.iter().map(String::as_str).collect()
            }
        };
        let mut seen = Seen::default();
        names.retain(|name| seen.insert(name));
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
        Ok(write_response(header, &response))
    }

    /// Reads, and while that gives less than `min_bytes` and time is left, waits for more messages
    /// and reads again. Fails if the client has closed the connection meanwhile.
    fn fetch(
        &self,
        header: &Header<'_>,
        request: &FetchRequest<'_>,
        connection: &Connection,
        share: &Share<'_>,
    ) -> io::Result<Vec<u8>> {
        let without_messages = share.bytes();
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
            let (mut bytes, mut is_full) = (0, false);
            let (mut failed, mut taken) = (false, Ok(()));
            let mut seen = Seen::default();
            let response = wire::fetch_response(header, &request.topics, |name, p, out| {
                let start = out.len();
                let topic = self.topic_once(&mut seen, name, p.partition);
                let read = topic.and_then(|topic| match &taken {
                    Ok(()) => {
                        let read = self.read_messages(&topic, p, bytes, out, connection, share);
                        read.unwrap_or_else(|error| {
                            taken = Err(error);
                            Err(code::UNKNOWN_SERVER_ERROR)
                        })
                    }
                    Err(_) => Err(code::UNKNOWN_SERVER_ERROR),
                });
                // Timestamps came with version 2.
                if header.api_version < 2 {
                    message::down_convert(out, start);
                }
                bytes += out.len() - start;
                failed |= read.is_err();
                let error_code = error_code(&read);
                let (end, is_cut) = read.unwrap_or((-1, false));
                is_full |= is_cut;
                (error_code, end)
            });
            let left = deadline.saturating_duration_since(Instant::now());
            // No wait makes a response larger that has no room for the messages that there are.
            let enough = bytes >= non_negative(request.min_bytes) || (is_full && bytes > 0);
            if enough || failed || watched.is_empty() || left.is_zero() {
                break taken.map(|()| response);
            }
            // A waiting fetch holds no messages.
            drop(response);
            share.shrink_to(without_messages);
            // Its request is still in memory.
            if let Err(error) = share.check() {
                break Err(error);
            }
            // Checked only after a wait, so that it delays no response.
            if waited && connection.is_closed() {
                break Err(ErrorKind::ConnectionAborted.into());
            }
            if !waited {
                *lock(&connection.activity) = Activity::Waiting(Instant::now());
            }
            thread::park_timeout(left.min(WATCH_INTERVAL));
            waited = true;
        };
        watched.iter().for_each(|topic| topic.unwatch());
        response
    }

    /// Reads messages, as many as the client asks for, as a response has room for beside `bytes` others, and as
    /// there is memory for. If that is too little for the first message, it waits for memory, and fails if that
    /// takes too long. Returns the end of the log, and whether there are more messages.
    fn read_messages(
        &self,
        topic: &Topic,
        p: &FetchPartition,
        bytes: usize,
        out: &mut Vec<u8>,
        connection: &Connection,
        share: &Share<'_>,
    ) -> io::Result<Result<(i64, bool), ErrorCode>> {
        let start = out.len();
        let asked = non_negative(p.partition_max_bytes);
        let most = asked.min(MAX_FETCH_BYTES - bytes);
        let walk = || match topic.reads_at_most(p.fetch_offset, OWN_BYTES as u64) {
            true => Ok(None),
            false => self.walk(connection).map(Some),
        };
        let (mut given, mut wanted, mut is_cut) = (0, 0, false);
        let room = |available: usize| {
            wanted = available.min(most);
            given = share.take_up_to(wanted);
            is_cut = given < available;
            given
        };
        let turn = walk()?;
        let mut read = topic.read(p.fetch_offset, room, out);
        drop(turn);
        if given < wanted && bytes == 0 && !message::has_whole(&out[start..]) {
            // No more than that message needs: what is large waits for longer.
            let size = message::header(&out[start..]).map_or(wanted, |(_, size)| size);
            let missing = size.min(wanted).saturating_sub(given);
            out.truncate(start);
            connection.wait(|| share.take(missing))?;
            let room = |available: usize| available.min(given + missing);
            let _turn = walk()?;
            read = topic.read(p.fetch_offset, room, out);
        }
        // Only what the client itself asked for may be cut.
        if out.len() - start < asked {
            message::remove_cut(out, start);
        }
        Ok(read.map(|end| (end, is_cut)))
    }

    /// Waits for the connection's turn to walk over messages, which ends when the result is dropped.
    fn walk<'a>(&'a self, connection: &'a Connection) -> io::Result<Share<'a>> {
        let walk = self.walks.share(&connection.is_ending);
        connection.wait(|| walk.take(1))?;
        Ok(walk)
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

    /// Looks up what was committed. Fails if there is no memory for it.
    fn committed(
        &self,
        group: &str,
        name: &str,
        found: &mut OffsetFetchedPartition,
        share: &Share<'_>,
    ) -> io::Result<()> {
        if let Some(committed) = lock(&self.group_offsets).committed(group, name) {
            // Once here, and once in the response.
            share.take(2 * committed.metadata.len())?;
            found.committed = committed;
        }
        Ok(())
    }
}

/// The topics that a request has named so far.
type Seen<'a> = HashSet<&'a str>;

fn append(
    topic: Result<Arc<Topic>, ErrorCode>,
    acks: i16,
    p: ProducePartition<'_>,
    share: &Share<'_>,
) -> ProducedPartition {
    let appended = match acks {
        -1..=1 => topic.and_then(|topic| append_stamped(&topic, p.records, share)),
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

/// Appends a message set, of which messages without a timestamp get that of the append.
fn append_stamped(topic: &Topic, set: &mut [u8], share: &Share<'_>) -> Result<i64, ErrorCode> {
    message::check_set(set)?;
    let size = message::stamped_bytes(set);
    if size == set.len() {
        return topic.append_checked(set);
    }
    let before = share.bytes();
    let mut stamped = Buffer::Small(Vec::new());
    let taken = share.take(size).and_then(|()| stamped.grow(size));
    taken.map_err(|_| code::UNKNOWN_SERVER_ERROR)?;
    let now = UNIX_EPOCH.elapsed().unwrap_or_default().as_millis();
    message::stamp(set, now as i64, &mut stamped);
    let appended = topic.append_checked(&mut stamped);
    drop(stamped);
    share.shrink_to(before);
    appended
}

/// Lists offsets, for which it calls `walk` before it walks over the messages of a segment.
fn list_offsets<T>(
    version: i16,
    topic: Result<Arc<Topic>, ErrorCode>,
    p: &ListOffsetsPartition,
    walk: impl FnMut() -> io::Result<T>,
) -> ListedPartition {
    let listed = topic.and_then(|topic| {
        Ok(match p.timestamp {
            LATEST => (-1, vec![topic.offsets()?.end]),
            EARLIEST => (-1, vec![topic.offsets()?.start]),
            time if version == 0 => (-1, topic.segments_until(time)?),
            time => match topic.first_since(time, walk)? {
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

/// The answers for all topics of a request: one for each of their partitions.
fn answers<'a, P, Q>(
    topics: Vec<TopicData<'a, P>>,
    mut answer: impl FnMut(&'a str, P) -> Q,
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
