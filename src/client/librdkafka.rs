//! Kafka of today, and secured clusters: the client that stands on librdkafka.
//!
//! What librdkafka knows and we keep out of the way of: batches, retries, idempotence, leaders,
//! TLS and SASL. What is here: its settings, its errors as sentences, and the waiting for a topic.
//! It doesn't know which broker speaks, as long as it is Kafka 0.11 or later; nor what lines mean.
//!
//! Settings and their defaults: <https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md>

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::ops::{ControlFlow, Deref};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::client::{Client, ClientContext};
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{
    Cluster, Consumer, Event, MAX_RECORD_BYTES, Offsets, Options, Producer, Record, Report, Start,
    excerpt,
};
use crate::error::{Error, Result};
use crate::name::Name;

/// How long a cluster may take to answer, so that an error is there within five seconds.
const REACH: Duration = Duration::from_millis(4500);

/// How long the first question to a leader may take, on which nothing depends but time.
const FIRST: Duration = Duration::from_millis(100);

/// How long a topic may take to be there, with a leader for every partition.
const CREATE: Duration = Duration::from_secs(10);

/// How often a consumer looks whether its topic has got more partitions.
const GROWTH: Duration = Duration::from_secs(30);

/// How often a lost connection is looked at.
const LOST: Duration = Duration::from_secs(1);

/// How long a producer sleeps before it looks for news of its lines, and when it has none under way.
const BUSY: Duration = Duration::from_millis(1);
const IDLE: Duration = Duration::from_millis(100);

/// How long the first line may take before the cluster is asked for news, and again after twice that
/// time.
const STUCK: Duration = Duration::from_millis(4);

/// How often it is looked whether a consumer is closed.
const CLOSING: Duration = Duration::from_millis(1);

/// How many bytes a batch has at most, as librdkafka has it by default.
const BATCH: usize = 1_000_000;

/// The most records given in one poll, so that its caller gets a turn while more keep coming.
const POLL_RECORDS: usize = 10_000;

/// Settings of every client. A user's own come on top of these.
const SETTINGS: &[(&str, &str)] = &[
    ("client.id", "kafka-chat"),
    // librdkafka waits half of this before it looks for a broker again, also when it starts.
    ("reconnect.backoff.ms", "20"),
    // Its default, 10 s, is long for a person who waits for a broker to be back.
    ("reconnect.backoff.max.ms", "2000"),
    // Less than REACH, so that an address that swallows packets is named as the reason.
    ("socket.connection.setup.timeout.ms", "4000"),
    // Its default is a minute, in which a broker that stands still goes unnoticed.
    ("socket.timeout.ms", "10000"),
    ("socket.keepalive.enable", "true"),
    // Nobody has asked for figures of this client to be sent to the cluster (KIP-714).
    ("enable.metrics.push", "false"),
];

const PRODUCER: &[(&str, &str)] = &[
    ("enable.idempotence", "true"),
    // With more than one, lines get lost. Of a producer that it does not know yet, a broker takes a
    // batch of any sequence; so if it refuses the first one, as it does for a moment when the topic
    // is new, and takes the second, librdkafka believes the first one to be written, too.
    ("max.in.flight.requests.per.connection", "1"),
    // A line leaves at once. Batches form by themselves, from the lines that come while others are
    // under way: to wait for more makes a pipe no faster, and a program behind one slower.
    ("linger.ms", "0"),
    // As Kafka's Java clients and the other client here do it: a sender's lines share a partition.
    ("partitioner", "murmur2_random"),
    // Bounds the memory of a pipe that is faster than the broker.
    ("queue.buffering.max.kbytes", "6144"),
    ("message.max.bytes", "1048588"),
];

const CONSUMER: &[(&str, &str)] = &[
    // librdkafka hands over assigned partitions only to a consumer with a group. Nothing is ever
    // joined or committed under this name.
    ("group.id", "kafka-chat"),
    ("allow.auto.create.topics", "true"),
    // Bounds the memory of a reader that is slower than the broker …
    ("queued.max.messages.kbytes", "1024"),
    // … lets the broker prepare one part while the one before it is read …
    ("fetch.message.max.bytes", "262144"),
    // … and goes on at once when there is room again; the default is a second.
    ("fetch.queue.backoff.ms", "1"),
    ("fetch.error.backoff.ms", "100"),
];

/// What the consumers here rely on, whatever a user sets.
const CONSUMER_FIXED: &[(&str, &str)] = &[
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    // The last record may be one that is not given, such as the marker that ends a transaction.
    ("enable.partition.eof", "true"),
    // An offset that is gone must be told, not jumped over.
    ("auto.offset.reset", "error"),
];

/// Settings that librdkafka knows under two names. They are kept under the first, so that of two
/// values the one given last counts.
const ALIASES: &[(&str, &str)] = &[
    ("acks", "request.required.acks"),
    ("bootstrap.servers", "metadata.broker.list"),
    ("compression.codec", "compression.type"),
    ("delivery.timeout.ms", "message.timeout.ms"),
    ("linger.ms", "queue.buffering.max.ms"),
    ("max.in.flight", "max.in.flight.requests.per.connection"),
    ("max.partition.fetch.bytes", "fetch.message.max.bytes"),
    ("retries", "message.send.max.retries"),
    ("sasl.mechanism", "sasl.mechanisms"),
];

/// Checks the properties: one that librdkafka does not know, or a value that it does not take, is a
/// usage error.
///
/// It does not connect. The first producer, consumer or group does, which must do so anyway, and
/// says within five seconds why it can't: a connection only to try would double what a short-lived
/// program takes to start.
pub(super) fn connect(options: &Options) -> Result<Box<dyn Cluster>> {
    let cluster = Librdkafka {
        servers: options.servers.clone(),
        properties: options.properties.clone(),
    };
    cluster
        .config(&[], &[])
        .create_native_config()
        .map_err(|error| refused(&error))?;
    Ok(Box::new(cluster))
}

type Listener = Arc<dyn Fn(Event) + Send + Sync>;

struct Librdkafka {
    servers: Vec<String>,
    properties: Vec<(String, String)>,
}

impl Librdkafka {
    /// Settings of a client: ours, over them the user's, over them those that can't be changed.
    fn config(&self, ours: &[(&str, &str)], fixed: &[(&str, &str)]) -> ClientConfig {
        let theirs = self.properties.iter();
        let theirs = theirs.map(|(name, value)| (name.as_str(), value.as_str()));
        let mut config = ClientConfig::new();
        for (name, value) in SETTINGS
            .iter()
            .chain(ours)
            .copied()
            .chain(theirs)
            .chain(fixed.iter().copied())
        {
            let alias = ALIASES.iter().find(|(_, other)| *other == name);
            config.set(alias.map_or(name, |(first, _)| first), value);
        }
        if !self.servers.is_empty() {
            config.set("bootstrap.servers", self.servers.join(","));
        }
        config.set_log_level(match config.get("debug") {
            Some(_) => RDKafkaLogLevel::Debug,
            None => RDKafkaLogLevel::Info,
        });
        config
    }

