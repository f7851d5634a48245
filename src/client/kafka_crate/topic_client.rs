//! Requests about one topic, over a connection that is replaced when it breaks.

use std::collections::BTreeSet;
use std::slice;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use kafka::client::{FetchOffset, KafkaClient};
use kafka::error::{Error as KafkaError, KafkaCode};

use super::Broker;
use super::connection::{Call, Connection};
use super::errors::CallError;
use crate::broker::identity;
use crate::client::position::Positions;
use crate::client::{Event, Offsets, Start, needs_librdkafka, probe, sentences};
use crate::error::{Error, Result};
use crate::name::Name;

/// How long a connection, and any short request, may take.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a topic may take to be created.
const TOPIC_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the list of partitions is refreshed.
const METADATA_AGE: Duration = Duration::from_secs(60);
/// An idle connection is replaced at this age: Kafka and the small broker close it after 10 minutes.
const IDLE_AGE: Duration = Duration::from_secs(9 * 60);
/// The pause before the first retry, which doubles up to the longest one.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Requests about one topic.
pub(super) struct TopicClient {
    pub(super) broker: Arc<Broker>,
    pub(super) topic: String,
    connection: Option<Connection>,
    /// When the last call on it began.
    used_at: Instant,
    /// The advertised address of the broker that leads the topic, once this connection has used it.
    leader: Option<String>,
    /// All partitions of the topic.
    pub(super) partitions: BTreeSet<i32>,
    /// When the partitions are due to be looked up again.
    refresh_at: Instant,
    /// How many calls have failed since the last success.
    failures: u32,
    /// That they fail was reported.
    is_away: bool,
}

impl TopicClient {
    pub(super) fn new(broker: &Arc<Broker>, topic: &Name) -> TopicClient {
        TopicClient {
            broker: Arc::clone(broker),
            topic: topic.to_string(),
            connection: None,
            used_at: Instant::now(),
            leader: None,
            partitions: BTreeSet::new(),
            refresh_at: Instant::now(),
            failures: 0,
            is_away: false,
        }
    }

    /// Tries `work` until it succeeds or its time is over: a topic that is being created and a
    /// broker that is being replaced are waited for.
    pub(super) fn retry_until_timeout<T>(
        &mut self,
        mut work: impl FnMut(&mut TopicClient) -> Result<T, CallError>,
    ) -> Result<T> {
        let start = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut connected = self.ensure_connected();
        loop {
            let error = match connected.and_then(|()| work(self)) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let timeout = match error {
                CallError::Code(_) => TOPIC_TIMEOUT,
                _ => REQUEST_TIMEOUT,
            };
            if error.is_fatal() || start.elapsed() > timeout {
                return Err(self.error(error));
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE / 2);
            connected = self.connect();
        }
    }

    /// The error of a call that is not tried again.
    pub(super) fn error(&self, error: CallError) -> Error {
        error.into_error(&self.broker, &self.topic)
    }

    /// Connects and looks up the partitions, unless that was done a short time ago.
    pub(super) fn ensure_connected(&mut self) -> Result<(), CallError> {
        if self.used_at.elapsed() >= IDLE_AGE {
            self.disconnect();
        }
        if self.connection.is_some() && Instant::now() < self.refresh_at {
            return Ok(());
        }
        self.connect()
    }

    /// Drops the connection. The next [`ensure_connected`](Self::ensure_connected) opens a new one and looks up the topic.
    pub(super) fn disconnect(&mut self) {
        self.connection = None;
    }

