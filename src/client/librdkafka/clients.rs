//! The clients of one consumer: one reads and, from the first poll on, another one asks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _};

use super::LibrdkafkaCluster;
use super::errors::failed;
use super::reader::ReadClient;
use super::status::ClusterStatus;
use super::topic::{ANSWER_TIMEOUT, TopicRequests, list};
use crate::client::position::Fingerprint;
use crate::client::{Offsets, Record};
use crate::error::{Error, Result};
use crate::name::Name;

/// How a reader waits for records that come rarely.
const PATIENT: &[(&str, &str)] = &[("fetch.wait.max.ms", "8000")];

/// The client that asks has only short requests: this is how soon it notices that a broker hangs.
const ASKING: &[(&str, &str)] = &[("socket.timeout.ms", "5000")];

/// How long one wait for a record takes that is read again.
const READ_AGAIN_WAIT: Duration = Duration::from_millis(500);

pub(super) struct Clients {
    cluster: LibrdkafkaCluster,
    status: Arc<ClusterStatus>,
    /// Until the first poll it also asks for metadata and offsets.
    pub(super) reader: ReadClient,
    /// The reader waits for records in one request for as long as possible.
    pub(super) is_patient: bool,
    /// From the first poll on it asks for metadata and offsets: a broker answers the reader only after its fetch.
    /// Created when it is needed: a program that ends soon does without.
    pub(super) asker: Option<ReadClient>,
    /// Reading has begun, with the first poll.
    is_assigned: bool,
}

/// A record could not be read again.
pub(super) enum NotRead {
    /// No answer came in time.
    Unanswered,
    Failed(Error),
}

impl Clients {
    /// Waits for the topic, and returns requests about it, too. `doing` says what fails if one does.
    pub(super) fn connect(
        cluster: &LibrdkafkaCluster,
        status: &Arc<ClusterStatus>,
        doing: String,
        topic: &Name,
    ) -> Result<(Clients, TopicRequests)> {
        let create = || create(cluster, &[], status);
        let serve = |reader: &ReadClient, time| drop(reader.serve(time));
        let (reader, requests) = TopicRequests::connect(status, doing, topic, &create, &serve)
            .map_err(|error| cluster.explain(status, topic, error))?;
        let clients = Clients {
            cluster: cluster.as_client(),
            status: Arc::clone(status),
            reader,
            is_patient: false,
            asker: None,
            is_assigned: false,
        };
        Ok((clients, requests))
    }

    /// Begins to read at these offsets, at the first call.
    pub(super) fn begin(&mut self, requests: &TopicRequests, offsets: &Offsets) -> Result<()> {
        if !self.is_assigned {
            assign(&self.reader, requests, offsets)?;
            self.is_assigned = true;
        }
        Ok(())
    }

    /// Reads on at these offsets, with a new client: partitions that are assigned during a fetch would wait for its
    /// end.
    pub(super) fn read_on(
        &mut self,
        requests: &TopicRequests,
        offsets: &Offsets,
        is_patient: bool,
    ) -> Result<()> {
        let ours = if is_patient { PATIENT } else { &[] };
        let reader = create(&self.cluster, ours, &self.status)?;
        assign(&reader, requests, offsets)?;
        self.reader = reader;
        self.is_patient = is_patient;
        Ok(())
    }

    /// The client that asks. Until reading has begun, it has no partitions.
    pub(super) fn asker(&mut self) -> Result<&ReadClient> {
        if self.is_assigned && self.asker.is_none() {
            self.asker = Some(create(&self.cluster, ASKING, &self.status)?);
        }
        Ok(self.asker.as_ref().unwrap_or(&self.reader))
    }

    /// Handles what the client that asks has called back.
    pub(super) fn serve_asker(&self) {
        if let Some(asker) = &self.asker {
            asker.serve_all();
        }
    }

    /// Reads the first record at `offset` or later, with a client of its own.
    pub(super) fn read_again(
        &self,
        requests: &TopicRequests,
        partition: i32,
        offset: i64,
    ) -> Result<Option<Fingerprint>, NotRead> {
        let reader = create(&self.cluster, &[], &self.status).map_err(NotRead::Failed)?;
        let from = Offsets::from([(partition, offset)]);
        assign(&reader, requests, &from).map_err(NotRead::Failed)?;
        let start = Instant::now();
        while start.elapsed() < ANSWER_TIMEOUT {
            match reader.poll(READ_AGAIN_WAIT) {
                Some(Ok(it)) if it.partition() == partition && it.offset() >= offset => {
                    return Ok(Some(Fingerprint::of(&record(&it))));
                }
                Some(Err(KafkaError::PartitionEOF(at))) if at == partition => return Ok(None),
                _ => {}
            }
        }
        Err(NotRead::Unanswered)
    }
}

/// A client that reads with more settings of ours, and whose log says what happens to the topic.
fn create(
    cluster: &LibrdkafkaCluster,
    ours: &[(&str, &str)],
    status: &Arc<ClusterStatus>,
) -> Result<ReadClient> {
    let config = cluster.following_topic(cluster.reader_config(ours));
    ReadClient::create(&config, status)
}

fn assign(reader: &ReadClient, requests: &TopicRequests, offsets: &Offsets) -> Result<()> {
    list(&requests.topic, offsets)
        .and_then(|list| reader.assign(&list))
        .map_err(|error| failed(&requests.doing, &error))
}

/// A message in the terms of the interface, without its headers.
pub(super) fn record<'a>(message: &'a BorrowedMessage<'_>) -> Record<'a> {
    Record {
        partition: message.partition(),
        offset: message.offset(),
        timestamp: message.timestamp().to_millis(),
        key: message.key(),
        value: message.payload(),
        headers: &[],
    }
}