    fn link(&self, listener: Option<Listener>) -> Arc<Link> {
        Arc::new(Link {
            servers: self.servers.clone(),
            listener,
            log: self.properties.iter().any(|(name, _)| name == "debug"),
            lost: AtomicBool::new(false),
            seen: Mutex::default(),
        })
    }

    /// Waits for the topic, and looks closer at why a broker was not trusted.
    fn await_topic<R: Send + Sync>(
        &self,
        link: &Link,
        client: &Client<Context<R>>,
        pause: &dyn Fn(Duration),
        doing: &str,
        topic: &str,
    ) -> Result<Leaders> {
        await_topic(link, client, pause, doing, topic).map_err(|error| {
            match link.seen().untrusted && self.only_the_name_is_wrong(topic) {
                true => Error::failed(
                    link.cannot_reach(),
                    "its certificate is made out for another host name",
                )
                .hint("Name the broker as its certificate does."),
                false => error,
            }
        })
    }

    /// Whether a broker whose certificate was refused passes once its host name is not looked at:
    /// OpenSSL's error does not say which of the two it was.
    ///
    /// No password is at risk: this attempt leaves the login out.
    fn only_the_name_is_wrong(&self, topic: &str) -> bool {
        let unnamed = [
            ("ssl.endpoint.identification.algorithm", "none"),
            ("security.protocol", "ssl"),
        ];
        let mut config = self.config(&[], &unnamed);
        config.remove("sasl.mechanism").remove("sasl.password");
        let link = self.link(None);
        let Ok(reader) = Reader::create(&config, &link) else {
            return false;
        };
        let pause = |pause| serve(&reader, pause);
        let answer = link.insist(REACH / 2, &pause, |patience| {
            Ok(reader.fetch_metadata(Some(topic), patience).ok())
        });
        // A broker that wants a login closes the connection only after TLS.
        let seen = link.seen();
        !seen.untrusted && (matches!(answer, Ok(Some(_))) || seen.trouble.is_some())
    }
}

impl Cluster for Librdkafka {
    fn producer(
        &self,
        sender: &Name,
        topic: &Name,
        delivery_timeout: Duration,
        reports: super::Reports,
    ) -> Result<Box<dyn Producer>> {
        let to = reports.clone();
        let listener: Listener = Arc::new(move |event| to.send(Report::Connection(event)));
        let timeout = delivery_timeout.as_millis().to_string();
        let mut settings = PRODUCER.to_vec();
        settings.push(("delivery.timeout.ms", &timeout));
        let link = self.link(Some(listener));
        let doing = format!(
            "cannot write to topic {} at {}",
            topic.as_str(),
            link.servers()
        );
        let reports = Reports {
            to: reports,
            doing: doing.clone(),
            timeout: delivery_timeout,
            run: Mutex::default(),
            progress: Mutex::default(),
            reached: Condvar::new(),
        };
        let producer: BaseProducer<_> = create(&self.config(&settings, &[]), &link, reports)?;
        let pause = |pause| producer.poll(pause);
        let leaders = self.await_topic(&link, producer.client(), &pause, &doing, topic.as_str())?;
        link.try_leader(producer.client(), &pause, &doing, topic.as_str(), &leaders)?;
        link.seen().started = true;
        LineProducer::start(producer, link, sender, topic)
    }

    fn consumer(&self, topic: &Name, start: Start) -> Result<Box<dyn Consumer>> {
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let to = events.clone();
        let listener: Listener = Arc::new(move |event| lock(&to).push(event));
        let link = self.link(Some(listener));
        let reader = Reader::create(&self.config(CONSUMER, CONSUMER_FIXED), &link)?;
        let doing = format!("cannot read topic {} at {}", topic.as_str(), link.servers());
        let pause = |pause| serve(&reader, pause);
        let leaders = self.await_topic(&link, reader.client(), &pause, &doing, topic.as_str())?;
        let from = match start {
            Start::Latest => Offset::End,
            Start::Earliest | Start::At(_) => Offset::Beginning,
        };
        let mut position = list_offsets(
            &link,
            &reader,
            &pause,
            &doing,
            topic.as_str(),
            &leaders,
            from,
        )?;
        if let Start::At(offsets) = start {
            position.extend(
                offsets
                    .into_iter()
                    .filter(|(partition, _)| leaders.contains_key(partition)),
            );
        }
        let consumer = TopicConsumer {
            events,
            reader,
            link,
            topic: topic.as_str().to_string(),
            doing,
            leaders,
            position,
            is_assigned: false,
            first: BTreeMap::new(),
            out_of_range: false,
            looked: Instant::now(),
        };
        consumer.link.seen().started = true;
        Ok(Box::new(consumer))
    }

    fn group_offsets(&self) -> Result<Box<dyn super::GroupOffsets>> {
        Ok(Box::new(GroupOffsets {
            config: self.config(CONSUMER, CONSUMER_FIXED),
            link: self.link(None),
            readers: BTreeMap::new(),
        }))
    }
}

/// A client that reads: records, metadata or offsets. It is closed without delay.
struct Reader(BaseConsumer<Context<()>>);

impl Reader {
    fn create(config: &ClientConfig, link: &Arc<Link>) -> Result<Reader> {
        create(config, link, ()).map(Reader)
    }
}

impl Deref for Reader {
    type Target = BaseConsumer<Context<()>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Drop for Reader {
    /// The crate closes it, too, but looks only every tenth of a second whether that is done.
    fn drop(&mut self) {
        if self.close_queue().is_ok() {
            while !self.closed() {
                drop(self.poll(CLOSING));
            }
        }
    }
}

/// The partitions of a topic, each with the address that its leader is advertised under.
type Leaders = BTreeMap<i32, String>;

fn create<R, T>(config: &ClientConfig, link: &Arc<Link>, role: R) -> Result<T>
where
    R: Send + Sync,
    T: FromClientConfigAndContext<Context<R>>,
{
    let context = Context {
        link: Arc::clone(link),
        role,
    };
    config
        .create_with_context(context)
        .map_err(|error| refused(&error))
}

/// A setting that librdkafka does not take. It never shows a value that might be a password.
fn refused(error: &KafkaError) -> Error {
    let reason = match error {
        // It may know the property by another name than the one that was given.
        KafkaError::ClientConfig(_, reason, name, _)
            if !reason.contains(&format!("\"{name}\"")) =>
        {
            format!("{name}: {reason}")
        }
        KafkaError::ClientConfig(_, reason, _, _) => reason.clone(),
        KafkaError::ClientCreation(reason) => reason.clone(),
        other => return Error::failed("cannot start librdkafka", other),
    };
    let error = Error::usage(&reason);
    match reason.to_lowercase().contains("openssl") {
        true => error.hint(
            "This build has no TLS and no SASL SCRAM: build it with cargo install --features tls.",
        ),
        false => error,
    }
}

/// Handles what has happened to a client that is not assigned any partitions yet, for a while.
fn serve(reader: &Reader, pause: Duration) {
    let end = Instant::now() + pause;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        drop(reader.poll(left));
        if left.is_zero() {
            break;
        }
    }
}

