//! Asks a broker what it speaks, before a client is made for it.
//!
//! One `ApiVersions` request of version 0, which every Kafka since 0.10 answers:
//! <https://kafka.apache.org/protocol#The_Messages_ApiVersions>.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// The longest answer that is read, in bytes. Kafka 4.1 answers with about 500.
const LONGEST_ANSWER: usize = 64 * 1024;

const FETCH: i16 = 1;
const LIST_OFFSETS: i16 = 2;
const API_VERSIONS: i16 = 18;

/// One line of a broker's answer: an API key, and the versions it speaks, from and to.
pub type Api = (i16, i16, i16);

/// A broker that answered.
#[derive(Debug)]
pub struct Found {
    /// The bootstrap server that answered, as it was given.
    pub server: String,
    /// What it speaks. Empty if it closed the connection instead of answering, as brokers before
    /// 0.10 do.
    pub apis: Vec<Api>,
}

impl Found {
    /// Whether it still speaks version 0 of what a reader needs.
    ///
    /// *Produce* says nothing: Kafka 4 claims its version 0 for the sake of old clients, and
    /// refuses it ([KIP-896]).
    ///
    /// [KIP-896]: https://cwiki.apache.org/confluence/display/KAFKA/KIP-896%3A+Remove+old+client+protocol+API+versions+in+Kafka+4.0
    pub fn speaks_version_0(&self) -> bool {
        let oldest = |key| self.apis.iter().find(|api| api.0 == key).map(|api| api.1);
        self.apis.is_empty() || (oldest(FETCH) == Some(0) && oldest(LIST_OFFSETS) == Some(0))
    }
}

/// Asks the first of `servers` that can be reached.
///
/// Fails, after `patience` at the most, if none can be, or if what answers is not Kafka.
pub fn ask(servers: &[String], patience: Duration) -> Result<Found> {
    let end = Instant::now() + patience;
    let mut failures = Vec::new();
    for (n, server) in servers.iter().enumerate() {
        let left = end.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(servers.len() - n).unwrap_or(1);
        match ask_one(server, Instant::now() + share) {
            Ok(found) => return Ok(found),
            Err(error) => failures.push(error),
        }
    }
    match failures.len() {
        1 => Err(failures.remove(0)),
        _ => Err(Error::failed(
            format!("cannot reach Kafka at {}", servers.join(", ")),
            failures
                .iter()
                .map(Error::to_string)
                .collect::<Vec<_>>()
                .join("; "),
        )),
    }
}

fn ask_one(server: &str, end: Instant) -> Result<Found> {
    let mut stream = connect(server, end.saturating_duration_since(Instant::now()))?;
    let strange = |what: &str| {
        Error::failed(
            format!("cannot talk to {server}"),
            format!("{what}, so it can't be a Kafka broker"),
        )
        .hint("Name the broker's own address and port with -b HOST:PORT.")
    };
    let answer = match exchange(&mut stream, API_VERSIONS, &[], end) {
        Ok(answer) => answer,
        Err(error) if timed_out(&error) => {
            return Err(Error::failed(
                format!("cannot talk to {server}"),
                "it takes connections, but gave no answer within the 5 seconds allowed",
            )
            .hint("Is a Kafka broker there, and is it well?"));
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(strange(&error.to_string()));
        }
        Err(_) => Vec::new(),
    };
    match answer.first_chunk() {
        None => Ok(Found {
            server: server.to_string(),
            apis: Vec::new(),
        }),
        // A TLS alert, which is how a TLS listener takes plain text.
        Some([0x15, 0x03, _, _]) => Err(Error::failed(
            format!("cannot talk to {server} in plain text"),
            "it speaks TLS",
        )
        .hint("Add -X security.protocol=ssl, or sasl_ssl with your user name and password.")),
        Some(_) => match apis(&answer[4..]) {
            Some(apis) => Ok(Found {
                server: server.to_string(),
                apis,
            }),
            None => Err(strange("it answers, but not in Kafka's words")),
        },
    }
}

/// Sends a request of version 0 and reads the answer, with its length in front. Nothing, if the other side
/// closes instead; what there is of it, if its first bytes are no length.
fn exchange(
    stream: &mut TcpStream,
    api_key: i16,
    body: &[u8],
    end: Instant,
) -> io::Result<Vec<u8>> {
    let client = b"kafka-chat";
    let mut request = Vec::new();
    request.extend_from_slice(&api_key.to_be_bytes());
    request.extend_from_slice(&0i16.to_be_bytes());
    request.extend_from_slice(&1i32.to_be_bytes());
    request.extend_from_slice(&(client.len() as i16).to_be_bytes());
    request.extend_from_slice(client);
    request.extend_from_slice(body);
    let mut framed = (request.len() as i32).to_be_bytes().to_vec();
    framed.extend_from_slice(&request);
    stream.set_write_timeout(Some(left(end)?))?;
    stream.write_all(&framed)?;

    let mut answer = Vec::new();
    let mut wanted = 4;
    let mut chunk = [0; 4096];
    while answer.len() < wanted {
        stream.set_read_timeout(Some(left(end)?))?;
        let most = chunk.len().min(wanted - answer.len());
        match stream.read(&mut chunk[..most])? {
            0 if answer.is_empty() => break,
            0 => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "it closes the connection within its answer",
                ));
            }
            n => answer.extend_from_slice(&chunk[..n]),
        }
        if let (4, Some(&length)) = (answer.len(), answer.first_chunk()) {
            match usize::try_from(i32::from_be_bytes(length)) {
                Ok(length) if length <= LONGEST_ANSWER => wanted = 4 + length,
                _ => break,
            }
        }
    }
    Ok(answer)
}

