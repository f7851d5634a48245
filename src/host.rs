//! Who runs the small broker, and who takes over: binding its port is the election.

use std::fmt::Display;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::account::{self, Account};
use crate::broker::{Broker, Config, Report, identity, lock};
use crate::client::{self, CONNECT_TIMEOUT, TakeOver};
use crate::ending::say;
use crate::error::{Error, Result};

/// How often a start is tried while other programs start, too.
const START_ATTEMPTS: u32 = 20;
/// How often a start is tried while the log cannot be used.
const LOG_ATTEMPTS: u32 = 4;
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// A hint for a broker of another account.
const FOREIGN_HINT: &str = "To use a small broker together with other accounts: --shared. To use a Kafka of another \
                            account: -b HOST:PORT.";

/// A hint for a broker that another account runs, and that closes the connection.
const NOT_SHARED_HINT: &str =
    "A small broker serves other accounts only if it was started with --shared.";

const OTHER_PORT_HINT: &str =
    "Choose another port with --embedded=PORT, or name a Kafka with -b HOST:PORT.";

/// Who serves at a port of this machine.
pub enum Host {
    /// This process, which has just started the small broker.
    Us(Arc<LocalBroker>),
    /// Another process runs the small broker.
    Other(Arc<LocalBroker>),
    /// A real Kafka.
    Kafka,
    /// A program of this account that closes connections instead of answering: perhaps a secured Kafka.
    Unknown,
}

/// A small broker of this machine: its address and its log, and the broker itself while this process
/// runs it.
pub struct LocalBroker {
    address: SocketAddr,
    dir: PathBuf,
    /// Other accounts than this one and root may use it, or run it.
    is_shared: bool,
    /// The identity of its log, once that is known.
    log_id: Option<u32>,
    /// The account that ran it when this process found it, if that is not this one.
    other: Option<Account>,
    /// Locked while the broker is started.
    running: Mutex<Option<Broker>>,
    /// Receives what is wrong with the log. Locked during each call, and to replace it.
    reader: Arc<Mutex<Reader>>,
}

type Reader = Box<dyn Fn(&str) + Send>;

/// What is found where something takes connections.
enum Found {
    /// The small broker of this account, or of another one that may be used.
    SmallBroker {
        log_id: u32,
        owner: Account,
    },
    Kafka,
    /// It is just stopping, unless it stays like this.
    Stopping(Option<Error>),
}