/// What is known of a client's connections, from librdkafka's threads and ours.
struct Link {
    servers: Vec<String>,
    listener: Option<Listener>,
    /// librdkafka's log lines are wanted.
    log: bool,
    /// It was told that no broker can be reached.
    lost: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// The cluster has answered at least once.
    reached: bool,
    /// All that is needed to begin was there, so that a lost connection is news, and no error.
    started: bool,
    /// The broker's certificate was refused.
    untrusted: bool,
    /// What came in the way last, on any connection.
    trouble: Option<Trouble>,
    /// What no further attempt would change.
    hopeless: Option<Error>,
}

struct Trouble {
    broker: String,
    why: String,
}

impl Link {
    fn servers(&self) -> String {
        self.servers.join(",")
    }

    fn cannot_reach(&self) -> String {
        format!("cannot reach Kafka at {}", self.servers())
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: Event) {
        if let Some(listener) = &self.listener {
            listener(event);
        }
    }

    /// Asks until there is an answer, an error that is final, or no time left (then `None`).
    ///
    /// The first attempts get little time, so that a final error is not noticed late, and the later
    /// ones more, so that a slow network gets its chance. `pause` lets events be handled meanwhile.
    fn insist<T>(
        &self,
        limit: Duration,
        pause: &dyn Fn(Duration),
        mut ask: impl FnMut(Duration) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let end = Instant::now() + limit;
        let mut patience = Duration::from_millis(100);
        let mut rest = Duration::from_millis(5);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if let Some(answer) = ask(patience.min(left))? {
                return Ok(Some(answer));
            }
            pause(rest.min(left));
            if let Some(error) = &self.seen().hopeless {
                return Err(error.clone());
            }
            if left.is_zero() {
                return Ok(None);
            }
            patience *= 2;
            rest = (rest * 2).min(Duration::from_millis(250));
        }
    }

    /// Takes note of what librdkafka says of a connection, and of whether that can ever change.
    fn note(&self, code: Code, reason: &str) {
        let trouble = Trouble::parse(reason);
        let mut seen = self.seen();
        let error = |why: &str| Error::failed(self.cannot_reach(), why);
        let closed_in = |state| reason.contains("Disconnected: ") && reason.contains(state);
        let hopeless = match code {
            Code::Authentication => Some(
                Error::failed(
                    format!("cannot log in to Kafka at {}", self.servers()),
                    &trouble.why,
                )
                .hint("Are sasl.username, sasl.password and sasl.mechanism right?"),
            ),
            Code::SSL if reason.contains("certificate verify failed") => {
                seen.untrusted = true;
                Some(
                    error("its certificate is not signed by an authority known here").hint(
                        "Name the authority's certificate (PEM) by -X ssl.ca.location=FILE.",
                    ),
                )
            }
            Code::SSL | Code::BrokerTransportFailure
                if !seen.reached
                    && (reason.contains("wrong version number")
                        || reason.contains("a PLAINTEXT broker listener")) =>
            {
                Some(
                    error("it does not speak TLS at that port")
                        .hint("Name its TLS port, or another security.protocol."),
                )
            }
            Code::BrokerTransportFailure if !seen.reached && closed_in("APIVERSION_QUERY") => {
                Some(
                    error("it closed the connection at the first word, as a TLS port does")
                        .hint("If that is its TLS port, say so: -X security.protocol=ssl, or sasl_ssl where a login is needed."),
                )
            }
            Code::BrokerTransportFailure
                if !seen.reached && closed_in("UP)") =>
            {
                Some(error("it closed the connection, as a port does that wants a login").hint(
                    "Set security.protocol, sasl.mechanism, sasl.username and sasl.password, by -X or in a file by -F.",
                ))
            }
            Code::BadMessage if !seen.reached => {
                Some(error("something answers there, but not as Kafka does"))
            }
            Code::SSL | Code::BrokerTransportFailure | Code::Resolve | Code::OperationTimedOut => None,
            // Of a partition, a group or a message: told where those are handled.
            _ => return,
        };
        seen.hopeless = hopeless.or(seen.hopeless.take());
        seen.trouble = Some(trouble);
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// All brokers are gone.
    fn lose(&self) {
        let seen = self.seen();
        if !seen.started || self.lost.swap(true, Ordering::Relaxed) {
            return;
        }
        let (broker, why) = match &seen.trouble {
            Some(trouble) => (trouble.broker.clone(), trouble.why.clone()),
            None => (self.servers(), "the connection was closed".to_string()),
        };
        drop(seen);
        self.tell(Event::Lost { broker, why });
    }

    /// A broker has answered.
    fn answered(&self) {
        if !self.lost.swap(false, Ordering::Relaxed) {
            return;
        }
        let broker = match self.seen().trouble.take() {
            Some(trouble) => trouble.broker,
            None => self.servers(),
        };
        self.tell(Event::Back { broker });
    }

    /// Why not even the leaders could be asked for. Where a broker has sent us on to another address,
    /// that one is the trouble.
    fn unreachable(&self, doing: &str) -> Error {
        let seen = self.seen();
        let trouble = seen.trouble.as_ref();
        if trouble.is_some_and(|trouble| !self.servers.contains(&trouble.broker)) {
            drop(seen);
            return self.unanswered(doing, &Leaders::new());
        }
        let why = trouble.map_or("no answer", |trouble| &trouble.why);
        Error::failed(self.cannot_reach(), why)
    }

    /// Why a request that goes to leaders was not answered. Most often they are advertised under
    /// an address that works for the broker's own network only.
    fn unanswered(&self, doing: &str, leaders: &Leaders) -> Error {
        let seen = self.seen();
        let mut foreign = leaders
            .values()
            .filter(|leader| !self.servers.contains(leader));
        let trouble = seen.trouble.as_ref();
        let troubled = trouble.filter(|trouble| !self.servers.contains(&trouble.broker));
        let why = trouble.map_or("no answer", |trouble| &trouble.why);
        match troubled
            .map(|trouble| &trouble.broker)
            .or_else(|| foreign.next())
        {
            Some(leader) => Error::failed(
                doing,
                format!("that broker was reached, but sends its clients on to {leader}: {why}"),
            )
            .hint("The broker's advertised.listeners must name an address that works from here."),
            None => Error::failed(doing, why),
        }
    }

    /// Makes sure that a leader can be reached under the address it is advertised under. One that
    /// is reached stands for all; under an address that the user named, it has been already.
    fn try_leader<R: Send + Sync>(
        &self,
        client: &Client<Context<R>>,
        pause: &dyn Fn(Duration),
        doing: &str,
        topic: &str,
        leaders: &Leaders,
    ) -> Result<()> {
        let mut foreign = leaders
            .iter()
            .filter(|(_, leader)| !self.servers.contains(leader));
        let Some((&partition, _)) = foreign.next() else {
            return Ok(());
        };
        let answer = self.insist(REACH, pause, |patience| {
            match client.fetch_watermarks(topic, partition, patience) {
                Err(error) if is_transient(&error) => Ok(None),
                // Any answer will do.
                _ => Ok(Some(())),
            }
        })?;
        answer.ok_or_else(|| self.unanswered(doing, leaders))
    }
}

