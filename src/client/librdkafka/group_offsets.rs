//! The offsets of consumer groups, read and committed by clients that are no members of them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::Offset;

use super::LibrdkafkaCluster;
use super::errors::{failed, is_transient};
use super::reader::ReadClient;
use super::status::ClusterStatus;
use super::topic::{ANSWER_TIMEOUT, TopicRequests, list, offsets};
use crate::client::{GroupOffsets, Offsets};
use crate::error::Result;
use crate::name::Name;

/// How often a topic's partitions are looked up: as often as librdkafka does by itself.
const METADATA_AGE: Duration = Duration::from_secs(300);

/// How long callbacks are handled before each request.
const CALLBACK_TIME: Duration = Duration::from_millis(1);

pub(super) struct LibrdkafkaGroupOffsets {
    config: ClientConfig,
    status: Arc<ClusterStatus>,
    /// By group: a client can be of one group only.
    clients: BTreeMap<String, GroupClient>,
}

impl LibrdkafkaGroupOffsets {
    pub(super) fn new(cluster: &LibrdkafkaCluster) -> LibrdkafkaGroupOffsets {
        let mut config = cluster.reader_config(&[]);
        // How long a commit waits for a group's coordinator. No group is joined, so there is no session.
        let timeout = ANSWER_TIMEOUT.as_millis().to_string();
        config.set("session.timeout.ms", timeout);
        LibrdkafkaGroupOffsets {
            config,
            status: cluster.status(drop),
            clients: BTreeMap::new(),
        }
    }

    /// Runs `work` on the client of a group, which is replaced if that fails: what it has given up must not be
    /// done later, a client that may not use its group would ask for it for ever, and one may have forgotten its
    /// brokers, as a [producer's](super::producer) may.
    fn with_client<T>(
        &mut self,
        group: &str,
        topic: &Name,
        work: impl FnOnce(&mut GroupClient) -> Result<T>,
    ) -> Result<T> {
        let mut client = match self.clients.remove(group) {
            Some(client) => client,
            None => GroupClient::new(&self.config, &self.status, group, topic)?,
        };
        // What is called back meanwhile would wait in memory.
        client.denied.serve(&client.reader, CALLBACK_TIME);
        let done = work(&mut client)?;
        self.clients.insert(group.to_string(), client);
        Ok(done)
    }
}

impl GroupOffsets for LibrdkafkaGroupOffsets {
    fn committed(&mut self, group: &str, topic: &Name) -> Result<Offsets> {
        self.with_client(group, topic, GroupClient::committed)
    }

    fn commit(&mut self, group: &str, topic: &Name, offsets: &Offsets) -> Result<()> {
        let doing = format!(
            "cannot commit offsets of group {group} at {}",
            self.status.servers()
        );
        self.with_client(group, topic, |client| client.commit(&doing, offsets))
    }

    fn release(&mut self, group: &str) {
        self.clients.remove(group);
    }
}

/// A client of one group, and requests about the group's offsets in one topic.
struct GroupClient {
    reader: ReadClient,
    requests: TopicRequests,
    /// The topic's partitions are due to be looked up again.
    refresh_at: Instant,
    denied: Denied,
    /// The group's coordinator has answered.
    has_answered: bool,
}

/// That this user may not use a group: reported in place of a record, while no request is answered.
#[derive(Default)]
struct Denied(Cell<Option<Code>>);

impl Denied {
    /// Handles callbacks for a while.
    fn serve(&self, reader: &ReadClient, duration: Duration) {
        let error = reader.serve(duration).filter(|error| !is_transient(error));
        let code = error.and_then(|error| error.rdkafka_error_code());
        self.0.set(code.or(self.0.get()));
    }
}

impl GroupClient {
    fn new(
        config: &ClientConfig,
        status: &Arc<ClusterStatus>,
        group: &str,
        topic: &Name,
    ) -> Result<GroupClient> {
        let mut config = config.clone();
        config.set("group.id", group);
        let create = || ReadClient::create(&config, status);
        let denied = Denied::default();
        let servers = status.servers();
        let doing = format!("cannot read the offsets of group {group} at {servers}");
        let serve = |reader: &ReadClient, time| denied.serve(reader, time);
        let (reader, requests) = TopicRequests::connect(status, doing, topic, &create, &serve)?;
        Ok(GroupClient {
            reader,
            requests,
            refresh_at: Instant::now() + METADATA_AGE,
            denied,
            has_answered: false,
        })
    }

    fn committed(&mut self) -> Result<Offsets> {
        if Instant::now() >= self.refresh_at {
            self.requests.refresh(&self.reader, ANSWER_TIMEOUT);
            self.refresh_at = Instant::now() + METADATA_AGE;
        }
        let pause = |pause| self.denied.serve(&self.reader, pause);
        let committed = self.requests.ask(&pause, |timeout| {
            if let Some(code) = self.denied.0.get() {
                return Err(KafkaError::OffsetFetch(code));
            }
            // A group that this user may not use is an error of each partition.
            let asked = self.requests.all_at(Offset::Invalid)?;
            offsets(&self.reader.committed_offsets(asked, timeout)?)
        })?;
        self.requests.status.on_started();
        self.has_answered = true;
        Ok(committed)
    }

    fn commit(&mut self, doing: &str, offsets: &Offsets) -> Result<()> {
        // Before the coordinator is known, a commit would wait for it, also if this user may not use the group.
        if !self.has_answered {
            self.committed()?;
        }
        list(&self.requests.topic, offsets)
            .and_then(|list| self.reader.commit(&list, CommitMode::Sync))
            .map_err(|error| failed(doing, &error))
    }
}