/// Finds out who serves at `server` (`host:port`). If nobody does, starts the small broker on
/// 127.0.0.1 at `port`, with its log in `dir`.
///
/// Fails if the server is not Kafka, or if the broker cannot start. Unless `is_shared`, it also fails, before it sends
/// anything, if another account serves there: any account can take the port.
pub fn find_or_start(server: &str, port: u16, dir: PathBuf, is_shared: bool) -> Result<Host> {
    let mut broker = LocalBroker {
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        dir,
        is_shared,
        log_id: None,
        other: None,
        running: Mutex::new(None),
        reader: Arc::new(Mutex::new(Box::new(|report| say(report)))),
    };
    for attempt in 1..=START_ATTEMPTS {
        if let Ok(address) = reach(server) {
            match broker.look(server, address)? {
                Found::SmallBroker { log_id, owner } => {
                    broker.log_id = Some(log_id);
                    broker.other = Some(owner).filter(|it| *it != Account::own());
                    return Ok(Host::Other(Arc::new(broker)));
                }
                Found::Kafka => return Ok(Host::Kafka),
                Found::Stopping(_) if attempt < START_ATTEMPTS => {}
                Found::Stopping(Some(error)) => return Err(error),
                Found::Stopping(None) => return Ok(Host::Unknown),
            }
        } else {
            match broker.serve() {
                Ok(true) => {
                    broker.log_id = identity::stored(&broker.dir);
                    return Ok(Host::Us(Arc::new(broker)));
                }
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

/// Fails if another account serves at `server`, unless `is_shared`, or if nobody can see which one does.
pub fn check_account(server: &str, is_shared: bool) -> Result<()> {
    match reach(server) {
        Ok(address) => owner(server, address, is_shared).map(drop),
        // The client finds out what is wrong with the connection.
        Err(_) => Ok(()),
    }
}

/// The address at which `server` takes connections. Nothing is sent there.
fn reach(server: &str) -> Result<SocketAddr> {
    let stream = client::reach(server, CONNECT_TIMEOUT)?;
    let address = stream.peer_addr();
    address.map_err(|why| Error::failed(format!("cannot reach {server}"), why))
}

/// The account that serves at `address`, which is one of `server`. The error [denies](Error::is_denied) if that is
/// another account, unless `is_shared`.
fn owner(server: &str, address: SocketAddr, is_shared: bool) -> Result<Account> {
    let doing = format!("cannot use the broker at {server}");
    let unseen = "it cannot be seen which account runs it";
    let error = match account::of_listener(address) {
        Ok(Some(owner)) if owner.is_trusted() || is_shared => return Ok(owner),
        // Any account will do.
        _ if is_shared => return Ok(Account::own()),
        Ok(Some(owner)) => {
            let own = Account::own();
            let why = format!("account {owner} runs it, and this program runs as account {own}");
            Error::denied(doing, why)
        }
        Ok(None) => Error::failed(doing, unseen),
        Err(why) => Error::failed(doing, format_args!("{unseen} ({why})")),
    };
    Err(error.hint(FOREIGN_HINT))
}

impl LocalBroker {
    /// Where it serves, as `host:port`.
    pub fn server(&self) -> String {
        self.address.to_string()
    }

    /// The identity of its log.
    pub fn log_id(&self) -> Option<u32> {
        self.log_id
    }

    /// What a user should know who joins it, if that is not obvious.
    pub fn notice(&self) -> Option<String> {
        let can_take_over = self.can_take_over();
        match self.other {
            Some(other) => {
                let then = match can_take_over {
                    true => "can take over when that one exits.",
                    false => "cannot take over when that one exits: its log is in another folder.",
                };
                let server = self.server();
                Some(format!("Account {other} runs the small broker at {server}. This program {then}"))
            }
            None if can_take_over => None,
            None => Some(
                "This program cannot take over the small broker on this port: its log is in another folder.".into(),
            ),
        }
    }

    /// Whether this process would serve the same log.
    fn can_take_over(&self) -> bool {
        self.log_id.is_some() && identity::stored(&self.dir) == self.log_id
    }

    /// What a client calls before it connects again: starts the broker here if nobody runs it, and this process can
    /// serve its log.
    pub fn take_over(self: &Arc<Self>) -> TakeOver {
        let broker = self.clone();
        Arc::new(move || {
            let server = broker.server();
            match reach(&server) {
                Ok(address) => owner(&server, address, broker.is_shared).map(drop),
                Err(_) if broker.can_take_over() => broker.serve().map(drop),
                // The client finds out what is wrong with the connection.
                Err(_) => Ok(()),
            }
        })
    }

    /// Sends what is wrong with the log to `reader` from now on, if this process runs the broker. Until then it is
    /// printed on standard error. A program that uses a real Kafka has no such broker.
    pub fn report_to(broker: &Weak<LocalBroker>, reader: impl Fn(&str) + Send + 'static) {
        if let Some(broker) = broker.upgrade() {
            *lock(&broker.reader) = Box::new(reader);
        }
    }

    /// Whether this process runs the broker and another one uses it.
    pub fn has_guests(&self) -> bool {
        lock(&self.running).as_ref().is_some_and(Broker::has_guests)
    }

    /// Looks at who takes connections at `address`, which is one of `server`.
    fn look(&self, server: &str, address: SocketAddr) -> Result<Found> {
        let owner = match owner(server, address, self.is_shared) {
            Ok(owner) => owner,
            Err(error) if error.is_denied() => return Err(error),
            Err(error) => return Ok(Found::Stopping(Some(error))),
        };
        let ask = || client::ask(&[server.to_string()], CONNECT_TIMEOUT);
        let asked = Instant::now();
        let found = match ask() {
            Ok(found) => found,
            // Its process has ended since: the next attempt starts one.
            Err(error) if reach(server).is_err() => {
                return Ok(Found::Stopping(Some(error)));
            }
            // It may have ended all the same, if another one has taken over by now.
            Err(_) if asked.elapsed() < CONNECT_TIMEOUT / 2 => {
                ask().map_err(|error| error.hint(OTHER_PORT_HINT))?
            }
            Err(error) => return Err(error.hint(OTHER_PORT_HINT)),
        };
        Ok(match found.log_id() {
            Some(log_id) => Found::SmallBroker { log_id, owner },
            None if !found.hung_up() => Found::Kafka,
            None if owner == Account::own() => Found::Stopping(None),
            None => {
                let why = format!(
                    "account {owner} runs it, and it closed the connection instead of answering"
                );
                let error = Error::failed(format!("cannot use the broker at {server}"), why);
                Found::Stopping(Some(error.hint(NOT_SHARED_HINT)))
            }
        })
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
                is_shared: self.is_shared,
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
