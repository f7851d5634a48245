//! The command line that the programs share, and the two questions.

mod secret;

use std::fs;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Weak, mpsc};
use std::time::{Duration, Instant};

use clap::{Args, Parser};

use crate::client::{self, Cluster, DELIVERY_TIMEOUT, Options, properties};
use crate::ending::{say, spawn};
use crate::error::{Error, Result};
use crate::host::{self, Host, LocalBroker};
use crate::name::Name;
use crate::{ending, start};
use secret::arguments;
pub use secret::{ChatSecret, SecretSource, print_fresh};

/// Kafka's default port, and the small broker's.
const PORT: u16 = 9092;

/// How long the question for the other's name waits for a connection, and for what is said before it.
const GREETING_WAIT: Duration = Duration::from_secs(1);

/// The question for the user's own name, as the tutorial asks it.
pub const WHO_ARE_YOU: &str = "What is your name? ";
/// The question for the other's name.
pub const WHO_ELSE: &str = "Who do you want to connect to? ";

/// A Kafka; and the small broker, if that is it, and this process runs it or could take over.
pub type Connected = (Box<dyn Cluster>, Weak<LocalBroker>);

/// Runs a program on its arguments, and turns its failure into a sentence and an exit code.
pub fn run<A: Parser>(program: impl FnOnce(A) -> Result<()>) -> ExitCode {
    start::with_few_arenas();
    ending::run(|| program(arguments()?))
}

/// Which Kafka to talk to.
#[derive(Args, Debug)]
#[command(next_help_heading = "Which Kafka")]
pub struct Connection {
    /// Bootstrap servers of a Kafka cluster [env: KAFKA_BOOTSTRAP_SERVERS] [default:
    /// localhost:9092, or the small broker if nothing listens there]
    #[arg(short, long, value_name = "HOST:PORT,…", conflicts_with = "embedded")]
    bootstrap_servers: Option<String>,

    /// Use the small broker and nothing else, on 127.0.0.1
    #[arg(
        long,
        value_name = "PORT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "9092",
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    embedded: Option<u16>,

    /// Set a property of librdkafka, as kcat's -X does; can be given several times
    #[arg(
        short = 'X',
        long = "property",
        value_name = "NAME=VALUE",
        conflicts_with = "embedded"
    )]
    properties: Vec<String>,

    /// Read properties from a file, as kcat's -F does
    #[arg(
        short = 'F',
        long = "config",
        value_name = "FILE",
        conflicts_with = "embedded"
    )]
    config: Option<PathBuf>,

    /// Where the small broker keeps its log [default: the platform's data directory]
    #[arg(long, value_name = "DIR", env = "KAFKA_CHAT_DATA_DIR")]
    data_dir: Option<PathBuf>,

    /// Let all accounts of this machine use the small broker, and use one that another account runs. Without this
    /// option, only this account and root can (on Linux)
    #[arg(long)]
    shared: bool,
}

impl Connection {
    /// Reaches the Kafka that the command line and the environment name, or the small broker.
    pub fn connect(&self) -> Result<Connected> {
        self.connect_to_read(None)
    }

    /// As [`connect`](Connection::connect); to read records in full, if there is an option that needs them so.
    pub fn connect_to_read(&self, in_full: Option<&str>) -> Result<Connected> {
        in_full.map_or(Ok(()), client::check_librdkafka)?;
        let (mut options, broker) = self.options()?;
        options.reads_in_full = in_full.is_some();
        Ok((client::connect(&options)?, broker))
    }

    /// As [`connect`](Connection::connect), and asks for the other's name, after what `greet` prints. It is given the
    /// cluster, if that could be reached in time, and the time by which the question is due: a broker that does not
    /// answer delays it by a second.
    pub fn connect_and_ask(
        self,
        greet: impl FnOnce(Option<&dyn Cluster>, Instant),
    ) -> Result<(Name, Connected)> {
        let until = Instant::now() + GREETING_WAIT;
        let (tx, connections) = mpsc::channel();
        spawn("connect", move || drop(tx.send(self.connect())))?;
        let connected = connections.recv_timeout(GREETING_WAIT).ok().transpose()?;
        greet(
            connected.as_ref().map(|(cluster, _)| cluster.as_ref()),
            until,
        );
        let name = name(None, WHO_ELSE)?;
        let connected = match connected {
            Some(connected) => connected,
            None => connections
                .recv()
                .map_err(|_| Error::failed("cannot connect", "its thread panicked"))??,
        };
        Ok((name, connected))
    }

    /// The words of a command line by which another program reaches the same Kafka, but no properties, which may be
    /// secret.
    pub fn words(&self) -> Vec<String> {
        let servers = self.bootstrap_servers.iter();
        let servers = servers.flat_map(|servers| ["-b".into(), shell_word(servers)]);
        let embedded = self.embedded.map(|port| format!("--embedded={port}"));
        let config = self.config.iter();
        let config = config.flat_map(|file| ["-F".into(), shell_word(&file.to_string_lossy())]);
        servers.chain(embedded).chain(config).collect()
    }

