//! What an operator has set on a topic that matters to those who write to it.

use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::config::ClientConfig;

use super::status::Context;
use super::{LibrdkafkaCluster, create};
use crate::ending::spawn;
use crate::error::Result;
use crate::name::Name;

/// How long the cluster may take to answer. Nobody waits for it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) type Admin = AdminClient<Context<()>>;

/// Settings of a topic: <https://kafka.apache.org/documentation/#topicconfigs>
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TopicSettings {
    /// Of each key only the last record is kept, and the key here is the sender.
    pub(super) is_compacted: bool,
    /// How many replicas must be in sync for a line to be acknowledged.
    pub(super) min_in_sync: usize,
    /// The most bytes of a batch.
    pub(super) max_batch_bytes: Option<usize>,
}

/// Asks for the settings of `topic`, on a thread and a connection of its own. Nothing comes if the cluster does not
/// answer, or refuses: it takes DescribeConfigs on the topic.
pub(super) fn ask(cluster: &LibrdkafkaCluster, topic: &Name) -> Result<Receiver<TopicSettings>> {
    let (tx, settings) = mpsc::channel();
    let (cluster, topic) = (cluster.as_client(), topic.clone());
    spawn("settings", move || {
        if let Some(settings) = admin(&cluster).and_then(|admin| described(&admin, &topic)) {
            // The producer may have ended.
            _ = tx.send(settings);
        }
    })?;
    Ok(settings)
}

/// A client that asks for settings.
pub(super) fn admin(cluster: &LibrdkafkaCluster) -> Option<Admin> {
    let config: ClientConfig = cluster.config(&[], &[]);
    create(&config, &cluster.status(drop), ()).ok()
}

/// The settings of `topic`, unless the cluster refuses or does not answer.
pub(super) fn described(admin: &Admin, topic: &Name) -> Option<TopicSettings> {
    let topic = ResourceSpecifier::Topic(topic.as_str());
    let options = AdminOptions::new().request_timeout(Some(ANSWER_TIMEOUT));
    let answer = pollster::block_on(admin.describe_configs([&topic], &options));
    let described = answer.ok()?.pop()?.ok()?;
    let value = |name| described.get(name)?.value.as_deref();
    Some(TopicSettings {
        is_compacted: value("cleanup.policy")?.contains("compact"),
        min_in_sync: value("min.insync.replicas")?.parse().ok()?,
        max_batch_bytes: value("max.message.bytes")?.parse().ok(),
    })
}