fn left(end: Instant) -> io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left)
}

fn timed_out(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
    )
}

/// The body of an `ApiVersions` answer of version 0: correlation id, error, and the list.
fn apis(body: &[u8]) -> Option<Vec<Api>> {
    let (head, list) = body.split_at_checked(10)?;
    let correlation = i32::from_be_bytes(*head.first_chunk()?);
    let count = i32::from_be_bytes(*head.last_chunk()?);
    let i16_at =
        |row: &[u8], at: usize| Some(i16::from_be_bytes([*row.get(at)?, *row.get(at + 1)?]));
    let apis = list
        .chunks_exact(6)
        .map(|row| Some((i16_at(row, 0)?, i16_at(row, 2)?, i16_at(row, 4)?)))
        .collect::<Option<Vec<Api>>>()?;
    (correlation == 1 && list.len() % 6 == 0 && i32::try_from(apis.len()) == Ok(count))
        .then_some(apis)
}

/// Connects to `server` (`host:port`), to whichever of its addresses answers first in turn.
///
/// Fails with a sentence that tells a name without an address from an address without a listener.
pub fn connect(server: &str, patience: Duration) -> Result<TcpStream> {
    let end = Instant::now() + patience;
    let doing = format!("cannot reach Kafka at {server}");
    let addresses = resolve(server, patience).map_err(|why| Error::failed(&doing, why))?;
    let mut why = "its name has no address".to_string();
    for (n, address) in addresses.iter().enumerate() {
        let left = end.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - n).unwrap_or(1);
        match TcpStream::connect_timeout(address, share.max(Duration::from_millis(1))) {
            // A port of the ephemeral range that nobody listens on can be connected to itself.
            Ok(stream) if stream.local_addr().ok() == stream.peer_addr().ok() => {
                why = "connection refused".into();
            }
            Ok(stream) => return Ok(stream),
            Err(error) if timed_out(&error) => why = "no answer within 5 seconds".into(),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                why = "connection refused: nothing listens there".into();
            }
            Err(error) => why = error.to_string(),
        }
    }
    Err(Error::failed(doing, why)
        .hint("Is the broker running, and is the address that of -b HOST:PORT?"))
}

/// The addresses of `server`. The system's resolver takes its own time, so it is given a thread.
fn resolve(server: &str, patience: Duration) -> Result<Vec<SocketAddr>, String> {
    if let Ok(address) = server.parse() {
        return Ok(vec![address]);
    }
    let (tell, told) = mpsc::channel();
    let name = server.to_string();
    thread::spawn(move || {
        let _ = tell.send(name.to_socket_addrs().map(Iterator::collect));
    });
    match told.recv_timeout(patience) {
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) => Err(format!("its name can't be resolved ({error})")),
        Err(_) => Err("its name could not be resolved within 5 seconds".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A listener that reads the request, then answers with these bytes and closes.
    fn answering(answer: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 24];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(answer).unwrap();
        });
        address
    }

    fn ask_for(answer: &'static [u8]) -> Result<Found> {
        ask(&[answering(answer)], Duration::from_secs(5))
    }

    #[test]
    fn fetch_and_list_offsets_decide_and_produce_does_not() {
        let found = |fetch, list, produce| Found {
            server: String::new(),
            apis: vec![(0, produce, 13), (1, fetch, 18), (2, list, 10)],
        };
        assert!(found(0, 0, 0).speaks_version_0());
        assert!(found(0, 0, 3).speaks_version_0());
        assert!(!found(4, 1, 0).speaks_version_0());
        assert!(!found(0, 1, 0).speaks_version_0());
    }

    #[test]
    fn an_answer_in_kafkas_words_is_understood() {
        let found =
            ask_for(b"\0\0\0\x16\0\0\0\x01\0\0\0\0\0\x02\0\x01\0\0\0\x0c\0\x02\0\0\0\x05").unwrap();
        assert_eq!(found.apis, [(1, 0, 12), (2, 0, 5)]);
    }

    #[test]
    fn a_broker_that_closes_on_the_question_is_an_old_one() {
        assert!(ask_for(b"").unwrap().speaks_version_0());
    }

    #[test]
    fn other_servers_are_told_from_kafka() {
        for (answer, sentence) in [
            (
                &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
                "not in Kafka's words",
            ),
            (b"\x15\x03\x03\0\x02\x02\x0a", "it speaks TLS"),
            (b"SSH-2.0-OpenSSH\r\n", "not in Kafka's words"),
            (b"\0\0\0\x02\0\0", "not in Kafka's words"),
            (b"\0\0\0\x20\0\0", "within its answer"),
            (
                b"\0\0\0\x0a\0\0\0\x01\0\0\x7f\xff\xff\xff",
                "not in Kafka's words",
            ),
        ] {
            let error = ask_for(answer).unwrap_err().to_string();
            assert!(error.contains(sentence), "{answer:?}: {error}");
        }
    }

    #[test]
    fn a_listener_that_never_answers_is_given_up_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap().to_string();
        let start = Instant::now();
        let error = ask(&[server], Duration::from_millis(300)).unwrap_err();
        assert!(error.to_string().contains("gave no answer"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn the_second_server_is_asked_when_the_first_is_down() {
        let dead = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string();
        let live = answering(b"\0\0\0\x0a\0\0\0\x01\0\0\0\0\0\0");
        let found = ask(&[dead, live.clone()], Duration::from_secs(5)).unwrap();
        assert_eq!(found.server, live);
    }
}
