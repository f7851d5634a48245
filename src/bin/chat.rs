//! Both at once: shows what the other writes, and sends them what is typed.

use std::process::ExitCode;

use clap::Parser;
use kafka_chat::chat::{self, Options, Parties};
use kafka_chat::cli::{self, Connection, Delivery};
use kafka_chat::ending;
use kafka_chat::error::Result;

/// Talks with PEER, and with nobody else
#[derive(Parser)]
#[command(
    version,
    after_help = "Example: chat alice bob, and elsewhere: chat bob alice\n\
                  To leave: Ctrl-D, or Ctrl-C on an empty line"
)]
struct Arguments {
    /// Your name; asked for if left out
    me: Option<String>,
    /// Whom to talk with; asked for if left out
    peer: Option<String>,
    /// Show lines that carry no name, too
    #[arg(long)]
    unsigned: bool,
    /// Talk with the tutorial's chat.py, which swaps the topics and signs nothing
    #[arg(long)]
    tutorial: bool,
    /// Ring the terminal's bell for PEER's messages, once for each burst
    #[arg(long)]
    bell: bool,
    #[command(flatten)]
    delivery: Delivery,
    #[command(flatten)]
    connection: Connection,
}

fn main() -> ExitCode {
    ending::run(|| open(Arguments::parse()))
}

fn open(arguments: Arguments) -> Result<()> {
    let me = cli::name(arguments.me, cli::WHO_ARE_YOU)?;
    let peer = cli::name(arguments.peer, cli::WHO_ELSE)?;
    let parties = Parties::new(me, peer, arguments.unsigned, arguments.tutorial)?;
    let (cluster, broker) = arguments.connection.connect()?;
    let options = Options {
        delivery_timeout: arguments.delivery.timeout(),
        bell: arguments.bell,
        broker,
    };
    chat::run(cluster, parties, options)
}