impl Trouble {
    /// From librdkafka's words: `sasl_ssl://host:9093/1: Connect to ipv4#10.0.0.1:9093 failed:
    /// Connection refused (after 0ms in state CONNECT)`.
    fn parse(reason: &str) -> Trouble {
        let reason = reason.strip_prefix("GroupCoordinator: ").unwrap_or(reason);
        let (place, why) = reason.split_once(": ").unwrap_or(("", reason));
        let address = place
            .rsplit_once("://")
            .map_or(place, |(_, address)| address);
        let broker = address.split('/').next().unwrap_or(address);
        let why = why.split(" (after ").next().unwrap_or(why);
        let why = why
            .strip_prefix("SASL authentication error: ")
            .unwrap_or(why);
        let why = match why.split_once(" failed: ") {
            Some((attempt, why)) if attempt.starts_with("Connect to") => why,
            _ if why.starts_with("Disconnected") => "the connection was closed",
            _ => why,
        };
        Trouble {
            broker: broker.to_string(),
            why: why.to_string(),
        }
    }
}

/// Whether the same request may be answered a little later.
fn is_transient(error: &KafkaError) -> bool {
    !matches!(
        error.rdkafka_error_code(),
        Some(
            Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::Fatal
                | Code::InvalidArgument
        )
    )
}

/// What a code means, without librdkafka's prefix that says whether it or the broker found it.
fn meaning(code: Code) -> String {
    let text = code.to_string();
    let inner = text
        .split_once('(')
        .map_or(text.as_str(), |(_, inner)| inner);
    let inner = inner.strip_suffix(')').unwrap_or(inner);
    let inner = inner.strip_prefix("Broker: ").unwrap_or(inner);
    inner.strip_prefix("Local: ").unwrap_or(inner).to_string()
}

fn failure(doing: &str, code: Code) -> Error {
    match code {
        Code::TopicAuthorizationFailed => Error::failed(doing, "this user is not allowed to")
            .hint("Kafka's access control lists (kafka-acls.sh) decide that."),
        Code::GroupAuthorizationFailed => {
            Error::failed(doing, "this user is not allowed to use that consumer group")
                .hint("Kafka's access control lists (kafka-acls.sh) decide that.")
        }
        // Asked for by idempotence when no topic may be written to, or before Kafka 2.8.
        Code::ClusterAuthorizationFailed => {
            Error::failed(doing, "this user is not allowed to write idempotently").hint(
                "Kafka's access control lists (kafka-acls.sh) decide that: it takes Write on a topic, or IdempotentWrite on the cluster before Kafka 2.8.",
            )
        }
        code => Error::failed(doing, meaning(code)),
    }
}

/// Waits until the topic is there, and each of its partitions has a leader. Asking for it makes it,
/// where the cluster allows that.
fn await_topic<R: Send + Sync>(
    link: &Link,
    client: &Client<Context<R>>,
    pause: &dyn Fn(Duration),
    doing: &str,
    topic: &str,
) -> Result<Leaders> {
    // librdkafka closes its first connection once it knows the brokers, often before it has the answer
    // that is waited for here, and makes the next one 11 ms after the first, unless a question calls
    // for a certain broker: as this one does, for the leader. Whatever the answer is, it is not needed.
    drop(client.fetch_watermarks(topic, 0, FIRST));
    let ask = |patience| {
        let metadata = client.fetch_metadata(Some(topic), patience).ok()?;
        link.seen().reached = true;
        Some(leaders(&metadata, topic))
    };
    let first = link.insist(REACH, pause, |patience| Ok(ask(patience)))?;
    let mut topic_is = first.ok_or_else(|| link.unreachable(doing))?;
    let found = link.insist(CREATE, pause, |patience| match topic_is.clone() {
        Ok(leaders) => Ok(Some(leaders)),
        Err(code @ (Code::TopicAuthorizationFailed | Code::InvalidTopic)) => {
            Err(failure(doing, code))
        }
        Err(_) => {
            topic_is = ask(patience).unwrap_or(topic_is.clone());
            Ok(topic_is.clone().ok())
        }
    })?;
    found.ok_or_else(|| match topic_is {
        Err(Code::UnknownTopicOrPartition) => Error::failed(
            doing,
            "there is no such topic, and the cluster does not make it by itself",
        )
        .hint(format!(
            "This makes it: kafka-topics.sh --bootstrap-server {} --create --topic {topic}",
            link.servers()
        )),
        Err(code) => failure(doing, code),
        Ok(_) => link.unreachable(doing),
    })
}

/// The topic's leaders, or the error that stands for it.
fn leaders(metadata: &Metadata, topic: &str) -> Result<Leaders, Code> {
    let described = metadata.topics().iter().find(|found| found.name() == topic);
    let described = described.ok_or(Code::UnknownTopicOrPartition)?;
    if let Some(code) = described.error() {
        return Err(code.into());
    }
    let mut leaders = Leaders::new();
    for partition in described.partitions() {
        let leader = metadata
            .brokers()
            .iter()
            .find(|broker| broker.id() == partition.leader())
            .ok_or(Code::LeaderNotAvailable)?;
        let address = format!("{}:{}", leader.host(), leader.port());
        leaders.insert(partition.id(), address);
    }
    Ok(leaders)
}

