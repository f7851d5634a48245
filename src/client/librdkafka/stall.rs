//! Why lines are not acknowledged, although the cluster answers.

use std::collections::BTreeSet;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use rdkafka::metadata::{MetadataBroker, MetadataPartition};

use super::LibrdkafkaCluster;
use super::topic::metadata;
use super::topic_settings::{self, TopicSettings};
use crate::client::probe;
use crate::ending::spawn;
use crate::error::Result;
use crate::name::Name;

/// How long it may take to connect, and to answer with metadata.
const METADATA_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a broker may take to accept a connection, and how many are tried.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);
const MAX_BROKERS: usize = 5;

/// What was found out.
pub(super) struct Explained {
    /// None if the cluster names no cause.
    pub(super) cause: Option<String>,
    /// The topic's settings of now, if the cluster tells them.
    pub(super) settings: Option<TopicSettings>,
}

/// Asks why lines to these partitions of `topic` (none: all) wait. Nothing comes if the cluster does not answer.
///
/// The thread has a connection of its own: the producer's has one request at a time, which is the one that waits.
pub(super) fn ask(
    cluster: &LibrdkafkaCluster,
    topic: &Name,
    partitions: Vec<i32>,
) -> Result<Receiver<Explained>> {
    let (tx, explained) = mpsc::channel();
    let (cluster, topic) = (cluster.as_client(), topic.clone());
    spawn("stall", move || {
        if let Some(explained) = explain(&cluster, &topic, &partitions) {
            // The producer may have ended.
            _ = tx.send(explained);
        }
    })?;
    Ok(explained)
}

fn explain(cluster: &LibrdkafkaCluster, topic: &Name, ids: &[i32]) -> Option<Explained> {
    let admin = topic_settings::admin(cluster)?;
    let metadata = metadata(admin.inner(), topic.as_str(), METADATA_TIMEOUT).ok()?;
    let partitions = metadata.topics().first()?.partitions().iter();
    let partitions: Vec<_> = partitions
        .filter(|it| ids.is_empty() || ids.contains(&it.id()))
        .collect();
    // A cluster that has lost its controllers answers with what was true before, and to other requests not at all. So
    // the brokers that it names are tried first.
    let cause = leaderless(&partitions).or_else(|| unreachable(metadata.brokers(), &partitions));
    if cause.is_some() {
        return Some(Explained {
            cause,
            settings: None,
        });
    }
    let settings = topic_settings::described(&admin, topic, None);
    let cause = settings
        .as_ref()
        .and_then(|it| too_few_in_sync(&partitions, it.min_in_sync));
    Some(Explained { cause, settings })
}

fn leaderless(partitions: &[&MetadataPartition]) -> Option<String> {
    let found = partitions.iter().find(|it| it.leader() < 0)?;
    Some(format!("no broker leads partition {}", found.id()))
}

fn too_few_in_sync(partitions: &[&MetadataPartition], required: usize) -> Option<String> {
    let found = partitions.iter().find(|it| it.isr().len() < required)?;
    let (id, in_sync) = (found.id(), found.isr().len());
    Some(format!(
        "too few replicas of partition {id} are in sync ({in_sync} of {required} required)"
    ))
}

/// The brokers that must store the lines, and cannot be reached from here.
fn unreachable(brokers: &[MetadataBroker], partitions: &[&MetadataPartition]) -> Option<String> {
    let required: BTreeSet<i32> = partitions
        .iter()
        .flat_map(|it| it.isr().iter().copied().chain([it.leader()]))
        .collect();
    let required = brokers.iter().filter(|it| required.contains(&it.id()));
    let addresses = required.map(|it| address(it.host(), it.port()));
    let unreachable: Vec<_> = addresses
        .take(MAX_BROKERS)
        .filter(|address| probe::connect(address, CONNECT_TIMEOUT).is_err())
        .collect();
    (!unreachable.is_empty()).then(|| {
        format!(
            "no connection to {}, which must store them",
            unreachable.join(" and ")
        )
    })
}

fn address(host: &str, port: i32) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}
