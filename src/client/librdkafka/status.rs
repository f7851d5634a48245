//! Whether the cluster can be reached: what librdkafka's callbacks say, as events and errors.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::errors::Cause;
use super::followed_log::FollowedLog;
use super::recreation::Incarnations;
use crate::broker::lock;
use crate::client::{Event, sentences};
use crate::error::{Error, Result};

/// The codes of a connection that failed.
const CONNECTION_FAILURES: [Code; 6] = [
    Code::Authentication,
    Code::SSL,
    Code::BrokerTransportFailure,
    Code::Resolve,
    Code::OperationTimedOut,
    Code::BadMessage,
];

/// An outage so soon after the last one is probably the same: a broker that starts drops connections again.
const SAME_OUTAGE: Duration = Duration::from_secs(10);

/// How long an outage that is probably none, or the same as before, must last to be reported.
const LASTING: Duration = Duration::from_secs(3);

/// The partitions of a topic, each with the address that its leader is advertised under.
pub(super) type Leaders = BTreeMap<i32, String>;

/// What is known about a client's connections.
pub(super) struct ClusterStatus {
    servers: Vec<String>,
    /// The user wants librdkafka's log lines.
    prints_log: bool,
    /// Takes the events of a client, from any thread.
    notify: Box<dyn Fn(Event) + Send + Sync>,
    /// How many lines of librdkafka's log have been called back.
    log_lines: AtomicU64,
    /// There is an outage, reported or not. Not in `observed`, as each delivery looks at it.
    is_away: AtomicBool,
    /// Locked for a moment by librdkafka's callbacks and by those who wait for an answer; never held
    /// during a request or a notification.
    observed: Mutex<Observed>,
    /// The topic that the client reads or writes, if its log is followed. Locked for a moment, as that.
    topic: Mutex<Incarnations>,
    /// The small broker's log. Locked for a moment, as that.
    log: Option<Mutex<FollowedLog>>,
}

#[derive(Default)]
struct Observed {
    /// The cluster has answered at least once.
    has_answered: bool,
    /// The client has all it needs, so that from now on every failure is retried.
    is_started: bool,
    /// The most brokers that an answer has listed.
    brokers: usize,
    /// The broker's certificate was refused.
    is_untrusted: bool,
    /// The failure seen last, on any connection.
    cause: Option<Cause>,
    /// That failure was a refused login or certificate.
    is_refusal: bool,
    /// The broker whose refusal was reported last.
    refused_by: Option<String>,
    /// When the last outage was over.
    last_back: Option<Instant>,
    /// An outage that is not reported yet, and since when it lasts.
    unreported: Option<(Instant, Event)>,
    /// An error that no further attempt would change.
    fatal: Option<Error>,
    /// Whether the last bad message was the answer of a server that the user named, and not a bad record.
    is_of_named_server: bool,
    /// How the servers failed that the user named, before the start.
    failures: BTreeMap<String, ServerFailure>,
}

/// How a server failed that the user named.
struct ServerFailure {
    why: String,
    /// What to do, if it does not speak as this client is set to; otherwise empty.
    hint: &'static str,
}

impl ClusterStatus {
    pub(super) fn new(
        servers: Vec<String>,
        prints_log: bool,
        log: Option<FollowedLog>,
        notify: impl Fn(Event) + Send + Sync + 'static,
    ) -> ClusterStatus {
        ClusterStatus {
            servers,
            prints_log,
            notify: Box::new(notify),
            log_lines: AtomicU64::new(0),
            is_away: AtomicBool::new(false),
            observed: Mutex::default(),
            topic: Mutex::default(),
            log: log.map(Mutex::new),
        }
    }

    /// How many lines of librdkafka's log have been called back.
    pub(super) fn log_lines(&self) -> u64 {
        self.log_lines.load(Ordering::Relaxed)
    }

