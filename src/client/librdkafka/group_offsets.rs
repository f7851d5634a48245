//! Offsets of consumer groups.

use std::collections::BTreeMap;
use std::sync::Arc;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::topic_partition_list::Offset;

use super::errors::{failed, is_transient};
use super::reader::ReadClient;
use super::status::ClusterStatus;
use super::topic::{ANSWER_TIMEOUT, TopicRequests, list, offsets};
use crate::client::{GroupOffsets, Offsets};
use crate::error::Result;
use crate::name::Name;

pub(super) struct LibrdkafkaGroupOffsets {
    config: ClientConfig,
    status: Arc<ClusterStatus>,
    /// By group: a client can be of one group only.
    readers: BTreeMap<String, ReadClient>,
}

impl LibrdkafkaGroupOffsets {
    pub(super) fn new(config: ClientConfig, status: Arc<ClusterStatus>) -> LibrdkafkaGroupOffsets {
        LibrdkafkaGroupOffsets {
            config,
            status,
            readers: BTreeMap::new(),
        }
    }

    fn reader(&mut self, group: &str) -> Result<&ReadClient> {
        if !self.readers.contains_key(group) {
            let mut config = self.config.clone();
            config.set("group.id", group);
            let reader = ReadClient::create(&config, &self.status)?;
            self.readers.insert(group.to_string(), reader);
        }
        Ok(&self.readers[group])
    }
}

impl GroupOffsets for LibrdkafkaGroupOffsets {
    fn committed(&mut self, group: &str, topic: &Name) -> Result<Offsets> {
        let status = Arc::clone(&self.status);
        let doing = format!(
            "cannot read the offsets of group {group} at {}",
            status.servers()
        );
        let reader = self.reader(group)?;
        let pause = |pause| reader.serve(pause);
        let requests = TopicRequests::new(&status, doing, topic, reader.client(), &pause)?;
        let answer = status.retry_for(ANSWER_TIMEOUT, &pause, |timeout| {
            let partitions = requests.leaders.keys().map(|&p| (p, Offset::Invalid));
            let answer = reader.committed_offsets(list(topic.as_str(), partitions)?, timeout);
            // A group that this user may not use is an error of each partition.
            let answer = answer.and_then(|list| {
                list.elements().iter().try_for_each(|it| it.error())?;
                Ok(list)
            });
            match answer {
                Ok(list) => Ok(offsets(&list)),
                Err(error) if is_transient(&error) => Ok(None),
                Err(error) => Err(failed(&requests.doing, &error)),
            }
        })?;
        let committed = requests.answered(answer)?;
        status.on_started();
        Ok(committed)
    }

    fn commit(&mut self, group: &str, topic: &Name, offsets: &Offsets) -> Result<()> {
        let doing = format!(
            "cannot commit offsets of group {group} at {}",
            self.status.servers()
        );
        let offsets = offsets.iter();
        let offsets = offsets.map(|(&partition, &offset)| (partition, Offset::Offset(offset)));
        let list = list(topic.as_str(), offsets)?;
        let reader = self.reader(group)?;
        // A commit waits for as long as the group's coordinator is away, and librdkafka has no
        // other that says how it went. So this asks first whether the coordinator answers.
        reader
            .committed_offsets(list.clone(), ANSWER_TIMEOUT)
            .and_then(|_| reader.commit(&list, CommitMode::Sync))
            .map_err(|error| failed(&doing, &error))
    }
}
