//! Asks a broker what it speaks, before a client is chosen for it.
//!
//! One `ApiVersions` request of version 0, which every Kafka since 0.10 answers:
//! <https://kafka.apache.org/protocol#The_Messages_ApiVersions>.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::sentences::{self, seconds};
use crate::broker::identity;
use crate::ending::spawn;
use crate::error::{Error, Result};
use crate::wire::{
    self, ApiVersion, ApiVersionsRequest, ApiVersionsResponse, FETCH, Header, LIST_OFFSETS,
    METADATA, Request,
};

/// The longest answer that is read, in bytes. Kafka 4.1 answers with about 500.
const LONGEST_ANSWER: usize = 64 * 1024;

/// What precedes the bodies of requests.
pub(super) const HEADER: Header<'static> = Header {
    api_version: 0,
    correlation_id: 1,
    client_id: Some("kafka-chat"),
};

/// A broker that answered.
#[derive(Debug)]
pub struct BrokerInfo {
    /// The bootstrap server that answered, as it was given.
    pub server: String,
    /// At which address, if that is one that the system's resolver does not know for this server.
    pub(super) address: Option<SocketAddr>,
    /// What it speaks. Empty if it closed the connection instead of answering.
    pub(super) apis: Vec<ApiVersion>,
}

impl BrokerInfo {
    /// Whether it closed the connection instead of answering, as brokers before 0.10 do, and a
    /// broker that is just stopping.
    pub fn hung_up(&self) -> bool {
        self.apis.is_empty()
    }

    /// Whether it still speaks version 0 of what a reader needs.
    ///
    /// *Produce* says nothing: Kafka 4 claims its version 0 for the sake of old clients, and
    /// refuses it ([KIP-896]).
    ///
    /// [KIP-896]: https://cwiki.apache.org/confluence/display/KAFKA/KIP-896%3A+Remove+old+client+protocol+API+versions+in+Kafka+4.0
    pub fn speaks_version_0(&self) -> bool {
        let speaks_0 = |key| {
            let mut apis = self.apis.iter();
            apis.any(|api| api.api_key == key && api.min_version == 0)
        };
        self.hung_up() || (speaks_0(FETCH) && speaks_0(LIST_OFFSETS))
    }

    /// Whether it is a small broker, of this program or of another.
    pub fn is_small_broker(&self) -> bool {
        self.log_id().is_some()
    }

    /// The identity of a small broker's log.
    pub(crate) fn log_id(&self) -> Option<u32> {
        identity::of(&self.apis)
    }
}

/// Asks all `servers` at once, and returns what the first broker that answers says. A broker that closes
/// the connection instead counts only where it is the only server.
///
/// Fails, after `patience` at most, if no broker answers: with the reason of each server.
pub fn ask(servers: &[String], patience: Duration) -> Result<BrokerInfo> {
    let (tx, rx) = mpsc::channel();
    for server in servers {
        let (tx, server) = (tx.clone(), server.clone());
        spawn("probe", move || {
            let outcome = ask_one(&server, patience);
            // Nobody waits for it once another server has answered.
            let _ = tx.send((server, outcome));
        })?;
    }
    drop(tx);
    let is_alone = servers.len() == 1;
    let mut failures = BTreeMap::new();
    for (server, outcome) in rx {
        match outcome {
            Ok(found) if is_alone || !found.hung_up() => return Ok(found),
            Ok(_) => drop(failures.insert(server, Failure::HUNG_UP)),
            Err(failure) => drop(failures.insert(server, failure)),
        }
    }
    Err(combine(servers, failures))
}

/// Why a server is of no use.
#[derive(Debug)]
struct Failure {
    doing: &'static str,
    why: Cow<'static, str>,
    hint: &'static str,
}

impl Failure {
    const HUNG_UP: Failure = Failure {
        doing: "cannot talk to",
        why: Cow::Borrowed("it closed the connection instead of answering"),
        hint: "If it wants TLS or a login: -X security.protocol=ssl, sasl_ssl or sasl_plaintext.",
    };