    /// Connects if it is not connected, and looks up the topic's partitions, which creates a missing topic if
    /// the broker is set to. Fails if a small broker has another log than before.
    fn connect(&mut self) -> Result<(), CallError> {
        if self.connection.is_none() {
            self.broker.take_over()?;
            let server = self.broker.server.clone();
            self.connection = Some(Connection::open(server, &self.broker.threads)?);
            self.leader = None;
            self.refresh_at = Instant::now();
        }
        let topic = self.topic.clone();
        let (found, nodes) = self.call(REQUEST_TIMEOUT, move |client| {
            client.load_metadata(&[&topic])?;
            let topics = client.topics();
            let (mut found, mut nodes) = (Vec::new(), Vec::new());
            for partition in topics.partitions(&topic).iter().flat_map(|all| all.iter()) {
                let leader = partition.leader();
                nodes.extend(leader.map(|it| it.id()));
                found.push((partition.id(), leader.map(|it| it.host().to_string())));
            }
            Ok((found, nodes))
        })?;
        if let Some(log_id) = self.broker.log_id
            && let Some(node) = nodes.iter().find(|it| **it != identity::node_id(log_id))
        {
            let server = &self.broker.server;
            // A Kafka can have a node 0, too.
            let ask = || probe::ask(slice::from_ref(server), REQUEST_TIMEOUT);
            let is_earlier = *node == 0 && ask().is_ok_and(|it| it.is_small_broker());
            return Err(CallError::Fatal(match is_earlier {
                true => sentences::earlier_broker(server),
                false => sentences::other_log(server),
            }));
        }
        if found.is_empty() && self.broker.is_small() {
            return Err(CallError::not_created(&self.broker, &self.topic));
        }
        let leader = only_leader(&self.topic, &found)?;
        if self.leader.as_ref() != Some(leader) {
            self.check_advertised(leader)?;
            self.leader = Some(leader.clone());
        }
        self.partitions = found.iter().map(|(partition, _)| *partition).collect();
        self.refresh_at = Instant::now() + METADATA_AGE;
        Ok(())
    }

    /// The address of the broker that leads the topic; until that is known, the one that was given.
    pub(super) fn leader(&self) -> &str {
        self.leader.as_ref().unwrap_or(&self.broker.server)
    }

    /// Fails if the broker advertises an address that can't be reached: crate kafka would try it for
    /// minutes.
    fn check_advertised(&self, leader: &str) -> Result<(), CallError> {
        if self.broker.server == leader {
            return Ok(());
        }
        let reached = probe::connect(leader, REQUEST_TIMEOUT);
        reached.map(drop).map_err(|error| CallError::Connection {
            why: sentences::advertised(error.without_hint()),
            hint: Some(sentences::ADVERTISED_LISTENERS),
        })
    }

    /// Runs `work` on the connection, which is dropped if it breaks or does not answer in time.
    pub(super) fn call<T: Send + 'static>(
        &mut self,
        limit: Duration,
        work: impl FnOnce(&mut KafkaClient) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, CallError> {
        let call = self.start(limit, work)?;
        self.settled(call.result())
    }

    /// Starts to run `work` on the connection.
    pub(super) fn start<T: Send + 'static>(
        &mut self,
        limit: Duration,
        work: impl FnOnce(&mut KafkaClient) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<Call<T>, CallError> {
        let connection = self.connection.as_ref();
        let connection = connection.ok_or_else(|| CallError::connection("not connected"))?;
        self.used_at = Instant::now();
        Ok(connection.start(limit, work))
    }

    /// The result of a call. The connection is dropped if it broke or did not answer in time.
    pub(super) fn settled<T>(&mut self, result: Result<T, CallError>) -> Result<T, CallError> {
        if let Err(CallError::Connection { .. }) = &result {
            self.connection = None;
        }
        result
    }

    /// Where a consumer starts.
    pub(super) fn positions(&mut self, start: Start) -> Result<Positions> {
        let from = match &start {
            Start::Latest => FetchOffset::Latest,
            Start::Earliest | Start::At(_) => FetchOffset::Earliest,
            Start::Since(_) => return Err(needs_librdkafka("--from with a time")),
        };
        let offsets = self.retry_until_timeout(|client| client.offsets(from))?;
        Ok(Positions::new(offsets, start))
    }

    /// The offset after the newest record, by partition.
    pub(super) fn end_offsets(&mut self) -> Result<Offsets> {
        self.retry_until_timeout(|client| client.offsets(FetchOffset::Latest))
    }

    /// The oldest or the next offset of each partition.
    pub(super) fn offsets(&mut self, which: FetchOffset) -> Result<Offsets, CallError> {
        let topic = self.topic.clone();
        let offsets = self.call(REQUEST_TIMEOUT, move |client| {
            client.fetch_topic_offsets(&topic, which)
        })?;
        Ok(offsets.iter().map(|o| (o.partition, o.offset)).collect())
    }

