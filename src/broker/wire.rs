//! The bytes of Kafka's protocol: requests parsed, responses encoded. No I/O, no state.
//!
//! Only the versions in [`APIS`] are known. Field names are those of the specification,
//! <https://kafka.apache.org/protocol>. Whatever a request says of its own size is checked against
//! the bytes that are there before anything is allocated.

use std::time::Duration;

/// What is spoken, as ApiVersions tells it: key, oldest and newest version.
pub(super) const APIS: [(i16, i16, i16); 8] = [
    (PRODUCE, 0, 2),
    (FETCH, 0, 2),
    (LIST_OFFSETS, 0, 1),
    (METADATA, 0, 1),
    (OFFSET_COMMIT, 1, 2),
    (OFFSET_FETCH, 1, 1),
    (FIND_COORDINATOR, 0, 0),
    (API_VERSIONS, 0, 0),
];

const PRODUCE: i16 = 0;
const FETCH: i16 = 1;
const LIST_OFFSETS: i16 = 2;
const METADATA: i16 = 3;
const OFFSET_COMMIT: i16 = 8;
const OFFSET_FETCH: i16 = 9;
const FIND_COORDINATOR: i16 = 10;
const API_VERSIONS: i16 = 18;

/// Kafka's error codes, <https://kafka.apache.org/protocol#protocol_error_codes>.
pub(super) mod code {
    pub(crate) const UNKNOWN_SERVER_ERROR: i16 = -1;
    pub(crate) const NONE: i16 = 0;
    pub(crate) const OFFSET_OUT_OF_RANGE: i16 = 1;
    pub(crate) const CORRUPT_MESSAGE: i16 = 2;
    pub(crate) const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
    pub(crate) const MESSAGE_TOO_LARGE: i16 = 10;
    pub(crate) const OFFSET_METADATA_TOO_LARGE: i16 = 12;
    pub(crate) const INVALID_TOPIC_EXCEPTION: i16 = 17;
    pub(crate) const INVALID_REQUIRED_ACKS: i16 = 21;
    pub(crate) const INVALID_GROUP_ID: i16 = 24;
    pub(crate) const UNSUPPORTED_VERSION: i16 = 35;
    pub(crate) const UNSUPPORTED_FOR_MESSAGE_FORMAT: i16 = 43;
    pub(crate) const POLICY_VIOLATION: i16 = 44;
    pub(crate) const KAFKA_STORAGE_ERROR: i16 = 56;
    pub(crate) const UNSUPPORTED_COMPRESSION_TYPE: i16 = 76;
}

/// A request that can't be read, or that asks for what is not spoken here. There is no answer to
/// it: as with Kafka, the connection is closed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

type Result<T> = std::result::Result<T, Unreadable>;

/// What stands before every request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    /// The version that the request is written in, and that its response is to be written in.
    pub(super) api_version: i16,
    /// Chosen by the client, and given back with the response.
    pub(super) correlation_id: i32,
}

/// The body of a request.
#[derive(Debug)]
pub(super) enum Request<'a> {
    /// Which APIs does the broker speak, and which versions of them?
    ApiVersions {
        /// False when a newer version was asked, which is answered by an error in version 0.
        supported: bool,
    },
    /// Where are these topics?
    Metadata {
        /// The topics, which are created where they don't exist; `None` for all that exist.
        topics: Option<Vec<&'a str>>,
    },
    /// Append messages.
    Produce {
        /// 0: no response; 1 and -1: a response after the messages were written.
        acks: i16,
        topics: Vec<Topic<'a, ProducePartition<'a>>>,
    },
    /// Read messages.
    Fetch {
        /// How long to wait until there are `min_bytes`.
        max_wait: Duration,
        /// How many bytes of messages make an answer before `max_wait` is over.
        min_bytes: usize,
        topics: Vec<Topic<'a, FetchPartition>>,
    },
    /// Which offsets belong to these times?
    ListOffsets {
        topics: Vec<Topic<'a, ListOffsetsPartition>>,
    },
    /// Which broker keeps the offsets of this group? There is but one.
    FindCoordinator,
    /// Keep these offsets for a group.
    OffsetCommit {
        /// The group's id.
        group: &'a str,
        topics: Vec<Topic<'a, OffsetCommitPartition<'a>>>,
    },
    /// Which offsets were kept for a group?
    OffsetFetch {
        /// The group's id.
        group: &'a str,
        /// The partitions asked for.
        topics: Vec<Topic<'a, i32>>,
    },
}