    /// What is known of the topic. To be held for a moment.
    pub(super) fn topic(&self) -> MutexGuard<'_, Incarnations> {
        lock(&self.topic)
    }

    /// Whether the small broker serves another log than at the start. Known before anything of that is read.
    pub(super) fn is_another_log(&self) -> bool {
        self.log.as_ref().is_some_and(|log| lock(log).is_another())
    }

    /// The bootstrap servers, `host:port,…`.
    pub(super) fn servers(&self) -> String {
        self.servers.join(",")
    }

    pub(super) fn has_server(&self, address: &str) -> bool {
        self.servers.iter().any(|server| server == address)
    }

    pub(super) fn cannot_reach(&self) -> String {
        format!("cannot reach Kafka at {}", self.servers())
    }

    fn observed(&self) -> MutexGuard<'_, Observed> {
        lock(&self.observed)
    }

    /// Whether the bad message that a poll just returned says that a server does not speak Kafka's protocol.
    pub(super) fn is_of_named_server(&self) -> bool {
        self.observed().is_of_named_server
    }

    pub(super) fn is_untrusted(&self) -> bool {
        self.observed().is_untrusted
    }

    /// Whether a connection has failed since the last answer.
    pub(super) fn has_failed(&self) -> bool {
        self.observed().cause.is_some()
    }

    /// The failure seen last: `host:port: reason`.
    pub(super) fn cause(&self) -> Option<String> {
        let observed = self.observed();
        let cause = observed.cause.as_ref()?;
        Some(format!("{}: {}", cause.broker, cause.why))
    }

    /// The client has all it needs: from now on, every failure is reported and retried.
    pub(super) fn on_started(&self) {
        let mut observed = self.observed();
        observed.is_started = true;
        observed.fatal = None;
    }

    /// Asks until an answer comes, an error is fatal, or `limit` is over (then `None`).
    ///
    /// The first attempts get little time, so that a fatal error is noticed soon, and the later ones
    /// more, so that a slow network gets its chance. `pause` handles callbacks meanwhile.
    pub(super) fn retry_for<T>(
        &self,
        limit: Duration,
        pause: &dyn Fn(Duration),
        mut ask: impl FnMut(Duration) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let end = Instant::now() + limit;
        let mut timeout = Duration::from_millis(100);
        let mut rest = Duration::from_millis(5);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if let Some(answer) = ask(timeout.min(left))? {
                return Ok(Some(answer));
            }
            pause(rest.min(left));
            if let Some(error) = &self.observed().fatal {
                return Err(error.clone());
            }
            if left.is_zero() {
                return Ok(None);
            }
            timeout *= 2;
            rest = (rest * 2).min(Duration::from_millis(250));
        }
    }

    /// A connection failed.
    fn on_failure(&self, code: Code, reason: &str) {
        // Others are of a partition, a group or a message: handled where those are.
        if !CONNECTION_FAILURES.contains(&code) {
            return;
        }
        let cause = Cause::parse(reason);
        let mut observed = self.observed();
        if code == Code::BadMessage {
            observed.is_of_named_server = self.has_server(&cause.broker);
            if observed.has_answered {
                return;
            }
        }
        let refusal = self.refusal(code, reason, &cause);
        observed.is_refusal = refusal.is_some();
        observed.is_untrusted |= code == Code::SSL && refusal.is_some();
        observed.cause = Some(cause.clone());
        if !observed.is_started {
            let misfit = Self::misfit(code, reason).filter(|_| !observed.has_answered);
            let misfit = match self.servers.len() {
                1 => misfit.map(|(why, hint)| Error::failed(self.cannot_reach(), why).hint(hint)),
                _ => {
                    self.server_failed(&mut observed, cause, misfit);
                    self.common_misfit(&observed)
                }
            };
            observed.fatal = refusal.or(misfit).or(observed.fatal.take());
            return;
        }
        // Once for each broker: one of several that keeps refusing would else be reported, and
        // reported back for the others' sake, every other second.
        if refusal.is_some() && observed.refused_by.as_ref() != Some(&cause.broker) {
            observed.refused_by = Some(cause.broker.clone());
            observed.unreported = None;
            drop(observed);
            self.is_away.store(true, Ordering::Relaxed);
            (self.notify)(Event::Refused {
                broker: cause.broker,
                why: cause.why,
            });
        }
    }

    /// The broker refuses this login, or this client the broker's certificate.
    fn refusal(&self, code: Code, reason: &str, cause: &Cause) -> Option<Error> {
        let (doing, why, hint) = match code {
            Code::Authentication if takes_no_login(&cause.why) => (
                format!("cannot log in to Kafka at {}", self.servers()),
                "that port takes no login",
                "Name its port for SASL, or leave out security.protocol.",
            ),
            Code::Authentication => (
                format!("cannot log in to Kafka at {}", self.servers()),
                cause.why.as_str(),
                "Are sasl.username, sasl.password and sasl.mechanism right?",
            ),
            Code::SSL if reason.contains("certificate verify failed") => (
                self.cannot_reach(),
                "its certificate is not signed by an authority known here",
                "Name the authority's certificate (PEM) with -X ssl.ca.location=FILE.",
            ),
            _ => return None,
        };
        Some(Error::failed(doing, why).hint(hint))
    }

    /// What listens there does not speak as this client is set to, to judge by its first answer.
    fn misfit(code: Code, reason: &str) -> Option<(&'static str, &'static str)> {
        let is_plain = || {
            let signs = ["wrong version number", "a PLAINTEXT broker listener"];
            signs.iter().any(|sign| reason.contains(sign))
        };
        let closed_in = |state| reason.contains("Disconnected: ") && reason.contains(state);
        Some(match code {
            Code::SSL | Code::BrokerTransportFailure if is_plain() => (
                "it does not speak TLS at that port",
                "Name its TLS port, or another security.protocol.",
            ),
            Code::BrokerTransportFailure if closed_in("APIVERSION_QUERY") => (
                "it closed the connection on the first request, as a TLS port does",
                "If that is its TLS port: -X security.protocol=ssl, or sasl_ssl where a login is \
                 needed.",
            ),
            Code::BrokerTransportFailure if closed_in("UP)") => (
                "it closed the connection, as a port does that wants a login",
                "Set security.protocol, sasl.mechanism, sasl.username and sasl.password, with -X or in a \
                 file with -F.",
            ),
            Code::BadMessage => (
                "what answers there does not speak Kafka's protocol",
                "Name the broker's own address and port with -b HOST:PORT.",
            ),
            _ => return None,
        })
    }

    /// Takes note of the failure of a server that the user named, of which there are several.
    fn server_failed(
        &self,
        observed: &mut Observed,
        cause: Cause,
        misfit: Option<(&'static str, &'static str)>,
    ) {
        if self.has_server(&cause.broker) {
            let (why, hint) = misfit.unwrap_or((&cause.why, ""));
            let failure = ServerFailure {
                why: why.to_string(),
                hint,
            };
            observed.failures.insert(cause.broker, failure);
        }
    }

    /// What is wrong with the servers, if none of them speaks as this client is set to.
    fn common_misfit(&self, observed: &Observed) -> Option<Error> {
        let mut failures = self.servers.iter().map(|it| observed.failures.get(it));
        let are_misfits = failures.all(|it| it.is_some_and(|it| !it.hint.is_empty()));
        are_misfits.then(|| self.no_server(observed))
    }

    /// None of several servers can be used.
    fn no_server(&self, observed: &Observed) -> Error {
        sentences::no_server(&self.servers, |server| {
            let failure = observed.failures.get(server)?;
            Some((failure.why.as_str(), failure.hint))
        })
    }

    /// Reports what is no matter of connections.
    pub(super) fn report(&self, event: Event) {
        (self.notify)(event);
    }

    pub(super) fn is_away(&self) -> bool {
        self.is_away.load(Ordering::Relaxed)
    }

    /// No broker can be reached any more.
    fn on_all_down(&self) {
        let mut observed = self.observed();
        if !observed.is_started || self.is_away.swap(true, Ordering::Relaxed) {
            return;
        }
        let Cause { broker, why } = observed.cause.clone().unwrap_or_else(|| Cause {
            broker: self.servers(),
            why: "the connection was closed".into(),
        });
        observed.refused_by = observed.is_refusal.then(|| broker.clone());
        let event = match observed.is_refusal {
            true => Event::Refused { broker, why },
            false => Event::Lost { broker, why },
        };
        let is_same = |back: Instant| back.elapsed() < SAME_OUTAGE;
        // Of several brokers librdkafka also says so when one has failed, and another one is to be asked next.
        let is_doubtful = observed.brokers > 1 || observed.last_back.is_some_and(is_same);
        if !observed.is_refusal && is_doubtful {
            observed.unreported = Some((Instant::now(), event));
            return;
        }
        drop(observed);
        (self.notify)(event);
    }

    /// Reports an outage that has lasted. To be called now and then.
    pub(super) fn report_lasting(&self) {
        if !self.is_away() {
            return;
        }
        let lasts = |(since, _): &mut (Instant, Event)| since.elapsed() >= LASTING;
        let lasting = self.observed().unreported.take_if(lasts);
        if let Some((_, event)) = lasting {
            (self.notify)(event);
        }
    }

    /// A broker has answered.
    pub(super) fn on_answer(&self) {
        if !self.is_away() || !self.is_away.swap(false, Ordering::Relaxed) {
            return;
        }
        let mut observed = self.observed();
        observed.last_back = Some(Instant::now());
        let cause = observed.cause.take();
        if observed.unreported.take().is_some() {
            return;
        }
        drop(observed);
        let broker = cause.map_or_else(|| self.servers(), |cause| cause.broker);
        (self.notify)(Event::Back { broker });
    }

    /// The cluster has answered a request for metadata for the first time.
    pub(super) fn on_first_answer(&self) {
        self.observed().has_answered = true;
    }

    /// An answer lists so many brokers.
    pub(super) fn on_brokers(&self, count: usize) {
        let mut observed = self.observed();
        observed.brokers = observed.brokers.max(count);
    }

    /// The error for a request for metadata without an answer. If a broker has sent this client on
    /// to another address, what happened there is the cause.
    pub(super) fn unreachable(&self, doing: &str) -> Error {
        let cause = self.observed().cause.clone();
        match cause {
            Some(cause) if !self.has_server(&cause.broker) => {
                self.unanswered(doing, &Leaders::new())
            }
            _ if self.servers.len() > 1 => self.no_server(&self.observed()),
            Some(cause) => Error::failed(self.cannot_reach(), cause.why),
            None => Error::failed(self.cannot_reach(), "no answer"),
        }
    }

    /// The error for a request to leaders without an answer. Most often they are advertised under
    /// an address that works only in the broker's own network.
    pub(super) fn unanswered(&self, doing: &str, leaders: &Leaders) -> Error {
        let cause = self.observed().cause.clone();
        let why = cause.as_ref().map_or("no answer", |cause| &cause.why);
        let failed_at = cause.as_ref().map(|cause| &cause.broker);
        let mut candidates = failed_at.into_iter().chain(leaders.values());
        match candidates.find(|address| !self.has_server(address)) {
            Some(address) => {
                Error::failed(doing, sentences::advertised(format!("{address}: {why}")))
                    .hint(sentences::ADVERTISED_LISTENERS)
            }
            None => Error::failed(doing, why),
        }
    }
}

