//! The bodies of requests.

use super::primitives::{Reader, Result, Wire, Writer, messages};

/// As a timestamp in ListOffsets: the offset of the next message to be written.
pub(crate) const LATEST: i64 = -1;
/// As a timestamp in ListOffsets: the offset of the oldest message kept.
pub(crate) const EARLIEST: i64 = -2;

messages! {
    /// A topic, and what is asked or answered about its partitions.
    TopicData<'a, P> {
        name: &'a str,
        partitions: Vec<P>,
    }

    /// Which APIs does the broker speak, and which versions of them?
    ApiVersionsRequest {}

    /// Where are these topics? They are created if they do not exist.
    MetadataRequest<'a> {
        /// See [`MetadataRequest::names`].
        topics: Option<Vec<&'a str>>,
    }

    /// Append messages.
    ProduceRequest<'a> {
        /// 0: no response; 1 and -1: a response after the messages were written.
        acks: i16,
        timeout_ms: i32,
        topics: Vec<TopicData<'a, ProducePartition<'a>>>,
    }

    ProducePartition<'a> {
        partition: i32,
        /// A message set. The broker sets its offsets in place.
        records: &'a mut [u8],
    }

    /// Read messages.
    FetchRequest<'a> {
        /// -1 for a consumer.
        replica_id: i32,
        /// How long to wait until there are `min_bytes`.
        max_wait_ms: i32,
        /// How many bytes of messages make an answer before `max_wait_ms` is over.
        min_bytes: i32,
        topics: Vec<TopicData<'a, FetchPartition>>,
    }

    FetchPartition {
        partition: i32,
        /// The first offset wanted.
        fetch_offset: i64,
        /// How many bytes of messages to answer at most.
        partition_max_bytes: i32,
    }

    /// Which offsets belong to these times?
    ListOffsetsRequest<'a> {
        /// -1 for a consumer.
        replica_id: i32,
        topics: Vec<TopicData<'a, ListOffsetsPartition>>,
    }

    ListOffsetsPartition {
        partition: i32,
        /// Milliseconds since 1970, or [`LATEST`] or [`EARLIEST`].
        timestamp: i64,
        /// How many offsets to answer at most.
        max_num_offsets: i32 where version == 0,
    }

    /// Which broker keeps the offsets of this group?
    FindCoordinatorRequest<'a> {
        group: &'a str,
    }

    /// Keep these offsets for a group.
    OffsetCommitRequest<'a> {
        group: &'a str,
        generation_id: i32,
        member_id: &'a str,
        retention_time_ms: i64 where version >= 2,
        topics: Vec<TopicData<'a, OffsetCommitPartition<'a>>>,
    }

    OffsetCommitPartition<'a> {
        partition: i32,
        committed_offset: i64,
        commit_timestamp: i64 where version == 1,
        /// What the client keeps with the offset.
        committed_metadata: Option<&'a str>,
    }

    /// Which offsets were kept for a group?
    OffsetFetchRequest<'a> {
        group: &'a str,
        /// Topics with the numbers of their partitions.
        topics: Vec<TopicData<'a, i32>>,
    }
}

impl<'a> MetadataRequest<'a> {
    /// The topics asked for; `None` for all that exist, which version 0 expresses by an empty list.
    pub(crate) fn names(self, api_version: i16) -> Option<Vec<&'a str>> {
        self.topics
            .filter(|topics| api_version > 0 || !topics.is_empty())
    }
}
