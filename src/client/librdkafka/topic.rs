//! Waiting for a topic and its leaders, and asking for its offsets.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::client::Client;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::metadata::Metadata;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::errors::{failed, failed_by_code, is_transient};
use super::reader::ReadClient;
use super::status::{ClusterStatus, Context, Leaders};
use crate::client::{Offsets, sentences};
use crate::error::{Error, Result};
use crate::name::Name;

/// How long a cluster may take to answer: an error comes within five seconds.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_millis(4500);

/// How long the warm-up request to a leader may take; its result is ignored. Sometimes librdkafka has closed its first
/// connection already, and does nothing until this is over.
const WARM_UP_TIMEOUT: Duration = Duration::from_millis(20);

/// How long a missing topic is left to be created before it is asked for again; twice as long each time
/// after that.
///
/// Each request for a missing topic asks the controller to create it, which logs each one after the first. Most are
/// librdkafka's own: as long as a topic of a client has no leader, it asks with a back-off from 100 ms to a second, and
/// each second besides. So a creation that takes a second and a half is asked for ten times, and ten seconds of waiting
/// are 40 requests, 14 of them sent here. To wait with `allow.auto.create.topics=false` would take another client, and
/// nobody would ask again after a request that the controller has lost.
const CREATION_PAUSE: Duration = Duration::from_millis(100);

/// How long a topic may take to be created, with a leader for every partition.
const TOPIC_TIMEOUT: Duration = Duration::from_secs(10);

/// A client that asks.
pub(super) trait Asking {
    type Role: Send + Sync;

    fn as_client(&self) -> &Client<Context<Self::Role>>;
}

/// A topic, and requests about it.
pub(super) struct TopicRequests {
    pub(super) status: Arc<ClusterStatus>,
    /// What fails if a request does: `cannot read topic bob at localhost:9092`.
    pub(super) doing: String,
    pub(super) topic: String,
    pub(super) leaders: Leaders,
}

impl TopicRequests {
    /// A client that `create` makes, and requests about a topic that exists, with a leader for each partition: both are
    /// waited for. The request creates the topic, where the cluster allows that. `pause` handles callbacks while it
    /// waits.
    pub(super) fn connect<C: Asking>(
        status: &Arc<ClusterStatus>,
        doing: String,
        topic: &Name,
        create: &dyn Fn() -> Result<C>,
        pause: &dyn Fn(&C, Duration),
    ) -> Result<(C, TopicRequests)> {
        let topic = topic.as_str();
        let client = create()?;
        // librdkafka closes its first connection once it knows the brokers, often before it has the
        // answer that is waited for here, and opens the next one 11 ms after the first, unless a request
        // is for a certain broker: as this warm-up request is, for the leader.
        let first = client.as_client();
        drop(first.fetch_watermarks(topic, 0, WARM_UP_TIMEOUT));
        let client = RefCell::new(client);
        let pause = |time| pause(&client.borrow(), time);
        let answered = Cell::new(None);
        let ask = |timeout| {
            let found = metadata(client.borrow().as_client(), topic, timeout);
            match found {
                Ok(metadata) => {
                    status.on_first_answer();
                    answered.set(Some(Instant::now()));
                    return Ok(Some(leaders(&metadata, topic)));
                }
                // It has forgotten its brokers, and would never ask again.
                Err(error) if is_without_brokers(&error, answered.get().is_some()) => {
                    *client.borrow_mut() = create()?;
                }
                Err(_) => {}
            }
            Ok(None)
        };
        let first = status.retry_for(ANSWER_TIMEOUT, &pause, ask)?;
        let mut answer = first.ok_or_else(|| status.unreachable(&doing))?;
        let mut rest = CREATION_PAUSE;
        let found = status.retry_for(TOPIC_TIMEOUT, &pause, |timeout| match answer.clone() {
            Ok(leaders) => Ok(Some(leaders)),
            Err(
                code
                @ (Code::TopicAuthorizationFailed | Code::InvalidTopic | Code::PolicyViolation),
            ) => Err(failed_by_code(&doing, code)),
            Err(_) => {
                pause(rest);
                rest = (rest * 2).min(TOPIC_TIMEOUT / 10);
                if let Some(newer) = ask(timeout)? {
                    answer = newer;
                }
                Ok(answer.clone().ok())
            }
        })?;
        // What was true long ago says nothing.
        let is_recent = |at: Instant| at.elapsed() < ANSWER_TIMEOUT;
        let leaders = found.ok_or_else(|| match answer {
            Err(code) if answered.get().is_some_and(is_recent) => match code {
                Code::UnknownTopicOrPartition => Error::failed(&doing, "the topic is not there")
                    .hint(sentences::create_topic(&status.servers(), topic)),
                code => failed_by_code(&doing, code),
            },
            _ => status.unreachable(&doing),
        })?;
        let requests = TopicRequests {
            status: Arc::clone(status),
            doing,
            topic: topic.to_string(),
            leaders,
        };
        Ok((client.into_inner(), requests))
    }