/// Whether a login was refused because the broker has no mechanism for one at that port.
fn takes_no_login(why: &str) -> bool {
    why.trim_end().ends_with("supported mechanisms:")
}

/// What a client of librdkafka calls back.
pub(super) struct Context<R> {
    pub(super) status: Arc<ClusterStatus>,
    pub(super) role: R,
}

impl<R: Send + Sync> ClientContext for Context<R> {
    /// The lines are for users who ask for them with `debug`. But that a broker closed a connection,
    /// and what that may mean, is reported nowhere else.
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        self.status.log_lines.fetch_add(1, Ordering::Relaxed);
        if self.status.prints_log {
            // Nothing can be done about a standard error that is closed.
            let _ = writeln!(io::stderr().lock(), "{facility}: {message}");
        }
        match facility {
            "FAIL" => {
                // It starts with the name of a thread: `[thrd:main]: `.
                let reason = message
                    .split_once("]: ")
                    .map_or(message, |(_, reason)| reason);
                self.status.on_failure(Code::BrokerTransportFailure, reason);
            }
            "APIVERSION" => {
                if let Some(log) = &self.status.log {
                    // The address of this context, which is its client's alone.
                    lock(log).on_log(std::ptr::from_ref(self).addr(), message);
                }
            }
            "METADATA" | "BROKER" | "PARTCNT" => self.status.topic().on_log(message),
            _ => {}
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(Code::AllBrokersDown) => self.status.on_all_down(),
            Some(code) => self.status.on_failure(code, reason),
            None => {}
        }
    }
}