    /// What takes connections there is of no use.
    fn talking(why: impl Into<Cow<'static, str>>, hint: &'static str) -> Failure {
        Failure {
            doing: "cannot talk to",
            why: why.into(),
            hint,
        }
    }

    fn not_kafka(what: &str) -> Failure {
        let hint = "Name the broker's own address and port with -b HOST:PORT.";
        Failure::talking(format!("{what}, so it can't be a Kafka broker"), hint)
    }

    fn into_error(self, server: &str) -> Error {
        Error::failed(format!("{} {server}", self.doing), self.why).hint(self.hint)
    }
}

/// One error for all servers, with the reason of each.
fn combine(servers: &[String], mut failures: BTreeMap<String, Failure>) -> Error {
    if let [server] = servers
        && let Some(failure) = failures.remove(server)
    {
        return failure.into_error(server);
    }
    sentences::no_server(servers, |server| {
        let failure = failures.get(server)?;
        Some((&failure.why, failure.hint))
    })
}

fn ask_one(server: &str, patience: Duration) -> Result<BrokerInfo, Failure> {
    let deadline = Instant::now() + patience;
    let (stream, address) = open(server, patience)?;
    let apis = api_versions(&stream, &HEADER, deadline).or_else(|error| match error.kind() {
        ErrorKind::Unsupported => Err(Failure::talking("it speaks TLS", USE_TLS)),
        ErrorKind::InvalidData => Err(Failure::not_kafka(NOT_KAFKA)),
        ErrorKind::UnexpectedEof => Err(Failure::not_kafka(
            "it closes the connection within its answer",
        )),
        _ if is_timeout(&error) => {
            let limit = seconds(patience);
            let why = format!("it takes connections, but gave no answer within {limit}");
            Err(Failure::talking(why, IS_IT_KAFKA))
        }
        _ => Ok(Vec::new()),
    })?;
    if is_controller(&apis) {
        return Err(Failure::talking(IS_CONTROLLER, USE_BROKER_PORT));
    }
    Ok(BrokerInfo {
        server: server.to_string(),
        address,
        apis,
    })
}

/// Whether this is the port of a KRaft controller: it takes part in the quorum's votes, and gives no metadata
/// to clients ([KIP-595], [KIP-631]).
///
/// [KIP-595]: https://cwiki.apache.org/confluence/display/KAFKA/KIP-595%3A+A+Raft+Protocol+for+the+Metadata+Quorum
/// [KIP-631]: https://cwiki.apache.org/confluence/display/KAFKA/KIP-631%3A+The+Quorum-based+Kafka+Controller
fn is_controller(apis: &[ApiVersion]) -> bool {
    let lists = |key| apis.iter().any(|api| api.api_key == key);
    lists(VOTE) && !lists(METADATA)
}

/// The API key of Vote, which no client uses.
const VOTE: i16 = 52;

const USE_TLS: &str = "Add -X security.protocol=ssl, or sasl_ssl with your user name and password.";
const IS_IT_KAFKA: &str = "Is that a Kafka broker, and is it overloaded?";
const IS_CONTROLLER: &str = "it is the port of a KRaft controller, which serves no clients";
const USE_BROKER_PORT: &str =
    "Name a port of a broker: one in advertised.listeners, not in controller.listener.names.";
const NOT_KAFKA: &str = "it answers, but not in Kafka's protocol";