    fn options(&self) -> Result<(Options, Weak<LocalBroker>)> {
        let mut properties = self.properties()?;
        // The command line and a file take precedence over the environment. (Not clap's `env`: with
        // that, the variable would conflict with --embedded, too.)
        let among = servers_among(&mut properties);
        let named = self.bootstrap_servers.clone().or(among).or_else(|| {
            std::env::var("KAFKA_BOOTSTRAP_SERVERS")
                .ok()
                .filter(|servers| self.embedded.is_none() && !servers.is_empty())
        });
        let named = match named {
            // Properties are for a real Kafka, never for the small broker.
            None if !properties.is_empty() => {
                let default = format!("localhost:{PORT}");
                host::check_account(&default, self.shared)?;
                Some(default)
            }
            named => named,
        };
        match named {
            Some(servers) => {
                let options = Options {
                    servers: bootstrap_servers(&servers)?,
                    properties,
                    ..Options::default()
                };
                Ok((options, Weak::new()))
            }
            None => self.local(),
        }
    }

    /// The properties of the file, then those of the command line, which take precedence.
    fn properties(&self) -> Result<Vec<(String, String)>> {
        let mut all = Vec::new();
        if let Some(file) = &self.config {
            let text = fs::read_to_string(file).map_err(|why| {
                Error::usage(format!("cannot read {} (-F): {why}", file.display()))
            })?;
            all = properties::parse(&text)?;
        }
        for property in &self.properties {
            // It may be a password: it is not repeated.
            let (name, value) = property.split_once('=').ok_or_else(|| {
                Error::usage("a property given with -X has no '=': it should read NAME=VALUE")
            })?;
            all.push((name.trim().to_string(), value.to_string()));
        }
        Ok(all)
    }

    /// The broker that serves on this machine; the small one, if none does.
    fn local(&self) -> Result<(Options, Weak<LocalBroker>)> {
        let (port, server) = match self.embedded {
            Some(port) => (port, format!("127.0.0.1:{port}")),
            None => (PORT, format!("localhost:{PORT}")),
        };
        let dir = self.data_dir()?;
        let host = host::find_or_start(&server, port, dir.clone(), self.shared)?;
        let doing = format!("cannot use the small broker on port {port}");
        let broker = match host {
            Host::Kafka if self.embedded.is_some() => {
                return Err(Error::failed(doing, "a real Kafka serves there").hint(
                    "Leave out --embedded to use that one, or choose a port with --embedded=PORT.",
                ));
            }
            Host::Unknown if self.embedded.is_some() => {
                let why = "what serves there closes connections instead of answering";
                return Err(Error::failed(doing, why).hint("Choose a port with --embedded=PORT."));
            }
            Host::Kafka | Host::Unknown => None,
            Host::Other(broker) => {
                if let Some(notice) = broker.notice() {
                    say(notice);
                }
                Some(broker)
            }
            Host::Us(broker) => {
                let nobody = match self.embedded {
                    Some(_) => String::new(),
                    None => format!("No Kafka at {server}. "),
                };
                let whose = match self.shared {
                    true => ", for all accounts of this machine",
                    false => "",
                };
                say(format!(
                    "{nobody}This program now runs a small broker of its own at {}{whose}, with its log \
                     in {}. To use a real Kafka: -b HOST:PORT.",
                    broker.server(),
                    dir.display()
                ));
                Some(broker)
            }
        };
        // Only the client keeps it: once that is dropped, so is the broker.
        let weak = broker.as_ref().map_or_else(Weak::new, Arc::downgrade);
        let options = Options {
            servers: vec![broker.as_ref().map_or(server, |it| it.server())],
            log_id: broker.as_ref().and_then(|it| it.log_id()),
            take_over: broker.map(|broker| broker.take_over()),
            ..Options::default()
        };
        Ok((options, weak))
    }

    fn data_dir(&self) -> Result<PathBuf> {
        let given = self.data_dir.clone();
        given
            .or_else(|| Some(dirs::data_dir()?.join("kafka-chat")))
            .ok_or_else(|| {
                Error::usage("this account has no home directory for the small broker's log")
                    .hint("Name a folder with --data-dir DIR.")
            })
    }
}

/// How lines are delivered.
#[derive(Args, Debug)]
pub struct Delivery {
    /// Give up a line that is not acknowledged after this many seconds
    #[arg(
        long = "delivery-timeout",
        value_name = "SECONDS",
        default_value_t = DELIVERY_TIMEOUT.as_secs(),
        value_parser = clap::value_parser!(u64).range(1..=86_400)
    )]
    seconds: u64,
}