/// The oldest (`Offset::Beginning`) or the next (`Offset::End`) offset of each partition.
fn list_offsets(
    link: &Link,
    reader: &Reader,
    pause: &dyn Fn(Duration),
    doing: &str,
    topic: &str,
    leaders: &Leaders,
    which: Offset,
) -> Result<Offsets> {
    let answer = link.insist(REACH, pause, |patience| {
        ask_offsets(reader, patience, doing, topic, leaders, which)
    })?;
    answer.ok_or_else(|| link.unanswered(doing, leaders))
}

/// As [`list_offsets`], once; without an answer that may be there later, none.
fn ask_offsets(
    reader: &Reader,
    patience: Duration,
    doing: &str,
    topic: &str,
    leaders: &Leaders,
    which: Offset,
) -> Result<Option<Offsets>> {
    // Asking for the time -1 or -2 asks for all partitions at once, which asking for watermarks
    // does not.
    let wanted = list(topic, leaders.keys().map(|&partition| (partition, which)))?;
    match reader.offsets_for_times(wanted, patience) {
        Ok(list) => Ok(offsets(&list).filter(|offsets| offsets.len() == leaders.len())),
        Err(error) if is_transient(&error) => Ok(None),
        Err(error) => Err(failed(doing, &error)),
    }
}

fn failed(doing: &str, error: &KafkaError) -> Error {
    match error.rdkafka_error_code() {
        Some(code) => failure(doing, code),
        None => Error::failed(doing, error),
    }
}

fn list(
    topic: &str,
    offsets: impl IntoIterator<Item = (i32, Offset)>,
) -> Result<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in offsets {
        list.add_partition_offset(topic, partition, offset)
            .map_err(|error| {
                failed(
                    &format!(
                        "cannot use the offset given for partition {partition} of topic {topic}"
                    ),
                    &error,
                )
            })?;
    }
    Ok(list)
}

/// The offsets in a list, or none if a partition has an error. Partitions without an offset are
/// left out.
fn offsets(list: &TopicPartitionList) -> Option<Offsets> {
    let mut offsets = Offsets::new();
    for partition in list.elements() {
        partition.error().ok()?;
        if let Offset::Offset(offset) = partition.offset() {
            offsets.insert(partition.partition(), offset);
        }
    }
    Some(offsets)
}

/// What a client of librdkafka calls back.
struct Context<R> {
    link: Arc<Link>,
    role: R,
}

impl<R: Send + Sync> ClientContext for Context<R> {
    /// The lines are for those who ask for them by `debug`. But that a broker closed a connection,
    /// and what that may mean, is told nowhere else.
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        if self.link.log {
            // Nothing can be done about a standard error that is gone.
            let _ = writeln!(io::stderr().lock(), "{facility}: {message}");
        }
        if facility == "FAIL" {
            // It starts with the name of a thread: `[thrd:main]: `.
            let reason = message
                .split_once("]: ")
                .map_or(message, |(_, reason)| reason);
            self.link.note(Code::BrokerTransportFailure, reason);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(Code::AllBrokersDown) => self.link.lose(),
            Some(code) => self.link.note(code, reason),
            None => {}
        }
    }
}

impl ConsumerContext for Context<()> {}

/// What became of lines, on its way from librdkafka's reports to ours.
struct Reports {
    to: super::Reports,
    doing: String,
    timeout: Duration,
    /// The last lines that were acknowledged, next to each other, and not told yet.
    run: Mutex<Run>,
    progress: Mutex<Progress>,
    reached: Condvar,
}

/// Lines next to each other that are acknowledged: to tell of each would cost more than to send it.
#[derive(Default)]
struct Run {
    first: u64,
    count: u64,
    partition: i32,
    offset: i64,
}

#[derive(Default)]
struct Progress {
    /// How many lines are acknowledged or failed.
    settled: u64,
    /// How many somebody waits for: to be woken by each line would cost more than to send it.
    wanted: u64,
}

impl Reports {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) -> MutexGuard<'_, Run> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settled(&self) -> u64 {
        self.progress().settled
    }

    fn settle(&self, lines: u64) {
        let mut progress = self.progress();
        let before = progress.settled;
        progress.settled += lines;
        if (before + 1..=progress.settled).contains(&progress.wanted) {
            self.reached.notify_all();
        }
    }

    /// Takes note of a line that is acknowledged, of which [`Reports::tell`] tells.
    fn acknowledge(&self, line: u64, partition: i32, offset: i64) {
        let mut run = self.run();
        let is_next = line == run.first + run.count
            && partition == run.partition
            && offset == run.offset + run.count as i64;
        if run.count > 0 && is_next {
            run.count += 1;
            return;
        }
        let before = std::mem::replace(
            &mut *run,
            Run {
                first: line,
                count: 1,
                partition,
                offset,
            },
        );
        drop(run);
        self.tell_of(&before);
    }

    /// Tells of the lines that were acknowledged since.
    fn tell(&self) {
        let run = std::mem::take(&mut *self.run());
        self.tell_of(&run);
    }

    fn tell_of(&self, run: &Run) {
        if run.count > 0 {
            self.to.send(Report::Acknowledged {
                first: run.first,
                count: run.count,
                partition: run.partition,
                offset: run.offset,
            });
            self.settle(run.count);
        }
    }

    /// Waits until so many lines are settled, or the time is over; says whether they are.
    fn wait(&self, wanted: u64, timeout: Duration) -> bool {
        let mut progress = self.progress();
        progress.wanted = wanted;
        let (progress, _) = self
            .reached
            .wait_timeout_while(progress, timeout, |now| now.settled < wanted)
            .unwrap_or_else(PoisonError::into_inner);
        progress.settled >= wanted
    }

    /// `size` is how many bytes the line has, with its sender's name.
    fn fail(&self, line: u64, size: usize, value: &[u8], link: &Link, code: Code) {
        let seen = link.seen();
        let trouble = match &seen.trouble {
            Some(trouble) => format!(" ({}: {})", trouble.broker, trouble.why),
            None => String::new(),
        };
        let error = match (code, &seen.hopeless) {
            // The first, as it says nothing of the connection, and nothing of other lines.
            (Code::MessageSizeTooLarge, _) => match size < BATCH / 2 {
                // librdkafka does not split a batch that is refused.
                true => Error::too_large().hint(
                    "The line is not large, its batch may be: -X batch.size=BYTES makes batches smaller.",
                ),
                false => Error::too_large(),
            },
            (_, Some(error)) => error.clone(),
            (Code::MessageTimedOut, _) => Error::failed(
                &self.doing,
                format!("not acknowledged within {} seconds{trouble}", self.timeout.as_secs()),
            ),
            (Code::PurgeQueue | Code::PurgeInflight, _) => Error::failed(
                &self.doing,
                format!("ended before it was acknowledged{trouble}"),
            ),
            (code, _) => failure(&self.doing, code),
        };
        drop(seen);
        self.to.send(Report::Failed {
            first: line,
            count: 1,
            excerpt: excerpt(value),
            why: error,
        });
        self.settle(1);
    }
}

