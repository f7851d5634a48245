//! librdkafka: the client for every real Kafka, for secured clusters, and for reading records in full.
//!
//! Batches, retries, idempotence, leaders, TLS and SASL are librdkafka's. What is done here: its
//! settings, its errors as sentences (`errors`, `status`), the wait for a topic (`topic`), and its
//! reports and records in the terms of the interface.
//!
//! Settings and their defaults: <https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md>

mod clients;
mod consumer;
mod deliveries;
mod errors;
mod followed_log;
mod group_offsets;
mod headers;
mod poller;
mod producer;
mod read_back;
mod reader;
mod recreation;
mod stall;
mod status;
mod too_large;
mod topic;
mod topic_settings;

use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::Consumer as _;

use self::consumer::LibrdkafkaConsumer;
use self::followed_log::FollowedLog;
use self::group_offsets::LibrdkafkaGroupOffsets;
use self::reader::ReadClient;
use self::status::{ClusterStatus, Context};
use self::topic::{ANSWER_TIMEOUT, metadata};
use super::properties;
use super::{
    Cluster, Consumer, Event, GroupOffsets, OpenConsumer, Options, Partitioning, Producer, Reports,
    Route, Start, TakeOver,
};
use crate::ending::say;
use crate::error::{Error, Result};
use crate::name::Name;

/// Settings of every client. A user's own override them.
const SETTINGS: &[(&str, &str)] = &[
    ("client.id", "kafka-chat"),
    // librdkafka waits half of this before it looks for a broker again, also when it starts.
    ("reconnect.backoff.ms", "20"),
    // The default, 10 s, is long for a person who waits for a broker to be back.
    ("reconnect.backoff.max.ms", "2000"),
    // Less than ANSWER_TIMEOUT, so that an address that swallows packets is named as the reason.
    ("socket.connection.setup.timeout.ms", "4000"),
    // The default is a minute, in which a broker that hangs goes unnoticed.
    ("socket.timeout.ms", "10000"),
    ("socket.keepalive.enable", "true"),
    // Nobody has asked for figures of this client to be sent to the cluster (KIP-714).
    ("enable.metrics.push", "false"),
];

/// What the errors here rely on: a user can't override them.
const FIXED_SETTINGS: &[(&str, &str)] = &[
    // Why a connection ended is only in the log: it must be called back, in the form that is parsed.
    ("log.queue", "false"),
    ("log.thread.name", "true"),
    ("log.connection.close", "true"),
];

const CONSUMER_SETTINGS: &[(&str, &str)] = &[
    // librdkafka assigns partitions only to a consumer with a group. Nothing is ever joined or
    // committed under this name.
    ("group.id", "kafka-chat"),
    ("allow.auto.create.topics", "true"),
    // Bounds the memory of a reader that is slower than the broker …
    ("queued.max.messages.kbytes", "1024"),
    // … lets the broker prepare one part while the one before it is read …
    ("fetch.message.max.bytes", "262144"),
    // … and continues at once when there is room again; the default is a second.
    ("fetch.queue.backoff.ms", "1"),
    ("fetch.error.backoff.ms", "100"),
];

/// What the consumers here rely on: a user can't override them.
const FIXED_CONSUMER_SETTINGS: &[(&str, &str)] = &[
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    // The last record may be one that is not given, such as the marker that ends a transaction.
    ("enable.partition.eof", "true"),
    // An offset that the log no longer has must be reported, not skipped.
    ("auto.offset.reset", "error"),
];

/// Checks the properties: one that librdkafka does not know, or a value that it does not take, is a
/// usage error.
///
/// With `debug`, librdkafka's lines go to standard error, but never onto a terminal, where they would bury
/// what is said there.
///
/// It does not connect. The first producer, consumer or group does so anyway, and fails within five
/// seconds: a connection only to try would double what a short-lived program takes to start.
///
/// The small broker has no idempotence, without which nothing is written here.
pub(super) fn connect(options: &Options) -> Result<Box<dyn Cluster>> {
    // Before librdkafka does it, and without an exit handler: librdkafka's own would free OpenSSL while librdkafka's
    // threads still use it, and they would crash.
    #[cfg(feature = "tls")]
    openssl_sys::init();
    let cluster = LibrdkafkaCluster {
        servers: options.servers.clone(),
        properties: options.properties.clone(),
        take_over: options.take_over.clone(),
        log_id: options.log_id,
    };
    cluster
        .config(&[], &[])
        .create_native_config()
        .map_err(|error| errors::bad_setting(&error))?;
    if cluster.has_debug() && io::stderr().is_terminal() {
        say("librdkafka's debug lines are not shown on a terminal. To keep them: 2> FILE.");
    }
    Ok(Box::new(cluster))
}

#[derive(Clone)]
struct LibrdkafkaCluster {
    servers: Vec<String>,
    properties: Vec<(String, String)>,
    /// For the small broker alone. The only strong reference: see `KafkaCrateCluster`.
    take_over: Option<TakeOver>,
    /// The identity of the small broker's log, if it is one.
    log_id: Option<u32>,
}

impl LibrdkafkaCluster {
    /// The same, for other clients; it does not keep a small broker running.
    fn as_client(&self) -> LibrdkafkaCluster {
        LibrdkafkaCluster {
            take_over: None,
            ..self.clone()
        }
    }

