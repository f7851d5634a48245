//! Crate `kafka`: the client for the small broker and, in a build without the feature `librdkafka`,
//! for a topic that one plain Kafka up to 3.9 leads.
//!
//! The crate speaks version 0 of the protocol. What it leaves to its user is done here:
//!
//! - its calls time out only after 120 seconds, so each connection has a thread that a caller can
//!   stop waiting for (`connection`);
//! - a broken connection stays broken, so it is replaced; a topic that is being created has no
//!   partitions at first, so it is waited for (`topic_client`);
//! - it cannot tell whether a batch was written when the acknowledgement is lost, so the log is read
//!   back, and only what is missing is sent again (`producer`);
//! - a record larger than a fetch comes back as no record, so the fetch is made larger (`consumer`);
//! - a compressed record spoils the whole fetch, so it is looked for, named, and left out (`compressed`);
//! - it reports no timestamps, so what was written before a chat is fetched by requests of our own (`timed`).

mod compressed;
mod connection;
mod consumer;
mod errors;
mod fetch;
mod producer;
mod timed;
mod topic_client;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use kafka::client::CommitOffset;

use self::consumer::KafkaCrateConsumer;
use self::errors::CallError;
use self::timed::TimedConsumer;
use self::topic_client::{REQUEST_TIMEOUT, TopicClient};
use super::{
    Cluster, Consumer, GroupOffsets, Offsets, OpenConsumer, Partitioning, Producer, Reports, Route,
    Start, TakeOver,
};
use crate::error::Result;
use crate::name::Name;

/// A cluster reached by crate `kafka`.
pub(super) struct KafkaCrateCluster {
    broker: Arc<Broker>,
    /// The only strong reference: if this process runs the small broker, dropping the cluster stops
    /// that, whatever its connections are still waiting for.
    _take_over: Option<TakeOver>,
}

/// The cluster's one broker.
struct Broker {
    /// Its address, as `host:port`.
    server: String,
    /// For the small broker alone.
    take_over: Option<Weak<dyn Fn() -> Result<()> + Send + Sync>>,
    /// The identity of the small broker's log.
    log_id: Option<u32>,
    /// Each connection's thread has a clone, which counts it.
    threads: Arc<()>,
}

impl Broker {
    /// Whether it is the small broker. In a build with librdkafka, this client serves no other.
    fn is_small(&self) -> bool {
        self.take_over.is_some() || self.log_id.is_some()
    }

    /// Makes sure that the small broker runs, before a new connection.
    fn take_over(&self) -> Result<(), CallError> {
        let Some(take_over) = &self.take_over else {
            return Ok(());
        };
        let take_over = take_over.upgrade();
        let take_over = take_over.ok_or_else(|| CallError::connection("this program is ending"))?;
        take_over().map_err(|error| match error.is_denied() {
            true => CallError::Fatal(error),
            false => CallError::connection(error),
        })
    }
}

impl KafkaCrateCluster {
    /// For a small broker, `log_id` is the identity of its log.
    pub(super) fn new(
        server: String,
        take_over: Option<TakeOver>,
        log_id: Option<u32>,
    ) -> KafkaCrateCluster {
        let broker = Broker {
            server,
            take_over: take_over.as_ref().map(Arc::downgrade),
            log_id,
            threads: Arc::default(),
        };
        KafkaCrateCluster {
            broker: Arc::new(broker),
            _take_over: take_over,
        }
    }
}

impl Cluster for KafkaCrateCluster {
    fn producer(
        &self,
        route: Route<'_>,
        _always_fixed: Partitioning,
        delivery_timeout: Duration,
        reports: Reports,
    ) -> Result<Box<dyn Producer>> {
        let client = TopicClient::new(&self.broker, route.topic);
        producer::start(client, route.sender, delivery_timeout, reports)
    }

    fn consumer(&self, topic: &Name, start: Start) -> Result<Box<dyn Consumer>> {
        let client = TopicClient::new(&self.broker, topic);
        Ok(Box::new(KafkaCrateConsumer::new(client, start)?))
    }

    fn group_offsets(&self) -> Result<Box<dyn GroupOffsets>> {
        Ok(Box::new(KafkaCrateGroupOffsets {
            broker: Arc::clone(&self.broker),
            clients: BTreeMap::new(),
        }))
    }

    fn reader(&self) -> OpenConsumer {
        let server = self.broker.server.clone();
        let reader = KafkaCrateCluster::new(server, None, self.broker.log_id);
        let is_small = self.broker.is_small();
        Box::new(move |topic, start| match is_small {
            true => {
                let client = TopicClient::new(&reader.broker, topic);
                Ok(Box::new(TimedConsumer::new(client, start)?))
            }
            false => reader.consumer(topic, start),
        })
    }

    fn reads_times(&self) -> bool {
        self.broker.is_small()
    }
}

/// Offsets of consumer groups.
struct KafkaCrateGroupOffsets {
    broker: Arc<Broker>,
    /// By topic.
    clients: BTreeMap<String, TopicClient>,
}

impl KafkaCrateGroupOffsets {
    fn client(&mut self, topic: &Name) -> &mut TopicClient {
        self.clients
            .entry(topic.to_string())
            .or_insert_with(|| TopicClient::new(&self.broker, topic))
    }
}

impl GroupOffsets for KafkaCrateGroupOffsets {
    fn committed(&mut self, group: &str, topic: &Name) -> Result<Offsets> {
        self.client(topic).retry_until_timeout(|client| {
            let (group, topic) = (group.to_string(), client.topic.clone());
            let offsets = client.call(REQUEST_TIMEOUT, move |client| {
                client.fetch_group_topic_offset(&group, &topic)
            })?;
            let committed = offsets.iter().filter(|o| o.offset >= 0);
            Ok(committed.map(|o| (o.partition, o.offset)).collect())
        })
    }

    fn commit(&mut self, group: &str, topic: &Name, offsets: &Offsets) -> Result<()> {
        self.client(topic).retry_until_timeout(|client| {
            let (group, topic, offsets) =
                (group.to_string(), client.topic.clone(), offsets.clone());
            client.call(REQUEST_TIMEOUT, move |client| {
                let offsets = offsets.iter();
                let offsets = offsets.map(|(&p, &offset)| CommitOffset::new(&topic, p, offset));
                client.commit_offsets(&group, offsets)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_cluster_lets_go_of_the_small_broker_whatever_is_still_open() {
        let running = Arc::new(());
        let held = running.clone();
        let take_over: TakeOver = Arc::new(move || {
            let _held = &held;
            Ok(())
        });
        let cluster = KafkaCrateCluster::new("127.0.0.1:1".into(), Some(take_over), None);
        let open = TopicClient::new(&cluster.broker, &"bob".parse().unwrap());
        assert!(open.broker.take_over().is_ok());
        drop(cluster);
        assert_eq!(Arc::strong_count(&running), 1);
        assert!(open.broker.take_over().is_err());
    }
}
