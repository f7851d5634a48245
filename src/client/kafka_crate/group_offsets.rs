//! Offsets of consumer groups.

use std::collections::BTreeMap;

use kafka::client::CommitOffset;

use super::Broker;
use super::topic_client::{REQUEST_TIMEOUT, TopicClient};
use crate::client::{GroupOffsets, Offsets};
use crate::error::Result;
use crate::name::Name;

pub(super) struct KafkaCrateGroupOffsets {
    broker: Broker,
    /// By topic.
    clients: BTreeMap<String, TopicClient>,
}

impl KafkaCrateGroupOffsets {
    pub(super) fn new(broker: &Broker) -> KafkaCrateGroupOffsets {
        KafkaCrateGroupOffsets {
            broker: broker.clone(),
            clients: BTreeMap::new(),
        }
    }

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
