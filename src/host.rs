//! Who runs the small broker, and who takes over: binding its port is the election.

use std::fmt::Display;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::broker::{Broker, Config, Report, identity, lock};
use crate::client::{self, CONNECT_TIMEOUT, TakeOver};
use crate::ending::say;
use crate::error::{Error, Result};

/// How often a start is tried while other programs start, too.
const START_ATTEMPTS: u32 = 20;
/// How often a start is tried while the log cannot be used.
const LOG_ATTEMPTS: u32 = 4;
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

const OTHER_PORT_HINT: &str =
    "Choose another port with --embedded=PORT, or name a Kafka with -b HOST:PORT.";

/// Who serves at a port of this machine.
pub enum Host {
    /// This process, which has just started the small broker.
    Us(Arc<LocalBroker>),
    /// Another process runs the small broker, with the log that this process would use.
    Other(Arc<LocalBroker>),
    /// Another process runs the small broker, with another log: this process cannot take over.
    Foreign,
    /// A real Kafka.
    Kafka,
}

/// A small broker of this machine: its address and its log, and the broker itself while this process
/// runs it.
pub struct LocalBroker {
    address: SocketAddr,
    dir: PathBuf,
    /// Locked while the broker is started.
    running: Mutex<Option<Broker>>,
    /// Who is told what is wrong with the log. Locked while that is told, and to change it.
    reader: Arc<Mutex<Reader>>,
}

type Reader = Box<dyn Fn(&str) + Send>;

/// Finds out who serves at `server` (`host:port`). If nobody does, starts the small broker on
/// 127.0.0.1 at `port`, with its log in `dir`.
///
/// Fails if the server is not Kafka, or if the broker cannot start.
pub fn find_or_start(server: &str, port: u16, dir: PathBuf) -> Result<Host> {
    let broker = LocalBroker {
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        dir,
        running: Mutex::new(None),
        reader: Arc::new(Mutex::new(Box::new(|report| say(report)))),
    };
    for attempt in 1..=START_ATTEMPTS {
        if client::reach(server, CONNECT_TIMEOUT).is_ok() {
            match client::ask(&[server.to_string()], CONNECT_TIMEOUT) {
                // Its process has ended since: the next attempt starts one.
                Err(_) if client::reach(server, CONNECT_TIMEOUT).is_err() => {}
                Err(error) => return Err(error.hint(OTHER_PORT_HINT)),
                // It is just stopping.
                Ok(found) if found.hung_up() && attempt < START_ATTEMPTS => {}
                Ok(found) => {
                    return Ok(match found.log_id() {
                        None => Host::Kafka,
                        id if identity::stored(&broker.dir) == id => Host::Other(Arc::new(broker)),
                        Some(_) => Host::Foreign,
                    });
                }
            }
        } else {
            match broker.serve() {
                Ok(true) => return Ok(Host::Us(Arc::new(broker))),
                Err(error) if attempt > LOG_ATTEMPTS => return Err(error),
                // Another process has bound the port since, or was killed: its port is free a
                // moment before its log is. The next attempt finds out.
                Ok(false) | Err(_) => {}
            }
        }
        thread::sleep(RETRY_INTERVAL);
    }
    Err(broker.cannot_start("the port is taken, but takes no connections"))
}

impl LocalBroker {
    /// Where it serves, as `host:port`.
    pub fn server(&self) -> String {
        self.address.to_string()
    }

    /// What a client calls before it connects again: starts the broker here if nobody runs it.
    pub fn take_over(self: &Arc<Self>) -> TakeOver {
        let broker = self.clone();
        Arc::new(move || {
            if client::reach(&broker.server(), CONNECT_TIMEOUT).is_err() {
                broker.serve()?;
            }
            Ok(())
        })
    }

    /// From now on `reader` is told what is wrong with the log, if this process runs the broker. Before,
    /// that is printed on standard error.
    pub fn report_to(&self, reader: impl Fn(&str) + Send + 'static) {
        *lock(&self.reader) = Box::new(reader);
    }

    /// Whether this process runs the broker and another one uses it.
    pub fn has_guests(&self) -> bool {
        lock(&self.running).as_ref().is_some_and(Broker::has_guests)
    }

    /// Serves from this process, unless the port is taken. Returns whether it does.
    fn serve(&self) -> Result<bool> {
        let mut running = lock(&self.running);
        if running.is_none() {
            let listener = match TcpListener::bind(self.address) {
                Err(error) if error.kind() == ErrorKind::AddrInUse => return Ok(false),
                bound => bound.map_err(|error| self.cannot_start(error))?,
            };
            let reader = Arc::clone(&self.reader);
            let config = Config {
                report: Report::to(move |report| lock(&reader)(report)),
                ..Config::default()
            };
            *running = Some(Broker::start(listener, &self.dir, config)?);
        }
        Ok(true)
    }

    fn cannot_start(&self, why: impl Display) -> Error {
        let doing = format_args!("cannot start the small broker on {}", self.address);
        Error::failed(doing, why).hint(OTHER_PORT_HINT)
    }
}
