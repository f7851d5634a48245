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

use std::time::Duration;

use self::connection::Threads;
use self::consumer::KafkaCrateConsumer;
use self::group_offsets::KafkaCrateGroupOffsets;
use self::topic_client::TopicClient;
use super::{Cluster, Consumer, GroupOffsets, Producer, Reports, Start, TakeOver};
use crate::error::Result;
use crate::name::Name;

/// A cluster reached by crate `kafka`.
#[derive(Clone)]
pub(super) struct KafkaCrateCluster {
    /// Its one broker, as `host:port`.
    server: String,
    take_over: Option<TakeOver>,
    threads: Threads,
}

impl KafkaCrateCluster {
    pub(super) fn new(server: String, take_over: Option<TakeOver>) -> KafkaCrateCluster {
        KafkaCrateCluster {
            server,
            take_over,
            threads: Threads::default(),
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
        let client = TopicClient::new(self, topic);
        producer::start(client, sender, delivery_timeout, reports)
    }

    fn consumer(&self, topic: &Name, start: Start) -> Result<Box<dyn Consumer>> {
        let client = TopicClient::new(self, topic);
        Ok(Box::new(KafkaCrateConsumer::new(client, start)?))
    }

    fn group_offsets(&self) -> Result<Box<dyn GroupOffsets>> {
        Ok(Box::new(KafkaCrateGroupOffsets::new(self)))
    }
}