impl Delivery {
    /// How long a line is tried before it is given up.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// Takes the bootstrap servers out of the properties: the last that are given, by either name.
fn servers_among(properties: &mut Vec<(String, String)>) -> Option<String> {
    let (mut servers, others): (Vec<_>, Vec<_>) = std::mem::take(properties)
        .into_iter()
        .partition(|(name, _)| properties::first_name(name) == "bootstrap.servers");
    *properties = others;
    servers.pop().map(|(_, value)| value)
}

/// A text as one word for a shell.
fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,@%+=".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.into(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// The most bootstrap servers: each is probed from a thread of its own.
const MAX_SERVERS: usize = 50;

/// Splits `host:port,…`; a missing port is Kafka's default.
fn bootstrap_servers(list: &str) -> Result<Vec<String>> {
    if list.split(',').count() > MAX_SERVERS {
        let why = format!("-b, --bootstrap-servers takes at most {MAX_SERVERS} servers");
        return Err(Error::usage(why).hint("Any one of them leads to the whole cluster."));
    }
    list.split(',')
        .map(|server| bootstrap_server(server.trim()))
        .collect()
}

fn bootstrap_server(server: &str) -> Result<String> {
    let wrong = |what: &str| {
        Error::usage(format!(
            "'{}' in -b, --bootstrap-servers is not HOST:PORT: {what}",
            server.escape_debug()
        ))
    };
    if server.is_empty() {
        return Err(wrong("it is empty"));
    }
    // [::1] and [::1]:9092 have colons of their own.
    let (host, port) = match server.rsplit_once(':') {
        Some((host, _)) if host.starts_with('[') && !host.ends_with(']') => (server, None),
        Some((host, port)) => (host, Some(port)),
        None => (server, None),
    };
    if host.is_empty()
        || host.contains(['/', ' '])
        || (host.contains(':') && !host.starts_with('['))
    {
        return Err(wrong("the host is missing, or not the name of a machine"));
    }
    match port.map(str::parse::<u16>) {
        None => Ok(format!("{host}:{PORT}")),
        Some(Ok(port)) if port > 0 => Ok(format!("{host}:{port}")),
        Some(_) => Err(wrong("a port is a number from 1 to 65535")),
    }
}

/// The name given on the command line, or the answer to `question`.
///
/// At a terminal a bad answer is asked for again; elsewhere it ends the program, as a bad argument.
pub fn name(given: Option<String>, question: &str) -> Result<Name> {
    if let Some(name) = given {
        return name.parse();
    }
    loop {
        let answer = ask(question)?;
        match answer.parse() {
            Err(error) if io::stdin().is_terminal() => say(error),
            result => return result,
        }
    }
}

fn ask(question: &str) -> Result<String> {
    let mut stderr = io::stderr();
    let _ = stderr.write_all(question.as_bytes());
    let _ = stderr.flush();
    let mut answer = Vec::new();
    // Longer than any name, and no more, in case the input is a wrong file.
    io::stdin()
        .lock()
        .take(1000)
        .read_until(b'\n', &mut answer)
        .map_err(|why| Error::failed("cannot read standard input", why))?;
    if answer.is_empty() {
        say("");
        return Err(Error::usage("standard input ended before it gave a name")
            .hint("Names can be given as arguments, too: see --help."));
    }
    if !io::stdin().is_terminal() {
        say("");
    }
    Ok(String::from_utf8_lossy(&answer).trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bootstrap_servers_are_hosts_and_ports() {
        assert_eq!(
            bootstrap_servers("a:1, b,[::1]:9,[::1],127.0.0.1:65535").unwrap(),
            ["a:1", "b:9092", "[::1]:9", "[::1]:9092", "127.0.0.1:65535"]
        );
    }

    #[test]
    fn the_words_of_a_connection_are_words_of_a_shell_and_no_properties() {
        use clap::{Command, FromArgMatches};

        for (given, words) in [
            (&[][..], ""),
            (&["-b", "a:1,b"], "-b a:1,b"),
            (&["-b", "a:1, b:2"], "-b 'a:1, b:2'"),
            (&["--embedded"], "--embedded=9092"),
            (&["-X", "sasl.password=x", "-F", "it's"], r"-F 'it'\''s'"),
        ] {
            let command = Connection::augment_args(Command::new("chat").no_binary_name(true));
            let matches = command.get_matches_from(given);
            let connection = Connection::from_arg_matches(&matches).unwrap();
            assert_eq!(connection.words().join(" "), words);
        }
    }

    #[test]
    fn servers_are_found_among_the_properties_by_both_names() {
        let pairs = [
            ("bootstrap.servers", "a:1"),
            ("acks", "all"),
            ("metadata.broker.list", "b:2"),
        ];
        let mut properties = pairs.map(|(n, v)| (n.to_string(), v.to_string())).to_vec();
        assert_eq!(servers_among(&mut properties).as_deref(), Some("b:2"));
        assert_eq!(properties, [("acks".to_string(), "all".to_string())]);
        assert_eq!(servers_among(&mut properties), None);
    }

    #[test]
    fn what_is_no_host_and_port_is_named() {
        for list in [
            "a:b",
            "a:0",
            "a:65536",
            "",
            ":9092",
            "a,,b",
            "http://a:9092",
            "::1",
        ] {
            let error = bootstrap_servers(list).unwrap_err().to_string();
            assert!(error.contains("is not HOST:PORT"), "{list}: {error}");
        }
    }
}
