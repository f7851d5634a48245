//! What an operator has set on a topic that matters to those who write to it.

use std::iter;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, ResourceSpecifier};
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
    /// As [`is_compacted`](TopicSettings::is_compacted), of the topic that the same program reads.
    pub(super) is_read_compacted: bool,
}

/// Asks for the settings of `topic`, and whether `reads` is compacted, on a thread and a connection of its own. Nothing
/// comes if the cluster does not answer, or refuses: it takes DescribeConfigs on the topic.
pub(super) fn ask(
    cluster: &LibrdkafkaCluster,
    topic: &Name,
    reads: Option<&Name>,
) -> Result<Receiver<TopicSettings>> {
    let (tx, settings) = mpsc::channel();
    let (cluster, topic, reads) = (cluster.as_client(), topic.clone(), reads.cloned());
    spawn("settings", move || {
        let described = |admin| described(&admin, &topic, reads.as_ref());
        if let Some(settings) = admin(&cluster).and_then(described) {
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

/// The settings of `topic`, and whether `reads` is compacted, unless the cluster refuses or does not answer.
pub(super) fn described(
    admin: &Admin,
    topic: &Name,
    reads: Option<&Name>,
) -> Option<TopicSettings> {
    let topic = ResourceSpecifier::Topic(topic.as_str());
    let reads = reads.map(|reads| ResourceSpecifier::Topic(reads.as_str()));
    let asked = iter::once(&topic).chain(&reads);
    let options = AdminOptions::new().request_timeout(Some(ANSWER_TIMEOUT));
    let answer = pollster::block_on(admin.describe_configs(asked, &options));
    // librdkafka answers in the order of the question.
    let mut answers = answer.ok()?.into_iter();
    let described = answers.next()?.ok()?;
    let value = |name| described.get(name)?.value.as_deref();
    let of_read = answers.next().and_then(Result::ok);
    Some(TopicSettings {
        is_read_compacted: of_read.is_some_and(|it| is_compacted(&it) == Some(true)),
        is_compacted: is_compacted(&described)?,
        min_in_sync: value("min.insync.replicas")?.parse().ok()?,
        max_batch_bytes: value("max.message.bytes")?.parse().ok(),
    })
}

fn is_compacted(described: &ConfigResource) -> Option<bool> {
    let policy = described.get("cleanup.policy")?.value.as_deref()?;
    Some(policy.contains("compact"))
}