impl ProducerContext for Context<Reports> {
    /// The number of the line. (It travels as a pointer: 32-bit machines count to 4 billion.)
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, line: usize) {
        let line = line as u64;
        match result {
            Ok(message) => {
                self.role
                    .acknowledge(line, message.partition(), message.offset());
                self.link.answered();
            }
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
                let size = [message.key(), message.payload()]
                    .into_iter()
                    .flatten()
                    .map(<[u8]>::len)
                    .sum();
                let value = message.payload().unwrap_or_default();
                self.role.fail(line, size, value, &self.link, code);
            }
        }
    }
}

impl Drop for Reports {
    /// What is acknowledged while the producer is taken down is so, too.
    fn drop(&mut self) {
        self.tell();
    }
}

type Base = BaseProducer<Context<Reports>>;

struct LineProducer {
    producer: Arc<Base>,
    /// The key of every record.
    sender: Name,
    topic: String,
    /// How many lines were handed over.
    sent: u64,
    stop: Arc<AtomicBool>,
    /// Handles reports; woken when there will be some.
    poller: Option<JoinHandle<()>>,
}

impl LineProducer {
    fn start(
        producer: Base,
        link: Arc<Link>,
        sender: &Name,
        topic: &Name,
    ) -> Result<Box<dyn Producer>> {
        let producer = Arc::new(producer);
        let stop = Arc::new(AtomicBool::new(false));
        let poller = thread::Builder::new()
            .name("producer".into())
            .spawn({
                let (producer, stop, topic) = (
                    Arc::clone(&producer),
                    Arc::clone(&stop),
                    topic.as_str().to_string(),
                );
                move || handle_reports(&producer, &link, &topic, &stop)
            })
            .map_err(|error| Error::failed("cannot start a thread", error))?;
        Ok(Box::new(LineProducer {
            producer,
            sender: sender.clone(),
            topic: topic.as_str().to_string(),
            sent: 0,
            stop,
            poller: Some(poller),
        }))
    }

    fn reports(&self) -> &Reports {
        &self.producer.client().context().role
    }

    fn wake_poller(&self) {
        if let Some(poller) = &self.poller {
            poller.thread().unpark();
        }
    }
}

/// Handles delivery reports, until told to stop.
///
/// The crate's own wait for them can't be ended, and is busy for its last millisecond. So this
/// thread only ever takes what is there, and sleeps in between: briefly as long as lines are on
/// their way, else until the next one is handed over, or long enough to cost nothing.
fn handle_reports(producer: &Base, link: &Link, topic: &str, stop: &AtomicBool) {
    let mut settled = 0;
    let client = producer.client();
    let mut looked = Instant::now();
    let mut patience = STUCK;
    while !stop.load(Ordering::Relaxed) {
        producer.poll(Duration::ZERO);
        producer.context().role.tell();
        let now = producer.context().role.settled();
        if now > settled {
            settled = now;
            continue;
        }
        let is_busy = producer.in_flight_count() > 0;
        thread::park_timeout(if is_busy { BUSY } else { IDLE });
        // librdkafka asks for that id again after half a second, or when there is news of the cluster.
        let stuck = settled == 0 && is_busy && looked.elapsed() >= patience;
        let lost = link.is_lost() && looked.elapsed() >= LOST;
        if stuck || lost {
            looked = Instant::now();
            if stuck {
                patience *= 2;
            }
            if client.fetch_metadata(Some(topic), LOST / 2).is_ok() {
                link.answered();
            }
        }
    }
}

impl Producer for LineProducer {
    fn send(&mut self, line: u64, value: &[u8]) {
        let key = self.sender.as_bytes();
        let link = &self.producer.client().context().link;
        self.sent += 1;
        let size = key.len() + value.len();
        if size > MAX_RECORD_BYTES {
            let code = Code::MessageSizeTooLarge;
            return self.reports().fail(line, size, value, link, code);
        }
        let mut record = BaseRecord::with_opaque_to(&self.topic, line as usize).payload(value);
        if !key.is_empty() {
            record = record.key(key);
        }
        while let Err((error, back)) = self.producer.send(record) {
            match error {
                KafkaError::MessageProduction(Code::QueueFull) => {
                    record = back;
                    // An eighth of what is in the queue makes room enough to go on for a while.
                    let reports = self.reports();
                    let settled = reports.settled();
                    let wanted = settled + (self.sent - settled).div_ceil(8);
                    reports.wait(wanted, Duration::from_millis(100));
                }
                error => {
                    let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
                    return self.reports().fail(line, size, value, link, code);
                }
            }
        }
        // The only one under way: the poller may be asleep.
        if self.reports().settled() + 1 == self.sent {
            self.wake_poller();
        }
    }
}

impl Drop for LineProducer {
    /// Lines that are not settled yet are given up, and reported so.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wake_poller();
        if let Some(poller) = self.poller.take() {
            // It does not panic, and if it had, nothing would be left to do here.
            let _ = poller.join();
        }
    }
}

