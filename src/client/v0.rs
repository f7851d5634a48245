//! Crate `kafka`: the client for the embedded broker and for Kafka up to 3.9, in plain text.
//!
//! It speaks version 0 of everything. What it leaves to its user is done here:
//! - it has no deadlines of its own but 120 seconds, so every call runs on a thread that can be left;
//! - a connection once broken stays broken, so a client is never mended but made anew;
//! - a missing topic has no partitions yet, and an election no leader: both are waited for;
//! - it cannot tell whether a batch was written when the acknowledgement is lost: the log is read
//!   back, and only what is missing is sent again;
//! - a record larger than what is fetched comes back as nothing at all: the size is raised.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use kafka::client::fetch::Response;
use kafka::client::{
    CommitOffset, FetchOffset, FetchPartition, GroupOffsetStorage, KafkaClient, ProduceMessage,
    RequiredAcks,
};
use kafka::error::{Error as KafkaError, KafkaCode};

use super::{
    Cluster, Consumer, Event, GroupOffsets, MAX_RECORD_BYTES, Offsets, Producer, Record, Report,
    Reports, Start, TakeOver, excerpt, probe,
};
use crate::error::{Error, Result};
use crate::name::Name;

/// How long a connection, and any short request, may take.
const REQUEST: Duration = Duration::from_secs(5);
/// How long an acknowledgement may take: Kafka's own `request.timeout.ms`. Shorter would only make
/// more cases in which nobody knows whether the batch was written.
const ACKNOWLEDGEMENT: Duration = Duration::from_secs(30);
/// What an attempt at least may take, however little is left until a line is given up.
const LAST_ATTEMPT: Duration = Duration::from_secs(1);
/// How long a topic may take to be there, with a leader for each of its partitions.
const TOPIC: Duration = Duration::from_secs(10);
/// How long the broker holds a fetch that finds nothing, so that a program can end in between.
const LONG_POLL: Duration = Duration::from_millis(400);
/// The same where several brokers lead partitions: they are asked one after the other.
const SHORT_POLL: Duration = Duration::from_millis(20);
/// How long a request may still be under way to the log after its connection has broken.
const STRAGGLING: Duration = Duration::from_millis(250);
/// How often the list of partitions is looked at again.
const METADATA_AGE: Duration = Duration::from_secs(60);
/// The same while a partition has no leader.
const LEADERLESS_AGE: Duration = Duration::from_secs(1);
/// The pause before the first retry, which doubles up to the longest one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The most bytes of one batch, as magic-0 messages, if it is of several lines. Kafka makes one
/// batch of them, which has to stay below its `message.max.bytes`, 1,048,588 if nobody changed it.
/// Larger ones than this are not faster, and there are half a dozen copies of it in memory.
const BATCH_BYTES: usize = 500_000;
/// What a magic-0 message adds to its key and value: offset, size, CRC, magic, attributes, lengths.
const MESSAGE_OVERHEAD: usize = 26;
/// How much is fetched of a partition at once: at first, and at the most.
const FETCH_BYTES: i32 = 1 << 20;
const MOST_FETCH_BYTES: i32 = 1 << 28;

type Listener = Arc<dyn Fn(Event) + Send + Sync>;

/// A cluster reached by crate `kafka`.
#[derive(Clone)]
pub(super) struct V0 {
    servers: Vec<String>,
    broker: String,
    revive: Option<TakeOver>,
}

impl V0 {
    /// A cluster whose `broker`, one of `servers`, has answered the probe.
    pub(super) fn new(servers: &[String], broker: String, revive: Option<TakeOver>) -> V0 {
        V0 {
            servers: servers.to_vec(),
            broker,
            revive,
        }
    }

    fn link(&self, topic: &Name, listener: Listener) -> Link {
        Link {
            cluster: self.clone(),
            topic: topic.to_string(),
            listener,
            session: None,
            leaders: BTreeMap::new(),
            partitions: BTreeSet::new(),
            only: None,
            leaderless: BTreeMap::new(),
            look_again: Instant::now(),
            down: None,
        }
    }
}

impl Cluster for V0 {
    fn producer(
        &self,
        sender: &Name,
        topic: &Name,
        delivery_timeout: Duration,
        reports: Reports,
    ) -> Result<Box<dyn Producer>> {
        let to = reports.clone();
        let listener: Listener = Arc::new(move |event| to.send(Report::Connection(event)));
        let mut link = self.link(topic, listener);
        let (partition, ends) = link.at_once(|link| {
            let partition = partition_for(sender.as_bytes(), &link.partitions);
            Ok((partition, link.offsets(FetchOffset::Latest)?))
        })?;
        link.only = Some(partition);
        let queue = Arc::new(Queue::default());
        let sending = Sending {
            link,
            key: sender.as_bytes().to_vec(),
            partition,
            end: ends.get(&partition).copied().unwrap_or(0),
            delivery_timeout,
            reports: reports.clone(),
        };
        let theirs = queue.clone();
        thread::Builder::new()
            .name("producer".into())
            .spawn(move || sending.run(&theirs))
            .map_err(|why| Error::failed("cannot start a thread to send from", why))?;
        Ok(Box::new(V0Producer {
            queue,
            key_bytes: sender.as_bytes().len(),
            reports,
        }))
    }

