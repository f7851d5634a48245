//! Finding the embedded broker, starting it, and taking it over: binding its port is the election.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::broker::{self, Broker, Config};
use crate::client::{self, CONNECT_TIMEOUT as PATIENCE, TakeOver as Revive};
use crate::error::{Error, Result};

/// How often a start is tried while other programs start, too.
const TRIES: u32 = 20;
/// How often, while the log can't be used.
const LOG_TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(50);

/// What to do about a port that can't be had.
const ELSEWHERE: &str =
    "Choose another port with --embedded=PORT, or name a Kafka with -b HOST:PORT.";

/// The place of an embedded broker on this machine, whether or not it runs in this process.
pub struct Embedded {
    address: SocketAddr,
    dir: PathBuf,
    running: Mutex<Option<Broker>>,
}

/// Who serves at the port.
pub enum Found {
    /// The embedded broker, which this process has just started.
    Started(Arc<Embedded>),
    /// The embedded broker of another process, with the log in the same folder as ours would be.
    Joined(Arc<Embedded>),
    /// The embedded broker of another process, whose log is not ours to go on with.
    Foreign,
    /// A real Kafka.
    Kafka,
}

/// Looks who serves at `server` (`host:port`), and starts the embedded broker on 127.0.0.1 at
/// `port`, with its log in `dir`, if nobody does.
///
/// Fails if what serves there is not Kafka, or if the broker can't start.
pub fn find_or_start(server: &str, port: u16, dir: PathBuf) -> Result<Found> {
    let place = Embedded {
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        dir,
        running: Mutex::new(None),
    };
    for n in 1..=TRIES {
        if client::reach(server, PATIENCE).is_ok() {
            match client::ask(&[server.to_string()], PATIENCE) {
                // Whoever ran it may have ended in between: then there is nobody to be reached.
                Err(_) if client::reach(server, PATIENCE).is_err() => {}
                Err(error) => return Err(error.hint(ELSEWHERE)),
                // So does a broker that ends just now.
                Ok(found) if found.apis.is_empty() && n < TRIES => thread::sleep(PAUSE),
                Ok(found) => {
                    return Ok(match broker::identity(found.apis.into_iter()) {
                        None => Found::Kafka,
                        Some(id) if broker::log_id(&place.dir) == Some(id) => {
                            Found::Joined(Arc::new(place))
                        }
                        Some(_) => Found::Foreign,
                    });
                }
            }
        } else {
            match place.serve() {
                Ok(true) => return Ok(Found::Started(Arc::new(place))),
                // Another program has bound the port since: the next look finds it.
                Ok(false) => {}
                // One that was killed lets go of its port a moment before its log.
                Err(error) if n > LOG_TRIES => return Err(error),
                Err(_) => {}
            }
            thread::sleep(PAUSE);
        }
    }
    Err(Error::failed(
        format!("cannot start the embedded broker on {}", place.address),
        "the port is taken, but takes no connections",
    )
    .hint(ELSEWHERE))
}

impl Embedded {
    /// Where it serves, as `host:port`.
    pub fn server(&self) -> String {
        self.address.to_string()
    }

    /// What a client does before it connects again: takes over, if nobody serves any more.
    pub fn revive(self: &Arc<Self>) -> Revive {
        let place = self.clone();
        Arc::new(move || {
            if client::reach(&place.server(), PATIENCE).is_err() {
                place.serve()?;
            }
            Ok(())
        })
    }

    /// Serves from this process, unless the port is taken. Says whether it does.
    fn serve(&self) -> Result<bool> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_some() {
            return Ok(true);
        }
        match TcpListener::bind(self.address) {
            Ok(listener) => {
                *running = Some(Broker::start(listener, &self.dir, Config::default())?);
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(false),
            Err(error) => Err(Error::failed(
                format!("cannot start the embedded broker on {}", self.address),
                error,
            )
            .hint(ELSEWHERE)),
        }
    }
}
