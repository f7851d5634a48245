//! `publisher` and `subscriber` in one: shows what the peer writes, and sends what is typed.

use std::process::ExitCode;

use clap::Parser;
use kafka_chat::chat::{self, Options};
use kafka_chat::cli::{self, Connection};
use kafka_chat::error::Result;

/// Talks with PEER, and with nobody else
#[derive(Parser)]
#[command(
    version,
    after_help = "Example: chat alice bob, and elsewhere: chat bob alice\n\
                  To leave: Ctrl-D, or Ctrl-C on an empty line"
)]
pub(crate) struct Arguments {
    /// Your name; asked for if left out
    me: Option<String>,
    /// Whom to talk with; asked for if left out
    peer: Option<String>,
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    connection: Connection,
}

fn main() -> ExitCode {
    cli::run(open)
}

fn open(arguments: Arguments) -> Result<()> {
    let Arguments {
        me,
        peer,
        options,
        connection,
    } = arguments;
    if options.wants_new_secret() {
        return cli::print_fresh();
    }
    let secret = options.secret(&[&me, &peer])?;
    let me = cli::name(me, cli::WHO_ARE_YOU)?;
    let words = connection.words();
    let (parties, connected) = if peer.is_none() && options.lists_writers() {
        let (peer, connected) = connection.connect_and_ask(|cluster, until| {
            chat::list_writers(cluster, &me, secret.as_ref(), until);
        })?;
        (options.parties(me, peer)?, connected)
    } else {
        // Both names are checked before anything is connected to.
        let parties = options.parties(me, cli::name(peer, cli::WHO_ELSE)?)?;
        (parties, connection.connect()?)
    };
    chat::run(connected, parties, &options, secret, words)
}