fn record<'a>(message: &'a BorrowedMessage<'_>) -> Record<'a> {
    Record {
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().unwrap_or_default(),
        value: message.payload().unwrap_or_default(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct TopicConsumer {
    events: Arc<Mutex<Vec<Event>>>,
    reader: Reader,
    link: Arc<Link>,
    topic: String,
    doing: String,
    leaders: Leaders,
    position: Offsets,
    /// Reading has begun, with the first poll: from then on a broker answers other questions only
    /// after each fetch, for which it may wait half a second.
    is_assigned: bool,
    /// The first record given of each partition: its offset and mark.
    first: BTreeMap<i32, (i64, u64)>,
    /// Some partition's log no longer has the offset that is to be read next.
    out_of_range: bool,
    /// When the topic was looked at last.
    looked: Instant,
}

impl TopicConsumer {
    /// (Re)starts reading at the position of each partition.
    fn assign(&mut self) -> Result<()> {
        let position = self.position.iter();
        let position = position.map(|(&partition, &offset)| (partition, Offset::Offset(offset)));
        self.reader
            .assign(&list(&self.topic, position)?)
            .map_err(|error| Error::failed(&self.doing, error))?;
        self.is_assigned = true;
        Ok(())
    }

    /// Sees now and then whether a lost cluster is back, and whether the topic has grown.
    fn look(&mut self) -> Result<()> {
        let every = match self.link.is_lost() || self.out_of_range {
            true => LOST,
            false => GROWTH,
        };
        if self.looked.elapsed() < every {
            return Ok(());
        }
        self.looked = Instant::now();
        let Ok(metadata) = self.reader.fetch_metadata(Some(&self.topic), LOST / 2) else {
            return Ok(());
        };
        self.link.answered();
        if let Ok(leaders) = leaders(&metadata, &self.topic) {
            let known = self.position.len();
            for &partition in leaders.keys() {
                self.position.entry(partition).or_insert(0);
            }
            self.leaders = leaders;
            if self.position.len() > known {
                self.assign()?;
            }
        }
        if self.out_of_range {
            self.resume()?;
        }
        Ok(())
    }

    /// Goes on where the log does, if that no longer has the offset to be read next. If the cluster
    /// can't say for now where that is, the next look asks again.
    ///
    /// A log that lost its newest records is gone on with at its end: what is left of it has been
    /// given. A new one of the same name, or one that lost its oldest, at its beginning.
    fn resume(&mut self) -> Result<()> {
        let ask = |which| {
            let (doing, topic) = (&self.doing, &self.topic);
            ask_offsets(&self.reader, LOST / 2, doing, topic, &self.leaders, which)
        };
        let Some(first) = ask(Offset::Beginning)? else {
            return Ok(());
        };
        let Some(end) = ask(Offset::End)? else {
            return Ok(());
        };
        self.out_of_range = false;
        for (partition, wanted) in self.position.clone() {
            let (Some(&oldest), Some(&end)) = (first.get(&partition), end.get(&partition)) else {
                continue;
            };
            if (oldest..=end).contains(&wanted) {
                continue;
            }
            let is_same = match wanted > end {
                true => self.is_same_log(partition, oldest, end)?,
                false => Some(false),
            };
            let Some(is_same) = is_same else {
                self.out_of_range = true;
                continue;
            };
            if !is_same {
                self.first.remove(&partition);
            }
            let resumed = if is_same { end } else { oldest };
            self.position.insert(partition, resumed);
            self.link.tell(Event::Missed {
                partition,
                wanted,
                resumed,
                end,
            });
        }
        self.assign()
    }

    /// Whether the log is still the one whose first record was given earlier; none if the cluster
    /// doesn't say for now. It reads that record again, for which all partitions have to be assigned
    /// anew.
    fn is_same_log(&self, partition: i32, oldest: i64, end: i64) -> Result<Option<bool>> {
        let Some(&(first, mark)) = self.first.get(&partition) else {
            return Ok(Some(false));
        };
        // A new log begins at 0.
        if first >= end || first < oldest {
            return Ok(Some(first < oldest));
        }
        self.reader
            .assign(&list(&self.topic, [(partition, Offset::Offset(first))])?)
            .map_err(|error| Error::failed(&self.doing, error))?;
        let start = Instant::now();
        while start.elapsed() < REACH {
            match self.reader.poll(LOST / 2) {
                Some(Ok(message))
                    if message.partition() == partition && message.offset() >= first =>
                {
                    let record = record(&message);
                    return Ok(Some((record.offset, record.fingerprint()) == (first, mark)));
                }
                // None of its records is given any more.
                Some(Err(KafkaError::PartitionEOF(at))) if at == partition => {
                    return Ok(Some(false));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// Moves a position over what is not given behind the last record: markers of transactions,
    /// and records of aborted ones.
    fn pass_end(&mut self, partition: i32) {
        // What librdkafka itself has come to by now; asking the broker would be too late, as there
        // may be more records by then. It has none where nothing came since reading was started.
        if let Ok(list) = self.reader.position()
            && let Some(found) = list.find_partition(&self.topic, partition)
            && let Offset::Offset(passed) = found.offset()
            && let Some(position) = self.position.get_mut(&partition)
        {
            *position = passed.max(*position);
        }
    }

    fn offsets(&self, which: Offset) -> Result<Offsets> {
        // Polling here would lose records.
        let pause = thread::sleep;
        list_offsets(
            &self.link,
            &self.reader,
            &pause,
            &self.doing,
            &self.topic,
            &self.leaders,
            which,
        )
    }

    /// What to do about an error that came in place of a record.
    fn handle(&mut self, code: Code) -> Result<()> {
        match code {
            Code::AutoOffsetReset => self.out_of_range = true,
            Code::TopicAuthorizationFailed | Code::Fatal | Code::BadMessage => {
                return Err(failure(&self.doing, code));
            }
            Code::NotImplemented | Code::BadCompression => {
                return Err(Error::failed(
                    &self.doing,
                    "its records are compressed in a way that this build can't read",
                ));
            }
            // The rest is tried again by librdkafka, or is about the group that is not used.
            _ => {}
        }
        Ok(())
    }
}

impl Consumer for TopicConsumer {
    fn poll(
        &mut self,
        wait: Duration,
        each: &mut dyn FnMut(Record<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Event>> {
        let end = Instant::now() + wait;
        let mut left = wait;
        let mut given = 0;
        if !self.is_assigned {
            self.assign()?;
        }
        self.look()?;
        let missed = |event: &Event| matches!(event, Event::Missed { .. });
        if lock(&self.events).iter().any(missed) {
            return Ok(std::mem::take(&mut *lock(&self.events)));
        }
        while given < POLL_RECORDS {
            match self.reader.poll(left) {
                Some(Ok(message)) => {
                    let record = record(&message);
                    let (partition, offset) = (record.partition, record.offset);
                    let position = self.position.entry(partition).or_insert(offset);
                    // Left over from before the partitions were assigned anew.
                    if offset < *position {
                        continue;
                    }
                    *position = offset + 1;
                    given += 1;
                    left = Duration::ZERO;
                    self.first
                        .entry(partition)
                        .or_insert_with(|| (offset, record.fingerprint()));
                    if each(record).is_break() {
                        break;
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    self.pass_end(partition);
                    left = left.min(end.saturating_duration_since(Instant::now()));
                }
                Some(Err(error)) => {
                    let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
                    self.handle(code)?;
                    left = left.min(end.saturating_duration_since(Instant::now()));
                }
                None => break,
            }
        }
        if given > 0 {
            self.link.answered();
        }
        match &self.link.seen().hopeless {
            Some(error) => Err(error.clone()),
            None => Ok(std::mem::take(&mut *lock(&self.events))),
        }
    }

    fn position(&self) -> Offsets {
        self.position.clone()
    }

    fn end_offsets(&mut self) -> Result<Offsets> {
        self.offsets(Offset::End)
    }
}

struct GroupOffsets {
    config: ClientConfig,
    link: Arc<Link>,
    /// A client can be of one group only.
    readers: BTreeMap<String, Reader>,
}

impl GroupOffsets {
    fn reader(&mut self, group: &str) -> Result<&Reader> {
        if !self.readers.contains_key(group) {
            let mut config = self.config.clone();
            config.set("group.id", group);
            let reader = Reader::create(&config, &self.link)?;
            self.readers.insert(group.to_string(), reader);
        }
        Ok(&self.readers[group])
    }
}

impl super::GroupOffsets for GroupOffsets {
    fn committed(&mut self, group: &str, topic: &Name) -> Result<Offsets> {
        let link = Arc::clone(&self.link);
        let doing = format!(
            "cannot read the offsets of group {group} at {}",
            link.servers()
        );
        let reader = self.reader(group)?;
        let pause = |pause| serve(reader, pause);
        let leaders = await_topic(&link, reader.client(), &pause, &doing, topic.as_str())?;
        let answer = link.insist(REACH, &pause, |patience| {
            let wanted = list(
                topic.as_str(),
                leaders.keys().map(|&p| (p, Offset::Invalid)),
            )?;
            match reader.committed_offsets(wanted, patience) {
                Ok(list) => Ok(offsets(&list)),
                Err(error) if is_transient(&error) => Ok(None),
                Err(error) => Err(failed(&doing, &error)),
            }
        })?;
        answer.ok_or_else(|| link.unanswered(&doing, &leaders))
    }

    fn commit(&mut self, group: &str, topic: &Name, offsets: &Offsets) -> Result<()> {
        let doing = format!(
            "cannot commit offsets of group {group} at {}",
            self.link.servers()
        );
        let offsets = offsets.iter();
        let offsets = offsets.map(|(&partition, &offset)| (partition, Offset::Offset(offset)));
        let list = list(topic.as_str(), offsets)?;
        let reader = self.reader(group)?;
        // A commit waits for as long as the group's coordinator is away, and librdkafka has no
        // other that says how it went. So see first whether it is there.
        reader
            .committed_offsets(list.clone(), REACH)
            .and_then(|_| reader.commit(&list, CommitMode::Sync))
            .map_err(|error| failed(&doing, &error))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// On a busy machine anything may take long; this is for what would never end.
    const HANGING: Duration = Duration::from_secs(30);

    /// An address at which nothing listens, unless somebody is very quick.
    fn nobody() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    }

    fn cluster(server: &str, properties: &[(&str, &str)]) -> Result<Box<dyn Cluster>> {
        let owned = |&(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        connect(&Options {
            servers: vec![server.to_string()],
            properties: properties.iter().map(owned).collect(),
            take_over: None,
        })
    }

    fn produce(server: &str, properties: &[(&str, &str)]) -> String {
        let producer = cluster(server, properties).and_then(|cluster| {
            cluster.producer(
                &"alice".parse()?,
                &"bob".parse()?,
                Duration::from_secs(1),
                super::super::Reports::to(std::sync::mpsc::channel::<Report>().0),
            )
        });
        producer.err().unwrap().to_string()
    }

    #[test]
    fn a_property_that_does_not_exist_is_named_and_its_value_is_not_shown() {
        let error = cluster("localhost:9092", &[("sasl.pasword", "secret")])
            .err()
            .unwrap();
        assert!(error.to_string().contains("sasl.pasword"), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn a_value_that_is_not_one_is_refused_under_the_name_that_was_given() {
        let error = cluster("localhost:9092", &[("acks", "some")])
            .err()
            .unwrap();
        assert!(error.to_string().starts_with("acks: "), "{error}");
    }

    #[test]
    fn of_two_values_the_last_counts_whatever_the_name() {
        let cluster = Librdkafka {
            servers: vec!["localhost:9092".into()],
            properties: vec![
                ("linger.ms".into(), "7".into()),
                ("queue.buffering.max.ms".into(), "8".into()),
                ("auto.offset.reset".into(), "earliest".into()),
            ],
        };
        let config = cluster.config(&[("linger.ms", "5")], CONSUMER_FIXED);
        assert_eq!(config.get("linger.ms"), Some("8"));
        assert_eq!(config.get("queue.buffering.max.ms"), None);
        assert_eq!(config.get("auto.offset.reset"), Some("error"));
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn what_needs_tls_says_how_to_build_it() {
        for properties in [
            &[("security.protocol", "ssl")][..],
            &[("ssl.ca.location", "/ca.pem")],
            &[
                ("security.protocol", "sasl_plaintext"),
                ("sasl.mechanism", "SCRAM-SHA-256"),
                ("sasl.username", "alice"),
                ("sasl.password", "secret"),
            ],
        ] {
            let error = produce(&nobody(), properties);
            assert!(error.contains("--features tls"), "{error}");
        }
    }

    #[test]
    fn an_address_where_nobody_listens_is_named_with_the_reason() {
        let server = nobody();
        let start = Instant::now();
        let error = produce(&server, &[]);
        assert!(start.elapsed() < HANGING, "{:?}", start.elapsed());
        assert!(error.contains(&server), "{error}");
        assert!(error.contains("Connection refused"), "{error}");
    }

    #[test]
    fn a_port_that_closes_at_the_first_word_is_taken_for_tls() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap().to_string();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                // Bytes left unread would make it a reset.
                let _ = io::Read::read(&mut stream, &mut [0; 1024]);
            }
        });
        let error = produce(&server, &[]);
        assert!(error.contains("security.protocol=ssl"), "{error}");
    }

    #[test]
    fn clients_end_while_the_broker_is_away() {
        let away = cluster(&nobody(), &[]).unwrap();
        let mut groups = away.group_offsets().unwrap();
        let topic = "bob".parse().unwrap();
        groups.committed("chat:alice:bob", &topic).unwrap_err();
        let start = Instant::now();
        drop(groups);
        assert!(start.elapsed() < HANGING, "{:?}", start.elapsed());
    }

    #[test]
    fn librdkafkas_reasons_are_shortened() {
        let cases = [
            (
                "localhost:9092/1: Connect to ipv4#127.0.0.1:9092 failed: Connection refused (after 0ms in state CONNECT)",
                ("localhost:9092", "Connection refused"),
            ),
            (
                "GroupCoordinator: [::1]:9092: Disconnected: connection closed by peer (after 9ms in state UP)",
                ("[::1]:9092", "the connection was closed"),
            ),
            (
                "sasl_ssl://k:9093/bootstrap: SASL authentication error: Authentication failed (after 3ms in state AUTH_REQ)",
                ("k:9093", "Authentication failed"),
            ),
        ];
        for (reason, expected) in cases {
            let trouble = Trouble::parse(reason);
            assert_eq!((trouble.broker.as_str(), trouble.why.as_str()), expected);
        }
    }
}