    /// The oldest or the next offset of one partition; 0 if it does not exist.
    pub(super) fn offset(&mut self, partition: i32, which: FetchOffset) -> Result<i64, CallError> {
        Ok(self.offsets(which)?.remove(&partition).unwrap_or(0))
    }

    /// Pauses after a failed call, not beyond `end`.
    ///
    /// Returns an event once several attempts have failed: an outage that ends before that is not
    /// worth a notice.
    pub(super) fn back_off(&mut self, error: &CallError, end: Instant) -> Option<Event> {
        self.failures += 1;
        let (broker, why) = (self.broker.server.clone(), error.why(&self.broker));
        let (event, patience) = match error {
            CallError::Connection { .. } => (Event::Lost { broker, why }, 2),
            // A broker that starts refuses some requests for a moment.
            _ => (Event::Refused { broker, why }, 5),
        };
        let is_news = self.failures >= patience && !self.is_away;
        self.is_away |= is_news;
        let pause = FIRST_PAUSE * 2u32.pow((self.failures - 1).min(10));
        let left = end.saturating_duration_since(Instant::now());
        thread::sleep(pause.min(LONGEST_PAUSE).min(left));
        is_news.then_some(event)
    }

    /// Whether the last call has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.failures > 0
    }

    /// A call has succeeded: returns an event if an outage was reported before.
    pub(super) fn on_success(&mut self) -> Option<Event> {
        self.failures = 0;
        std::mem::take(&mut self.is_away).then(|| Event::Back {
            broker: self.broker.server.clone(),
        })
    }
}

/// The one broker that leads all of a topic's partitions.
fn only_leader<'a>(
    topic: &str,
    partitions: &'a [(i32, Option<String>)],
) -> Result<&'a String, CallError> {
    let leaders = partitions.iter().map(|(_, leader)| leader.as_ref());
    let leaders: Option<BTreeSet<&String>> = leaders.collect();
    let leaders = leaders.ok_or(CallError::Code(KafkaCode::LeaderNotAvailable))?;
    match (leaders.first(), leaders.len()) {
        (Some(leader), 1) => Ok(leader),
        (None, _) => Err(CallError::Code(KafkaCode::UnknownTopicOrPartition)),
        _ => Err(CallError::several_brokers(topic)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::TakeOver;

    #[test]
    fn a_connection_that_was_idle_for_long_is_replaced_after_a_look_at_who_serves() {
        let look: TakeOver =
            Arc::new(|| Err(Error::denied("cannot use the broker", "another account")));
        let broker = Arc::new(Broker {
            server: "127.0.0.1:1".into(),
            take_over: Some(Arc::downgrade(&look)),
            log_id: None,
            threads: Arc::default(),
        });
        let mut client = TopicClient::new(&broker, &"bob".parse().unwrap());
        client.connection = Some(Connection::open("127.0.0.1:1".into(), &broker.threads).unwrap());
        client.refresh_at = Instant::now() + METADATA_AGE;
        assert!(client.ensure_connected().is_ok());
        client.used_at = Instant::now().checked_sub(IDLE_AGE).unwrap();
        let error = client.ensure_connected().unwrap_err();
        assert!(error.is_fatal(), "{error:?}");
    }

    #[test]
    fn a_topic_is_served_if_one_broker_leads_all_of_it() {
        let partitions = |leaders: &[&str]| {
            let leaders = leaders.iter().zip(0..);
            let leader = |host: &str| (!host.is_empty()).then(|| host.to_string());
            leaders
                .map(|(host, partition)| (partition, leader(host)))
                .collect::<Vec<_>>()
        };
        let one = partitions(&["a:1", "a:1"]);
        assert_eq!(only_leader("bob", &one).unwrap(), "a:1");
        for (leaders, code) in [
            (&[][..], KafkaCode::UnknownTopicOrPartition),
            (&["a:1", ""], KafkaCode::LeaderNotAvailable),
        ] {
            let error = only_leader("bob", &partitions(leaders)).unwrap_err();
            assert!(
                matches!(error, CallError::Code(c) if c == code),
                "{error:?}"
            );
        }
        let error = only_leader("bob", &partitions(&["a:1", "b:1"])).unwrap_err();
        let CallError::Fatal(error) = error else {
            panic!("{error:?}");
        };
        for part in ["'bob'", "several brokers", "librdkafka"] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