/// Asks which requests are understood, in which versions.
///
/// Fails with [`ErrorKind::ConnectionAborted`] if the connection is closed instead of an answer, with
/// `Unsupported` if the answer is a TLS alert, and with `InvalidData` if it is not Kafka's.
pub(super) fn api_versions(
    stream: &TcpStream,
    header: &Header<'_>,
    deadline: Instant,
) -> io::Result<Vec<ApiVersion>> {
    let mut input = send(
        stream,
        header,
        &Request::ApiVersions(ApiVersionsRequest {}),
        deadline,
    )?;
    let mut start = Vec::new();
    (&mut input).take(4).read_to_end(&mut start)?;
    match start[..] {
        [] => return Err(ErrorKind::ConnectionAborted.into()),
        [0x15, 0x03, _, _] => return Err(ErrorKind::Unsupported.into()),
        _ => {}
    }
    let mut frame = wire::read_frame(&mut start.chain(input), LONGEST_ANSWER)?;
    let response = wire::read_response::<ApiVersionsResponse>(header, &mut frame);
    Ok(response.map_err(|_| ErrorKind::InvalidData)?.api_keys)
}

/// Returns the answer to one request, without its size, if that is at most `max_bytes`.
pub(super) fn exchange(
    stream: &TcpStream,
    header: &Header<'_>,
    request: &Request<'_>,
    max_bytes: usize,
    deadline: Instant,
) -> io::Result<Vec<u8>> {
    wire::read_frame(&mut send(stream, header, request, deadline)?, max_bytes)
}

/// Sends a request. Returns what its answer can be read from.
fn send<'a>(
    stream: &'a TcpStream,
    header: &Header<'_>,
    request: &Request<'_>,
    deadline: Instant,
) -> io::Result<ReadBy<'a>> {
    stream.set_write_timeout(Some(time_left(deadline)?))?;
    (&mut &*stream).write_all(&request.write(header))?;
    Ok(ReadBy { stream, deadline })
}

/// A connection that is read until a deadline.
struct ReadBy<'a> {
    stream: &'a TcpStream,
    deadline: Instant,
}

impl Read for ReadBy<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream
            .set_read_timeout(Some(time_left(self.deadline)?))?;
        (&mut &*self.stream).read(buffer)
    }
}

fn time_left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ErrorKind::TimedOut.into());
    }
    Ok(left)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

/// Connects to `server` (`host:port`): its addresses are tried one after the other.
///
/// Fails with an error that says whether the name has no address, or the address no listener.
pub fn connect(server: &str, patience: Duration) -> Result<TcpStream> {
    let opened = open(server, patience).map_err(|failure| failure.into_error(server));
    opened.map(|(stream, _)| stream)
}

/// The same, with the address that was reached if the system's resolver does not know it.
fn open(server: &str, patience: Duration) -> Result<(TcpStream, Option<SocketAddr>), Failure> {
    let deadline = Instant::now() + patience;
    let failure = |why: String| Failure {
        doing: "cannot reach Kafka at",
        why: why.into(),
        hint: "Is the broker running, and is the address after -b right?",
    };
    let (addresses, known) = resolve(server, patience).map_err(failure)?;
    let mut why = "its name has no address".to_string();
    for (n, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - n).unwrap_or(1);
        let share = share.max(Duration::from_millis(1));
        match TcpStream::connect_timeout(address, share) {
            // A free port in the ephemeral range can be connected to itself.
            Ok(stream) if stream.local_addr().ok() == stream.peer_addr().ok() => {
                why = "connection refused".into();
            }
            Ok(stream) => return Ok((stream, (n >= known).then_some(*address))),
            Err(error) if is_timeout(&error) => {
                why = format!("no answer within {}", seconds(share));
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                why = "connection refused: nothing listens there".into();
            }
            Err(error) => why = error.to_string(),
        }
    }
    Err(failure(why))
}

/// The addresses of `server`: those that the system knows, and for localhost both loopback addresses after them
/// ([RFC 6761]), as a broker may listen on either, and the system's list may lack one. Also returns how many the system
/// knows.
///
/// [RFC 6761]: https://www.rfc-editor.org/rfc/rfc6761#section-6.3
fn resolve(server: &str, patience: Duration) -> Result<(Vec<SocketAddr>, usize), String> {
    let Some(Ok(port)) = server.strip_prefix("localhost:").map(str::parse) else {
        return look_up(server, patience).map(|it| {
            let known = it.len();
            (it, known)
        });
    };
    let mut addresses = look_up(server, patience).unwrap_or_default();
    let known = addresses.len();
    for loopback in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        let address = SocketAddr::new(loopback, port);
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok((addresses, known))
}