    fn consumer(&self, topic: &Name, start: Start) -> Result<Box<dyn Consumer>> {
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let to = events.clone();
        let listener: Listener = Arc::new(move |event| lock(&to).push(event));
        let mut link = self.link(topic, listener);
        let from = match &start {
            Start::Latest => FetchOffset::Latest,
            Start::Earliest | Start::At(_) => FetchOffset::Earliest,
        };
        let mut position = link.at_once(|link| link.offsets(from))?;
        if let Start::At(offsets) = start {
            for (partition, offset) in offsets {
                position.entry(partition).and_modify(|at| *at = offset);
            }
        }
        Ok(Box::new(V0Consumer {
            events,
            link,
            position,
            first: BTreeMap::new(),
            fetch_bytes: FETCH_BYTES,
            pending: Vec::new(),
        }))
    }

    fn group_offsets(&self) -> Result<Box<dyn GroupOffsets>> {
        Ok(Box::new(V0Groups {
            cluster: self.clone(),
            links: BTreeMap::new(),
        }))
    }
}

/// What a user may not have thought of when a broker closes the connection.
const LOGIN: &str = "If it wants a login there: set security.protocol, sasl.mechanism, \
                     sasl.username and sasl.password, by -X or in a file by -F.";
/// The same when a broker says that it is to be found where nobody is.
const ADVERTISED: &str =
    "The broker's advertised.listeners must name an address that works from here.";

/// Why a call did not succeed.
#[derive(Debug)]
enum Trouble {
    /// The broker said so.
    Code(KafkaCode),
    /// The connection broke, or there was no answer in time: why, and what may help.
    Connection(String, Option<&'static str>),
    /// It will not get better by trying again.
    Final(Error),
}

impl Trouble {
    /// The connection is of no use any more.
    fn lost(why: impl fmt::Display) -> Trouble {
        Trouble::Connection(why.to_string(), None)
    }

    fn why(&self, cluster: &V0) -> String {
        match self {
            // The embedded broker has this one for an error of its disk.
            Trouble::Code(KafkaCode::Unknown) if cluster.revive.is_some() => {
                "the broker could not write its log: is its disk full?".into()
            }
            Trouble::Code(code) => in_words(*code).to_string(),
            Trouble::Connection(why, _) => why.clone(),
            Trouble::Final(error) => error.to_string(),
        }
    }

    /// Whether trying again can't help.
    fn is_final(&self) -> bool {
        match self {
            Trouble::Code(code) => is_final(*code),
            Trouble::Connection(..) => false,
            Trouble::Final(_) => true,
        }
    }

    /// As an error of a call that is not tried again.
    fn error(self, link: &Link) -> Error {
        let (topic, broker) = (&link.topic, &link.cluster.broker);
        let failed = |why| Error::failed(format!("cannot use topic '{topic}' on {broker}"), why);
        let why = self.why(&link.cluster);
        match self {
            Trouble::Final(error) => error,
            Trouble::Code(KafkaCode::UnknownTopicOrPartition) => failed(why).hint(format!(
                "The broker does not create it by itself. To create it: kafka-topics.sh \
                     --bootstrap-server {broker} --create --topic {topic}"
            )),
            Trouble::Connection(why, Some(hint)) => failed(why).hint(hint),
            _ => failed(why),
        }
    }
}

impl From<KafkaError> for Trouble {
    fn from(error: KafkaError) -> Trouble {
        match error {
            KafkaError::Kafka(code)
            | KafkaError::TopicPartitionError {
                error_code: code, ..
            } => Trouble::Code(code),
            KafkaError::UnsupportedCompression => Trouble::Final(
                Error::failed(
                    "cannot read a message",
                    "it is compressed, which crate kafka can't undo as it is built here",
                )
                .hint("Any -X property chooses the other client, which can: -X check.crcs=true."),
            ),
            KafkaError::ArcSelf(inner) => match &*inner {
                KafkaError::Kafka(code) => Trouble::Code(*code),
                other => Trouble::lost(other),
            },
            KafkaError::NoHostReachable => Trouble::lost("no broker can be reached"),
            KafkaError::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Trouble::Connection("the broker closed the connection".into(), Some(LOGIN))
            }
            other => Trouble::lost(other),
        }
    }
}

/// A broker's error code as half a sentence.
fn in_words(code: KafkaCode) -> &'static str {
    match code {
        KafkaCode::OffsetOutOfRange => "the log does not have that offset",
        KafkaCode::CorruptMessage => "a message was damaged on its way",
        KafkaCode::UnknownTopicOrPartition => "the topic is not there",
        KafkaCode::LeaderNotAvailable => "the partition has no leader at the moment",
        KafkaCode::NotLeaderForPartition => "the partition has another leader now",
        KafkaCode::RequestTimedOut => "the replicas did not acknowledge in time",
        KafkaCode::BrokerNotAvailable | KafkaCode::ReplicaNotAvailable => {
            "a broker or replica is not available"
        }
        KafkaCode::MessageSizeTooLarge | KafkaCode::RecordListTooLarge => {
            "it is larger than the broker takes (its message.max.bytes)"
        }
        KafkaCode::GroupLoadInProgress
        | KafkaCode::GroupCoordinatorNotAvailable
        | KafkaCode::NotCoordinatorForGroup => "the group's coordinator is not ready",
        KafkaCode::InvalidTopic => "the broker does not take that topic's name",
        KafkaCode::NotEnoughReplicas | KafkaCode::NotEnoughReplicasAfterAppend => {
            "too few replicas are in sync (min.insync.replicas)"
        }
        KafkaCode::TopicAuthorizationFailed => "you are not allowed to use this topic",
        KafkaCode::GroupAuthorizationFailed => "you are not allowed to use this consumer group",
        KafkaCode::ClusterAuthorizationFailed => "you are not allowed to use this cluster",
        KafkaCode::UnsupportedVersion => "the broker no longer speaks this version",
        KafkaCode::Unknown => "the broker had an error of its own, which its log may tell",
        // Crate kafka knows none of the newer codes.
        _ => "the broker answered with an error that this client does not know",
    }
}