/// A topic, and what is asked or answered of its partitions.
#[derive(Debug)]
pub(super) struct Topic<'a, P> {
    pub(super) name: &'a str,
    pub(super) partitions: Vec<P>,
}

impl<'a, P> Topic<'a, P> {
    /// The answer to a topic: one to each of its partitions.
    pub(super) fn answer<Q>(self, mut answer: impl FnMut(&str, P) -> Q) -> Topic<'a, Q> {
        let Topic { name, partitions } = self;
        Topic {
            name,
            partitions: partitions.into_iter().map(|p| answer(name, p)).collect(),
        }
    }
}

/// Messages for one partition.
#[derive(Debug)]
pub(super) struct ProducePartition<'a> {
    pub(super) partition: i32,
    /// A message set. It can be changed in place: offsets are given by the broker.
    pub(super) records: &'a mut [u8],
}

/// Where to read in one partition.
#[derive(Debug)]
pub(super) struct FetchPartition {
    pub(super) partition: i32,
    /// The first offset wanted.
    pub(super) fetch_offset: i64,
    /// How many bytes of messages to answer at most.
    pub(super) partition_max_bytes: usize,
}

/// Which offsets of one partition are asked for.
#[derive(Debug)]
pub(super) struct ListOffsetsPartition {
    pub(super) partition: i32,
    /// Milliseconds since 1970, or [`LATEST`] or [`EARLIEST`].
    pub(super) timestamp: i64,
    /// How many offsets to answer at most (version 0; 1 in version 1).
    pub(super) max_num_offsets: usize,
}

/// As a timestamp: the offset of the next message to be written.
pub(super) const LATEST: i64 = -1;
/// As a timestamp: the offset of the oldest message kept.
pub(super) const EARLIEST: i64 = -2;

/// An offset to keep.
#[derive(Debug)]
pub(super) struct OffsetCommitPartition<'a> {
    pub(super) partition: i32,
    pub(super) committed_offset: i64,
    /// Whatever the client wants to keep beside it.
    pub(super) committed_metadata: &'a str,
}

/// Reads a request without its size. Message sets in it can be changed in place, hence `mut`.
pub(super) fn parse(request: &mut [u8]) -> Result<(Header, Request<'_>)> {
    let mut r = Reader(request);
    let api_key = r.i16()?;
    let api_version = r.i16()?;
    let header = Header {
        api_version,
        correlation_id: r.i32()?,
    };
    let supported = APIS
        .iter()
        .any(|&(key, min, max)| key == api_key && (min..=max).contains(&api_version));
    if api_key == API_VERSIONS {
        // What follows is not looked at: a newer version writes it in a way unknown here.
        return Ok((header, Request::ApiVersions { supported }));
    }
    if !supported {
        return Err(Unreadable);
    }
    let _client_id = r.nullable_string()?;
    let request = match api_key {
        PRODUCE => Request::Produce {
            acks: r.i16()?,
            topics: {
                let _timeout = r.i32()?;
                r.topics(|r| {
                    Ok(ProducePartition {
                        partition: r.i32()?,
                        records: r.bytes()?,
                    })
                })?
            },
        },
        FETCH => {
            let _replica_id = r.i32()?;
            Request::Fetch {
                max_wait: Duration::from_millis(r.count()? as u64),
                min_bytes: r.count()?,
                topics: r.topics(|r| {
                    Ok(FetchPartition {
                        partition: r.i32()?,
                        fetch_offset: r.i64()?,
                        partition_max_bytes: r.count()?,
                    })
                })?,
            }
        }
        LIST_OFFSETS => {
            let _replica_id = r.i32()?;
            let counted = api_version == 0;
            Request::ListOffsets {
                topics: r.topics(|r| {
                    Ok(ListOffsetsPartition {
                        partition: r.i32()?,
                        timestamp: r.i64()?,
                        max_num_offsets: if counted { r.count()? } else { 1 },
                    })
                })?,
            }
        }
        METADATA => {
            let topics = r.nullable_array(Reader::string)?;
            Request::Metadata {
                // Version 0 had no null: there, none meant all.
                topics: topics.filter(|topics| api_version > 0 || !topics.is_empty()),
            }
        }
        OFFSET_COMMIT => {
            let group = r.string()?;
            let _generation_id = r.i32()?;
            let _member_id = r.string()?;
            if api_version >= 2 {
                let _retention_time_ms = r.i64()?;
            }
            Request::OffsetCommit {
                group,
                topics: r.topics(|r| {
                    Ok(OffsetCommitPartition {
                        partition: r.i32()?,
                        committed_offset: r.i64()?,
                        committed_metadata: {
                            if api_version == 1 {
                                let _commit_timestamp = r.i64()?;
                            }
                            r.nullable_string()?.unwrap_or_default()
                        },
                    })
                })?,
            }
        }
        OFFSET_FETCH => Request::OffsetFetch {
            group: r.string()?,
            topics: r.topics(Reader::i32)?,
        },
        FIND_COORDINATOR => {
            let _group = r.string()?;
            Request::FindCoordinator
        }
        _ => return Err(Unreadable),
    };
    Ok((header, request))
}