/// The addresses that the system knows. Its resolver has no timeout, so it runs on a thread that can be left.
fn look_up(server: &str, patience: Duration) -> Result<Vec<SocketAddr>, String> {
    if let Ok(address) = server.parse() {
        return Ok(vec![address]);
    }
    let (tx, rx) = mpsc::channel();
    let name = server.to_string();
    spawn("resolver", move || {
        let _ = tx.send(name.to_socket_addrs().map(Iterator::collect));
    })
    .map_err(|why| why.to_string())?;
    match rx.recv_timeout(patience) {
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) => Err(format!("its name can't be resolved ({error})")),
        Err(_) => Err(format!(
            "its name could not be resolved within {}",
            seconds(patience)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    /// Much longer than anything here takes.
    const DEADLINE: Duration = Duration::from_secs(60);

    /// A listener that reads the request, then answers with these bytes and closes.
    fn answering(answer: &[u8]) -> String {
        answering_at("127.0.0.1:0", answer).unwrap().to_string()
    }

    /// The same, at this address.
    fn answering_at(address: &str, answer: &[u8]) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let answer = answer.to_vec();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = wire::read_frame(&mut stream, 100).unwrap();
            let (header, _) = Request::read(&mut request, usize::MAX).unwrap();
            assert_eq!(header, HEADER);
            stream.write_all(&answer).unwrap();
        });
        Ok(address)
    }

    fn ask_for(answer: &[u8]) -> Result<BrokerInfo> {
        ask(&[answering(answer)], DEADLINE)
    }

    fn speaking(apis: &[(i16, i16, i16)]) -> Vec<ApiVersion> {
        let api = |&(api_key, min_version, max_version): &_| ApiVersion {
            api_key,
            min_version,
            max_version,
        };
        apis.iter().map(api).collect()
    }

    /// A broker's answer that lists these APIs.
    fn listing(apis: &[(i16, i16, i16)]) -> Vec<u8> {
        let response = ApiVersionsResponse {
            error_code: wire::code::NONE,
            api_keys: speaking(apis),
        };
        wire::write_response(&HEADER, &response)
    }

    #[test]
    fn fetch_and_list_offsets_decide_and_produce_does_not() {
        let broker = |fetch, list, produce| BrokerInfo {
            server: String::new(),
            address: None,
            apis: speaking(&[(0, produce, 13), (1, fetch, 18), (2, list, 10)]),
        };
        assert!(broker(0, 0, 0).speaks_version_0());
        assert!(broker(0, 0, 3).speaks_version_0());
        assert!(!broker(4, 1, 0).speaks_version_0());
        assert!(!broker(0, 1, 0).speaks_version_0());
    }

    #[test]
    fn an_answer_lists_what_the_broker_speaks() {
        let apis = [(1, 0, 12), (2, 0, 5)];
        let found = ask_for(&listing(&apis)).unwrap();
        assert_eq!(found.apis, speaking(&apis));
        assert!(!found.hung_up());
        assert!(!found.is_small_broker());
    }

    #[test]
    fn a_small_broker_is_recognised() {
        let found = ask_for(&listing(&[(1, 0, 2), (32001, 0, 1), (32002, 0, 2)])).unwrap();
        assert!(found.is_small_broker());
        assert_eq!(found.log_id(), Some((1 << 15) + 2));
    }

    #[test]
    fn a_broker_that_hangs_up_is_taken_for_an_old_one() {
        let found = ask_for(b"").unwrap();
        assert!(found.hung_up());
        assert!(found.speaks_version_0());
    }

    #[test]
    fn other_servers_are_recognised() {
        for (answer, sentence) in [
            (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], NOT_KAFKA),
            (b"\x15\x03\x03\0\x02\x02\x0a", "it speaks TLS"),
            (b"SSH-2.0-OpenSSH\r\n", NOT_KAFKA),
            (b"\0\0\0\x02\0\0", NOT_KAFKA),
            (b"\0\0\0\x20\0\0", "within its answer"),
            (b"\0\0", "within its answer"),
            (b"\0\0\0\x0a\0\0\0\x01\0\0\x7f\xff\xff\xff", NOT_KAFKA),
        ] {
            let error = ask_for(answer).unwrap_err().to_string();
            assert!(error.contains(sentence), "{answer:?}: {error}");
        }
    }

    #[test]
    fn a_listener_that_never_answers_is_given_up_with_the_time_that_it_had() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap().to_string();
        let error = ask(&[server], Duration::from_millis(300)).unwrap_err();
        assert!(
            error.to_string().contains("no answer within 0.3 seconds"),
            "{error}"
        );
    }

    /// An address at which nothing listens, unless somebody is very quick.
    fn nobody() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    }

    /// A listener that never answers, and its address.
    fn silent() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (listener, address)
    }

    #[test]
    fn localhost_is_both_loopback_addresses() {
        let (addresses, _) = resolve("localhost:9092", DEADLINE).unwrap();
        for loopback in ["127.0.0.1:9092", "[::1]:9092"] {
            assert!(addresses.contains(&loopback.parse().unwrap()), "{loopback}");
        }
    }

    #[test]
    fn a_broker_on_the_ipv6_loopback_alone_is_found_at_localhost() {
        // Not every machine has that address.
        let Ok(address) = answering_at("[::1]:0", &listing(&[(3, 0, 12)])) else {
            return;
        };
        let server = format!("localhost:{}", address.port());
        let found = ask(std::slice::from_ref(&server), DEADLINE).unwrap();
        assert_eq!(found.server, server);
        let is_known = look_up(&server, DEADLINE).is_ok_and(|it| it.contains(&address));
        assert_eq!(found.address, (!is_known).then_some(address));
    }

    #[test]
    fn another_server_is_used_whatever_the_first_does() {
        let (_listener, silent) = silent();
        let closing = answering(b"");
        let http = answering(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        for first in [nobody(), silent, closing, http] {
            let live = answering(&listing(&[(3, 0, 12)]));
            let found = ask(&[first, live.clone()], DEADLINE).unwrap();
            assert_eq!(found.server, live);
        }
    }

    #[test]
    fn each_server_is_named_with_its_reason_if_none_can_be_used() {
        let (_listener, silent) = silent();
        let servers = [
            nobody(),
            silent,
            answering(b""),
            answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        ];
        let error = ask(&servers, Duration::from_secs(3)).unwrap_err();
        let lines: Vec<_> = error.to_string().lines().map(String::from).collect();
        for (n, why) in [
            "connection refused",
            "no answer within 3 seconds",
            "closed the connection",
            NOT_KAFKA,
        ]
        .iter()
        .enumerate()
        {
            assert!(lines[n + 1].contains(&servers[n]), "{error}");
            assert!(lines[n + 1].contains(why), "{error}");
        }
    }

    #[test]
    fn the_port_of_a_controller_is_recognised() {
        // What a controller of Kafka 4.3.1 lists, and a broker that is one in the same process.
        let controller = [(1, 4, 18), (18, 0, 4), (52, 0, 2), (53, 0, 1)];
        let error = ask_for(&listing(&controller)).unwrap_err().to_string();
        assert!(error.contains("KRaft controller"), "{error}");
        assert!(error.contains("advertised.listeners"), "{error}");
        let broker = [(0, 0, 13), (1, 4, 18), (3, 0, 13), (55, 0, 2)];
        ask_for(&listing(&broker)).unwrap();
    }
}