/// Whether trying again can't help.
fn is_final(code: KafkaCode) -> bool {
    matches!(
        code,
        KafkaCode::InvalidTopic
            | KafkaCode::TopicAuthorizationFailed
            | KafkaCode::GroupAuthorizationFailed
            | KafkaCode::ClusterAuthorizationFailed
            | KafkaCode::UnsupportedVersion
    )
}

type Job = Box<dyn FnOnce(&mut KafkaClient) + Send>;

/// A `KafkaClient` on a thread of its own. Dropping it lets that thread end when it can.
struct Session {
    jobs: mpsc::Sender<Job>,
    /// The leaders that could be connected to.
    reached: BTreeSet<String>,
}

impl Session {
    fn open(servers: Vec<String>) -> Result<Session> {
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::Builder::new()
            .name("crate kafka".into())
            .spawn(move || {
                let mut client = KafkaClient::new(servers);
                client.set_client_id("kafka-chat".into());
                client.set_fetch_min_bytes(1);
                // A broker checks what is appended, and TCP what travels. librdkafka doesn't check it
                // again either, and here it would take longer than all else that reading does.
                client.set_fetch_crc_validation(false);
                client.set_group_offset_storage(Some(GroupOffsetStorage::Kafka));
                for job in queue {
                    job(&mut client);
                }
            })
            .map_err(|why| Error::failed("cannot start a thread for the connection", why))?;
        Ok(Session {
            jobs,
            reached: BTreeSet::new(),
        })
    }

    /// Runs `work` on the client, and waits for it at most `patience`.
    fn call<T: Send + 'static>(
        &self,
        patience: Duration,
        work: impl FnOnce(&mut KafkaClient) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, Trouble> {
        let (tell, told) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |client| {
            let _ = tell.send(work(client));
        });
        // A failed send leaves `told` without a sender, which the next line sees.
        let _ = self.jobs.send(job);
        match told.recv_timeout(patience) {
            Ok(result) => result.map_err(Trouble::from),
            Err(RecvTimeoutError::Timeout) => Err(Trouble::lost(format!(
                "no answer within {} seconds",
                patience.as_secs()
            ))),
            Err(RecvTimeoutError::Disconnected) => Err(Trouble::lost("the answer made no sense")),
        }
    }
}

/// A session for one topic, made anew whenever it breaks.
struct Link {
    cluster: V0,
    topic: String,
    listener: Listener,
    session: Option<Session>,
    /// The leader of each partition, as `host:port`.
    leaders: BTreeMap<i32, String>,
    /// All partitions of the topic.
    partitions: BTreeSet<i32>,
    /// The only partition whose leader matters, if not all do.
    only: Option<i32>,
    /// The partitions that have no leader, or one that can't be reached: why.
    leaderless: BTreeMap<i32, Option<Unreached>>,
    /// When the partitions and their leaders are to be looked at again.
    look_again: Instant,
    down: Option<Down>,
}

/// A leader that can't be connected to.
#[derive(Clone)]
struct Unreached {
    host: String,
    why: String,
}

/// A connection that is lost.
struct Down {
    attempts: u32,
    told: bool,
}