impl ConsumerContext for Context<()> {}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const WRONG_PASSWORD: &str = "sasl_ssl://k:9093/1: SASL authentication error: Authentication \
                                  failed (after 3ms in state AUTH_REQ)";
    const NO_LOGIN: &str = "sasl_plaintext://k:9093/bootstrap: SASL PLAIN mechanism handshake failed: \
        Broker: Request not valid in current SASL state: broker's supported mechanisms:  \
        (after 9ms in state AUTH_HANDSHAKE)";
    const WRONG_CERTIFICATE: &str =
        "ssl://k:9093/1: SSL handshake failed: certificate verify failed";
    const NOBODY: &str = "k:9093/1: Connect to ipv4#127.0.0.1:9093 failed: Connection refused \
                          (after 0ms in state CONNECT)";

    fn status() -> (ClusterStatus, mpsc::Receiver<Event>) {
        let (tx, rx) = mpsc::channel();
        let notify = move |event| tx.send(event).unwrap();
        let servers = vec!["k:9093".into()];
        (ClusterStatus::new(servers, false, None, notify), rx)
    }

    /// What a request without an answer ends with.
    fn wait(status: &ClusterStatus) -> Result<Option<()>> {
        status.retry_for(Duration::ZERO, &|_| {}, |_| Ok(None))
    }

    fn refused(why: &str) -> Event {
        Event::Refused {
            broker: "k:9093".into(),
            why: why.into(),
        }
    }

    fn back() -> Event {
        Event::Back {
            broker: "k:9093".into(),
        }
    }

    #[test]
    fn a_refusal_before_the_start_is_fatal() {
        for (code, reason, sentence) in [
            (Code::Authentication, WRONG_PASSWORD, "cannot log in"),
            (Code::Authentication, NO_LOGIN, "takes no login"),
            (Code::SSL, WRONG_CERTIFICATE, "not signed by an authority"),
        ] {
            let (status, events) = status();
            status.on_failure(code, reason);
            status.on_all_down();
            let error = wait(&status).unwrap_err().to_string();
            assert!(error.contains(sentence), "{error}");
            assert_eq!(events.try_iter().count(), 0);
        }
    }

    #[test]
    fn a_refusal_after_the_start_is_reported_once_and_retried() {
        for (code, reason, why) in [
            (
                Code::Authentication,
                WRONG_PASSWORD,
                "Authentication failed",
            ),
            (
                Code::SSL,
                WRONG_CERTIFICATE,
                "SSL handshake failed: certificate verify failed",
            ),
        ] {
            let (status, events) = status();
            status.on_started();
            for _ in 0..3 {
                status.on_failure(code, reason);
                status.on_all_down();
                assert!(wait(&status).unwrap().is_none());
            }
            status.on_answer();
            status.on_failure(code, reason);
            status.on_all_down();
            let events: Vec<_> = events.try_iter().collect();
            assert_eq!(events, [refused(why), back(), refused(why)]);
        }
    }

    #[test]
    fn an_outage_soon_after_the_last_one_is_reported_only_if_it_lasts() {
        let (status, events) = status();
        status.on_started();
        status.on_all_down();
        status.on_answer();
        status.on_all_down();
        status.report_lasting();
        status.on_answer();
        assert_eq!(events.try_iter().count(), 2);
        status.on_all_down();
        let long_ago = Instant::now().checked_sub(LASTING).unwrap();
        status.observed().unreported.as_mut().unwrap().0 = long_ago;
        status.report_lasting();
        status.report_lasting();
        status.on_answer();
        assert_eq!(events.try_iter().count(), 2);
    }

    #[test]
    fn an_outage_of_several_brokers_is_reported_only_if_it_lasts() {
        for (brokers, reported) in [(1, 2), (3, 0)] {
            let (status, events) = status();
            status.on_started();
            status.on_brokers(brokers);
            status.on_all_down();
            status.report_lasting();
            status.on_brokers(1);
            status.on_answer();
            assert_eq!(events.try_iter().count(), reported, "{brokers}");
        }
    }

    #[test]
    fn a_broker_that_comes_back_and_refuses_is_reported_for_both() {
        let (status, events) = status();
        status.on_started();
        status.on_failure(Code::BrokerTransportFailure, NOBODY);
        status.on_all_down();
        status.on_failure(Code::Authentication, WRONG_PASSWORD);
        status.on_answer();
        let lost = Event::Lost {
            broker: "k:9093".into(),
            why: "Connection refused".into(),
        };
        let events: Vec<_> = events.try_iter().collect();
        assert_eq!(events, [lost, refused("Authentication failed"), back()]);
    }

    #[test]
    fn one_of_several_brokers_that_keeps_refusing_is_reported_once() {
        let (status, events) = status();
        status.on_started();
        for _ in 0..3 {
            status.on_failure(Code::Authentication, WRONG_PASSWORD);
            status.on_answer();
        }
        let events: Vec<_> = events.try_iter().collect();
        assert_eq!(events, [refused("Authentication failed"), back()]);
    }
}