/// Takes primitive types off the front of a request.
struct Reader<'a>(&'a mut [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, size: usize) -> Result<&'a mut [u8]> {
        self.0.split_off_mut(..size).ok_or(Unreadable)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N]> {
        <[u8; N]>::try_from(&*self.take(N)?).map_err(|_| Unreadable)
    }

    fn i16(&mut self) -> Result<i16> {
        self.fixed().map(i16::from_be_bytes)
    }

    fn i32(&mut self) -> Result<i32> {
        self.fixed().map(i32::from_be_bytes)
    }

    fn i64(&mut self) -> Result<i64> {
        self.fixed().map(i64::from_be_bytes)
    }

    /// A number of bytes, milliseconds or offsets, where a negative one means as much as none.
    fn count(&mut self) -> Result<usize> {
        Ok(usize::try_from(self.i32()?).unwrap_or(0))
    }

    fn nullable_string(&mut self) -> Result<Option<&'a str>> {
        match self.i16()? {
            -1 => Ok(None),
            size => {
                let bytes = self.take(usize::try_from(size).map_err(|_| Unreadable)?)?;
                str::from_utf8(bytes).map(Some).map_err(|_| Unreadable)
            }
        }
    }

    fn string(&mut self) -> Result<&'a str> {
        self.nullable_string()?.ok_or(Unreadable)
    }

    fn bytes(&mut self) -> Result<&'a mut [u8]> {
        let size = self.i32()?;
        self.take(usize::try_from(size).map_err(|_| Unreadable)?)
    }

    /// An array. It grows as its elements are read: none of them is read from no bytes, so that it
    /// stays in proportion to the request, whatever its count says.
    fn nullable_array<T>(
        &mut self,
        mut element: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Option<Vec<T>>> {
        let count = match self.i32()? {
            -1 => return Ok(None),
            count => usize::try_from(count).map_err(|_| Unreadable)?,
        };
        (0..count)
            .map(|_| element(self))
            .collect::<Result<_>>()
            .map(Some)
    }

    fn topics<P>(
        &mut self,
        mut partition: impl FnMut(&mut Self) -> Result<P>,
    ) -> Result<Vec<Topic<'a, P>>> {
        let topics = self.nullable_array(|r| {
            Ok(Topic {
                name: r.string()?,
                partitions: r.nullable_array(&mut partition)?.ok_or(Unreadable)?,
            })
        })?;
        topics.ok_or(Unreadable)
    }
}

/// The broker as clients are to know it.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) node_id: i32,
    pub(super) host: String,
    pub(super) port: u16,
}

/// What became of the messages for one partition.
#[derive(Debug)]
pub(super) struct ProducedPartition {
    pub(super) partition: i32,
    pub(super) error_code: i16,
    /// The offset of the first of them; -1 with an error.
    pub(super) base_offset: i64,
}

/// What a read of one partition gave, beside the messages.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) error_code: i16,
    /// The offset of the next message to be written; -1 with an error.
    pub(super) high_watermark: i64,
}

/// The offsets that were asked for.
#[derive(Debug)]
pub(super) struct ListedPartition {
    pub(super) partition: i32,
    pub(super) error_code: i16,
    /// The time of the message at the first of the offsets; -1 if not asked by time (version 1).
    pub(super) timestamp: i64,
    /// Version 0 answers all of them, version 1 the first, or -1.
    pub(super) offsets: Vec<i64>,
}

