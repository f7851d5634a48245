//! Crate `kafka`: the client for the small broker and, in a build without the feature `librdkafka`,
//! for a topic that one plain Kafka up to 3.9 leads.
//!
//! It speaks version 0 of the protocol. What the crate leaves to its user is done here:
//!
//! - its calls time out only after 120 seconds, so each connection has a thread that a caller can
//!   stop waiting for (`connection`);
//! - a broken connection stays broken, so it is replaced; a topic that is being created has no
//!   partitions at first, so it is waited for (`topic_client`);
//! - it cannot tell whether a batch was written when the acknowledgement is lost, so the log is read
//!   back, and only what is missing is sent again (`producer`);
//! - a record larger than a fetch comes back as no record, so the fetch is made larger (`consumer`).

mod connection;
mod consumer;
mod errors;
mod fetch;
mod group_offsets;
mod partitioner;
mod producer;
mod topic_client;

use std::sync::{Arc, Weak};
use std::time::Duration;

use self::connection::Threads;
use self::consumer::KafkaCrateConsumer;
use self::errors::CallError;
use self::group_offsets::KafkaCrateGroupOffsets;
use self::topic_client::TopicClient;
use super::{Cluster, Consumer, GroupOffsets, Producer, Reports, Start, TakeOver};
use crate::error::Result;
use crate::name::Name;

/// A cluster reached by crate `kafka`.
pub(super) struct KafkaCrateCluster {
    broker: Broker,
    /// The only strong reference: if this process runs the small broker, dropping the cluster stops
    /// that, whatever its connections are still waiting for.
    _take_over: Option<TakeOver>,
}

/// The cluster's one broker.
#[derive(Clone)]
struct Broker {
    /// Its address, as `host:port`.
    server: String,
    /// For the small broker alone.
    take_over: Option<Weak<dyn Fn() -> Result<()> + Send + Sync>>,
    threads: Threads,
}

impl Broker {
    /// Whether it is a small broker that this process may take over.
    fn is_ours(&self) -> bool {
        self.take_over.is_some()
    }

    /// Makes sure that the small broker runs, before a new connection.
    fn take_over(&self) -> Result<(), CallError> {
        let Some(take_over) = &self.take_over else {
            return Ok(());
        };
        let take_over = take_over.upgrade();
        let take_over = take_over.ok_or_else(|| CallError::connection("this program is ending"))?;
        take_over().map_err(CallError::connection)
    }
}

impl KafkaCrateCluster {
    pub(super) fn new(server: String, take_over: Option<TakeOver>) -> KafkaCrateCluster {
        KafkaCrateCluster {
            broker: Broker {
                server,
                take_over: take_over.as_ref().map(Arc::downgrade),
                threads: Threads::default(),
            },
            _take_over: take_over,
        }
    }
}

impl Cluster for KafkaCrateCluster {
    fn producer(
        &self,
        sender: &Name,
        topic: &Name,
        delivery_timeout: Duration,
        reports: Reports,
    ) -> Result<Box<dyn Producer>> {
        let client = TopicClient::new(&self.broker, topic);
        producer::start(client, sender, delivery_timeout, reports)
    }

    fn consumer(&self, topic: &Name, start: Start) -> Result<Box<dyn Consumer>> {
        let client = TopicClient::new(&self.broker, topic);
        Ok(Box::new(KafkaCrateConsumer::new(client, start)?))
    }

    fn group_offsets(&self) -> Result<Box<dyn GroupOffsets>> {
        Ok(Box::new(KafkaCrateGroupOffsets::new(&self.broker)))
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
        let cluster = KafkaCrateCluster::new("127.0.0.1:1".into(), Some(take_over));
        let open = TopicClient::new(&cluster.broker, &"bob".parse().unwrap());
        assert!(open.broker.take_over().is_ok());
        drop(cluster);
        assert_eq!(Arc::strong_count(&running), 1);
        assert!(open.broker.take_over().is_err());
    }
}