    /// Settings of a client: ours, then the user's, then those that can't be changed; later ones
    /// override earlier ones.
    fn config(&self, ours: &[(&str, &str)], fixed: &[(&str, &str)]) -> ClientConfig {
        let theirs = self.properties.iter();
        let theirs = theirs.map(|(name, value)| (name.as_str(), value.as_str()));
        let ours = SETTINGS.iter().chain(ours).copied();
        let mut config = ClientConfig::new();
        let fixed = FIXED_SETTINGS.iter().chain(fixed).copied();
        for (name, value) in ours.chain(theirs).chain(fixed) {
            config.set(properties::first_name(name), value);
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

    /// Settings with which a client's log says what happens to its topic, and which log a small broker serves.
    fn following_topic(&self, mut config: ClientConfig) -> ClientConfig {
        let ours = match self.log_id {
            Some(_) => "topic,feature",
            None => "topic",
        };
        let debug = match config.get("debug") {
            Some(theirs) => format!("{theirs},{ours}"),
            None => ours.to_string(),
        };
        config.set("debug", debug);
        config.set_log_level(RDKafkaLogLevel::Debug);
        config
    }

    /// Settings of a client that reads, with more of ours.
    fn reader_config(&self, ours: &[(&str, &str)]) -> ClientConfig {
        let ours = [CONSUMER_SETTINGS, ours].concat();
        self.config(&ours, FIXED_CONSUMER_SETTINGS)
    }

    /// Whether the user wants librdkafka's debug lines.
    fn has_debug(&self) -> bool {
        self.properties.iter().any(|(name, _)| name == "debug")
    }

    /// The status of a new client, whose events go to `notify`.
    fn status(&self, notify: impl Fn(Event) + Send + Sync + 'static) -> Arc<ClusterStatus> {
        let prints_log = self.has_debug() && !io::stderr().is_terminal();
        let log = self.log_id.map(FollowedLog::new);
        Arc::new(ClusterStatus::new(
            self.servers.clone(),
            prints_log,
            log,
            notify,
        ))
    }

    /// Explains why a certificate was refused, if that is why a request about `topic` failed.
    fn explain(&self, status: &ClusterStatus, topic: &Name, error: Error) -> Error {
        match status.is_untrusted() && self.only_the_name_is_wrong(topic.as_str()) {
            true => Error::failed(
                status.cannot_reach(),
                "its certificate is made out for another host name",
            )
            .hint("Name the broker as its certificate does."),
            false => error,
        }
    }

    /// Whether a broker whose certificate was refused passes once its host name is not checked:
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
        let status = self.status(drop);
        let Ok(reader) = ReadClient::create(&config, &status) else {
            return false;
        };
        let pause = |pause| drop(reader.serve(pause));
        let answer = status.retry_for(ANSWER_TIMEOUT / 2, &pause, |timeout| {
            Ok(metadata(reader.client(), topic, timeout).ok())
        });
        // A broker that wants a login closes the connection only after TLS.
        !status.is_untrusted() && (matches!(answer, Ok(Some(_))) || status.has_failed())
    }
}

impl Cluster for LibrdkafkaCluster {
    fn producer(
        &self,
        route: Route<'_>,
        partitioning: Partitioning,
        delivery_timeout: Duration,
        reports: Reports,
    ) -> Result<Box<dyn Producer>> {
        if self.log_id.is_some() {
            return Err(Error::usage(
                "-X and -F cannot be used to write to the small broker: leave them out",
            ));
        }
        if let Some(warning) = properties::weakness(&self.properties) {
            say(warning);
        }
        producer::start(self, route, partitioning, delivery_timeout, reports)
    }

    fn consumer(&self, topic: &Name, start: Start) -> Result<Box<dyn Consumer>> {
        Ok(Box::new(LibrdkafkaConsumer::new(self, topic, start)?))
    }

    fn group_offsets(&self) -> Result<Box<dyn GroupOffsets>> {
        Ok(Box::new(LibrdkafkaGroupOffsets::new(self)))
    }

    fn reader(&self) -> OpenConsumer {
        let cluster = self.as_client();
        Box::new(move |topic, start| cluster.consumer(topic, start))
    }

    fn reads_times(&self) -> bool {
        true
    }
}

/// A client in the `role` of a producer or a reader, whose callbacks go to `status`.
fn create<R, T>(config: &ClientConfig, status: &Arc<ClusterStatus>, role: R) -> Result<T>
where
    R: Send + Sync,
    T: FromClientConfigAndContext<Context<R>>,
{
    let context = Context {
        status: Arc::clone(status),
        role,
    };
    config
        .create_with_context(context)
        .map_err(|error| errors::bad_setting(&error))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::TcpListener;
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::client::Report;

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
            ..Options::default()
        })
    }

    fn produce(server: &str, properties: &[(&str, &str)]) -> String {
        let (alice, bob) = ("alice".parse().unwrap(), "bob".parse().unwrap());
        let route = Route::new(&alice, &bob);
        let producer = cluster(server, properties).and_then(|cluster| {
            cluster.producer(
                route,
                Partitioning::ByKey,
                Duration::from_secs(1),
                Reports::to(mpsc::channel::<Report>().0),
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
        let cluster = LibrdkafkaCluster {
            servers: vec!["localhost:9092".into()],
            properties: vec![
                ("linger.ms".into(), "7".into()),
                ("queue.buffering.max.ms".into(), "8".into()),
                ("auto.offset.reset".into(), "earliest".into()),
            ],
            take_over: None,
            log_id: None,
        };
        let config = cluster.config(&[("linger.ms", "5")], FIXED_CONSUMER_SETTINGS);
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
        let error = produce(&server, &[]);
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
                let _ = stream.read(&mut [0; 1024]);
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
        // Closing waits for nobody: else this test would not end.
        drop(groups);
    }
}
