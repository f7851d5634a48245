//! The bodies of responses.

use super::primitives::{Reader, Result, Wire, Writer, messages};
use super::request::{FetchPartition, TopicData};
use super::{Header, start_response};

messages! {
    /// See [`code`](super::code).
    #[derive(Clone, Copy)]
    ErrorCode {
        number: i16,
    }

    /// Always in version 0, which every client can read.
    ApiVersionsResponse {
        error_code: ErrorCode,
        api_keys: Vec<ApiVersion>,
    }

    /// An API, and the oldest and newest version of it that a broker speaks.
    #[derive(Clone, Copy)]
    ApiVersion {
        api_key: i16,
        min_version: i16,
        max_version: i16,
    }

    MetadataResponse<'a> {
        brokers: Vec<MetadataBroker<'a>>,
        controller_id: i32 where version >= 1,
        topics: Vec<MetadataTopic<'a>>,
    }

    MetadataBroker<'a> {
        node: Node<'a>,
        rack: Option<&'a str> where version >= 1,
    }

    /// A broker, and where clients reach it.
    #[derive(Clone, Copy)]
    Node<'a> {
        node_id: i32,
        host: &'a str,
        port: i32,
    }

    MetadataTopic<'a> {
        error_code: ErrorCode,
        name: &'a str,
        /// A boolean: 0 or 1.
        is_internal: i8 where version >= 1,
        partitions: Vec<MetadataPartition>,
    }

    MetadataPartition {
        error_code: ErrorCode,
        partition: i32,
        leader_id: i32,
        replica_nodes: Vec<i32>,
        isr_nodes: Vec<i32>,
    }

    ProduceResponse<'a> {
        topics: Vec<TopicData<'a, ProducedPartition>>,
        throttle_time_ms: i32 where version >= 1,
    }

    ProducedPartition {
        partition: i32,
        error_code: ErrorCode,
        /// The offset of the first message; -1 with an error.
        base_offset: i64,
        /// -1: messages keep the time of their creation.
        log_append_time_ms: i64 where version >= 2,
    }

    /// The response is a list of [`TopicData`] with these.
    ListedPartition {
        partition: i32,
        error_code: ErrorCode,
        old_style_offsets: Vec<i64> where version == 0,
        /// The time of the message at `offset`; -1 if `offset` was not found by time.
        timestamp: i64 where version >= 1,
        /// -1 if no offset belongs to the time.
        offset: i64 where version >= 1,
    }

    FindCoordinatorResponse<'a> {
        error_code: ErrorCode,
        node: Node<'a>,
    }

    /// The response is a list of [`TopicData`] with these.
    CommittedPartition {
        partition: i32,
        error_code: ErrorCode,
    }

    /// The response is a list of [`TopicData`] with these.
    OffsetFetchedPartition {
        partition: i32,
        committed: CommittedOffset,
        error_code: ErrorCode,
    }

    #[derive(Clone)]
    CommittedOffset {
        /// -1 if none was committed.
        offset: i64,
        /// What the client keeps with it.
        metadata: String,
    }
}

impl CommittedOffset {
    /// What is answered if nothing was committed.
    pub(crate) fn none() -> CommittedOffset {
        CommittedOffset {
            offset: -1,
            metadata: String::new(),
        }
    }
}

// The small broker does not write a Fetch response from its parts; see `fetch_response`.
messages! {
    FetchResponse<'a> {
        throttle_time_ms: i32 where version >= 1,
        topics: Vec<TopicData<'a, FetchedPartition<'a>>>,
    }

    FetchedPartition<'a> {
        partition: i32,
        error_code: ErrorCode,
        /// The offset of the next message to be written; -1 with an error.
        high_watermark: i64,
        /// A message set, in which the last message can be cut.
        records: &'a mut [u8],
    }
}

/// A whole Fetch response. `read` appends the messages of a partition to the response itself, so
/// that they are not copied, and returns the error code and the high watermark.
pub(crate) fn fetch_response<'a>(
    header: &Header<'_>,
    topics: &[TopicData<'a, FetchPartition>],
    mut read: impl FnMut(&'a str, &FetchPartition, &mut Vec<u8>) -> (ErrorCode, i64),
) -> Vec<u8> {
    let mut w = start_response(header);
    if header.api_version >= 1 {
        0i32.write(&mut w); // throttle_time_ms
    }
    (topics.len() as i32).write(&mut w);
    for topic in topics {
        topic.name.write(&mut w);
        (topic.partitions.len() as i32).write(&mut w);
        for p in &topic.partitions {
            p.partition.write(&mut w);
            // What stands before the messages is known once they are read.
            let fields = w.bytes.len();
            let records = fields + 2 + 8 + 4;
            w.bytes.resize(records, 0);
            let (error_code, high_watermark) = read(topic.name, p, &mut w.bytes);
            let size = (w.bytes.len() - records) as i32;
            let mut known = Writer::default();
            error_code.write(&mut known);
            high_watermark.write(&mut known);
            size.write(&mut known);
            w.bytes[fields..records].copy_from_slice(&known.bytes);
        }
    }
    w.finish()
}