/// The offset kept for a group.
#[derive(Debug)]
pub(super) struct CommittedPartition {
    pub(super) partition: i32,
    /// -1 when there is none.
    pub(super) committed_offset: i64,
    pub(super) metadata: String,
    pub(super) error_code: i16,
}

/// A response being written, in the version of its request.
pub(super) struct Response {
    version: i16,
    bytes: Vec<u8>,
}

impl Response {
    /// The start of the response to the request with this header.
    pub(super) fn to(header: &Header) -> Response {
        let mut response = Response {
            version: header.api_version,
            // The size is known at the end.
            bytes: vec![0; 4],
        };
        response.i32(header.correlation_id);
        response
    }

    /// The whole response, with its size before it.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let size = self.bytes.len() as i32 - 4;
        self.bytes[..4].copy_from_slice(&size.to_be_bytes());
        self.bytes
    }

    /// ApiVersions, always in version 0, which every client can read.
    pub(super) fn api_versions(&mut self, error_code: i16, apis: &[(i16, i16, i16)]) {
        self.i16(error_code);
        self.array(apis, |w, &(key, min, max)| {
            w.i16(key);
            w.i16(min);
            w.i16(max);
        });
    }

    /// Metadata: every topic has the partition 0, and this node leads it.
    pub(super) fn metadata<N: AsRef<str>>(&mut self, node: &Node, topics: &[(N, i16)]) {
        let detailed = self.version >= 1;
        self.array(&[node], |w, node| {
            w.node(node);
            if detailed {
                w.i16(-1); // rack: none
            }
        });
        if detailed {
            self.i32(node.node_id); // controller_id
        }
        self.array(topics, |w, (name, error_code)| {
            w.i16(*error_code);
            w.string(name.as_ref());
            if detailed {
                w.bytes.push(0); // is_internal
            }
            let partitions: &[i32] = if *error_code == code::NONE { &[0] } else { &[] };
            w.array(partitions, |w, &partition| {
                w.i16(code::NONE);
                w.i32(partition);
                w.i32(node.node_id); // leader_id
                w.array(&[node.node_id], |w, &id| w.i32(id)); // replica_nodes
                w.array(&[node.node_id], |w, &id| w.i32(id)); // isr_nodes
            });
        });
    }

    /// Produce.
    pub(super) fn produce(&mut self, topics: &[Topic<'_, ProducedPartition>]) {
        let version = self.version;
        self.topics(topics, |w, p| {
            w.i32(p.partition);
            w.i16(p.error_code);
            w.i64(p.base_offset);
            if version >= 2 {
                w.i64(-1); // log_append_time_ms: messages keep the time of their creation
            }
        });
        if version >= 1 {
            self.i32(0); // throttle_time_ms
        }
    }

    /// Fetch. `read` appends the messages of a partition to what it is given, and nothing else.
    pub(super) fn fetch(
        &mut self,
        topics: &[Topic<'_, FetchPartition>],
        mut read: impl FnMut(&str, &FetchPartition, &mut Vec<u8>) -> Fetched,
    ) {
        if self.version >= 1 {
            self.i32(0); // throttle_time_ms
        }
        self.array(topics, |w, topic| {
            w.string(topic.name);
            w.array(&topic.partitions, |w, p| {
                w.i32(p.partition);
                let start = w.bytes.len();
                let records = start + 14;
                w.bytes.resize(records, 0);
                let fetched = read(topic.name, p, &mut w.bytes);
                let size = w.bytes.len() - records;
                w.bytes[start..start + 2].copy_from_slice(&fetched.error_code.to_be_bytes());
                w.bytes[start + 2..start + 10]
                    .copy_from_slice(&fetched.high_watermark.to_be_bytes());
                w.bytes[start + 10..records].copy_from_slice(&(size as i32).to_be_bytes());
            });
        });
    }

    /// ListOffsets.
    pub(super) fn list_offsets(&mut self, topics: &[Topic<'_, ListedPartition>]) {
        let version = self.version;
        self.topics(topics, |w, p| {
            w.i32(p.partition);
            w.i16(p.error_code);
            if version == 0 {
                w.array(&p.offsets, |w, &offset| w.i64(offset));
            } else {
                w.i64(p.timestamp);
                w.i64(p.offsets.first().copied().unwrap_or(-1));
            }
        });
    }

    /// FindCoordinator.
    pub(super) fn find_coordinator(&mut self, node: &Node) {
        self.i16(code::NONE);
        self.node(node);
    }

    /// OffsetCommit: a partition and its error code.
    pub(super) fn offset_commit(&mut self, topics: &[Topic<'_, (i32, i16)>]) {
        self.topics(topics, |w, &(partition, error_code)| {
            w.i32(partition);
            w.i16(error_code);
        });
    }

    /// OffsetFetch.
    pub(super) fn offset_fetch(&mut self, topics: &[Topic<'_, CommittedPartition>]) {
        self.topics(topics, |w, p| {
            w.i32(p.partition);
            w.i64(p.committed_offset);
            w.string(&p.metadata);
            w.i16(p.error_code);
        });
    }

    fn node(&mut self, node: &Node) {
        self.i32(node.node_id);
        self.string(&node.host);
        self.i32(node.port.into());
    }

    fn topics<P>(&mut self, topics: &[Topic<'_, P>], mut partition: impl FnMut(&mut Self, &P)) {
        self.array(topics, |w, topic| {
            w.string(topic.name);
            w.array(&topic.partitions, &mut partition);
        });
    }

    fn array<T>(&mut self, elements: &[T], mut element: impl FnMut(&mut Self, &T)) {
        self.i32(elements.len() as i32);
        for e in elements {
            element(self, e);
        }
    }

    /// A string, which came in a request or is as short as if it had.
    fn string(&mut self, text: &str) {
        self.i16(text.len() as i16);
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn i16(&mut self, value: i16) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    fn i32(&mut self, value: i32) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    fn i64(&mut self, value: i64) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A request of these parts, after a header without client id.
    fn request(api_key: i16, api_version: i16, body: &[&[u8]]) -> Vec<u8> {
        let mut bytes = [api_key.to_be_bytes(), api_version.to_be_bytes()].concat();
        bytes.extend(7i32.to_be_bytes());
        bytes.extend((-1i16).to_be_bytes());
        bytes.extend(body.concat());
        bytes
    }

    /// A valid request of each API and version.
    fn requests() -> Vec<Vec<u8>> {
        let one = &1i32.to_be_bytes();
        let zero = &0i32.to_be_bytes();
        let topic: &[u8] = b"\0\x03bob";
        let group: &[u8] = b"\0\x01g";
        let offset = &5i64.to_be_bytes();
        let metadata: &[u8] = b"\0\x04meta";
        let mut requests = vec![
            request(API_VERSIONS, 0, &[]),
            request(FIND_COORDINATOR, 0, &[group]),
            request(METADATA, 0, &[one, topic]),
            request(METADATA, 1, &[one, topic]),
            request(OFFSET_FETCH, 1, &[group, one, topic, one, zero]),
            request(
                OFFSET_COMMIT,
                1,
                &[
                    group, one, group, one, topic, one, zero, offset, offset, metadata,
                ],
            ),
            request(
                OFFSET_COMMIT,
                2,
                &[
                    group, one, group, offset, one, topic, one, zero, offset, metadata,
                ],
            ),
            request(LIST_OFFSETS, 0, &[one, one, topic, one, zero, offset, one]),
            request(LIST_OFFSETS, 1, &[one, one, topic, one, zero, offset]),
        ];
        for version in 0..=2 {
            let acks = &1i16.to_be_bytes();
            let records: &[u8] = b"\0\0\0\x04abcd";
            requests.push(request(
                PRODUCE,
                version,
                &[acks, one, one, topic, one, zero, records],
            ));
            requests.push(request(
                FETCH,
                version,
                &[one, one, one, one, topic, one, zero, offset, one],
            ));
        }
        requests
    }

    /// How many topics and partitions a request names.
    fn elements(request: &Request<'_>) -> usize {
        fn sum<P>(topics: &[Topic<'_, P>]) -> usize {
            topics.iter().map(|t| 1 + t.partitions.len()).sum()
        }
        match request {
            Request::ApiVersions { .. } | Request::FindCoordinator => 0,
            Request::Metadata { topics } => topics.as_ref().map_or(0, Vec::len),
            Request::Produce { topics, .. } => sum(topics),
            Request::Fetch { topics, .. } => sum(topics),
            Request::ListOffsets { topics } => sum(topics),
            Request::OffsetCommit { topics, .. } => sum(topics),
            Request::OffsetFetch { topics, .. } => sum(topics),
        }
    }

    #[test]
    fn every_version_that_is_told_of_is_read() {
        let all: usize = APIS
            .iter()
            .map(|(_, min, max)| (max - min + 1) as usize)
            .sum();
        let mut requests = requests();
        assert_eq!(requests.len(), all);
        for bytes in &mut requests {
            let copy = bytes.clone();
            let (header, request) = parse(bytes).unwrap_or_else(|e| panic!("{e:?}: {copy:?}"));
            assert_eq!(header.correlation_id, 7);
            let text = format!("{request:?}");
            assert!(!text.contains("bob") || elements(&request) >= 1, "{text}");
        }
    }

    #[test]
    fn fields_are_read_in_their_places() {
        let mut bytes = requests();
        let read: Vec<_> = bytes
            .iter_mut()
            .map(|bytes| format!("{:?}", parse(bytes).unwrap().1))
            .collect();
        let commit = "OffsetCommit { group: \"g\", topics: [Topic { name: \"bob\", partitions: \
            [OffsetCommitPartition { partition: 0, committed_offset: 5, committed_metadata: \"meta\" }] }] }";
        for expected in [
            "ApiVersions { supported: true }",
            "FindCoordinator",
            "Metadata { topics: Some([\"bob\"]) }",
            "OffsetFetch { group: \"g\", topics: [Topic { name: \"bob\", partitions: [0] }] }",
            commit,
            "ListOffsets { topics: [Topic { name: \"bob\", partitions: \
             [ListOffsetsPartition { partition: 0, timestamp: 5, max_num_offsets: 1 }] }] }",
            "Produce { acks: 1, topics: [Topic { name: \"bob\", partitions: \
             [ProducePartition { partition: 0, records: [97, 98, 99, 100] }] }] }",
            "Fetch { max_wait: 1ms, min_bytes: 1, topics: [Topic { name: \"bob\", partitions: \
             [FetchPartition { partition: 0, fetch_offset: 5, partition_max_bytes: 1 }] }] }",
        ] {
            assert!(read.iter().any(|r| r == expected), "{expected}\n{read:#?}");
        }
        assert_eq!(read.iter().filter(|r| *r == commit).count(), 2);
    }

    #[test]
    fn none_means_all_topics_only_in_the_oldest_metadata_request() {
        let none = &0i32.to_be_bytes();
        let null = &(-1i32).to_be_bytes();
        for (version, count, all) in [(0, none, true), (1, none, false), (1, null, true)] {
            let mut bytes = request(METADATA, version, &[count]);
            let Ok((_, Request::Metadata { topics })) = parse(&mut bytes) else {
                panic!("not read");
            };
            assert_eq!(topics.is_none(), all, "version {version}");
        }
    }

    #[test]
    fn only_api_versions_is_answered_in_a_version_that_is_not_spoken() {
        let mut newer = request(API_VERSIONS, 3, &[b"\x0akcat\x00"]);
        assert!(matches!(
            parse(&mut newer),
            Ok((_, Request::ApiVersions { supported: false }))
        ));
        for (key, version) in [
            (PRODUCE, 3),
            (OFFSET_COMMIT, 0),
            (METADATA, -1),
            (11, 0),
            (-1, 0),
        ] {
            let mut bytes = request(key, version, &[&[0; 64]]);
            assert_eq!(parse(&mut bytes).err(), Some(Unreadable), "{key} {version}");
        }
    }

    #[test]
    fn counts_and_lengths_beyond_the_request_are_not_believed() {
        for count in [i32::MAX, 1 << 20, 100, -2, i32::MIN] {
            let count = &count.to_be_bytes();
            let one = &1i32.to_be_bytes();
            let topic: &[u8] = b"\0\x03bob";
            for mut bytes in [
                request(METADATA, 0, &[count, topic]),
                request(OFFSET_FETCH, 1, &[topic, count, topic]),
                request(OFFSET_FETCH, 1, &[topic, one, topic, count, one]),
                request(
                    PRODUCE,
                    0,
                    &[b"\0\x01", one, one, topic, one, one, count, b"abc"],
                ),
            ] {
                assert_eq!(parse(&mut bytes).err(), Some(Unreadable), "{bytes:?}");
            }
        }
        for size in [i16::MAX, 6, -1, -2, i16::MIN] {
            let mut bytes = request(FIND_COORDINATOR, 0, &[&size.to_be_bytes(), b"group"]);
            assert_eq!(parse(&mut bytes).err(), Some(Unreadable), "{size}");
        }
    }

    #[test]
    fn responses_are_written_as_the_specification_says() {
        let header = |api_version| Header {
            api_version,
            correlation_id: 7,
        };
        let node = Node {
            node_id: 3,
            host: "h".into(),
            port: 258,
        };
        let mut response = Response::to(&header(1));
        response.metadata(&node, &[("b", code::NONE), ("c", 17)]);
        let bytes = [
            &[0, 0, 0, 83, 0, 0, 0, 7][..],
            &[0, 0, 0, 1, 0, 0, 0, 3, 0, 1, b'h', 0, 0, 1, 2, 0xff, 0xff],
            &[0, 0, 0, 3],
            &[0, 0, 0, 2],
            &[
                0, 0, 0, 1, b'b', 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3,
            ],
            &[0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 3],
            &[0, 17, 0, 1, b'c', 0, 0, 0, 0, 0],
        ];
        let expected = bytes.concat();
        assert_eq!(response.finish()[4..], expected[4..]);

        let mut response = Response::to(&header(1));
        let partition = FetchPartition {
            partition: 0,
            fetch_offset: 0,
            partition_max_bytes: 9,
        };
        let topics = [Topic {
            name: "b",
            partitions: vec![partition],
        }];
        response.fetch(&topics, |_, _, out| {
            out.extend(b"xyz");
            Fetched {
                error_code: 1,
                high_watermark: 2,
            }
        });
        let bytes = [
            &[0, 0, 0, 40, 0, 0, 0, 7, 0, 0, 0, 0][..],
            &[0, 0, 0, 1, 0, 1, b'b', 0, 0, 0, 1, 0, 0, 0, 0],
            &[0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, b'x', b'y', b'z'],
        ];
        assert_eq!(response.finish(), bytes.concat());
    }

    #[test]
    fn an_answer_to_produce_grows_with_its_version() {
        let produced = [Topic {
            name: "b",
            partitions: vec![ProducedPartition {
                partition: 0,
                error_code: 0,
                base_offset: 5,
            }],
        }];
        let start = [&[0, 0, 0, 1, 0, 1, b'b', 0, 0, 0, 1][..], &[0; 13], &[5]].concat();
        for (api_version, end) in [
            (0, &[][..]),
            (1, &[0; 4]),
            (2, &[255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0]),
        ] {
            let mut response = Response::to(&Header {
                api_version,
                correlation_id: 7,
            });
            response.produce(&produced);
            assert_eq!(response.finish()[8..], [&start, end].concat());
        }
    }

    proptest! {
        #[test]
        fn random_bytes_are_read_or_refused(
            api in prop::sample::select(APIS.to_vec()),
            version in 0i16..4,
            body in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(255), any::<u8>()], 0..200),
        ) {
            let mut bytes = request(api.0, version, &[&body]);
            let size = bytes.len();
            if let Ok((_, request)) = parse(&mut bytes) {
                prop_assert!(elements(&request) * 2 <= size);
            }
            let mut bytes = body;
            let _ = parse(&mut bytes);
        }

        #[test]
        fn changed_requests_are_read_or_refused(
            which in any::<prop::sample::Index>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let requests = requests();
            let mut bytes = requests[which.index(requests.len())].clone();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            let size = bytes.len();
            if let Ok((_, request)) = parse(&mut bytes) {
                prop_assert!(elements(&request) * 2 <= size);
            }
            let cut = cut.index(size);
            let _ = parse(&mut bytes[..cut]);
        }

        #[test]
        fn a_cut_request_is_refused(which in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>()) {
            let requests = requests();
            let bytes = &mut requests[1 + which.index(requests.len() - 1)].clone();
            let cut = cut.index(bytes.len());
            prop_assert_eq!(parse(&mut bytes[..cut]).err(), Some(Unreadable));
        }
    }
}
