//! Asks a broker what it speaks, before a client is chosen for it.
//!
//! One `ApiVersions` request of version 0, which every Kafka since 0.10 answers:
//! <https://kafka.apache.org/protocol#The_Messages_ApiVersions>.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::sentences::seconds;
use crate::broker::identity;
use crate::ending::spawn;
use crate::error::{Error, Result};
use crate::wire::{
    self, ApiVersion, ApiVersionsRequest, ApiVersionsResponse, FETCH, Header, LIST_OFFSETS, Request,
};

/// The longest answer that is read, in bytes. Kafka 4.1 answers with about 500.
const LONGEST_ANSWER: usize = 64 * 1024;

/// What precedes the bodies of our requests.
const HEADER: Header<'static> = Header {
    api_version: 0,
    correlation_id: 1,
    client_id: Some("kafka-chat"),
};

/// A broker that answered.
#[derive(Debug)]
pub struct BrokerInfo {
    /// The bootstrap server that answered, as it was given.
    pub server: String,
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

/// Asks the first of `servers` that can be reached.
///
/// Fails, after `patience` at most, if none can be reached, or if what answers is not Kafka.
pub fn ask(servers: &[String], patience: Duration) -> Result<BrokerInfo> {
    let deadline = Instant::now() + patience;
    let mut failures = Vec::new();
    for (n, server) in servers.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(servers.len() - n).unwrap_or(1);
        match ask_one(server, share) {
            Ok(found) => return Ok(found),
            Err(error) => failures.push(error),
        }
    }
    match failures.len() {
        1 => Err(failures.remove(0)),
        _ => {
            let doing = format!("cannot reach Kafka at {}", servers.join(", "));
            let failures: Vec<_> = failures.iter().map(Error::to_string).collect();
            Err(Error::failed(doing, failures.join("; ")))
        }
    }
}

fn ask_one(server: &str, patience: Duration) -> Result<BrokerInfo> {
    let deadline = Instant::now() + patience;
    let stream = connect(server, patience)?;
    let doing = format!("cannot talk to {server}");
    let not_kafka = |what: &str| {
        Error::failed(&doing, format!("{what}, so it can't be a Kafka broker"))
            .hint("Name the broker's own address and port with -b HOST:PORT.")
    };
    let apis = api_versions(&stream, deadline).or_else(|error| match error.kind() {
        ErrorKind::Unsupported => Err(Error::failed(
            format!("{doing} in plain text"),
            "it speaks TLS",
        )
        .hint("Add -X security.protocol=ssl, or sasl_ssl with your user name and password.")),
        ErrorKind::InvalidData => Err(not_kafka(NOT_KAFKA)),
        ErrorKind::UnexpectedEof => Err(not_kafka("it closes the connection within its answer")),
        _ if is_timeout(&error) => {
            let limit = seconds(patience);
            let why = format!("it takes connections, but gave no answer within {limit}");
            Err(Error::failed(&doing, why).hint("Is that a Kafka broker, and is it overloaded?"))
        }
        _ => Ok(Vec::new()),
    })?;
    let server = server.to_string();
    Ok(BrokerInfo { server, apis })
}

const NOT_KAFKA: &str = "it answers, but not in Kafka's protocol";

/// Asks which requests are understood, in which versions.
///
/// Fails with [`ErrorKind::ConnectionAborted`] if the connection is closed instead of an answer, with
/// `Unsupported` if the answer is a TLS alert, and with `InvalidData` if it is not Kafka's.
fn api_versions(stream: &TcpStream, deadline: Instant) -> io::Result<Vec<ApiVersion>> {
    let request = Request::ApiVersions(ApiVersionsRequest {});
    stream.set_write_timeout(Some(time_left(deadline)?))?;
    (&mut &*stream).write_all(&request.write(&HEADER))?;
    let mut input = ReadBy { stream, deadline };
    let mut start = Vec::new();
    (&mut input).take(4).read_to_end(&mut start)?;
    match start[..] {
        [] => return Err(ErrorKind::ConnectionAborted.into()),
        [0x15, 0x03, _, _] => return Err(ErrorKind::Unsupported.into()),
        _ => {}
    }
    let mut frame = wire::read_frame(&mut start.chain(input), LONGEST_ANSWER)?;
    let response = wire::read_response::<ApiVersionsResponse>(&HEADER, &mut frame);
    Ok(response.map_err(|_| ErrorKind::InvalidData)?.api_keys)
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
    let deadline = Instant::now() + patience;
    let doing = format!("cannot reach Kafka at {server}");
    let addresses = resolve(server, patience).map_err(|why| Error::failed(&doing, why))?;
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
            Ok(stream) => return Ok(stream),
            Err(error) if is_timeout(&error) => {
                why = format!("no answer within {}", seconds(share));
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                why = "connection refused: nothing listens there".into();
            }
            Err(error) => why = error.to_string(),
        }
    }
    Err(Error::failed(doing, why).hint("Is the broker running, and is the address after -b right?"))
}

/// The addresses of `server`. The system's resolver has no timeout, so it runs on a thread that can
/// be left.
fn resolve(server: &str, patience: Duration) -> Result<Vec<SocketAddr>, String> {
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
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let answer = answer.to_vec();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = wire::read_frame(&mut stream, 100).unwrap();
            let (header, _) = Request::read(&mut request).unwrap();
            assert_eq!(header, HEADER);
            stream.write_all(&answer).unwrap();
        });
        address
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

    #[test]
    fn the_second_server_is_asked_when_the_first_is_down() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let down = listener.local_addr().unwrap().to_string();
        drop(listener);
        let live = answering(&listing(&[]));
        let found = ask(&[down, live.clone()], DEADLINE).unwrap();
        assert_eq!(found.server, live);
    }
}