impl Link {
    /// Does something that has to succeed now or not at all, once the topic is there with leaders.
    ///
    /// A topic that is being created, and a broker that is being replaced, are waited for.
    fn at_once<T>(&mut self, mut work: impl FnMut(&mut Link) -> Result<T, Trouble>) -> Result<T> {
        let start = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut known = self.session.is_some() && Instant::now() < self.look_again;
        loop {
            let ready = if known { Ok(()) } else { self.connect() };
            let done = ready
                .and_then(|()| self.all_led())
                .and_then(|()| work(self));
            let trouble = match done {
                Ok(done) => return Ok(done),
                Err(trouble) => trouble,
            };
            known = false;
            let patience = match trouble {
                Trouble::Code(_) => TOPIC,
                _ => REQUEST,
            };
            if trouble.is_final() || start.elapsed() > patience {
                return Err(trouble.error(self));
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    /// One attempt at a session that knows all partitions and their leaders.
    fn connect(&mut self) -> Result<(), Trouble> {
        if self.session.is_none() {
            if let Some(revive) = &self.cluster.revive {
                revive().map_err(Trouble::lost)?;
            }
            // Crate kafka asks them in order, and would stay with a first one that never answers.
            let mut servers = self.cluster.servers.clone();
            let attempts = self.down.as_ref().map_or(0, |down| down.attempts as usize);
            let first = attempts % servers.len().max(1);
            servers.rotate_left(first);
            self.session = Some(Session::open(servers).map_err(Trouble::Final)?);
        }
        self.refresh()
    }

    /// Loads the topic's metadata: which creates a missing topic, where the broker allows that.
    fn refresh(&mut self) -> Result<(), Trouble> {
        let start = Instant::now();
        let topic = self.topic.clone();
        let leaders = self.call(REQUEST, move |client| {
            client.load_metadata(&[&topic])?;
            let leaders = client.topics().partitions(&topic).map(|partitions| {
                partitions
                    .iter()
                    .map(|p| (p.id(), p.leader().map(|leader| leader.host().to_string())))
                    .collect::<BTreeMap<_, _>>()
            });
            Ok(leaders.unwrap_or_default())
        })?;
        if leaders.is_empty() {
            return Err(Trouble::Code(KafkaCode::UnknownTopicOrPartition));
        }
        self.partitions = leaders.keys().copied().collect();
        let led = |(p, host): (&i32, &Option<String>)| Some((*p, host.clone()?));
        self.leaders = leaders.iter().filter_map(led).collect();
        let only = self.only;
        let wanted = leaders
            .iter()
            .filter(move |(partition, _)| only.is_none_or(|only| only == **partition));
        let hosts = wanted.clone().filter_map(|(_, host)| host.as_ref());
        let hosts: BTreeSet<&String> = hosts.collect();
        let unreached = self.unreached(&hosts);
        self.leaderless = wanted
            .filter_map(|(partition, host)| match host {
                Some(host) => Some((*partition, Some(unreached.get(host)?.clone()))),
                None => Some((*partition, None)),
            })
            .collect();
        let wait = if hosts.len() > 1 {
            SHORT_POLL
        } else {
            LONG_POLL
        };
        self.call(REQUEST, move |client| client.set_fetch_max_wait_time(wait))?;
        let age = if self.leaderless.is_empty() {
            METADATA_AGE
        } else {
            // To find an address that does not answer takes seconds in which nothing is read.
            LEADERLESS_AGE.max(start.elapsed() * 10)
        };
        self.look_again = Instant::now() + age;
        Ok(())
    }

    /// Which of the leaders can't be connected to, and why: crate kafka would try that for minutes.
    fn unreached(&mut self, hosts: &BTreeSet<&String>) -> BTreeMap<String, Unreached> {
        let mut unreached = BTreeMap::new();
        let Some(session) = &mut self.session else {
            return unreached;
        };
        for &host in hosts {
            // One that is alone, and was given, has just answered.
            let known = hosts.len() == 1 && self.cluster.servers.contains(host);
            if known || session.reached.contains(host) {
                continue;
            }
            match probe::connect(host, REQUEST) {
                Ok(_) => {
                    session.reached.insert(host.clone());
                }
                Err(error) => {
                    let (host, why) = (host.clone(), error.without_hint().to_string());
                    unreached.insert(host.clone(), Unreached { host, why });
                }
            }
        }
        unreached
    }

    /// Fails if a partition that matters has no leader that can be reached.
    fn all_led(&self) -> Result<(), Trouble> {
        match self.leaderless.values().next() {
            None => Ok(()),
            Some(None) => Err(Trouble::Code(KafkaCode::LeaderNotAvailable)),
            Some(Some(Unreached { host, why })) if self.cluster.servers.contains(host) => {
                Err(Trouble::lost(why))
            }
            Some(Some(Unreached { why, .. })) => Err(Trouble::Connection(
                format!(
                    "that broker was reached, but sends its clients on to another address: {why}"
                ),
                Some(ADVERTISED),
            )),
        }
    }

    fn call<T: Send + 'static>(
        &mut self,
        patience: Duration,
        work: impl FnOnce(&mut KafkaClient) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, Trouble> {
        let Some(session) = &self.session else {
            return Err(Trouble::lost("there is no connection"));
        };
        let result = session.call(patience, work);
        if let Err(Trouble::Connection(..)) = &result {
            self.session = None;
        }
        result
    }

    fn offsets(&mut self, which: FetchOffset) -> Result<Offsets, Trouble> {
        let topic = self.topic.clone();
        let offsets = self.call(REQUEST, move |client| {
            client.fetch_topic_offsets(&topic, which)
        })?;
        Ok(offsets.iter().map(|o| (o.partition, o.offset)).collect())
    }

    /// Takes note of trouble with a call, and pauses before the next one, not beyond `end`.
    ///
    /// The user hears of it when new attempts have failed as well: a broker that is back by then
    /// was hardly away.
    fn trouble(&mut self, trouble: &Trouble, end: Instant) {
        let down = self.down.get_or_insert(Down {
            attempts: 0,
            told: false,
        });
        down.attempts += 1;
        let (broker, why) = (self.cluster.broker.clone(), trouble.why(&self.cluster));
        let (event, attempts) = match trouble {
            Trouble::Connection(..) => (Event::Lost { broker, why }, 2),
            // An election takes a moment, and a few attempts.
            _ => (Event::Refused { broker, why }, 5),
        };
        if down.attempts >= attempts && !down.told {
            down.told = true;
            (self.listener)(event);
        }
        let pause = FIRST_PAUSE * 2u32.saturating_pow((down.attempts - 1).min(10));
        thread::sleep(
            pause
                .min(LONGEST_PAUSE)
                .min(end.saturating_duration_since(Instant::now())),
        );
    }

    /// A call has succeeded.
    fn well(&mut self) {
        if self.down.take().is_some_and(|down| down.told) {
            (self.listener)(Event::Back {
                broker: self.cluster.broker.clone(),
            });
        }
    }
}

/// The partition for a key: Kafka's own choice (murmur2), so that all clients agree.
fn partition_for(key: &[u8], partitions: &BTreeSet<i32>) -> i32 {
    let n = partitions.len() as u32;
    let nth = (murmur2(key) & 0x7fff_ffff) % n.max(1);
    partitions.iter().nth(nth as usize).copied().unwrap_or(0)
}

/// MurmurHash2 with Kafka's seed (`org.apache.kafka.common.utils.Utils.murmur2`).
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (n, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * n);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// Lines on their way, their bytes in one piece.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Each line's number, and where its value ends in `bytes`.
    lines: Vec<(u64, usize)>,
    /// Its size as magic-0 messages.
    size: usize,
    /// When its first line was handed over.
    since: Option<Instant>,
}

impl Batch {
    fn value(&self, n: usize) -> &[u8] {
        let start = n.checked_sub(1).map_or(0, |before| self.lines[before].1);
        &self.bytes[start..self.lines[n].1]
    }
}

/// What the programs' thread and the sending thread share.
#[derive(Default)]
struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    filling: Batch,
    sending: bool,
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for lines, and takes all there are: so batches form by themselves, from the lines that
    /// come while a request is under way. None when no more will come.
    fn take(&self) -> Option<Batch> {
        let mut state = self.lock();
        state.sending = false;
        self.changed.notify_all();
        while state.filling.lines.is_empty() {
            if state.closed {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.sending = true;
        self.changed.notify_all();
        Some(std::mem::take(&mut state.filling))
    }
}

struct V0Producer {
    queue: Arc<Queue>,
    key_bytes: usize,
    reports: Reports,
}

impl Producer for V0Producer {
    fn send(&mut self, line: u64, value: &[u8]) {
        let bytes = self.key_bytes + value.len();
        if bytes > MAX_RECORD_BYTES {
            self.reports.send(Report::Failed {
                first: line,
                count: 1,
                excerpt: excerpt(value),
                why: Error::too_large(),
            });
            return;
        }
        let size = bytes + MESSAGE_OVERHEAD;
        let mut state = self.queue.lock();
        while !state.filling.lines.is_empty() && state.filling.size + size > BATCH_BYTES {
            state = self
                .queue
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let batch = &mut state.filling;
        batch.since.get_or_insert_with(Instant::now);
        batch.bytes.extend_from_slice(value);
        batch.lines.push((line, batch.bytes.len()));
        batch.size += size;
        if batch.lines.len() == 1 {
            self.queue.changed.notify_all();
        }
    }
}

impl Drop for V0Producer {
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.changed.notify_all();
    }
}

/// Whether lines that were sent without an acknowledgement are in the log.
#[derive(Clone, Copy)]
enum Unclear {
    /// They are not: to be sent.
    No,
    /// Nobody knows: looked for, and sent again if they are not there.
    Maybe,
    /// The leader has them, by this code, and shows them when its replicas have them, too. Sent
    /// again only if that leader is lost.
    Written(KafkaCode),
}

/// The sending thread's side of a producer.
struct Sending {
    link: Link,
    key: Vec<u8>,
    partition: i32,
    /// Behind the last record that is known to be in the partition: from here on, a batch whose
    /// acknowledgement was lost may lie.
    end: i64,
    delivery_timeout: Duration,
    reports: Reports,
}

impl Sending {
    fn run(mut self, queue: &Queue) {
        while let Some(batch) = queue.take() {
            let give_up = batch.since.unwrap_or_else(Instant::now) + self.delivery_timeout;
            let batch = Arc::new(batch);
            let all = batch.lines.len();
            self.deliver(&batch, 0, all, give_up);
        }
    }

    /// Brings the lines `from..to` of a batch into the log, each once, or reports them as failed.
    fn deliver(&mut self, batch: &Arc<Batch>, mut from: usize, to: usize, give_up: Instant) {
        let mut unclear = Unclear::No;
        while from < to {
            let trouble = match self.attempt(batch, &mut from, to, &mut unclear, give_up) {
                Ok(()) => {
                    self.link.well();
                    continue;
                }
                Err(trouble) => trouble,
            };
            match trouble {
                Trouble::Code(
                    KafkaCode::MessageSizeTooLarge
                    | KafkaCode::RecordListTooLarge
                    | KafkaCode::InvalidMessageSize,
                ) => {
                    if to - from == 1 {
                        self.give_up(batch, from, to, &Error::too_large());
                    } else {
                        // The topic takes less than usual; find the lines that are too large.
                        let half = from + (to - from) / 2;
                        self.deliver(batch, from, half, give_up);
                        self.deliver(batch, half, to, give_up);
                    }
                    return;
                }
                _ if trouble.is_final() => {
                    let error = trouble.error(&self.link);
                    return self.give_up(batch, from, to, &error);
                }
                Trouble::Code(
                    code @ (KafkaCode::RequestTimedOut | KafkaCode::NotEnoughReplicasAfterAppend),
                ) => unclear = Unclear::Written(code),
                // It may have been written all the same.
                Trouble::Connection(..)
                | Trouble::Code(KafkaCode::NetworkException | KafkaCode::Unknown) => {
                    unclear = Unclear::Maybe;
                }
                // It has not by this attempt, and the leader may be another by now.
                _ => {
                    self.link.session = None;
                    if let Unclear::Written(_) = unclear {
                        unclear = Unclear::Maybe;
                    }
                }
            }
            if Instant::now() >= give_up {
                let error = Error::failed(
                    format!(
                        "cannot write to topic '{}' on {}",
                        self.link.topic, self.link.cluster.broker
                    ),
                    format!(
                        "not acknowledged within {} seconds ({})",
                        self.delivery_timeout.as_secs(),
                        trouble.why(&self.link.cluster)
                    ),
                );
                return self.give_up(batch, from, to, &error);
            }
            self.link.trouble(&trouble, give_up);
        }
    }

    /// Sends lines `from..to` once, and moves `from` behind those that are in the log.
    fn attempt(
        &mut self,
        batch: &Arc<Batch>,
        from: &mut usize,
        to: usize,
        unclear: &mut Unclear,
        give_up: Instant,
    ) -> Result<(), Trouble> {
        if self.link.session.is_none() {
            self.link.connect()?;
            if let Err(trouble) = self.link.all_led() {
                self.link.session = None;
                return Err(trouble);
            }
        }
        if !matches!(unclear, Unclear::No) && !cfg!(feature = "test-no-read-back") {
            let (written, at) = self.read_back(batch, *from, to)?;
            if written > 0 {
                self.acknowledge(batch, *from, *from + written, at);
                *from += written;
            }
            if *from == to {
                return Ok(());
            }
            if let Unclear::Written(code) = *unclear {
                return Err(Trouble::Code(code));
            }
            *unclear = Unclear::No;
        }
        let (topic, partition, key) = (self.link.topic.clone(), self.partition, self.key.clone());
        let (lines, first) = (batch.clone(), *from);
        let left = give_up.saturating_duration_since(Instant::now());
        let patience = left.clamp(LAST_ATTEMPT, ACKNOWLEDGEMENT);
        // Longer than the broker's own, whose answer says more than none.
        let confirms = self
            .link
            .call(patience + patience.min(REQUEST), move |client| {
                client.produce_messages(
                    RequiredAcks::All,
                    patience,
                    (first..to).map(|n| {
                        ProduceMessage::new(&topic, partition, Some(&key), Some(lines.value(n)))
                    }),
                )
            })?;
        let confirm = confirms
            .iter()
            .flat_map(|topic| &topic.partition_confirms)
            .find(|confirm| confirm.partition == self.partition);
        match confirm.map(|confirm| confirm.offset) {
            Some(Ok(offset)) => {
                self.acknowledge(batch, *from, to, offset);
                *from = to;
                Ok(())
            }
            Some(Err(code)) => Err(Trouble::Code(code)),
            None => Err(Trouble::lost("the answer did not name the partition")),
        }
    }

    /// Looks for lines `from..to` behind the last known end: how many of them are there, and where.
    ///
    /// A batch is appended as one, so they lie one behind the other, and between those of other
    /// senders; the embedded broker, killed while it writes, can leave the first few. Another
    /// program that writes the same lines under the same name at the same moment can't be told
    /// from this one.
    fn read_back(
        &mut self,
        batch: &Batch,
        from: usize,
        to: usize,
    ) -> Result<(usize, i64), Trouble> {
        let end = self.settled_end()?;
        let (mut found, mut at, mut next) = (0, self.end, self.end);
        let mut size = FETCH_BYTES;
        while next < end && found < to - from {
            let (topic, partition) = (self.link.topic.clone(), self.partition);
            let responses = self.link.call(ACKNOWLEDGEMENT, move |client| {
                client.fetch_messages([
                    FetchPartition::new(&topic, partition, next).with_max_bytes(size)
                ])
            })?;
            let before = next;
            each_record(&responses, |partition, record| match record {
                Err(code) => Err(Trouble::Code(code)),
                Ok(record) if partition == self.partition && record.offset >= next => {
                    next = record.offset + 1;
                    if record.key != self.key {
                        return Ok(ControlFlow::Continue(()));
                    }
                    let matches = |n: usize| record.value == batch.value(n);
                    if matches(from + found) {
                        found += 1;
                    } else {
                        found = usize::from(matches(from));
                    }
                    if found == 1 {
                        at = record.offset;
                    }
                    Ok(match found == to - from {
                        true => ControlFlow::Break(()),
                        false => ControlFlow::Continue(()),
                    })
                }
                Ok(_) => Ok(ControlFlow::Continue(())),
            })?;
            if next == before {
                if size >= MOST_FETCH_BYTES {
                    break;
                }
                size *= 2;
            }
        }
        Ok((found, at))
    }

    /// The end of the partition, once nothing can come to lie before it any more.
    ///
    /// What was under way when the connection broke may be written a moment later. And what is
    /// written is not seen before all replicas have it, which after an election takes a moment, too.
    fn settled_end(&mut self) -> Result<i64, Trouble> {
        thread::sleep(STRAGGLING);
        let leader = self.link.leaders.get(&self.partition);
        let leader = leader.ok_or(Trouble::Code(KafkaCode::LeaderNotAvailable))?;
        let written = probe::end_of_log(leader, &self.link.topic, self.partition, REQUEST);
        let written = written.map_err(|why| {
            // Else the next attempt would ask the same one again.
            self.link.session = None;
            Trouble::lost(why)
        })?;
        let start = Instant::now();
        loop {
            let end = self.partition_end()?;
            if end >= written {
                return Ok(end);
            }
            if start.elapsed() > TOPIC {
                return Err(Trouble::Code(KafkaCode::NotEnoughReplicas));
            }
            thread::sleep(FIRST_PAUSE);
        }
    }

    /// The end of the partition, from its own leader alone: all others may be away.
    fn partition_end(&mut self) -> Result<i64, Trouble> {
        let (topic, partition, from) = (self.link.topic.clone(), self.partition, self.end);
        let responses = self.link.call(REQUEST + LONG_POLL, move |client| {
            client.fetch_messages([FetchPartition::new(&topic, partition, from).with_max_bytes(1)])
        })?;
        let part = responses
            .iter()
            .flat_map(|response| response.topics())
            .flat_map(|topic| topic.partitions())
            .find(|part| part.partition() == partition)
            .ok_or(Trouble::Code(KafkaCode::LeaderNotAvailable))?;
        match part.data() {
            Ok(data) => Ok(data.highwatermark_offset()),
            Err(error) => match Trouble::from(KafkaError::ArcSelf(error)) {
                // The topic was deleted and made again.
                Trouble::Code(KafkaCode::OffsetOutOfRange) => {
                    let ends = self.link.offsets(FetchOffset::Latest)?;
                    Ok(ends.get(&partition).copied().unwrap_or(0))
                }
                other => Err(other),
            },
        }
    }

    /// Reports lines `from..to` as acknowledged, in runs of numbers without a gap.
    fn acknowledge(&mut self, batch: &Batch, from: usize, to: usize, offset: i64) {
        let lines = &batch.lines[from..to];
        let mut at = offset;
        for run in lines.chunk_by(|a, b| a.0 + 1 == b.0) {
            let count = run.len() as u64;
            self.reports.send(Report::Acknowledged {
                first: run[0].0,
                count,
                partition: self.partition,
                offset: at,
            });
            at += run.len() as i64;
        }
        // Smaller than before, if the topic was deleted and made again.
        self.end = at;
    }

    fn give_up(&self, batch: &Batch, from: usize, to: usize, error: &Error) {
        let mut n = from;
        for run in batch.lines[from..to].chunk_by(|a, b| a.0 + 1 == b.0) {
            self.reports.send(Report::Failed {
                first: run[0].0,
                count: run.len() as u64,
                excerpt: excerpt(batch.value(n)),
                why: error.clone(),
            });
            n += run.len();
        }
    }
}

/// Gives each record, or each partition's error, to `each`, until that says `Break`.
fn each_record<'a>(
    responses: &'a [Response],
    mut each: impl FnMut(i32, Result<Record<'a>, KafkaCode>) -> Result<ControlFlow<()>, Trouble>,
) -> Result<(), Trouble> {
    for response in responses {
        for topic in response.topics() {
            for part in topic.partitions() {
                let partition = part.partition();
                let data = match part.data() {
                    Ok(data) => data,
                    Err(error) => match Trouble::from(KafkaError::ArcSelf(error)) {
                        Trouble::Code(code) => {
                            if each(partition, Err(code))?.is_break() {
                                return Ok(());
                            }
                            continue;
                        }
                        other => return Err(other),
                    },
                };
                for message in data.messages() {
                    let record = Record {
                        partition,
                        offset: message.offset,
                        key: message.key,
                        value: message.value,
                    };
                    if each(partition, Ok(record))?.is_break() {
                        return Ok(());
                    }
                }
            }
        }
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct V0Consumer {
    events: Arc<Mutex<Vec<Event>>>,
    link: Link,
    position: Offsets,
    /// The first record given of each partition: its offset and mark.
    first: BTreeMap<i32, (i64, u64)>,
    fetch_bytes: i32,
    /// Fetched, and not all given yet: `Break` came in between.
    pending: Vec<Response>,
}

impl Consumer for V0Consumer {
    fn poll(
        &mut self,
        wait: Duration,
        each: &mut dyn FnMut(Record<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Event>> {
        let end = Instant::now() + wait;
        loop {
            let missed = |event: &Event| matches!(event, Event::Missed { .. });
            if lock(&self.events).iter().any(missed) {
                return Ok(std::mem::take(&mut *lock(&self.events)));
            }
            let given = match self.fetch() {
                Ok(()) => self.give(each),
                Err(trouble) => Err(trouble),
            };
            match given {
                Ok(true) => return Ok(std::mem::take(&mut *lock(&self.events))),
                Ok(false) => {}
                Err(trouble) if trouble.is_final() => return Err(trouble.error(&self.link)),
                Err(trouble) => {
                    if matches!(trouble, Trouble::Code(_)) {
                        self.link.session = None;
                    }
                    self.link.trouble(&trouble, end);
                }
            }
            if Instant::now() >= end {
                return Ok(std::mem::take(&mut *lock(&self.events)));
            }
        }
    }

    fn position(&self) -> Offsets {
        self.position.clone()
    }

    fn end_offsets(&mut self) -> Result<Offsets> {
        self.link.at_once(|link| link.offsets(FetchOffset::Latest))
    }
}

impl V0Consumer {
    /// Fetches from all partitions, unless something fetched is still to be given.
    fn fetch(&mut self) -> Result<(), Trouble> {
        if !self.pending.is_empty() {
            return Ok(());
        }
        if self.link.session.is_none() || Instant::now() >= self.link.look_again {
            self.link.connect()?;
        }
        self.adopt();
        let (topic, size) = (self.link.topic.clone(), self.fetch_bytes);
        let mut position = self.position.clone();
        position.retain(|partition, _| !self.link.leaderless.contains_key(partition));
        if position.is_empty() {
            self.link.all_led()?;
        }
        self.pending = self.link.call(REQUEST + LONG_POLL, move |client| {
            client.fetch_messages(position.iter().map(|(partition, offset)| {
                FetchPartition::new(&topic, *partition, *offset).with_max_bytes(size)
            }))
        })?;
        self.link.well();
        Ok(())
    }

    /// A partition that was added since is read from its beginning. One that is not there any more,
    /// since the topic was deleted and made again with fewer, is left alone.
    fn adopt(&mut self) {
        let partitions = &self.link.partitions;
        self.position
            .retain(|partition, _| partitions.contains(partition));
        for partition in partitions {
            self.position.entry(*partition).or_insert(0);
        }
    }

    /// Gives what was fetched to `each`. Says whether there was anything.
    fn give(
        &mut self,
        each: &mut dyn FnMut(Record<'_>) -> ControlFlow<()>,
    ) -> Result<bool, Trouble> {
        let responses = std::mem::take(&mut self.pending);
        let (mut some, mut stopped) = (false, false);
        let mut failed = Vec::new();
        let (position, first) = (&mut self.position, &mut self.first);
        each_record(&responses, |partition, record| {
            let at = position.entry(partition).or_insert(0);
            match record {
                Err(code) => failed.push((partition, code)),
                Ok(record) if record.offset >= *at => {
                    *at = record.offset + 1;
                    some = true;
                    first
                        .entry(partition)
                        .or_insert_with(|| (record.offset, record.fingerprint()));
                    if each(record).is_break() {
                        stopped = true;
                        return Ok(ControlFlow::Break(()));
                    }
                }
                Ok(_) => {}
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if stopped {
            self.pending = responses;
            return Ok(true);
        }
        for (partition, code) in failed {
            match code {
                KafkaCode::OffsetOutOfRange => self.resume(partition)?,
                other => return Err(Trouble::Code(other)),
            }
        }
        if some {
            self.fetch_bytes = FETCH_BYTES;
            return Ok(true);
        }
        let behind = self.behind(&responses);
        if behind.is_empty() {
            return Ok(false);
        }
        if self.fetch_bytes < MOST_FETCH_BYTES {
            self.fetch_bytes = self.fetch_bytes.saturating_mul(2).min(MOST_FETCH_BYTES);
        } else {
            // Nothing is as large as that: these offsets are markers of transactions, or compacted.
            self.position.extend(behind);
            self.fetch_bytes = FETCH_BYTES;
        }
        // The broker did not hold this fetch, and may not hold the next.
        thread::sleep(FIRST_PAUSE);
        Ok(false)
    }

    /// Where the log goes on behind the position, though nothing came, and its end: then the next
    /// record is larger than what was asked for, or there is none.
    fn behind(&self, responses: &[Response]) -> Offsets {
        responses
            .iter()
            .flat_map(|response| response.topics())
            .flat_map(|topic| topic.partitions())
            .filter_map(|part| {
                let at = self.position.get(&part.partition()).copied();
                let data = part.data().ok()?;
                let end = data.highwatermark_offset();
                let is_behind = data.messages().is_empty() && at < Some(end);
                is_behind.then_some((part.partition(), end))
            })
            .collect()
    }

    /// The log does not have the position: goes on where it does, and says so.
    ///
    /// A log that lost its newest records is gone on with at its end: what is left of it has been
    /// given. A new one of the same name, at its beginning.
    fn resume(&mut self, partition: i32) -> Result<(), Trouble> {
        let in_partition = |offsets: Offsets| offsets.get(&partition).copied().unwrap_or(0);
        let oldest = in_partition(self.link.offsets(FetchOffset::Earliest)?);
        let end = in_partition(self.link.offsets(FetchOffset::Latest)?);
        let wanted = self.position.get(&partition).copied().unwrap_or(0);
        if (oldest..=end).contains(&wanted) {
            return Ok(());
        }
        let resumed = if wanted > end && self.is_same_log(partition, oldest, end)? {
            end
        } else {
            self.first.remove(&partition);
            oldest
        };
        self.position.insert(partition, resumed);
        (self.link.listener)(Event::Missed {
            partition,
            wanted,
            resumed,
            end,
        });
        Ok(())
    }

    /// Whether the log is still the one whose first record was given earlier, as far as that can
    /// be told: this version of the protocol has no word for it.
    fn is_same_log(&mut self, partition: i32, oldest: i64, end: i64) -> Result<bool, Trouble> {
        let Some(&(first, mark)) = self.first.get(&partition) else {
            return Ok(false);
        };
        if first >= end {
            return Ok(false);
        }
        // A new log begins at 0.
        if first < oldest {
            return Ok(true);
        }
        let mut found = None;
        let mut size = FETCH_BYTES;
        while found.is_none() && size <= MOST_FETCH_BYTES {
            let topic = self.link.topic.clone();
            let responses = self.link.call(REQUEST + LONG_POLL, move |client| {
                client.fetch_messages([
                    FetchPartition::new(&topic, partition, first).with_max_bytes(size)
                ])
            })?;
            each_record(&responses, |_, record| match record {
                Err(code) => Err(Trouble::Code(code)),
                Ok(record) if record.offset < first => Ok(ControlFlow::Continue(())),
                Ok(record) => {
                    found = Some((record.offset, record.fingerprint()));
                    Ok(ControlFlow::Break(()))
                }
            })?;
            size *= 2;
        }
        Ok(found == Some((first, mark)))
    }
}

struct V0Groups {
    cluster: V0,
    links: BTreeMap<String, Link>,
}

impl V0Groups {
    fn with<T>(
        &mut self,
        topic: &Name,
        work: impl Fn(&mut Link) -> Result<T, Trouble>,
    ) -> Result<T> {
        self.links
            .entry(topic.to_string())
            .or_insert_with(|| self.cluster.link(topic, Arc::new(|_| {})))
            .at_once(|link| work(link))
    }
}

impl GroupOffsets for V0Groups {
    fn committed(&mut self, group: &str, topic: &Name) -> Result<Offsets> {
        self.with(topic, |link| {
            let (group, topic) = (group.to_string(), link.topic.clone());
            let offsets = link.call(REQUEST, move |client| {
                client.fetch_group_topic_offset(&group, &topic)
            })?;
            Ok(offsets
                .iter()
                .filter(|o| o.offset >= 0)
                .map(|o| (o.partition, o.offset))
                .collect())
        })
    }

    fn commit(&mut self, group: &str, topic: &Name, offsets: &Offsets) -> Result<()> {
        self.with(topic, |link| {
            let (group, topic, offsets) = (group.to_string(), link.topic.clone(), offsets.clone());
            link.call(REQUEST, move |client| {
                client.commit_offsets(
                    &group,
                    offsets
                        .iter()
                        .map(|(partition, offset)| CommitOffset::new(&topic, *partition, *offset)),
                )
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values are those of `UtilsTest.testMurmur2` in Kafka's own source.
    #[test]
    fn the_hash_is_kafkas() {
        for (key, hash) in [
            ("21", -973_932_308i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            (
                "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }

    #[test]
    fn the_partition_is_kafkas() {
        let partitions = BTreeSet::from([0, 1, 2, 3, 4, 5]);
        for (key, partition) in [
            ("21", 0),
            ("foobar", 0),
            ("a-little-bit-long-string", 2),
            ("a-little-bit-longer-string", 5),
            ("abc", 3),
        ] {
            assert_eq!(
                partition_for(key.as_bytes(), &partitions),
                partition,
                "{key}"
            );
        }
    }
}