    /// The partitions that there are.
    pub(super) fn partitions(&self) -> BTreeSet<i32> {
        self.leaders.keys().copied().collect()
    }

    /// Makes sure that a leader can be reached under the address that it is advertised under. One
    /// stands for all; an address that the user named has answered already.
    pub(super) fn reach_leader<R: Send + Sync>(
        &self,
        client: &Client<Context<R>>,
        pause: &dyn Fn(Duration),
    ) -> Result<()> {
        let mut advertised = self.leaders.iter();
        let Some((&partition, _)) = advertised.find(|(_, it)| !self.status.has_server(it)) else {
            return Ok(());
        };
        self.ask(pause, |timeout| {
            match client.fetch_watermarks(&self.topic, partition, timeout) {
                Err(error) if is_transient(&error) => Err(error),
                // Any answer will do.
                _ => Ok(()),
            }
        })
    }

    /// The oldest (`Offset::Beginning`) or the next (`Offset::End`) offset of each partition. `reader` has no partitions
    /// assigned.
    pub(super) fn list_offsets(&self, reader: &ReadClient, which: Offset) -> Result<Offsets> {
        let pause = |pause| drop(reader.serve(pause));
        self.ask(&pause, |timeout| self.ask_offsets(reader, which, timeout))
    }

    /// The offset of the first record of this time, in milliseconds, or of a later one; the end of a partition that
    /// has none. `reader` has no partitions assigned.
    pub(super) fn offsets_since(&self, reader: &ReadClient, time: i64) -> Result<Offsets> {
        let pause = |pause| drop(reader.serve(pause));
        // First the ends: what is written in between is found by its time.
        let mut all = self.list_offsets(reader, Offset::End)?;
        all.extend(self.ask(&pause, |timeout| {
            offsets(&reader.offsets_for_times(self.all_at(Offset::Offset(time))?, timeout)?)
        })?);
        Ok(all)
    }

    /// As [`list_offsets`](TopicRequests::list_offsets), once.
    pub(super) fn ask_offsets(
        &self,
        reader: &ReadClient,
        which: Offset,
        timeout: Duration,
    ) -> KafkaResult<Offsets> {
        // A request for the time -1 or -2 asks for all partitions at once; one for watermarks does not.
        let found = offsets(&reader.offsets_for_times(self.all_at(which)?, timeout)?)?;
        match found.len() == self.leaders.len() {
            true => Ok(found),
            false => Err(KafkaError::OffsetFetch(Code::OffsetNotAvailable)),
        }
    }

    /// Sends a request until it is answered. Leaders at addresses that the user named may be about to be elected,
    /// and have as long as a topic; others are probably advertised under an address that does not work.
    pub(super) fn ask<T>(
        &self,
        pause: &dyn Fn(Duration),
        mut request: impl FnMut(Duration) -> KafkaResult<T>,
    ) -> Result<T> {
        let are_named = self.leaders.values().all(|it| self.status.has_server(it));
        let limit = match are_named {
            true => TOPIC_TIMEOUT,
            false => ANSWER_TIMEOUT,
        };
        let ask = |timeout| self.settled(request(timeout));
        let answer = self.status.retry_for(limit, pause, ask)?;
        answer.ok_or_else(|| self.status.unanswered(&self.doing, &self.leaders))
    }

    /// The answer to a request; none if the same request may succeed later.
    pub(super) fn settled<T>(&self, answer: KafkaResult<T>) -> Result<Option<T>> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if is_transient(&error) => Ok(None),
            Err(error) => Err(failed(&self.doing, &error)),
        }
    }

    /// All partitions, each with this offset.
    pub(super) fn all_at(&self, offset: Offset) -> KafkaResult<TopicPartitionList> {
        let partition = |&partition| ((self.topic.clone(), partition), offset);
        TopicPartitionList::from_topic_map(&self.leaders.keys().map(partition).collect())
    }

    /// Looks up the leaders again. Returns whether the cluster answered.
    pub(super) fn refresh(&mut self, reader: &ReadClient, timeout: Duration) -> bool {
        let Ok(metadata) = metadata(reader.client(), &self.topic, timeout) else {
            return false;
        };
        self.status.on_answer();
        if let Ok(leaders) = leaders(&metadata, &self.topic) {
            self.leaders = leaders;
        }
        true
    }
}

/// Asks which brokers there are, and which of them lead `topic`.
///
/// An answer that lists no broker is none: one that was stopped for a while may at first not even list itself,
/// and serves nothing until it does.
pub(super) fn metadata<R: Send + Sync>(
    client: &Client<Context<R>>,
    topic: &str,
    timeout: Duration,
) -> KafkaResult<Metadata> {
    let answer = client.fetch_metadata(Some(topic), timeout)?;
    client.context().status.on_brokers(answer.brokers().len());
    match answer.brokers().is_empty() {
        true => Err(KafkaError::MetadataFetch(Code::LeaderNotAvailable)),
        false => Ok(answer),
    }
}

/// Whether a request failed because the client knows no broker. It forgets those that an answer does not list; and its
/// own requests are answered, too, so that it may have none although this one was not answered like that.
fn is_without_brokers(error: &KafkaError, has_answered: bool) -> bool {
    match error.rdkafka_error_code() {
        Some(Code::LeaderNotAvailable) => true,
        Some(Code::BrokerTransportFailure) => has_answered,
        _ => false,
    }
}

/// The topic's leaders, or the error that the cluster reports instead.
fn leaders(metadata: &Metadata, topic: &str) -> Result<Leaders, Code> {
    let described = metadata.topics().iter().find(|found| found.name() == topic);
    let described = described.ok_or(Code::UnknownTopicOrPartition)?;
    if let Some(code) = described.error() {
        return Err(code.into());
    }
    let mut leaders = Leaders::new();
    for partition in described.partitions() {
        let mut brokers = metadata.brokers().iter();
        let leader = brokers.find(|broker| broker.id() == partition.leader());
        let leader = leader.ok_or(Code::LeaderNotAvailable)?;
        let address = format!("{}:{}", leader.host(), leader.port());
        leaders.insert(partition.id(), address);
    }
    Ok(leaders)
}

/// Offsets of a topic in librdkafka's form.
pub(super) fn list(topic: &str, offsets: &Offsets) -> KafkaResult<TopicPartitionList> {
    let offset = |(&p, &offset)| ((topic.to_string(), p), Offset::Offset(offset));
    TopicPartitionList::from_topic_map(&offsets.iter().map(offset).collect())
}

/// The offsets in a list, or the error of a partition. Partitions without an offset are left out.
pub(super) fn offsets(list: &TopicPartitionList) -> KafkaResult<Offsets> {
    let mut offsets = Offsets::new();
    for partition in list.elements() {
        partition.error()?;
        if let Offset::Offset(offset) = partition.offset() {
            offsets.insert(partition.partition(), offset);
        }
    }
    Ok(offsets)
}
